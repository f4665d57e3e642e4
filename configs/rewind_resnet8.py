"""Late rewinding: ResNet-8 on CIFAR-10 at a high learning rate, rewound to steps 0, 100, 500 and 2,000.

The question of Frankle et al. 2020 (Linear Mode Connectivity, arXiv 1912.05671) on a residual network that is
trained in minutes on a GPU: SGD at 0.1 with momentum 0.9, weight decay 1e-4 and a cosine schedule, batches
of 128, images shifted and mirrored. Every round prunes 36 % (two rounds of 20 % in one) of all 3x3
convolutions, ranked together. Random masks of the same density are trained from the same steps.

    python run.py --config configs/rewind_resnet8.py
    python -m analysis.stability runs/REWIND_RESNET8 --k 0 100 500 2000 --arms dense --levels 4

Needs cifar10.npz in data/, or an internet connection to fetch it once.
Time: 12 h on 2 x86-64 cores, estimated by `--dry-run`; an H100 trained it, six networks at a time, in about
18 min, which other work shared.
Result: the figure of rewind steps in the report; `analysis.stability` adds how stable each step is to the
order of the data. Published in results/rewind_resnet8.
"""

from lthjax.config import Data, Optim, Prune, Study, Train

config = Study(
    name="rewind_resnet8",
    seeds=(0, 1, 2),
    levels=4,
    arms=("ticket", "random"),
    rewind=(0, 100, 500, 2000),
    model="resnet8",
    init="kaiming_uniform_scale",
    data=Data(name="cifar10", augment=True),
    train=Train(steps=4000, batch=128, eval_every=1000),
    optim=Optim(name="sgd", lr=0.1, momentum=0.9, weight_decay=1e-4, schedule="cosine"),
    prune=Prune(scope="group", rate=(("conv", 0.36),)),
)
