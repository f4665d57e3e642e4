"""One function of one replicate, run over many: within a device, over devices.

On CPU the replicates of a device run one after another (`lax.map`): batched convolutions would become
grouped ones, which are slow there, and one replicate's numbers do not depend on its neighbours', on the
chunk or on the number of devices up to that of the cores, bit for bit; more devices are more threads
(`settings.threads`). On accelerators they run together (`vmap`).
"""

import atexit
import contextlib
import hashlib
import logging
import os
import platform
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

PyTree = Any
_AXIS = "replicates"
# How JAX ends the names of the files in its cache folder.
_ENTRY = "-cache"
_log = logging.getLogger(__name__)


def use_all_cores() -> None:
    """Makes every core a device of its own, so that replicates run side by side on a CPU.

    Does nothing once JAX has started its backend, or where the user has said how many
    (JAX_NUM_CPU_DEVICES).
    """
    if "JAX_NUM_CPU_DEVICES" in os.environ:
        return
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", cores())


def keep_programs() -> None:
    """Keeps compiled programs in the user's cache folder, so that the next run need not compile them.

    The folder is `lthjax/programs` under XDG_CACHE_HOME or ~/.cache (on Windows LOCALAPPDATA), with one
    folder for each version of jaxlib and kind of processor: a program compiled for one processor may
    not run on another that shares the home folder. Damaged programs are compiled anew. Does nothing where
    JAX has a cache folder already.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    home = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    kind = f"{platform.machine()} {platform.processor()}"
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        kind = next(line for line in lines if line.lower().startswith(("flags", "features")))
    digest = hashlib.sha256(kind.encode()).hexdigest()[:8]
    folder = Path(home) / "lthjax" / "programs" / f"jaxlib-{metadata.version('jaxlib')}-{digest}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _log.warning("compiled programs are not kept: %s", error)
        return
    vouch = drop_damaged(folder)
    atexit.register(vouch)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


def drop_damaged(folder: Path) -> Callable[[], None]:
    """Deletes the programs in a cache folder that are not what was written.

    JAX writes an entry in place, notices some of the damage when it reads it, warns at every run and never
    replaces it. So each entry has its checksum beside it, written by the process that made the entry, when
    it ends; an entry without one was cut short, or is older than checksums.

    Returns:
        What writes the checksums of the entries that have come since.
    """

    def checksum(entry: Path) -> str:
        return f"{zlib.crc32(entry.read_bytes()):08x}"

    def beside(entry: Path) -> Path:
        return entry.with_name(f"{entry.name}.crc32")

    for entry in folder.glob(f"*{_ENTRY}"):
        # Another process may be deleting it, too.
        with contextlib.suppress(FileNotFoundError, PermissionError):
            if not (beside(entry).is_file() and beside(entry).read_bytes() == checksum(entry).encode()):
                beside(entry).unlink(missing_ok=True)
                entry.unlink()
    kept = {*folder.glob(f"*{_ENTRY}")}

    def vouch() -> None:
        for entry in {*folder.glob(f"*{_ENTRY}")} - kept:
            with contextlib.suppress(OSError):
                beside(entry).write_text(checksum(entry))

    return vouch


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def mesh(at_most: int) -> Mesh:
    """A mesh of the local devices over which replicates are spread, at most so many."""
    devices = jax.local_devices()[: max(at_most, 1)]
    return jax.make_mesh((len(devices),), (_AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def width(on: Mesh, at_most: int, chunk: int | None = None) -> int:
    """Replicates trained in one program: a multiple of the number of devices.

    Args:
        on: the mesh.
        at_most: how many there can be at a time.
        chunk: what the user asks for; by default one a device on CPU, up to 16 elsewhere.
    """
    devices = on.devices.size
    if chunk is None:
        chunk = devices if one_by_one(on) else 16 * devices
    return -(-min(chunk, max(at_most, 1)) // devices) * devices


def one_by_one(on: Mesh) -> bool:
    """Whether the replicates of a device run one after another, rather than together."""
    return on.devices.flat[0].platform == "cpu"


def spread(fn: Callable[..., PyTree], on: Mesh, donate: bool = False) -> Callable[..., PyTree]:
    """`fn(shared, carried, each)` for one replicate, as a compiled function for a chunk of them.

    Args:
        fn: pure; takes (shared, carried, each), returns any pytree.
        on: the mesh of devices.
        donate: whether the buffers of `carried` may be reused for the result.

    Returns:
        A function of the same three: `shared` as it is, the leaves of `carried` and `each` and of
        the result with a leading axis of replicates, spread over the mesh.
    """

    def local(shared: PyTree, carried: PyTree, each: PyTree) -> PyTree:
        one = partial(fn, shared)
        if one_by_one(on):
            return jax.lax.map(lambda pair: one(*pair), (carried, each))
        return jax.vmap(one)(carried, each)

    local.__name__ = fn.__name__  # by which compilations and profiles call it
    spec = PartitionSpec(_AXIS)
    mapped = jax.shard_map(
        local, mesh=on, in_specs=(PartitionSpec(), spec, spec), out_specs=spec, check_vma=False
    )
    return jax.jit(mapped, donate_argnums=(1,) if donate else ())


def run(program: Callable[..., PyTree], on: Mesh, each: Sequence[PyTree]) -> list[PyTree]:
    """Runs what `spread` compiled on replicates that share and carry nothing.

    Args:
        program: the compiled function.
        on: the mesh that it was compiled for.
        each: one pytree a replicate, at most as many as there are devices; copies of the first fill it up.

    Returns:
        A pytree of numpy arrays for each.
    """
    padded = [*each, *[each[0]] * (on.devices.size - len(each))]
    return unstack(program((), (), stack(on, padded)), len(each))


def share(on: Mesh, tree: PyTree) -> PyTree:
    """Puts a pytree whole on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(on, PartitionSpec()))


def stack(on: Mesh, trees: Sequence[PyTree]) -> PyTree:
    """Stacks one pytree a replicate along a new leading axis, spread over the mesh."""
    stacked = jax.tree.map(lambda *leaves: np.stack([np.asarray(x) for x in leaves]), *trees)
    return jax.device_put(stacked, NamedSharding(on, PartitionSpec(_AXIS)))


def unstack(tree: PyTree, count: int) -> list[PyTree]:
    """The first `count` replicates of a stacked pytree, each a pytree of numpy arrays."""
    host = jax.device_get(tree)
    return [jax.tree.map(lambda leaf, i=i: leaf[i], host) for i in range(count)]
