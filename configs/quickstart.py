"""The whole experiment in minutes: LeNet-5 on 10,000 images of MNIST, down to 9 % of its weights.

A small reproduction of Frankle & Carbin 2019 (arXiv 1803.03635), section 2: tickets found by iterative
magnitude pruning keep the dense network's accuracy. The same masks on fresh weights (reinit) and random
masks on the same weights (random) lose it.

    python run.py --config configs/quickstart.py

Time: about 2.5 minutes on 2 x86-64 cores.
Result: at 8.9 % of the weights tickets lose about a point of the dense network's 95 % (after 450 training
steps), reinit and random about ten.
"""

from lthjax.config import Data, Study, Train

config = Study(
    name="quickstart",
    seeds=(0, 1, 2),
    levels=11,
    control_levels=(3, 5, 7, 9, 11),
    model="lenet5",
    data=Data(name="mnist_10k", validation=1000),
    train=Train(steps=450, batch=60, eval_every=75),
)
