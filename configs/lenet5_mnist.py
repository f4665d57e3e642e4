"""LeNet-5 on MNIST: six seeds, down to 2.4 % of its weights, controls at every second level.

The protocol of Frankle & Carbin 2019 (arXiv 1803.03635) for LeNet on MNIST (Adam 1.2e-3, batch 60, 20 %
per round and 10 % in the output layer), on the convolutional LeNet-5, with shorter training of 5,000
steps (5.5 epochs).

    python run.py --config configs/lenet5_mnist.py

Needs mnist.npz in data/, or an internet connection to fetch it once.
Time: 1 h 26 min on 2 x86-64 cores, measured.
Result: the report in the run folder.
"""

from lthjax.config import Data, Study, Train

config = Study(
    name="lenet5_mnist",
    seeds=(0, 1, 2, 3, 4, 5),
    levels=17,
    arms=("ticket", "reinit", "random", "reinit_rescaled"),
    control_levels=(2, 4, 6, 8, 10, 12, 14, 16, 17),
    model="lenet5",
    data=Data(name="mnist"),
    train=Train(steps=5000, batch=60, eval_every=500),
)
