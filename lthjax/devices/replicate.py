"""Runs a function of one replicate for many replicates, within a device and over devices.

On CPU the replicates of a device run one after another (`lax.map`), because batched convolutions would become
grouped convolutions, which are slow there. The bits of one replicate do not depend on its neighbours, on the
chunk, or on the number of devices up to the number of cores; more devices mean more threads
(`settings.threads`). On accelerators the replicates run together (`vmap`).
"""

import contextlib
import hashlib
import logging
import os
import platform
import time
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax._src import compilation_cache
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lthjax import home, signals
from lthjax.devices import hosts
from lthjax.errors import UserError

PyTree = Any
_AXIS = "replicates"
# The suffix of file names in JAX's cache folder.
_ENTRY = "-cache"
# Seconds for which a process that made a program may still be running.
_YOUNG = 24 * 3600.0
_log = logging.getLogger(__name__)


def use_all_cores() -> None:
    """Makes every core its own device, so that replicates run side by side on a CPU.

    Does nothing once JAX has started its backend, or if the user has set the number of devices
    (JAX_NUM_CPU_DEVICES).
    """
    if "JAX_NUM_CPU_DEVICES" in os.environ:
        return
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", cores())


def keep_programs() -> None:
    """Stores compiled programs in the user's cache folder, so that the next run need not compile them.

    The folder is `lthjax/programs` under XDG_CACHE_HOME or ~/.cache (on Windows LOCALAPPDATA). It has one
    folder per version of jaxlib and kind of processor, because a program compiled for one processor may fail
    on another that shares the home folder. Damaged programs are compiled again. Does nothing if JAX already
    has a cache folder.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    kind = f"{platform.machine()} {platform.processor()}"
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        kind = next(line for line in lines if line.lower().startswith(("flags", "features")))
    digest = hashlib.sha256(kind.encode()).hexdigest()[:8]
    try:
        folder = home.cache() / "programs" / f"jaxlib-{metadata.version('jaxlib')}-{digest}"
        folder.mkdir(parents=True, exist_ok=True)
    except (UserError, OSError) as error:
        _log.warning("compiled programs are not kept: %s", error)
        return
    signals.at_end(drop_damaged(folder))
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


def drop_damaged(folder: Path) -> Callable[[], None]:
    """Deletes damaged programs from a cache folder.

    JAX writes an entry in place, and reads it without a lock. It notices only some damage; then it warns at
    every run and never replaces the entry. So each entry has its checksum beside it, which the process that
    made the entry writes when it ends. An entry without one is of a process that runs, or was killed, or it
    is older than checksums. It is spared for a day if it can be decompressed. One that is cut short cannot,
    neither by zlib nor by zstd, which JAX takes where it is installed: both say where an entry ends. A
    flipped bit zlib notices, too; zstd need not, as JAX has it write no checksum.

    Returns:
        A function that writes the checksums of whole entries made since this call.
    """

    def checksum(entry: Path) -> str:
        return f"{zlib.crc32(entry.read_bytes()):08x}"

    def beside(entry: Path) -> Path:
        return entry.with_name(f"{entry.name}.crc32")

    for entry in folder.glob(f"*{_ENTRY}"):
        # Another process may be deleting it at the same time.
        with contextlib.suppress(FileNotFoundError, PermissionError):
            if beside(entry).is_file():
                good = beside(entry).read_bytes() == checksum(entry).encode()
            else:
                good = time.time() - entry.stat().st_mtime < _YOUNG and _is_whole(entry)
            if not good:
                beside(entry).unlink(missing_ok=True)
                entry.unlink()
    kept = {*folder.glob(f"*{_ENTRY}")}

    def vouch() -> None:
        for entry in {*folder.glob(f"*{_ENTRY}")} - kept:
            with contextlib.suppress(OSError):
                # Another process may be writing it.
                if _is_whole(entry):
                    beside(entry).write_text(checksum(entry))

    return vouch


def _is_whole(entry: Path) -> bool:
    """Whether JAX can decompress an entry of its cache folder."""
    try:
        return bool(compilation_cache.decompress_executable(entry.read_bytes()))
    except FileNotFoundError:
        raise
    except Exception:  # of zlib or zstd
        return False


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def mesh(at_most: int) -> Mesh:
    """A mesh of at most `at_most` local devices, over which replicates are spread.

    In a program over several hosts, of all devices of all hosts: each needs some of the mesh.
    """
    whole = hosts.count() > 1
    devices = jax.devices() if whole else jax.local_devices()[: max(at_most, 1)]
    made = jax.make_mesh((len(devices),), (_AXIS,), axis_types=(AxisType.Auto,), devices=devices)
    if whole:
        # Connects them while all are here: Gloo waits 30 s for that, and compilations may differ by more.
        fetch(stack(made, [np.int32(0)] * len(devices)))
    return made


def width(on: Mesh, at_most: int, chunk: int | None = None) -> int:
    """Replicates trained in one program: a multiple of the number of devices.

    Args:
        on: the mesh.
        at_most: the largest number of replicates at a time.
        chunk: the user's choice; by default one per device on CPU, up to 16 elsewhere.
    """
    devices = on.devices.size
    if chunk is None:
        chunk = devices if one_by_one(on) else 16 * devices
    return -(-min(chunk, max(at_most, 1)) // devices) * devices


def one_by_one(on: Mesh) -> bool:
    """Whether the replicates of a device run one after another rather than together."""
    return on.devices.flat[0].platform == "cpu"


def spread(fn: Callable[..., PyTree], on: Mesh, donate: bool = False) -> Callable[..., PyTree]:
    """Compiles `fn(shared, carried, each)`, a function of one replicate, for a chunk of replicates.

    Args:
        fn: pure; takes (shared, carried, each), returns any pytree.
        on: the mesh of devices.
        donate: whether the buffers of `carried` may be reused for the result.

    Returns:
        A function of the same three arguments. `shared` is passed unchanged. The leaves of `carried`, `each`
        and the result have a leading axis of replicates, spread over the mesh.
    """

    def local(shared: PyTree, carried: PyTree, each: PyTree) -> PyTree:
        one = partial(fn, shared)
        if one_by_one(on):
            return jax.lax.map(lambda pair: one(*pair), (carried, each))
        return jax.vmap(one)(carried, each)

    local.__name__ = fn.__name__  # the name in compilations and profiles
    spec = PartitionSpec(_AXIS)
    mapped = jax.shard_map(
        local, mesh=on, in_specs=(PartitionSpec(), spec, spec), out_specs=spec, check_vma=False
    )
    return jax.jit(mapped, donate_argnums=(1,) if donate else ())


def run(program: Callable[..., PyTree], on: Mesh, each: Sequence[PyTree]) -> list[PyTree]:
    """Runs a program compiled by `spread` on replicates that share and carry nothing.

    Args:
        program: the compiled function.
        on: the mesh that it was compiled for.
        each: one pytree per replicate, at most as many as there are devices; padded with copies of the first.

    Returns:
        One pytree of numpy arrays per replicate.
    """
    padded = [*each, *[each[0]] * (on.devices.size - len(each))]
    return unstack(program((), (), stack(on, padded)), len(each))


def share(on: Mesh, tree: PyTree) -> PyTree:
    """Copies a whole pytree, which every host has, to every device of the mesh."""
    return _put(tree, NamedSharding(on, PartitionSpec()))


def stack(on: Mesh, trees: Sequence[PyTree]) -> PyTree:
    """Stacks one pytree per replicate along a new leading axis, spread over the mesh; every host has all."""
    stacked = jax.tree.map(lambda *leaves: np.stack([np.asarray(x) for x in leaves]), *trees)
    return _put(stacked, NamedSharding(on, PartitionSpec(_AXIS)))


def _put(tree: PyTree, where: NamedSharding) -> PyTree:
    if hosts.count() == 1:
        return jax.device_put(tree, where)

    def put(leaf: Any) -> jax.Array:
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, where, lambda part: whole[part])

    return jax.tree.map(put, tree)


def fetch(tree: PyTree) -> PyTree:
    """A pytree of device arrays as numpy arrays, whole on every host; all hosts must call it."""
    if hosts.count() == 1 or not jax.tree.leaves(tree):
        return jax.device_get(tree)
    return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0)), _gather(_mesh_of(tree))(tree))


def _mesh_of(tree: PyTree) -> Mesh:
    return next(leaf.sharding.mesh for leaf in jax.tree.leaves(tree))


@lru_cache
def _gather(on: Mesh) -> Callable[[PyTree], PyTree]:
    """One program for a whole pytree: a collective operation for each leaf, but one launch."""

    def gather(tree: PyTree) -> PyTree:
        return tree

    return jax.jit(gather, out_shardings=NamedSharding(on, PartitionSpec()))


def unstack(tree: PyTree, count: int) -> list[PyTree]:
    """The first `count` replicates of a stacked pytree, each as a pytree of numpy arrays."""
    host = fetch(tree)
    return [jax.tree.map(lambda leaf, i=i: leaf[i], host) for i in range(count)]
