"""Tickets to move: LeNet-5 on MNIST and Fashion-MNIST; a wider and a deeper LeNet-5 on MNIST.

Sources and targets of `analysis.transfer`: between data sets as in Morcos et al. 2019 (arXiv 1906.02773), and
between widths and depths by matched units and layers. Rounds of 40 % (output layer 20 %) pass 22 % and 5 %
of the weights. Training has 2,500 steps, half of those of lenet5_mnist.py.

    python run.py --config configs/transfer_lenet5.py
    python -m analysis.transfer --from runs/MNIST --to runs/FASHION runs/WIDE runs/DEEP --levels 3 6
    python -m analysis.transfer --from runs/FASHION --to runs/MNIST --levels 3 6

with the run folders that the first command prints. Needs mnist.npz and fashion_mnist.npz in data/, or an
internet connection to fetch them once.
Six seeds. Time: 1 h on 2 x86-64 cores for the first command, estimated by `--dry-run`; the second moves
to two of its targets in 31 min, measured, the third takes 8.
Result: the figures and tables in the `transfer` folder of every target's run folder, and its report;
published in results/transfer_mnist, transfer_fashion_mnist, transfer_wide and transfer_deep.
"""

from lthjax import sweep
from lthjax.config import Data, Prune, Study, Train

base = Study(
    name="transfer_lenet5",
    seeds=(0, 1, 2, 3, 4, 5),
    levels=6,
    arms=("ticket",),
    model="lenet5",
    data=Data(name="mnist"),
    prune=Prune(rate=(("output", 0.2), (".", 0.4))),
    train=Train(steps=2500, batch=60, eval_every=500),
)
configs = sweep.studies(
    base,
    [{}, {"data.name": "fashion_mnist"}, {"model": "lenet5_wide"}, {"model": "lenet5_deep"}],
)
