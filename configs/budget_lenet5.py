"""The gap between tickets and their controls against the length of training: LeNet-5 on MNIST.

Is a large gap to reinitialised networks a property of tickets, or of short training? Six seeds, 20 % a round
down to 7 % of the weights, with 625, 1,250, 2,500 and 5,000 steps a training; controls at 17 and 7 %.

    python run.py --config configs/budget_lenet5.py

Needs mnist.npz in data/, or an internet connection to fetch it once.
Time: 2 h 52 min on 2 x86-64 cores of a busy machine, measured.
Result: a page that compares the studies; published in results/budget_lenet5.
"""

from lthjax import sweep
from lthjax.config import Data, Study, Train

base = Study(
    name="budget_lenet5",
    seeds=(0, 1, 2, 3, 4, 5),
    levels=12,
    arms=("ticket", "reinit", "random"),
    control_levels=(8, 12),
    model="lenet5",
    data=Data(name="mnist"),
    train=Train(batch=60),
)
configs = sweep.studies(
    base,
    sweep.zipped(
        sweep.values("train.steps", 625, 1250, 2500, 5000),
        sweep.values("train.eval_every", 125, 250, 500, 1000),
    ),
)
