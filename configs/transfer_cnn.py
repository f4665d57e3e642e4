"""Tickets to move: the small CNN on CIFAR-10, and one of twice its width.

Between widths by matched units, as in transfer_lenet5.py (the idea of Chen et al. 2021, arXiv 2103.16547).
Rounds of 36 % (two rounds of 20 % in one; output layer 20 %) pass 41 % and 17 % of the weights. Half the
steps of cifar_cnn.py, with its learning rate and schedule.

    python run.py --config configs/transfer_cnn.py
    python -m analysis.transfer --from runs/SMALL --to runs/WIDE --levels 4 --arms transferred_init shuffled

with the run folders that the first command prints. Needs cifar10.npz in data/, or an internet connection to
fetch it once. Meant for a GPU or TPU.
Time: 4 h on 2 x86-64 cores for the first command, estimated by `--dry-run`; on an NVIDIA H100 4 min, beside
another program, and 3 min for both levels 2 and 4 of the second.
Result: the figures and tables in the `transfer` folder of the target's run folder, and its report; published
in results/transfer_cnn.
"""

from lthjax import sweep
from lthjax.config import Data, Optim, Prune, Study, Train

base = Study(
    name="transfer_cnn",
    seeds=(0, 1, 2),
    levels=4,
    arms=("ticket",),
    model="small_cnn",
    data=Data(name="cifar10"),
    prune=Prune(rate=(("output", 0.2), (".", 0.36))),
    train=Train(steps=5000, batch=60, eval_every=1000),
    optim=Optim(lr=2e-3, schedule="cosine"),
)
configs = sweep.studies(base, [{}, {"model": "small_cnn_wide"}])
