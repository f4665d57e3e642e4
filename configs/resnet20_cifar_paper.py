"""ResNet-20 on CIFAR-10, rewound to step 0 and to step 2,000, hyperparameters of Frankle et al. 2020.

Linear Mode Connectivity (arXiv 1912.05671), table 1: 63,000 steps of batch 128, SGD with momentum 0.9 and
weight decay 1e-4. The learning rate is 0.1, divided by ten at step 32,000 and again at 48,000; images are
shifted and mirrored. Weights start from Kaiming's normal distribution, scales of batch normalisation uniform
in [0, 1]. Each round prunes 20 % of the remaining weights of all 3x3 convolutions, ranked together, but not
shortcuts and output layer (Frankle & Carbin 2019, arXiv 1803.03635, section 4).

    python run.py --config configs/resnet20_cifar_paper.py

Needs cifar10.npz in data/, or an internet connection to fetch it once.
Time: meant for a GPU or TPU; on a CPU it takes weeks: `--dry-run` estimates it on your machine.
Result: the papers find that tickets rewound to step 0 are no better than random pruning at this learning
rate (87.7 % both at 16.7 % of the weights, arXiv 1903.01611, figure 3), and that late rewinding fixes this.
"""

from lthjax.config import Data, Optim, Prune, Study, Train

config = Study(
    name="resnet20_cifar_paper",
    seeds=(0, 1, 2),
    levels=12,
    rewind=(0, 2000),
    model="resnet20",
    init="kaiming_uniform_scale",
    data=Data(name="cifar10", augment=True),
    train=Train(steps=63_000, batch=128, eval_every=1000),
    optim=Optim(
        name="sgd",
        lr=0.1,
        momentum=0.9,
        weight_decay=1e-4,
        schedule="steps",
        milestones=(32_000, 48_000),
    ),
    prune=Prune(scope="group", rate=(("conv", 0.2),)),
)
