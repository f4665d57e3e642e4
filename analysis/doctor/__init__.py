"""Ticket doctor: is a ticket what it is said to be? For tickets of any framework, or a run folder of ours.

    python -m analysis.doctor --init A.pt --final B.pt --mask C.pt --rewound R.pt --claimed-sparsity 0.8
    python -m analysis.doctor runs/quickstart-0123abcd

Prints one line a check with the layers that fail it and how many of their weights do; status 1 if one fails.
A check that lacks a file says which option gives it. Files are safetensors, npz, or PyTorch's state dicts,
which are read without PyTorch and without running what they name (`analysis.doctor.pickled`). A weight of
torch.nn.utils.prune is read from its `weight_orig` and `weight_mask`. The checks are
`lthjax.measures.doctor`'s. Trains nothing, writes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from lthjax.errors import UserError
from lthjax.measures import doctor
from lthjax.measures.doctor import Check, Fault
from lthjax.progress import Silent, watch

from . import files, folder
from .files import Tensors

# As many layers a line names.
_MOST = 6


@dataclass(frozen=True, kw_only=True)
class Options:
    """Checks that a ticket is what it is said to be: of any framework by its files, or of a run folder."""

    run: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[RUN]")] = None
    """A run folder; all its cells are checked. Else name files."""
    init: Path | None = None
    """The initial weights, step 0 of the dense training: .safetensors, .npz, .pt or .pth."""
    final: Path | None = None
    """The ticket's weights after its training."""
    mask: Path | None = None
    """The ticket's mask, 0 where a weight is pruned."""
    rewound: Path | None = None
    """The weights that the ticket's training starts from."""
    dense: Path | None = None
    """The dense network's weights at the step to which the ticket is rewound, if that is not step 0."""
    control: Path | None = None
    """The mask of a control that should have the ticket's densities."""
    claimed_sparsity: float | None = None
    """The share of pruned weights that is claimed: 0.8."""
    scope: Literal["layer", "global"] = "layer"
    """Whether the claim is one about every layer, or about all layers together."""
    tolerance: float = 0.005
    """The largest accepted difference to the claimed sparsity, a share of the weights."""
    names: str = ""
    """A regex of the names of prunable weights; by default judged by name, type and shape."""
    quiet: bool = False
    """Show no progress."""


def diagnose(options: Options) -> list[Check]:
    """The checks that the options ask for.

    Raises:
        UserError: an option is missing or not allowed, or a file cannot be read.
    """
    named = {
        name: getattr(options, name) for name in ("init", "final", "mask", "rewound", "dense", "control")
    }
    given = [f"--{name}" for name, path in named.items() if path is not None]
    if options.run is not None:
        usual = Options()
        of_files = ("claimed_sparsity", "scope", "tolerance", "names")
        given += [
            f"--{name.replace('_', '-')}"
            for name in of_files
            if getattr(options, name) != getattr(usual, name)
        ]
        if given:
            raise UserError(
                f"{given[0]}: it is of a ticket in files, and {options.run} is a run folder; leave one out."
            )
        return folder.diagnose(options.run, Silent() if options.quiet else watch(False))
    lacking = next((name for name in ("init", "final", "mask") if named[name] is None), None)
    if lacking:
        raise UserError(f"--{lacking}: it is missing; name a run folder, or --init, --final and --mask.")
    _check("--claimed-sparsity", options.claimed_sparsity)
    _check("--tolerance", options.tolerance)
    found = {name: files.read(path, f"--{name}") for name, path in named.items() if path is not None}
    return _of_files(found, options)


def _check(option: str, share: float | None) -> None:
    if share is not None and not 0 <= share <= 1:
        raise UserError(f"{option}: {share:g} is not allowed; it must be from 0 to 1.")


def _of_files(found: dict[str, Tensors], options: Options) -> list[Check]:
    init, final = found["init"].values, found["final"].effective
    said = files.masks(found["mask"], final)
    mask = doctor.fitting(said, final)
    weights = doctor.prunable(final, options.names)
    states = {n: found[n].values for n in ("final", "init", "rewound", "dense") if n in found}
    checks = [
        doctor.alike({f"--{name}": arrays for name, arrays in states.items()}),
        doctor.binary(said, final),
        doctor.left_alone(mask, final, weights),
        doctor.zeros(final, mask),
        # A product with the mask is usual elsewhere, and computes the same.
        doctor.unsigned(final, mask)._replace(harmless=True),
        doctor.finite(final, mask),
    ]
    claims = [doctor.SPARSITY, *([doctor.SPARSITY_BY_LAYER] if options.scope == "layer" else [])]
    if options.claimed_sparsity is None:
        checks += [_lacks(claim, "--claimed-sparsity") for claim in claims]
    else:
        claimed = (mask, final, weights, options.claimed_sparsity, options.tolerance)
        checks += [doctor.sparsity(*claimed), doctor.sparsity_by_layer(*claimed)][: len(claims)]
    checks += _of_start(found, init, mask, weights)
    if "control" in found:
        theirs = doctor.fitting(files.masks(found["control"], final), final)
        return [*checks, doctor.same_density(mask, theirs)]
    return [*checks, _lacks(doctor.CONTROL, "--control")]


def _of_start(
    found: dict[str, Tensors], init: dict[str, np.ndarray], mask: doctor.Arrays, weights: Sequence[str]
) -> list[Check]:
    """The checks of what the ticket's training starts from."""
    final = found["final"].values
    if "rewound" not in found:
        return [
            *(_lacks(claim, "--rewound") for claim in (doctor.START, doctor.REST)),
            _lacks(doctor.REWOUND, "--rewound and --dense"),
            doctor.both_signs(init, final, doctor.fitting(mask, init)),
        ]
    start, origin = found["rewound"].values, init
    if "dense" in found:
        origin = found["dense"].values
        by_claim = [
            Check(doctor.START, lacking="--dense says that the ticket is rewound to a later step"),
            doctor.same_start(start, origin, mask, doctor.REWOUND),
        ]
    else:
        by_claim = [
            doctor.same_start(start, init, mask),
            _lacks(doctor.REWOUND, "--dense"),
        ]
    rest = doctor.same_rest(start, origin, weights)
    return [by_claim[0], rest, by_claim[1], doctor.both_signs(start, final, doctor.fitting(mask, start))]


def _lacks(claim: str, option: str) -> Check:
    return Check(claim, lacking=f"{option} {'give' if ' and ' in option else 'gives'} it")


def line(check: Check) -> str:
    """A check in one line: the outcome, the claim, and where it fails."""
    return f"{check.outcome:<11}  {check.claim}{_more(check)}"


def _more(check: Check) -> str:
    if check.faults:
        named = [_fault(fault) for fault in check.faults[:_MOST]]
        left = len(check.faults) - len(named)
        return ": " + "; ".join([*named, *([f"and {left:,} layers more"] if left else [])])
    if not check.layers:
        return f": {check.lacking or 'there is nothing to look at'}"
    layers = f"{check.layers:,} layer{'' if check.layers == 1 else 's'}"
    return f" ({layers}, {check.weights:,} weights)"


def _fault(fault: Fault) -> str:
    why = f" ({fault.why})" if fault.why else ""
    return f"{fault.layer} {fault.bad:,} of {fault.of:,}{why}"
