"""Images by name: uint8 arrays from npz, TFDS or the package; split, normalisation, augmentation.

`load(name, dir)` looks, in this order, for

1. `<dir>/<name>.npz` with the keys `train_images`, `test_images` (uint8 [N, H, W, C]) and
   `train_labels`, `test_labels` (integers [N], from 0); optionally `classes`, their number;
2. `<dir>/<name>/...`, a prepared TFDS folder in array_record format, read without TensorFlow;
3. TFDS's catalogue: for mnist, fashion_mnist, kmnist, cifar10 and cifar100 its addresses, checksums
   and download manager (`lthjax.catalogue`); for any other image-classification set TFDS itself,
   which needs TensorFlow.

Results of 2 and 3 are cached as 1. `mnist_10k` is part of the package.
"""

import contextlib
import functools
import hashlib
import io
import logging
import math
import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lthjax import catalogue, config, files, layouts, rng, settings
from lthjax.catalogue import EMBEDDED, Arrays
from lthjax.errors import DAMAGED, UserError, check_folder, unknown

_KEYS = ("train_images", "train_labels", "test_images", "test_labels")
# A TPU stores the last axis in multiples of this number.
_LANES = 128

_log = logging.getLogger(__name__)


class Dataset(NamedTuple):
    """A data set in host memory.

    Attributes:
        name: the name under which it was loaded.
        train_images: uint8 [N, H, W, C].
        train_labels: int32 [N], in [0, classes).
        test_images: uint8 [M, H, W, C].
        test_labels: int32 [M].
        classes: number of classes.
        digest: content hash of the four arrays, 16 hexadecimal digits.
        source: description of where it was read from.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: int
    digest: str
    source: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of an image."""
        return self.train_images.shape[1:]  # type: ignore[return-value]


class Source(NamedTuple):
    """A row of `SOURCES`: a data set without a file in the data folder.

    Attributes:
        arrays: (name, data folder) -> uint8 `train_images` and `test_images` [N, H, W, C], integer
            `train_labels` and `test_labels` [N], optionally `classes`, their number. May download to the
            folder. The result is saved there as an npz, and read from it the next time.
        classes: number of classes, or None.
        summary: description of the source.
        packaged: whether it is part of the package; a file of that name is then ignored.
    """

    arrays: Callable[[str, Path], Arrays]
    classes: int | None
    summary: str
    packaged: bool = False


class Split(NamedTuple):
    """One seed's split of the train images, and its normalisation.

    Attributes:
        train: int32 [N - validation], indices into the train images.
        validation: int32 [validation].
        mean: float32 [C], of the train split's pixels in [0, 1].
        std: float32 [C], of the same pixels.
    """

    train: np.ndarray
    validation: np.ndarray
    mean: np.ndarray
    std: np.ndarray


class Images(NamedTuple):
    """All images of a data set on the device: the train images, then the test images.

    Attributes:
        images: uint8 [N + M, H, W, C]; on an accelerator [N + M, pixels], as `stack` says.
        labels: int32 [N + M].
    """

    images: jax.Array
    labels: jax.Array


def load(name: str, dir: str | Path = "data") -> Dataset:
    """The data set of that name, from the first of the module's sources that has it.

    Args:
        name: see the module's docstring.
        dir: the data folder; need not exist.

    Raises:
        UserError: it is not found and cannot be downloaded, or its contents are malformed.
    """
    config.check_data_name(name)
    check_folder(dir, "--data-dir")
    folder, row = Path(dir), SOURCES.get(name)
    if row is not None and row.packaged:
        return _checked(name, _of_source(row, name, folder), "the package")
    path = folder / f"{name}.npz"
    if path.is_file():
        return _of_file(name, path)
    prepared = catalogue.prepared_folder(folder, name)
    if prepared is not None:
        arrays: Arrays = catalogue.read_prepared(prepared)
        source = str(prepared)
    elif row is not None:
        arrays, source = _of_source(row, name, folder), row.summary
    elif near := _spelt_otherwise(name, folder):
        raise UserError(f"data.name: {name!r} is not known; did you mean {near!r}?")
    elif not catalogue.lists(name):
        raise _unknown(name, folder)
    else:
        arrays, source = catalogue.prepare(name, folder), "TFDS"
    dataset = _checked(name, arrays, source)
    _cache(dataset, path)
    return dataset


def is_here(name: str, dir: str | Path = "data") -> bool:
    """Whether `load` has the data set of that name without a download."""
    config.check_data_name(name)
    row = SOURCES.get(name)
    if row is not None and row.packaged:
        return True
    return (Path(dir) / f"{name}.npz").is_file() or catalogue.prepared_folder(Path(dir), name) is not None


@settings.pinned()
def split(dataset: Dataset, seed: int, validation: int) -> Split:
    """Holds out `validation` train images, chosen by the seed's stream "split".

    Args:
        dataset: the data set.
        seed: the study's seed.
        validation: number of images to hold out, fewer than there are.
    """
    return splits(dataset, [seed], validation)[seed]


@settings.pinned()
def splits(dataset: Dataset, seeds: Iterable[int], validation: int) -> dict[int, Split]:
    """The splits of several seeds, as of `split`; all images are counted only once.

    Args:
        dataset: the data set.
        seeds: the seeds.
        validation: number of images to hold out, fewer than there are.
    """
    n, images = len(dataset.train_images), dataset.train_images
    whole, made = _histogram(images), {}
    values = np.arange(256) / 255
    for seed in seeds:
        order = np.asarray(jax.random.permutation(rng.stream(seed, "split"), n), np.int32)
        held_out, rest = np.sort(order[:validation]), np.sort(order[validation:])
        totals = whole - _histogram(images[held_out])
        mean = totals @ values / totals.sum(1)
        variance = totals @ values**2 / totals.sum(1) - mean**2
        # Constant images have no spread to divide by; one grey value is the smallest visible difference.
        std = np.maximum(np.sqrt(np.maximum(variance, 0)), 1 / 255)
        made[seed] = Split(rest, held_out, mean.astype(np.float32), std.astype(np.float32))
    return made


def _histogram(images: np.ndarray) -> np.ndarray:
    """How often every value occurs in a channel: int64 [C, 256]. Sums of integers depend on no order."""
    channels = images.shape[3]
    totals = np.zeros((channels, 256), np.int64)
    for part in np.array_split(images, max(1, len(images) // 5000)):
        pixels = part.reshape(-1, channels)
        for c in range(channels):
            totals[c] += np.bincount(pixels[:, c], minlength=256)
    return totals


def stack(dataset: Dataset, flat: bool = False) -> Images:
    """All images of a data set as device arrays, train first.

    Args:
        dataset: the data set.
        flat: one axis for the pixels of an image, H W C of them and zeros up to a multiple of 128. A TPU
            would copy all images into another layout before it gathers some of [N, H, W, C].
    """
    images = np.concatenate([dataset.train_images, dataset.test_images])
    if flat:
        images = images.reshape(len(images), -1)
        images = np.pad(images, ((0, 0), (0, -images.shape[1] % _LANES)))
    return Images(
        jnp.asarray(images),
        jnp.asarray(np.concatenate([dataset.train_labels, dataset.test_labels])),
    )


def gather(
    images: jax.Array,
    index: jax.Array,
    mean: jax.Array,
    std: jax.Array,
    key: jax.Array | None = None,
    shape: tuple[int, int, int] | None = None,
) -> jax.Array:
    """A normalised batch; augmented if a key is given.

    Args:
        images: uint8 [N, H, W, C], or flat, as `stack` makes them.
        index: int32 [B].
        mean: float32 [C], of pixels in [0, 1].
        std: float32 [C], likewise.
        key: a PRNG key for `augment`, or None.
        shape: (H, W, C), for flat images.

    Returns:
        float32 [B, H, W, C].
    """
    batch = images[index]
    if images.ndim == 2:
        assert shape is not None, "flat images need a shape"
        batch = batch[:, : math.prod(shape)].reshape(-1, *shape)
    if key is not None:
        batch = augment(key, batch)
    scaled = batch.astype(jnp.float32) / 255
    return (scaled - mean.reshape(1, 1, 1, -1)) / std.reshape(1, 1, 1, -1)


def augment(key: jax.Array, batch: jax.Array, pad: int = 4) -> jax.Array:
    """Pads with black, crops randomly to the old size, and flips each image with probability 1/2.

    Args:
        key: a PRNG key.
        batch: [B, H, W, C], any dtype.
        pad: pixels on each side.
    """
    n, height, width, channels = batch.shape
    where, flips = jax.random.split(key)
    corners = jax.random.randint(where, (n, 2), 0, 2 * pad + 1, dtype=jnp.int32)
    padded = jnp.pad(batch, ((0, 0), (pad, pad), (pad, pad), (0, 0)))

    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (height, width, channels))

    cropped = jax.vmap(crop)(padded, corners)
    flip = jax.random.bernoulli(flips, jnp.float32(0.5), (n, 1, 1, 1))
    return jnp.where(flip, cropped[:, :, ::-1], cropped)


# Reading and checking


def _of_source(row: Source, name: str, folder: Path) -> Arrays:
    """The numpy arrays of a row of `SOURCES`."""
    given = row.arrays(name, folder)
    missing = [key for key in _KEYS if key not in given]
    if missing:
        names = ", ".join(missing)
        raise UserError(f"data.name: the source of {name!r} gives no {names}; mend its row of SOURCES.")
    return {key: np.asarray(given[key]) for key in (*_KEYS, "classes") if key in given}


def _own(folder: Path) -> list[str]:
    """The names of the archives in the data folder."""
    return sorted(p.stem for p in folder.glob("*.npz") if p.is_file())


def _spelt_otherwise(name: str, folder: Path) -> str:
    """An archive of the data folder that differs in capitals alone, or one of `SOURCES` that differs in
    capitals, hyphens and underscores alone, as `FashionMNIST`; or "".
    """

    def plain(name: str) -> str:
        return re.sub("[-_]", "", name.lower())

    near = (
        *(own for own in _own(folder) if own.lower() == name.lower()),
        *(known for known in SOURCES if plain(known) == plain(name)),
    )
    return near[0] if near else ""


def _unknown(name: str, folder: Path) -> UserError:
    """There is no data set of that name, and which there are."""
    own = _own(folder)
    suggestion = str(unknown("data.name", name, [*SOURCES, *catalogue.names(), *own])).split(" Known:")[0]
    fetched = [name for name, row in SOURCES.items() if not row.packaged]
    return UserError(
        f"{suggestion} Built in: {EMBEDDED}; fetched: {', '.join(fetched)}; in {str(folder)!r}: "
        f"{', '.join(own) or 'none'}; any other TFDS image-classification set with TensorFlow."
    )


def _packaged(name: str, folder: Path) -> Arrays:
    """The arrays that are part of the package; the folder is ignored."""
    with resources.as_file(resources.files("lthjax") / "assets" / f"{name}.npz") as path:
        return _read_npz(path)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise UserError(f"{path}: it is a single array; make it with numpy.savez.")
            missing = [k for k in _KEYS if k not in archive]
            if missing:
                raise UserError(
                    f"{path}: it lacks {', '.join(missing)}; it must hold {', '.join(_KEYS)}, and holds "
                    f"{layouts.names(archive.files)}."
                )
            # A small compressed file may expand to more than the memory holds.
            size, room = sum(member.file_size for member in zipfile.ZipFile(path).infolist()), _memory()
            if size > room:
                raise UserError(
                    f"{path}: it unfolds to {size / 2**30:,.1f} GiB, and this machine has "
                    f"{room / 2**30:,.1f} GiB of memory; make it smaller."
                )
            return {k: archive[k] for k in (*_KEYS, "classes") if k in archive}
    except DAMAGED as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path}: it cannot be read as an npz of plain arrays ({error}); make it with numpy.savez."
        ) from error


def _of_file(name: str, path: Path) -> Dataset:
    """The data set of an archive; an error has the line of numpy that converts it, where one is known."""
    try:
        return _checked(name, _read_npz(path), str(path))
    except UserError as error:
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                size = sum(member.file_size for member in zipfile.ZipFile(path).infolist())
                keys = layouts.roles(archive.files).values() if size <= _memory() else ()
                arrays = {k: archive[k] for k in keys}
                # Names of classes may be objects, which are not read.
                with contextlib.suppress(ValueError, KeyError):
                    arrays |= {"classes": archive["classes"]} if arrays else {}
                how = layouts.line(path, arrays)
        except (*DAMAGED, AttributeError):  # a single array has no files
            how = ""
        if not how:
            raise
        raise UserError(f"{error} {how}") from error


def _memory() -> int:
    """Bytes of this machine's memory; the largest addressable size if the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # no such call on Windows
        return sys.maxsize


def _check_part(part: str, images: np.ndarray, labels: np.ndarray, source: str) -> None:
    """Raises an error that says what is wrong with the kind or shape of a part's arrays."""
    where = f"{source}: {part}_images"
    if images.dtype != np.uint8:
        nan = images.dtype.kind == "f" and bool(np.isnan(images).any())
        raise UserError(
            f"{where} has dtype {images.dtype}{' and holds NaN' if nan else ''}; it must be uint8, 0 to 255."
        )
    if images.ndim != 4 or 0 in images.shape:
        raise UserError(f"{where} has shape {images.shape}; it must be [N, height, width, channels].")
    if layouts.channels_first(images.shape):
        raise UserError(
            f"{where} has shape {images.shape}, channels first; it must be [N, height, width, channels]."
        )
    if labels.dtype.kind not in "iu":
        raise UserError(f"{source}: {part}_labels has dtype {labels.dtype}; it must be whole numbers.")
    if labels.shape != images.shape[:1]:
        raise UserError(
            f"{source}: {part}_labels has shape {labels.shape}; it must be "
            f"({len(images)},), one for each of {part}_images."
        )


def _checked(name: str, arrays: Mapping[str, np.ndarray], source: str) -> Dataset:
    """A Dataset of these arrays, or an error that says what is wrong with them."""
    for part in ("train", "test"):
        _check_part(part, arrays[f"{part}_images"], arrays[f"{part}_labels"], source)
    shapes = [arrays[f"{part}_images"].shape[1:] for part in ("train", "test")]
    if shapes[0] != shapes[1]:
        raise UserError(
            f"{source}: test_images are {shapes[1]}, train_images {shapes[0]}; they must be alike."
        )
    # A class without train images cannot be learnt; many such classes are a mistake in the data.
    declared = SOURCES[name].classes if name in SOURCES else None
    most = max(len(arrays["train_labels"]), declared or 0)
    if "classes" in arrays:
        number = arrays["classes"]
        whole = number.dtype.kind in "iu" and number.shape == ()
        if not whole or not 2 <= int(number) <= most:
            shown = str(number[()]) if number.shape == () else f"an array of shape {number.shape}"
            raise UserError(
                f"{source}: classes is {shown[:60]} of dtype {number.dtype}; it must be a single whole "
                f"number from 2 to {max(most, 2)}, the number of train images, or be left out."
            )
        declared = int(number)
    classes = declared or min(int(arrays["train_labels"].max()) + 1, most)
    for part in ("train", "test"):
        labels = arrays[f"{part}_labels"]
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            allowed = f"in 0 to {classes - 1}" if classes > 0 else "at 0 and above"
            more = (
                "" if part == "train" or low < 0 or declared else ", or classes must say how many there are"
            )
            raise UserError(
                f"{source}: {part}_labels run from {low} to {high}; they must lie {allowed}{more}."
            )
    if classes < 2:
        raise UserError(f"{source}: train_labels hold one class only; two or more are needed.")
    clean = {k: np.ascontiguousarray(arrays[k], np.uint8 if "images" in k else np.int32) for k in _KEYS}
    if unused := layouts.unused_classes(clean["train_labels"], classes):
        warn_once(f"warning: {source}: {unused}.")
    if (highest := int(clean["train_images"].max())) <= 1:
        warn_once(
            f"warning: {source}: the pixels of train_images run from 0 to {highest}, those of uint8 to 255; "
            "multiply them by 255, before the cast to uint8 if they were floats in [0, 1]."
        )
    digest = hashlib.sha256()
    for key in _KEYS:
        digest.update(f"{key}{clean[key].shape}".encode())
        digest.update(clean[key].data)
    if classes != int(clean["train_labels"].max()) + 1:
        digest.update(f"classes={classes}".encode())  # networks have another output layer
    return Dataset(name, **clean, classes=classes, digest=digest.hexdigest()[:16], source=source)


@functools.cache
def warn_once(text: str) -> None:
    """Logs a warning, once in a process."""
    _log.warning("%s", text)


def _cache(dataset: Dataset, path: Path) -> None:
    """Writes the documented npz atomically; an unwritable folder is no error."""
    arrays = {k: getattr(dataset, k) for k in _KEYS} | {"classes": np.int64(dataset.classes)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        contents = io.BytesIO()
        np.savez(contents, **arrays)  # type: ignore[arg-type]
        files.write_whole(path, contents.getvalue())
    except OSError as error:
        _log.warning("%s could not be written (%s); the data will be decoded anew next time.", path, error)


_CATALOGUE = "TFDS's catalogue"
SOURCES: dict[str, Source] = {
    "mnist": Source(catalogue.fetch, 10, _CATALOGUE),
    "fashion_mnist": Source(catalogue.fetch, 10, _CATALOGUE),
    "kmnist": Source(catalogue.fetch, 10, _CATALOGUE),
    "cifar10": Source(catalogue.fetch, 10, _CATALOGUE),
    "cifar100": Source(catalogue.fetch, 100, _CATALOGUE),
    "mnist_10k": Source(_packaged, 10, "10,000 images of MNIST, part of the package", packaged=True),
}
"""The data sets that can be loaded by name without a file; add a row to add one."""
