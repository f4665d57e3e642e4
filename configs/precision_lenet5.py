"""The accuracy cost of rounding the factors of products: LeNet-5 on MNIST in float32, TF32 and bfloat16.

Only the factors of matrix products and convolutions are rounded; weights, sums and all else are float32, as
in the GPU and TPU units that this option is for. The three studies share initial weights, split and order per
seed, so differences are paired. The schedule is that of transfer_lenet5.py.

    python run.py --config configs/precision_lenet5.py

Needs mnist.npz in data/, or an internet connection to fetch it once.
Time: 11 min 44 s on 2 x86-64 cores, measured; rounded factors do not speed up a CPU.
Result: a page that compares the three.
"""

from lthjax import sweep
from lthjax.config import Data, Prune, Study, Train

base = Study(
    name="precision_lenet5",
    seeds=(0, 1, 2),
    levels=6,
    arms=("ticket",),
    model="lenet5",
    data=Data(name="mnist"),
    prune=Prune(rate=(("output", 0.2), (".", 0.4))),
    train=Train(steps=2500, batch=60, eval_every=500),
)
configs = sweep.studies(base, sweep.values("train.precision", "float32", "tensorfloat32", "bfloat16"))
