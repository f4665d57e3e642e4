"""LeNet-300-100 on MNIST: the paper's hyperparameters, six seeds, a fifth of the paper's training steps.

Frankle & Carbin 2019 (arXiv 1803.03635), section 2: Adam 1.2e-3, batch 60, 20 % of the remaining weights per
round and 10 % in the output layer. Training has 10,000 steps (11 epochs) instead of the paper's 50,000
(`configs/lenet300_mnist_paper.py`). Controls run at the two levels whose values are published.

    python run.py --config configs/lenet300_mnist.py

Needs mnist.npz in data/, or an internet connection to fetch it once.
Time: 27 min on 2 x86-64 cores of a busy machine, measured.
Result: the report in the run folder.
"""

from lthjax.config import Data, Optim, Prune, Study, Train

config = Study(
    name="lenet300_mnist",
    seeds=(0, 1, 2, 3, 4, 5),
    levels=16,
    control_levels=(7, 10),
    model="lenet300",
    data=Data(name="mnist"),
    train=Train(steps=10_000, batch=60, eval_every=100),
    optim=Optim(name="adam", lr=1.2e-3),
    prune=Prune(rate=(("output", 0.1), ("fc", 0.2))),
)
