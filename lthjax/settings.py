"""Pins JAX's settings while a study computes, so that its numbers do not depend on them.

JAX reads settings from the environment (`JAX_ENABLE_X64=1`), from `jax.config` and from contexts. Settings
that would change a number, or stop a sound study, have a fixed value here while any part of a study is
computed; afterwards the caller's values return. `lthjax.prune`, which works in any code, follows the caller's
settings. XLA's flags and its number of threads are fixed when JAX starts and cannot be pinned; `environment`
reports them.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import jax

from lthjax.devices import replicate

# JAX's own defaults, equal from 0.7.2 to 0.12, except for the precision of products outside training: GPUs
# and TPUs round the factors of float32 by default. (In training `train.precision` applies.)
PINNED: dict[str, Any] = {
    # Random numbers and types.
    "jax_default_prng_impl": "threefry2x32",
    "jax_enable_x64": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_random_seed_offset": 0,
    "jax_threefry_partitionable": True,
    # How and where operations are computed.
    "eager_constant_folding": False,
    "jax_default_device": None,
    "jax_default_matmul_precision": "float32",
    "jax_disable_jit": False,
    "jax_disable_most_optimizations": False,
    "jax_exec_time_optimization_effort": 0.0,
    "jax_memory_fitting_effort": 0.0,
    "jax_optimization_level": "UNKNOWN",
    "jax_use_direct_linearize": True,
    # A non-finite loss is a result here: the training run is recorded as diverged.
    "jax_debug_infs": False,
    "jax_debug_nans": False,
}

# Variables that XLA and its libraries read when they start, and flags that change no number.
_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")
_HARMLESS = ("--xla_dump_", "--xla_force_host_platform_device_count")


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """Pins JAX's settings; also a decorator, `@settings.pinned()`.

    Settings with a JAX context are pinned for this thread, the few others for the process. Contexts may be
    nested, and code inside may set its own values.
    """
    with contextlib.ExitStack() as stack:
        for name, value in PINNED.items():
            if name in jax.config.values and _current(name) != value:
                stack.enter_context(_set(name, value))
        yield


def environment() -> str:
    """Settings that cannot be pinned and may change numbers: `2 CPU threads, XLA_FLAGS=--xla_...`, or ""."""
    found = []
    if jax.default_backend() == "cpu":
        found.append(f"{threads()} CPU threads")
    for name in _VARIABLES:
        flags = [flag for flag in os.environ.get(name, "").split() if not flag.startswith(_HARMLESS)]
        if flags:
            found.append(f"{name}={' '.join(sorted(flags))}")
    return ", ".join(found)


def threads() -> int:
    """Threads for one operation on XLA:CPU: the number of cores or devices, whichever is larger.

    XLA also splits the sum of a large convolution or product, so its rounding depends on this number (by 1e-7
    for a weight gradient of LeNet-5, with 8 threads instead of 2). NPROC overrides the number of cores.
    """
    told = os.environ.get("NPROC", "")
    return max(int(told) if told.isdigit() else replicate.cores(), jax.local_device_count("cpu"))


def _current(name: str) -> Any:
    # The attribute has this thread's value; a few settings have only the process's value.
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
