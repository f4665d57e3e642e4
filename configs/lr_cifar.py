"""The learning rate of cifar_cnn.py, chosen on validation images: a small CNN on CIFAR-10.

Reinitialised networks may want another learning rate than the dense one, so it is chosen for both: the rate
with the highest mean of the two arms' validation accuracies. Pruned once to 17 % of the weights, which takes
two trainings in a row where cifar_cnn.py takes nine; with three seeds that cifar_cnn.py does not use.

    python run.py --config configs/lr_cifar.py

Needs cifar10.npz in data/, or an internet connection to fetch it once.
Time: 2 h on 2 x86-64 cores, estimated by `--dry-run`.
Result: a page that compares the studies; published in results/lr_cifar.
"""

from lthjax import sweep
from lthjax.config import Data, Optim, Prune, Study, Train

base = Study(
    name="lr_cifar",
    seeds=(6, 7, 8),
    levels=1,
    arms=("ticket", "reinit"),
    control_levels=(1,),
    model="small_cnn",
    data=Data(name="cifar10"),
    train=Train(steps=10_000, batch=60, eval_every=1000),
    optim=Optim(schedule="cosine"),
    prune=Prune(rate=0.83),
)
configs = sweep.studies(base, sweep.values("optim.lr", 1e-3, 2e-3, 4e-3, 8e-3))
