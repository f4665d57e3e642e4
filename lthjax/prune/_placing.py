"""Where arrays lie on a mesh of devices: a mask lies as its weights do."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec, reshard


def _explicit(array: Any) -> bool:
    """Whether an array lies on a mesh with axes of type Explicit, on which operands must lie alike."""
    return isinstance(array, jax.Array) and AxisType.Explicit in jax.typeof(array).sharding.mesh.axis_types


def placed(array: Any, like: Any) -> Any:
    """The array divided over devices as another one of its shape; if traced, on Explicit axes alone."""
    if not isinstance(like, jax.Array) or not like.ndim or jnp.shape(array) != like.shape:
        return array
    if not (_traced(array) or _traced(like)):
        there = like.sharding
        return array if not like.committed or _lies(array, there) else jax.device_put(array, there)
    if not _explicit(like):
        return array
    array = jnp.asarray(array)
    return array if _type(array) == _type(like) else reshard(array, _type(like))


def gathered(array: jax.Array) -> jax.Array:
    """The whole array on every device, if its mesh has Explicit axes."""
    if not _explicit(array):
        return array
    if _traced(array):
        return reshard(array, NamedSharding(_type(array).mesh, PartitionSpec()))
    return jax.device_put(array, NamedSharding(array.sharding.mesh, PartitionSpec()))  # type: ignore[attr-defined]


def all_true(like: Any) -> jax.Array:
    """True of the array's shape and sharding, in `shard_map` varying over the same axes."""
    return placed(jnp.ones_like(like, bool, shape=jnp.shape(like)), like)


def _type(array: jax.Array) -> NamedSharding:
    """The sharding that is part of an array's type."""
    return jax.typeof(array).sharding


def _traced(array: Any) -> bool:
    return isinstance(array, jax.core.Tracer)


def _lies(array: Any, there: Any) -> bool:
    return isinstance(array, jax.Array) and array.committed and array.sharding == there
