"""The gap between tickets and their controls against the length of training: a small CNN on CIFAR-10.

As budget_lenet5.py, with the network and the optimiser of cifar_cnn.py: three seeds, 1,250, 2,500, 5,000 and
10,000 steps a training, the cosine schedule ending with each; controls at 17 and 6 % of the weights.

    python run.py --config configs/budget_cifar.py

Needs cifar10.npz in data/, or an internet connection to fetch it once.
Time: 9 h on 2 x86-64 cores, estimated by `--dry-run`.
Result: a page that compares the studies.
"""

from lthjax import sweep
from lthjax.config import Data, Optim, Study, Train

base = Study(
    name="budget_cifar",
    seeds=(0, 1, 2),
    levels=13,
    arms=("ticket", "reinit", "random"),
    control_levels=(8, 13),
    model="small_cnn",
    data=Data(name="cifar10"),
    train=Train(batch=60),
    optim=Optim(lr=2e-3, schedule="cosine"),
)
configs = sweep.studies(
    base,
    sweep.zipped(
        sweep.values("train.steps", 1250, 2500, 5000, 10_000),
        sweep.values("train.eval_every", 250, 500, 1000, 2000),
    ),
)
