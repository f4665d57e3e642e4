"""Reads PyTorch's `.pt` and `.pth` files without PyTorch, and without running anything that they name.

The zip format of `torch.save` (PyTorch 1.6 and newer) is a pickle of the containers, and one file of raw
bytes a storage. A pickle may name any function for the reader to call. Here only a few names have a meaning,
those that rebuild tensors and ordered dictionaries, and none of them is looked up: every other is refused.
"""

import collections
import io
import math
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lthjax.errors import DAMAGED, UserError

# PyTorch's name of a type -> numpy's.
_TYPES: dict[str, Any] = {
    "bool": np.bool_, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32,
    "float64": np.float64, "complex64": np.complex64, "complex128": np.complex128,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn, "float8_e5m2": ml_dtypes.float8_e5m2,
    **{f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}  # fmt: skip
# The class of a storage -> the type of its values; an untyped one holds bytes, which its tensor interprets.
_STORAGES = {
    "BoolStorage": "bool", "BFloat16Storage": "bfloat16", "HalfStorage": "float16",
    "FloatStorage": "float32", "DoubleStorage": "float64", "ByteStorage": "uint8", "CharStorage": "int8",
    "ShortStorage": "int16", "IntStorage": "int32", "LongStorage": "int64",
    "ComplexFloatStorage": "complex64", "ComplexDoubleStorage": "complex128", "UntypedStorage": "uint8",
}  # fmt: skip


class _Refused(Exception):
    """The file names something that is not data."""


class _Meaning:
    """What a name in the pickle stands for: a function without attributes that a pickle could set."""

    __slots__ = ("_of",)
    _of: Callable[..., Any]

    def __init__(self, of: Callable[..., Any]) -> None:
        object.__setattr__(self, "_of", of)

    def __setattr__(self, name: str, value: object) -> None:
        raise _Refused(f"it sets {name} of a function")

    def __call__(self, *arguments: Any) -> Any:
        return self._of(*arguments)


class _Type(str):
    """The name of a type in `_TYPES`."""

    __slots__ = ()


def read(path: Path) -> dict[str, Any]:
    """The dictionary in a file of `torch.save`, its tensors as numpy arrays.

    Raises:
        UserError: the file cannot be read; is of the older format; is damaged; or names a function or class
            that is not one of tensors and ordered dictionaries.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            # PyTorch stores plainly, so a file cannot ask for more memory than it has bytes.
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                raise zipfile.BadZipFile("parts of it are compressed")
            found = _Unpickler(archive).load()
    except _Refused as error:
        raise UserError(
            f"{path}: {error}, and nothing but tensors is read, since a pickle may run any code; save "
            "model.state_dict() with torch.save."
        ) from error
    except zipfile.BadZipFile as error:
        raise UserError(
            f"{path}: it is no file of torch.save's zip format ({error}); save model.state_dict() with "
            "torch.save of PyTorch 1.6 or newer."
        ) from error
    except (*DAMAGED, AttributeError, IndexError, RecursionError, pickle.UnpicklingError) as error:
        reason = str(error) or type(error).__name__
        raise UserError(f"{path}: it cannot be read ({reason}); name another file.") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: it holds a {type(found).__name__}, no dictionary; save a state dict.")
    return found


class _Unpickler(pickle.Unpickler):
    """Knows the names of tensors, storages, types and ordered dictionaries; refuses all others."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        pickles = [name for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(pickles) != 1:
            raise zipfile.BadZipFile("it has no data.pkl")
        text = archive.read(pickles[0])
        _check_memo(text)
        super().__init__(io.BytesIO(text))
        self._archive, self._folder = archive, pickles[0].partition("/")[0]
        order = f"{self._folder}/byteorder"
        big = order in archive.namelist() and archive.read(order).strip() == b"big"
        self._order = ">" if big else "<"

    def find_class(self, module: str, name: str) -> Any:
        """The meaning of a name; nothing is imported."""
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch._utils" and name in _REBUILD:
            return _REBUILD[name]
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _Type(_STORAGES[name])
        if module == "torch" and name in _TYPES:
            return _Type(name)
        raise _Refused(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> np.ndarray:
        """A storage, as a flat array: [n]."""
        kind, of, key, _, count = pid
        if kind != "storage" or not isinstance(of, _Type) or not isinstance(key, str):
            raise _Refused(f"it names {kind!r} outside the pickle")
        content = self._archive.read(f"{self._folder}/data/{key}")
        dtype = np.dtype(_TYPES[of])
        if self._order == ">" and dtype.itemsize > 1:
            content = np.frombuffer(content, f"V{dtype.itemsize}").view(np.uint8).tobytes()
            content = np.frombuffer(content, np.uint8).reshape(-1, dtype.itemsize)[:, ::-1].tobytes()
        storage = np.frombuffer(content, dtype)
        if of != "uint8" and len(storage) != count:
            raise ValueError(f"storage {key} has {len(storage)} values, not {count}")
        return storage


def _check_memo(text: bytes) -> None:
    """Raises a ValueError where a pickle numbers a value higher than it can have values.

    The unpickler would make room for all numbers below.
    """
    for opcode, argument, _ in pickletools.genops(text):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(text):
            raise ValueError(f"it numbers a value {argument}")


def _tensor(storage: np.ndarray, offset: int, size: Any, stride: Any, *rest: Any) -> np.ndarray:
    """`torch._utils._rebuild_tensor_v2` and v3, whose seventh argument is a type; a copy, row-major."""
    if len(rest) > 2:
        storage = storage.view(np.dtype(_TYPES[rest[2]]))
    if len(size) != len(stride) or min((offset, *size, *stride), default=0) < 0:
        raise ValueError(f"a tensor has size {size}, stride {stride} and offset {offset}")
    if math.prod(size) == 0:
        return np.empty(size, storage.dtype)
    if offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) >= len(storage):
        raise ValueError(f"a tensor of {size} is longer than its storage")
    # An expanded tensor may claim more memory than there is.
    if math.prod(size) > len(storage):
        raise ValueError(f"a tensor of {size} repeats its {len(storage)} values; save it with .contiguous()")
    steps = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps).copy()


_REBUILD = {
    "_rebuild_tensor_v2": _Meaning(_tensor),
    "_rebuild_tensor_v3": _Meaning(_tensor),
    "_rebuild_parameter": _Meaning(lambda tensor, *_: tensor),
}


def tensors(found: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of nested dictionaries by name, keys joined by dots; all else is left out."""
    for key, value in found.items():
        if isinstance(value, np.ndarray):
            yield str(key), value
        elif isinstance(value, dict):
            yield from ((f"{key}.{name}", one) for name, one in tensors(value))
