"""Quantities of the loss landscape: scalars from the arrays of `lthjax.measures.programs`."""

import math
from collections.abc import Mapping

import numpy as np

from lthjax.measures import landscape

Arrays = Mapping[str, np.ndarray]
Values = dict[str, tuple[float, float | None]]
"""Quantity -> (value, its error or None)."""
# The largest gap between points of a line across which it is interpolated, in lengths of the filters.
_NEAR = 0.1
RISES = {"train": "rise_train", "test": "rise_test"}
AT_END = (*RISES.values(), "ggn_eigenvalue", "ggn_trace", "fisher_trace")
"""The quantities that are measured at the end of training alone, not at matched loss."""
FLATNESS = {
    "adaptive_sharpness": "ASAM",
    "filter_curvature": "filter-normalised curvature",
}
"""The quantities by which flatness is judged -> description.

Factors between consecutive ReLU layers, which leave the network's function as it is, do not change them: ASAM
at any unit, the curvature where all units of a layer have the same factor.
"""
BESIDE = {
    "eigenvalue_1": "largest eigenvalue",
    "trace_per_dimension": "mean eigenvalue",
}
"""Further measures of flatness, which such factors do change -> description."""
WITHIN = 0.02
"""Ratio less 1 within which two train losses count as matched."""
QUANTITIES = {
    "step": "step of training at which it is measured",
    "train_loss": "train loss (nats)",
    "train_accuracy": "train accuracy",
    "test_loss": "test loss (nats)",
    "test_accuracy": "test accuracy",
    "dimension": "dimension of the space: surviving weights and biases",
    "eigenvalue_1": "largest eigenvalue of the Hessian",
    "eigenvalue_lowest": "lowest eigenvalue of the Hessian",
    "trace": "trace of the Hessian",
    "trace_per_dimension": "mean eigenvalue of the Hessian",
    "ggn_eigenvalue": "largest eigenvalue of the Gauss-Newton matrix",
    "ggn_trace": "trace of the Gauss-Newton matrix",
    "fisher_trace": "trace of the empirical Fisher: mean squared norm of one image's gradient",
    "sharpness": "rise of the train loss on a step of given length up the gradient (SAM)",
    "adaptive_sharpness": "the same with the step relative to the weights (ASAM)",
    "filter_curvature": "curvature along random directions inside the mask, in lengths of the filters",
    "gradient_norm": "norm of the mean gradient",
    "gradient_noise": "trace of the covariance of one image's gradient",
    "distance": "distance from the start weights",
    "degrees": "angle from the start weights",
    "rise_train": "rise of the train loss half a filter's length away in random directions",
    "rise_test": "rise of the test loss there",
    "barrier_train_loss": "barrier of the train loss on the path (nats)",
    "barrier_test_loss": "barrier of the test loss on the path (nats)",
    "barrier_train_error": "barrier of the train error on the path (fraction)",
    "barrier_test_error": "barrier of the test error on the path (fraction)",
    "disagreement": "share of test images on which the ends of the path differ",
    "path_length": "distance between the ends of the path",
    "path_degrees": "angle between them",
}
"""Quantity -> description."""


def values(program: str, arrays: Arrays) -> Values:
    """The quantities that a program's arrays hold.

    Args:
        program: a key of `programs.PROGRAMS`.
        arrays: the arrays that the program returned.

    Returns:
        Keys are those of `QUANTITIES`, and "eigenvalue_N". The error of a trace or a curvature is its
        standard error. The error of an eigenvalue is the residual of its Ritz vector: up to float32
        rounding, an eigenvalue lies within that distance.
    """
    made = {
        "point": _of_point,
        "lines": _of_lines,
        "spectrum": _of_spectrum,
        "curvature": _of_curvature,
        "gauss_newton": _of_gauss_newton,
        "path": _of_path,
    }.get(program)
    return made(arrays) if made else {}


def order(quantity: str) -> tuple[int, int, str]:
    """The sort key of quantities: the order of `QUANTITIES`, further eigenvalues after the largest."""
    names = list(QUANTITIES)
    if quantity in names:
        return names.index(quantity), 0, ""
    # Numbers without leading zeros: a shorter one is smaller.
    return names.index("eigenvalue_1"), len(quantity), quantity


def _of_point(arrays: Arrays) -> Values:
    return {name: (float(x), None) for name, x in arrays.items()}


def _of_lines(arrays: Arrays) -> Values:
    rises = {name: rise(arrays["steps"], arrays[f"{part}_loss"]) for part, name in RISES.items()}
    return {name: (rise, None) for name, rise in rises.items() if rise is not None}


def _of_spectrum(arrays: Arrays) -> Values:
    ends = zip(arrays["largest"], arrays["largest_error"], strict=True)
    largest = {f"eigenvalue_{i}": (float(x), float(e)) for i, (x, e) in enumerate(ends, 1) if np.isfinite(x)}
    return {
        **largest,
        "eigenvalue_lowest": (float(arrays["smallest"][0]), float(arrays["smallest_error"][0])),
        "trace": (float(arrays["trace"]), float(arrays["trace_error"])),
        "trace_per_dimension": (float(arrays["mean"]), float(arrays["mean_error"])),
    }


def _of_curvature(arrays: Arrays) -> Values:
    return {"filter_curvature": (float(arrays["curvature"]), float(arrays["curvature_error"]))}


def _of_gauss_newton(arrays: Arrays) -> Values:
    return {
        "ggn_eigenvalue": (float(arrays["largest"][0]), float(arrays["largest_error"][0])),
        "ggn_trace": (float(arrays["trace"]), float(arrays["trace_error"])),
        "fisher_trace": (float(arrays["fisher_trace"]), float(arrays["fisher_trace_error"])),
    }


def _of_path(arrays: Arrays) -> Values:
    found: Values = {}
    for part in ("train", "test"):
        loss, error = arrays[f"{part}_loss"], 1 - arrays[f"{part}_accuracy"].astype(np.float64)
        found[f"barrier_{part}_loss"] = float(landscape.barrier(loss)), None
        found[f"barrier_{part}_error"] = float(landscape.barrier(error)), None
    return found | {
        name: (float(arrays[name]), None) for name in ("disagreement", "path_length", "path_degrees")
    }


def rise(steps: np.ndarray, losses: np.ndarray) -> float | None:
    """The rise of the loss half a filter's length away from a network, mean over draws and sides.

    Args:
        steps: float [points], ascending, in lengths of the filters; the network is at 0.
        losses: float [draws, points].

    Returns:
        In nats; None where the line is too short, or its points are too far apart.
    """
    half = 0.5
    between = 0 if np.isclose(abs(steps), half).any() else steps[1] - steps[0]
    if steps[-1] < half or between > _NEAR:
        return None
    at = [np.interp([-half, 0, half], steps, of_draw) for of_draw in losses]
    return float(np.mean([(a + b) / 2 - o for a, o, b in at]))


def off(loss: float, target: float) -> float:
    """How far a loss is from a target: their ratio, of the larger to the smaller, less 1."""
    ratio = max(loss, 1e-30) / max(target, 1e-30)
    return max(ratio, 1 / ratio) - 1 if math.isfinite(ratio) else math.inf


def around(losses: Mapping[int, float], target: float) -> list[int]:
    """The first step at or below a target, or the last step, after the step before it, if there is one."""
    steps = list(losses)
    first = next((i for i, step in enumerate(steps) if losses[step] <= target), len(steps) - 1)
    return steps[max(first - 1, 0) : first + 1]


def nearest_step(losses: Mapping[int, float], target: float) -> int:
    """The step at which a falling loss reaches a target.

    Of the first step at or below the target and the step before it, the one whose loss is nearer as a ratio.

    Args:
        losses: step -> loss, by ascending step; the last is the end of training.
        target: the target loss.
    """
    return min(around(losses, target)[::-1], key=lambda step: off(losses[step], target))


def finer_steps(losses: Mapping[int, float], target: float, most: int) -> list[int]:
    """The steps to look at next, where no step is within `WITHIN` of the target yet.

    They lie evenly between the first step at or below the target and the step before it; repeated, this is a
    search by sections (bisection, where `most` is 1).

    Args:
        losses: step -> loss, by ascending step.
        target: the target loss.
        most: steps at most.

    Returns:
        Ascending; empty where the nearest step is within `WITHIN`, or no step lies between the two.
    """
    ends = around(losses, target)
    if off(losses[nearest_step(losses, target)], target) <= WITHIN or len(ends) < 2:
        return []
    between = np.linspace(ends[0], ends[1], most + 2).round().astype(int).tolist()
    return sorted({*between} - {*ends})
