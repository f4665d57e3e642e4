"""A small target for transfer: LeNet-5 with twice its channels and units, on 10,000 images of MNIST.

The quickstart's training on another architecture, to which tickets are moved (`analysis.transfer`, after
Chen et al. 2021, arXiv 2103.16547). Its own tickets, in larger steps, are the baseline of the moved
tickets.

    python run.py --config configs/quickstart_wide.py
    python -m analysis.transfer --from runs/quickstart-f91424be --to configs/quickstart_wide.py

Time: about 70 seconds on 2 x86-64 cores.
Result: the report in the run folder; the matrix of transfers in runs/transfer.
"""

from lthjax.config import Data, Prune, Study, Train

config = Study(
    name="quickstart_wide",
    seeds=(0, 1),
    levels=5,
    arms=("ticket",),
    model="lenet5_wide",
    data=Data(name="mnist_10k", validation=1000),
    train=Train(steps=450, batch=60, eval_every=75),
    prune=Prune(rate=(("output", 0.2), (".", 0.37))),
)
