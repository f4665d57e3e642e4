"""Conv-6 on CIFAR-10 with the hyperparameters of Frankle & Carbin 2019 (arXiv 1803.03635), section 3.

30,000 steps of batch 60, Adam 3e-4, a round removes 15 % of the remaining weights of the
convolutions, 20 % of the dense layers and 10 % of the output layer; evaluated every 100 steps, five
trials, three reinitialisations per ticket.

    python run.py --config configs/conv6_cifar_paper.py

Needs cifar10.npz in data/, or an internet connection to fetch it once.
Time: meant for a GPU or TPU; on a CPU it takes weeks: `--dry-run` estimates it on your machine.
Result: the paper's best tickets are 3.3 points above the dense network, at 26.4 % of the weights.
"""

from lthjax.config import Data, Optim, Prune, Study, Train

config = Study(
    name="conv6_cifar_paper",
    seeds=(0, 1, 2, 3, 4),
    levels=20,
    repeats=(("reinit", 3),),
    model="conv6",
    data=Data(name="cifar10"),
    train=Train(steps=30_000, batch=60, eval_every=100),
    optim=Optim(name="adam", lr=3e-4),
    prune=Prune(rate=(("conv", 0.15), ("output", 0.1), ("fc", 0.2))),
)
