"""Weights on the disk. The only file that imports orbax."""

import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import jax

from lthjax.prune._files import nested

PyTree = Any


def save(path: Path, trees: Mapping[str, PyTree]) -> None:
    """Writes trees of arrays.

    Raises:
        OSError: it cannot be written.
    """
    from orbax.checkpoint import v1 as ocp

    _hush_late_writes()
    try:
        with _quiet():
            if jax.process_count() == 1:
                ocp.save(path, {**trees})
            else:
                _save_alone(path, trees)
    except Exception as error:  # Orbax and tensorstore raise many kinds, for a full disk too
        raise OSError(str(error)) from error


def load(path: Path, shapes: Mapping[str, Mapping[str, Any]]) -> dict[str, PyTree]:
    """The trees of arrays of these shapes and dtypes, {tree: {path of a leaf: (shape, dtype)}}; numpy."""
    from orbax.checkpoint import v1 as ocp

    host = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    template = {
        name: nested({p: jax.ShapeDtypeStruct(tuple(s), d, sharding=host) for p, (s, d) in of_part.items()})
        for name, of_part in shapes.items()
    }
    with _quiet(), _alone():
        return cast(dict[str, PyTree], jax.device_get(ocp.load(path, template)))


def _save_alone(path: Path, trees: Mapping[str, PyTree]) -> None:
    """As `ocp.save`, by one process of a program over several hosts (`lthjax.devices.hosts`).

    Orbax's newer interface waits for the other processes whatever its options say; it reads what the older
    one writes.
    """
    import orbax.checkpoint as ocp

    alone = ocp.options.MultiprocessingOptions(**_alone_options())
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone)
    )
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
        checkpointer.save(path, ocp.args.Composite(pytree=ocp.args.PyTreeSave({**trees})))


def _alone() -> contextlib.AbstractContextManager[Any]:
    """Keeps Orbax from waiting for the other processes of a program when it reads."""
    if jax.process_count() == 1:
        return contextlib.nullcontext()
    from orbax.checkpoint import v1 as ocp

    options = ocp.options.MultiprocessingOptions(**_alone_options())
    return cast(contextlib.AbstractContextManager[Any], ocp.Context(multiprocessing_options=options))


def _alone_options() -> dict[str, Any]:
    own = jax.process_index()
    return {"primary_host": own, "active_processes": {own}, "barrier_sync_key_prefix": f"lthjax{own}"}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses Orbax's log messages, and its tracebacks for errors that it raises anyway."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _hush_late_writes() -> None:
    """Keeps tensorstore from printing a traceback for every write that ends after another one has failed.

    The first failure, which `save` raises, ends the event loop that all of them report to.
    """
    hook = sys.unraisablehook

    def without_late_writes(raised: "sys.UnraisableHookArgs") -> None:
        error = raised.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            hook(raised)

    if getattr(hook, "__name__", "") != without_late_writes.__name__:
        sys.unraisablehook = without_late_writes
