"""Numbers, intervals, networks and commands in words, the same everywhere."""

import math
from collections.abc import Mapping
from typing import Any

from lthjax import home, imp
from lthjax.errors import counted
from lthjax.measures.stats import Interval, Verdict

_NETWORKS = {
    "lenet300": "LeNet-300-100", "lenet5": "LeNet-5", "lenet5_wide": "LeNet-5 wide",
    "lenet5_deep": "LeNet-5 deep", "small_cnn": "Small CNN", "small_cnn_wide": "Small CNN wide",
    **{f"conv{n}": f"Conv-{n}" for n in (2, 4, 6)},
    **{f"resnet{n}": f"ResNet-{n}" for n in (8, 14, 20, 32, 56)},
    **{f"vgg{n}": f"VGG-{n}" for n in (11, 16)},
    **{f"conv{n}_dropout": f"Conv-{n} with dropout" for n in (2, 4, 6)},
    "lenet300_dropout": "LeNet-300-100 with dropout",
}  # fmt: skip
_DATA = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "kmnist": "KMNIST", "cifar10": "CIFAR-10",
         "cifar100": "CIFAR-100", "mnist_10k": "10,000 images of MNIST"}  # fmt: skip

command = home.command
"""The command of an analysis, as a shell takes it: `python -m analysis.predict runs/A`."""
# The kind of bounds that decide, where nothing else is said.
RULE = "one-sided 95 %"


def title(about: Mapping[str, Any]) -> str:
    """A study's network and data, for a heading: `LeNet-5 on MNIST`; from its study.json."""
    model, data = about["config"]["model"], about["config"]["data"]["name"]
    return f"{_NETWORKS.get(model, model)} on {_DATA.get(data, data)}"


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


def decided(
    of: Verdict,
    form: str,
    unit: str = "",
    *,
    both: bool = False,
    below: bool = False,
    rule: str = RULE,
) -> str:
    """An estimate with the one-sided bound that decides: `+6.95 pp, at least +0.52 (one-sided 95 %)`.

    A claim is supported by the lower bound and refuted by the upper one; where neither decides, both are
    shown. A ratio that is known only by bounds has no estimate, and a bound of 0 or infinity is left out.

    Args:
        of: the verdict.
        form: the format of every number.
        unit: after the mean, for example " pp", or "×" of a ratio.
        both: whether both bounds decide, as in an equivalence test.
        below: whether the claim is that the mean is below a threshold, so that the verdict is of the negated
            values.
        rule: what kind of bounds they are; "" to leave it out.
    """
    mean, low, high, n = of.bounds
    if below:
        mean, low, high = -mean, -high, -low
    said = [] if math.isnan(mean) else [f"{_number(mean, form)}{unit}"]
    if n < 2:
        return said[0] if said else "–"
    up = of.outcome == ("refuted" if below else "supported")
    if of.outcome == "undecided" or (both and of.outcome == "supported"):
        shown = [("at least", low), ("at most", high)]
    elif both:
        shown = [("at least", low) if mean > 0 else ("at most", high)]
    else:
        shown = [("at least", low) if up else ("at most", high)]
    known = [
        f"{name} {_bound(value, form)}"
        for name, value in shown
        if math.isfinite(value) and (value or unit != "×")
    ]
    kind = f" ({'each ' if len(known) > 1 else ''}{rule})" if rule and known else ""
    return ", ".join([*said, f"{' and '.join(known) or 'no bound of the mean is known'}{kind}"])


def percent(of: Interval) -> str:
    """An accuracy in a table: `97.12 [96.90, 97.34]`."""
    return interval(of, ".2f")


def points(of: Interval) -> str:
    """A difference in a table: `+0.21 [-0.10, +0.52]`."""
    return interval(of, "+.2f")


def share(density: float) -> str:
    """A density: `10.7 %`."""
    return f"{100 * density:.1f} %"


def parts(granularity: str) -> str:
    """What is shuffled where that granularity, other than "weight", is pruned: `whole units`."""
    return "the weights of every N:M group" if ":" in granularity else "whole units"


def seeds(n: int) -> str:
    """A number of seeds: `1 seed`, `3 seeds`."""
    return counted(n, "seed")


def p_value(p: float) -> str:
    """A p-value: `.032`, `< .001`; "–" where there is none."""
    return "–" if math.isnan(p) else "< .001" if p < 0.001 else f"{p:.3f}".lstrip("0")


def _bound(value: float, form: str) -> str:
    """A formatted bound; one that rounds to 0 has its first digit, as 0 itself is often the threshold."""
    said = _number(value, form)
    return f"{value:{'+' if form.startswith('+') else ''}.1g}" if value and not said.strip("+0.") else said


def _number(value: float, form: str) -> str:
    """A formatted number; what rounds to 0 is not −0."""
    said = f"{value:{form}}"
    return said.replace("-", "+" if form.startswith("+") else "") if said.strip("+-0.") == "" else said


def rewound(chain: str) -> str:
    """Which tickets of several a claim, a table or a figure is of: `rewound to step 2,000`."""
    return f"rewound to step {imp.rewind_of(chain):,}"
