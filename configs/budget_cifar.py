"""The gap between tickets and their controls against the length of training: a small CNN on CIFAR-10.

As budget_lenet5.py, with the network and the optimiser of cifar_cnn.py: six seeds, 625, 1,250, 2,500 and
10,000 steps a training, the cosine schedule ending with each; controls at 17 and 7 % of the weights. The
longest trainings have the settings of cifar_cnn.py.

    python run.py --config configs/budget_cifar.py

Needs cifar10.npz in data/, or an internet connection to fetch it once.
Time: 10 h on 2 x86-64 cores, estimated by `--dry-run`.
Result: a page that compares the studies; published in results/budget_cifar.
"""

from lthjax import sweep
from lthjax.config import Data, Optim, Study, Train

base = Study(
    name="budget_cifar",
    seeds=(0, 1, 2, 3, 4, 5),
    levels=12,
    arms=("ticket", "reinit", "random"),
    control_levels=(8, 12),
    model="small_cnn",
    data=Data(name="cifar10"),
    train=Train(batch=60),
    optim=Optim(lr=2e-3, schedule="cosine"),
)
configs = sweep.studies(
    base,
    sweep.zipped(
        sweep.values("train.steps", 625, 1250, 2500, 10_000),
        sweep.values("train.eval_every", 125, 250, 500, 1000),
    ),
)
