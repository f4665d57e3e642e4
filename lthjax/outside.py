"""Networks from outside the package: traced before a study begins, and refused if they cannot be trained."""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import InvalidRngError

from lthjax import prune
from lthjax.errors import UserError
from lthjax.prune._masks import some

PyTree = Any
ASKED = (
    "an Entry takes a function of the number of classes, which returns a Flax Linen module; it is called as "
    "module(images, train=...), and changes its statistics with train=True alone (docs/extending.md)."
)


def undropped(call: Callable[..., Any], values: tuple, named: dict, context: Any) -> Any:
    """Leaves out dropout: a call without a key has all units, in training, too."""
    if isinstance(context.module, nn.Dropout):
        return values[0] if values else named["inputs"]
    return call(*values, **named)


class Seen(NamedTuple):
    """What a trace of a network shows.

    Attributes:
        dropout, order: as in `models.Model`.
        elsewhere: whether units are dropped by other means than `nn.Dropout`, which cannot be left out; all
            units are then those of `train=False`.
    """

    dropout: bool
    elsewhere: bool = False
    order: tuple[str, ...] = ()


def module_of(name: str, network: Callable[[int], nn.Module], classes: int) -> nn.Module:
    """The module of a row of `models.MODELS` from outside the package.

    Raises:
        UserError: the row's network is no function of the number of classes that returns one.
    """
    if isinstance(network, nn.Module) or not callable(network):
        raise UserError(f"model: the Entry of {name!r} has a network {kind(network)}; {ASKED}")
    with _refused(name, f"for {classes} classes"):
        module = network(classes)
    if not isinstance(module, nn.Module):
        raise UserError(f"model: {name!r} is {kind(module)} for {classes} classes; {ASKED}")
    return module


def tried(name: str, module: nn.Module, input_shape: tuple[int, int, int], classes: int) -> Seen:
    """Traces a network from outside the package on two images.

    Raises:
        UserError: it cannot be called as `models.Entry` says, or gives anything but logits.
    """
    images, key = jax.ShapeDtypeStruct((2, *input_shape), jnp.float32), jax.random.key(0)
    dropouts: list[bool] = []

    def watched(call: Callable[..., Any], values: tuple, named: dict, context: Any) -> Any:
        dropouts.append(isinstance(context.module, nn.Dropout))
        return undropped(call, values, named, context)

    def trained(params: PyTree, stats: PyTree, images: jax.Array, keys: dict) -> Any:
        given = {"params": params, **stats}
        with nn.intercept_methods(watched):
            return module.apply(given, images, train=True, mutable=list(stats), rngs=keys)

    with _refused(name, "with train=False"):
        variables = dict(jax.eval_shape(lambda k, x: module.init(k, x[:1], train=False), key, images))
        if "params" not in variables:
            raise UserError(f"model: {name!r} has no parameters; there is nothing to train or prune.")
        params, stats = variables.pop("params"), variables
        if not any(leaf.ndim for leaf in jax.tree.leaves(prune.ones(params))):
            raise UserError(
                f"model: {name!r} has no weight that may be pruned; its parameters are "
                f"{some(prune.paths(params))}. Pruned are arrays of two or more axes, called kernel for "
                "example; scales, embeddings and biases never are."
            )
        program, logits = jax.make_jaxpr(
            lambda params, stats, x: module.apply({"params": params, **stats}, x, train=False),
            return_shape=True,
        )(params, stats, images)
    _check_logits(name, logits, classes)
    elsewhere = False
    with _refused(name, "with train=True"):
        try:
            logits, updated = jax.eval_shape(trained, params, stats, images, {})
        except InvalidRngError:
            elsewhere = True
            logits, updated = jax.eval_shape(trained, params, stats, images, {"dropout": key})
    _check_logits(name, logits, classes)
    if elsewhere and stats:
        raise UserError(
            f"model: {name!r} keeps statistics, and drops units by other means than nn.Dropout, which is not "
            "supported; use nn.Dropout."
        )
    if jax.tree.map(_typed, dict(updated)) != jax.tree.map(_typed, stats):
        raise UserError(f"model: {name!r} has statistics whose shapes change in training; they must stay.")
    places = dict(zip(program.jaxpr.invars, prune.paths(params), strict=False))
    order = tuple(dict.fromkeys(_used(program.jaxpr, places)))
    return Seen(elsewhere or any(dropouts), elsewhere, order)


@contextlib.contextmanager
def _refused(name: str, when: str) -> Iterator[None]:
    """Turns whatever the code of a network raises into one sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        said = re.sub(r"\s*\(https?:\S+\)", "", str(error).strip().partition("\n")[0])[:200].rstrip(".")
        raise UserError(f"model: {name!r} fails {when} ({type(error).__name__}: {said}); {ASKED}") from error


def _check_logits(name: str, logits: Any, classes: int) -> None:
    shape, dtype = getattr(logits, "shape", None), getattr(logits, "dtype", None)
    if shape != (2, classes) or dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        given = f"something {kind(logits)}" if shape is None else f"{dtype} of shape {shape}"
        raise UserError(
            f"model: {name!r} gives {given} for two images; it must give logits, floats of shape "
            f"(2, {classes}), one for each of the {classes} classes."
        )


def kind(thing: object) -> str:
    """What a thing is, for errors."""
    return f"the class {thing.__name__}" if isinstance(thing, type) else f"of type {type(thing).__name__}"


def _typed(leaf: Any) -> tuple[Any, Any]:
    return leaf.shape, leaf.dtype


def _used(program: Any, places: Mapping[Any, str]) -> Iterator[str]:
    """The paths of a program's variables in the order in which its steps use them, calls looked into."""
    for step in program.eqns:
        known = [None if hasattr(v, "val") else places.get(v) for v in step.invars]
        parts = [getattr(value, "jaxpr", value) for value in step.params.values()]
        parts = [part for part in parts if len(getattr(part, "invars", ())) == len(known)]
        for part in parts:
            inner = zip(part.invars, known, strict=True)
            yield from _used(part, {variable: path for variable, path in inner if path})
        if not parts:
            yield from (path for path in known if path)
