"""LeNet-300-100 on MNIST with the hyperparameters of Frankle & Carbin 2019 (arXiv 1803.03635), section 2.

50,000 steps of batch 60, Adam 1.2e-3, 20 % of the remaining weights per round and 10 % in the output
layer, evaluated every 100 steps, five trials, three reinitialisations per ticket, down to 1.2 %.

    python run.py --config configs/lenet300_mnist_paper.py

Needs mnist.npz in data/, or an internet connection to fetch it once.
Time: long; `--dry-run` estimates it on your machine, and `--train.steps 5000` makes it ten times shorter.
Result: the paper reports about 98.1 % dense and the same accuracy at 3.6 % of the weights.
"""

from lthjax.config import Data, Optim, Prune, Study, Train

config = Study(
    name="lenet300_mnist_paper",
    seeds=(0, 1, 2, 3, 4),
    levels=20,
    repeats=(("reinit", 3),),
    model="lenet300",
    data=Data(name="mnist"),
    train=Train(steps=50_000, batch=60, eval_every=100),
    optim=Optim(name="adam", lr=1.2e-3),
    prune=Prune(rate=(("output", 0.1), ("fc", 0.2))),
)
