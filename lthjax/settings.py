"""JAX's own settings, pinned where a study works: its numbers do not depend on them.

JAX reads settings from the environment (`JAX_ENABLE_X64=1`), from `jax.config` and from contexts. Those that
would change a number, or stop a study that is sound, have one value here while something of a study is
computed, and are the caller's again afterwards. `lthjax.prune`, which is for any code, heeds the caller's.
XLA's flags and the number of its threads are fixed when JAX starts and cannot be pinned; `environment` says
what they are.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import jax

from lthjax.devices import replicate

# JAX's own defaults, of 0.8 to 0.11 alike, but for the precision of products outside training (in it
# `train.precision` holds): GPUs and TPUs round the factors of float32 by default.
PINNED: dict[str, Any] = {
    # What is drawn, and its types.
    "jax_default_prng_impl": "threefry2x32",
    "jax_enable_x64": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_random_seed_offset": 0,
    "jax_threefry_partitionable": True,
    # How it is computed, and where.
    "eager_constant_folding": False,
    "jax_default_device": None,
    "jax_default_matmul_precision": "float32",
    "jax_disable_jit": False,
    "jax_disable_most_optimizations": False,
    "jax_exec_time_optimization_effort": 0.0,
    "jax_memory_fitting_effort": 0.0,
    "jax_optimization_level": "UNKNOWN",
    "jax_use_direct_linearize": True,
    # A loss that is not finite is a result here: the training is recorded as diverged.
    "jax_debug_infs": False,
    "jax_debug_nans": False,
}

# What XLA and its libraries read when they start, and the flags that change no number.
_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")
_HARMLESS = ("--xla_dump_", "--xla_force_host_platform_device_count")


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """Pins JAX's settings; also a decorator, `@settings.pinned()`.

    Those for which JAX has a context are pinned for this thread, the few others for the process. Contexts
    may be nested, and code within may set its own.
    """
    with contextlib.ExitStack() as stack:
        for name, value in PINNED.items():
            if name in jax.config.values and _current(name) != value:
                stack.enter_context(_set(name, value))
        yield


def environment() -> str:
    """What cannot be pinned and may change numbers: `2 CPU threads, XLA_FLAGS=--xla_...`, or ""."""
    found = []
    if jax.default_backend() == "cpu":
        found.append(f"{threads()} CPU threads")
    for name in _VARIABLES:
        flags = [flag for flag in os.environ.get(name, "").split() if not flag.startswith(_HARMLESS)]
        if flags:
            found.append(f"{name}={' '.join(sorted(flags))}")
    return ", ".join(found)


def threads() -> int:
    """Threads among which XLA:CPU divides an operation: as many as cores or devices, whichever are more.

    The sum of a large convolution or product is divided, too, so its rounding depends on their number
    (of a weight gradient of LeNet-5 1e-7, with 8 threads for 2). XLA reads NPROC in place of the cores.
    """
    told = os.environ.get("NPROC", "")
    return max(int(told) if told.isdigit() else replicate.cores(), jax.local_device_count("cpu"))


def _current(name: str) -> Any:
    # As an attribute a setting has this thread's value; a few have only the process's.
    return getattr(jax.config, name, jax.config.values[name])


def _set(name: str, value: Any) -> contextlib.AbstractContextManager[Any]:
    context = getattr(jax, name.removeprefix("jax_"), None)
    return _updated(name, value) if context is None else context(value)


@contextlib.contextmanager
def _updated(name: str, value: Any) -> Iterator[None]:
    before = jax.config.values[name]
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)
