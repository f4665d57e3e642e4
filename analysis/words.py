"""Numbers, intervals, networks and commands in words, the same everywhere."""

from collections.abc import Mapping
from typing import Any

from lthjax.errors import shell
from lthjax.measures.stats import Interval

_NETWORKS = {"lenet300": "LeNet-300-100", "lenet5": "LeNet-5", "small_cnn": "Small CNN",
             "lenet5_wide": "LeNet-5 wide"} | {f"conv{n}": f"Conv-{n}" for n in (2, 4, 6)}  # fmt: skip
_DATA = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "kmnist": "KMNIST", "cifar10": "CIFAR-10",
         "cifar100": "CIFAR-100", "mnist_10k": "10,000 images of MNIST"}  # fmt: skip


def title(about: Mapping[str, Any]) -> str:
    """A study's network and data, for a heading: `LeNet-5 on MNIST`; from its study.json."""
    model, data = about["config"]["model"], about["config"]["data"]["name"]
    return f"{_NETWORKS.get(model, model)} on {_DATA.get(data, data)}"


def command(name: str, *arguments: object) -> str:
    """The command of an analysis, as a shell takes it: `python -m analysis.predict runs/A`."""
    return shell("python", "-m", f"analysis.{name}", *arguments)


def interval(of: Interval, form: str, between: str = " ") -> str:
    """A mean with its interval, `0.83 [0.80, 0.86]`; for one seed the mean alone, for none "–".

    `form` is the format of every number, for example `+.2f`; `between` separates mean and bracket.
    """
    if not of.n:
        return "–"
    mean = f"{of.mean:{form}}"
    return mean if of.n == 1 else f"{mean}{between}[{of.low:{form}}, {of.high:{form}}]"


def times(of: Interval, form: str = ".2f") -> str:
    """A ratio: `2.51× [2.10, 3.00]`."""
    mean, bounds = f"{of.mean:{form}}×", f"[{of.low:{form}}, {of.high:{form}}]"
    return mean if of.n < 2 else f"{mean} {bounds}"


def percent(of: Interval) -> str:
    """An accuracy in a table: `97.12 [96.90, 97.34]`."""
    return interval(of, ".2f")


def points(of: Interval) -> str:
    """A difference in a table: `+0.21 [-0.10, +0.52]`."""
    return interval(of, "+.2f")


def share(density: float) -> str:
    """A density: `10.7 %`."""
    return f"{100 * density:.1f} %"


def seeds(n: int) -> str:
    """A number of seeds: `1 seed`, `3 seeds`."""
    return f"{n} seed{'' if n == 1 else 's'}"
