"""A small CNN on CIFAR-10, trained long enough: six seeds, to 7 % of its weights, controls at three levels.

The experiment of Frankle & Carbin 2019 (arXiv 1803.03635), section 3, on a network small enough for a
laptop: 3x3 convolutions 16-16, pool, 32-32, pool, dense 128; 279,984 weights. Batches of 60 as in the paper;
10,000 steps (13 epochs) of Adam at 2e-3 with a cosine schedule, three times as many as the dense network
needs: reinitialised networks learn more slowly, and a short training would show that as their accuracy.

    python run.py --config configs/cifar_cnn.py
    python run.py --config configs/cifar_cnn.py --levels 8 --control-levels 5 8    # to 17 % of the weights

Needs cifar10.npz in data/, or an internet connection to fetch it once.
Time: 7 h and 5 h on 2 x86-64 cores, estimated by `--dry-run`; the first 13 min on an H100 with other work.
Result: the report in the run folder, published in results/cifar_cnn.
"""

from lthjax.config import Data, Optim, Study, Train

config = Study(
    name="cifar_cnn",
    seeds=(0, 1, 2, 3, 4, 5),
    levels=12,
    arms=("ticket", "reinit", "reinit_rescaled", "random"),
    control_levels=(5, 8, 12),
    model="small_cnn",
    data=Data(name="cifar10"),
    train=Train(steps=10_000, batch=60, eval_every=1000),
    optim=Optim(lr=2e-3, schedule="cosine"),
)
