"""A small CNN on CIFAR-10: three seeds, down to 9 % of its weights, controls at four levels.

The experiment of Frankle & Carbin 2019 (arXiv 1803.03635), section 3, on a network small enough for a
laptop: 3x3 convolutions 16-16, pool, 32-32, pool, dense 128; 279,984 weights. Batches of 60 as in the paper;
Adam at 2e-3, at which the dense network's validation loss stops improving after 3,000 steps (4 epochs).

    python run.py --config configs/cifar_cnn.py
    python run.py --config configs/cifar_cnn.py --rewind 0 250 --arms ticket    # adds tickets rewound to 250

Needs cifar10.npz in data/, or an internet connection to fetch it once.
Time: about 1 h 20 min on 2 x86-64 cores, estimated by `--dry-run`, and 45 min for the second command.
Result: the report in the run folder.
"""

from lthjax.config import Data, Optim, Study, Train

config = Study(
    name="cifar_cnn",
    seeds=(0, 1, 2),
    levels=11,
    control_levels=(4, 8, 10, 11),
    model="small_cnn",
    data=Data(name="cifar10"),
    train=Train(steps=3250, batch=60, eval_every=500),
    optim=Optim(lr=2e-3),
)
