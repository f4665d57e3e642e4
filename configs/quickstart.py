"""tmp"""
from lthjax.config import Data, Study, Train

config = Study(
    name="quickstart",
    seeds=(0, 1),
    levels=11,
    control_levels=(3, 5, 7, 9, 11),
    model="lenet5",
    data=Data(name="mnist_10k", validation=1000),
    train=Train(steps=450, batch=60, eval_every=75),
)
