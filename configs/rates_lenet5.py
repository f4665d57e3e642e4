"""Pruning rates and schedules: LeNet-5 on MNIST, 10, 20, 40 and 60 % per round and one-shot.

Frankle & Carbin 2019 (arXiv 1803.03635) compare one-shot with iterative pruning in section 2 and rates
in an appendix. Here every schedule ends at about 5 % of the weights (60 % per round at 2.6 %), by layer
and globally. One-shot pruning goes to densities that 20 % per round passes. The dense networks are
trained once and shared.

    python run.py --config configs/rates_lenet5.py

Needs mnist.npz in data/, or an internet connection to fetch it once.
Time: 2 h on 2 x86-64 cores, estimated by `--dry-run`.
Result: a page that compares the studies and names the cheapest schedule for every density; published in
results/rates_lenet5.
"""

from lthjax import sweep
from lthjax.config import Data, Study, Train

base = Study(
    name="rates_lenet5",
    seeds=(0, 1, 2, 3, 4, 5),
    arms=("ticket",),
    model="lenet5",
    data=Data(name="mnist"),
    train=Train(steps=2500, batch=60, eval_every=500),
)
rounds = sweep.zipped(
    sweep.values("prune.rate", 0.1, 0.2, 0.4, 0.6),
    sweep.values("levels", 28, 13, 6, 4),
)
one_shot = sweep.product(
    sweep.values("levels", 1),
    sweep.values("prune.density", *(round(0.8**level, 4) for level in (3, 6, 9, 13))),
)
configs = sweep.studies(
    base,
    sweep.product(sweep.values("prune.scope", "layer", "global"), [*rounds, *one_shot]),
)
