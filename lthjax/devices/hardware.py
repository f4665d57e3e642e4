"""The devices that JAX has found, and accelerators that it has not."""

import importlib.util
import os
import platform
from importlib import metadata

import jax

from lthjax.devices import hosts


def described() -> str:
    """The devices: `2 x cpu (x86_64)`, or `4 hosts of 8 x gpu (H100)`; a host is a process of a program."""
    local = jax.local_devices()
    kind = platform.machine() if local[0].platform == "cpu" else local[0].device_kind
    of = f"{hosts.count()} hosts of " if hosts.count() > 1 else ""
    return f"{of}{len(local)} x {local[0].platform} ({kind})"


def unused() -> str:
    """A sentence if the plugin of an accelerator is installed and JAX runs on the CPU; else "".

    JAX falls back to the CPU without a word, for example where the driver is older than the plugin. Who asks
    for the CPU by JAX_PLATFORMS gets no sentence.
    """
    if jax.default_backend() != "cpu" or "cpu" in os.environ.get("JAX_PLATFORMS", "").split(",")[:1]:
        return ""
    there = {}
    for entry in metadata.entry_points(group="jax_plugins"):
        if entry.dist is not None:
            there[entry.dist.name] = entry.dist.version
    if importlib.util.find_spec("libtpu") is not None:
        there["libtpu"] = metadata.version("libtpu")
    if not there:
        return ""
    named = " and ".join(f"{name} {version}" for name, version in sorted(there.items()))
    return (
        f"{named} {'are' if len(there) > 1 else 'is'} installed, but JAX {jax.__version__} found no such "
        "device and computes on the CPU. Its driver may be too old, or its version not that of JAX; "
        "JAX_PLATFORMS=cpu says that this is meant."
    )
