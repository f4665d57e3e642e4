"""Image sets through TFDS: prepared folders, its catalogue (decoded with numpy), any set with TensorFlow."""

import gzip
import tarfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lthjax.errors import UserError

EMBEDDED = "mnist_10k"
_LOOK_SECONDS = 4.0
Arrays = Mapping[str, np.ndarray]


def _tfds() -> Any:
    import tensorflow_datasets

    return tensorflow_datasets


def prepared_folder(folder: Path, name: str) -> Path | None:
    """The newest version of a prepared TFDS data set, or None.

    Args:
        folder: the data folder.
        name: NAME, NAME/CONFIG, or either with a version behind it.

    Raises:
        UserError: NAME has several configs.
    """
    # NAME/VERSION or NAME/CONFIG/VERSION. No deeper search: an unrelated large folder may have this name.
    patterns = ("dataset_info.json", "*/dataset_info.json", "*/*/dataset_info.json")
    found = [info.parent for pattern in patterns for info in (folder / name).glob(pattern)]
    if len({version.parent for version in found}) > 1:
        newest = sorted({version.parent: version for version in sorted(found, key=_version)}.values())
        above = [version if version.parent == folder / name else version.parent for version in newest]
        each = ", ".join(config.relative_to(folder).as_posix() for config in above)
        raise UserError(f"data.name: {name!r} has several configs in {str(folder)!r}; choose one of {each}.")
    return max(found, key=_version) if found else None


def _version(folder: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in folder.name.split(".") if part.isdecimal())


def read_prepared(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of a prepared TFDS folder, in the order in which they are stored."""
    try:
        builder = _tfds().builder_from_directory(str(folder))
        splits = list(builder.info.splits)
        keys = builder.info.supervised_keys
        if not {"train", "test"} <= set(splits) or not keys or len(keys) != 2:
            raise UserError(
                f"{folder}: it has splits {splits} and supervised keys {keys}; an image-classification "
                "set needs the splits train and test, and (image, label)."
            )
        arrays = {}
        for part in ("train", "test"):
            source = builder.as_data_source(split=part)
            examples = [source[i] for i in range(len(source))]
            arrays[f"{part}_images"] = _same_shape([e[keys[0]] for e in examples], folder)
            arrays[f"{part}_labels"] = np.asarray([e[keys[1]] for e in examples])
        arrays["classes"] = np.asarray(builder.info.features[keys[1]].num_classes)
        return arrays
    except UserError:
        raise
    except Exception as error:  # TFDS raises many types, none of which the user can fix in code
        raise UserError(
            f"{folder}: TFDS cannot read it without TensorFlow ({_first_line(error)}); prepare it with "
            "file_format='array_record', or put an npz in its place."
        ) from error


def _same_shape(images: list[np.ndarray], where: object) -> np.ndarray:
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise UserError(
            f"{where}: its images have {len(shapes)} different shapes, for example "
            f"{sorted(shapes)[:2]}; they must all be alike."
        )
    return np.stack(images)


def fetch(name: str, folder: Path) -> Arrays:
    """Downloads the files that TFDS's catalogue lists, checks them, and decodes them with numpy."""
    infos = dict(_tfds().builder_cls(name).url_infos)
    _look_first(name, infos, folder)
    try:
        manager = _tfds().download.DownloadManager(
            download_dir=str(folder / "downloads"),
            url_infos=infos,
            dataset_name=name,
            force_checksums_validation=True,
        )
        files = {Path(url).name: Path(path) for url, path in manager.download({u: u for u in infos}).items()}
    except Exception as error:  # DownloadError, NonMatchingChecksumError, requests' and the system's
        raise _unreachable(name, folder, _first_line(error)) from error
    try:
        return _decode_idx(files) if "mnist" in name else _decode_cifar(files)
    except (OSError, EOFError, KeyError, ValueError, tarfile.TarError) as error:
        raise UserError(
            f"data.name: what was downloaded for {name!r} is not in the official format ({error}); "
            f"delete {folder / 'downloads'} and try again."
        ) from error


def _look_first(name: str, urls: Mapping[str, Any], folder: Path) -> None:
    """Fails at once if no address answers: TFDS would retry for minutes."""
    import requests

    failures: list[str] = []

    def look() -> None:
        url = next(iter(urls))
        try:
            requests.head(url, timeout=_LOOK_SECONDS / 2)
        except requests.RequestException as error:
            failures.append(type(error).__name__)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(_LOOK_SECONDS)
    if failures or thread.is_alive():
        reason = failures[0] if failures else f"no answer in {_LOOK_SECONDS:.0f} s"
        raise _unreachable(name, folder, reason)


class Unreachable(UserError):
    """A data set that is not in the data folder, and could not be downloaded.

    Attributes:
        needed: the message where no other data set will do.
    """

    needed: str


def _unreachable(name: str, folder: Path, reason: str) -> Unreachable:
    missing = (
        f"data.name: {name!r} is not in {str(folder)!r} and could not be downloaded ({reason}).\n"
        "Name the folder that it is in with --data-dir, or put "
        f"{name}.npz (uint8 train_images, test_images [N, H, W, C]; train_labels, test_labels [N]) "
        f"into {str(folder)!r}"
    )
    error = Unreachable(f"{missing}, or use --data.name {EMBEDDED}, which is built in.")
    error.needed = f"{missing}."
    return error


def _decode_idx(files: Mapping[str, Path]) -> dict[str, np.ndarray]:
    """The four gzipped IDX files of the MNIST family (LeCun, Cortes & Burges, file format)."""

    def read(name: str) -> np.ndarray:
        raw = gzip.decompress(files[name].read_bytes())
        if raw[:3] != b"\x00\x00\x08":
            raise ValueError(f"{name} is not an IDX file of unsigned bytes")
        shape = np.frombuffer(raw, ">i4", count=raw[3], offset=4)
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)

    return {
        "train_images": read("train-images-idx3-ubyte.gz")[..., None],
        "train_labels": read("train-labels-idx1-ubyte.gz"),
        "test_images": read("t10k-images-idx3-ubyte.gz")[..., None],
        "test_labels": read("t10k-labels-idx1-ubyte.gz"),
    }


def _decode_cifar(files: Mapping[str, Path]) -> dict[str, np.ndarray]:
    """The binary version of CIFAR-10 and CIFAR-100 (Krizhevsky 2009): label bytes, then R, G, B."""
    (archive,) = files.values()
    batches: dict[str, bytes] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.name.endswith(".bin") and (file := tar.extractfile(member)) is not None:
                batches[Path(member.name).name] = file.read()
    hundred = "train.bin" in batches
    # CIFAR-100 has two label bytes, coarse and fine; the fine label is used.
    label_bytes = 2 if hundred else 1
    train = ["train.bin"] if hundred else [f"data_batch_{i}.bin" for i in range(1, 6)]
    test = ["test.bin"] if hundred else ["test_batch.bin"]
    arrays = {}
    for part, names in (("train", train), ("test", test)):
        rows = np.frombuffer(b"".join(batches[n] for n in names), np.uint8)
        rows = rows.reshape(-1, label_bytes + 3072)
        pixels = rows[:, label_bytes:].reshape(-1, 3, 32, 32)
        arrays[f"{part}_images"] = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
        arrays[f"{part}_labels"] = rows[:, label_bytes - 1].copy()
    return arrays


def lists(name: str) -> bool:
    """Whether TFDS has a set of that name."""
    try:
        _tfds().builder_cls(name)
    except Exception:  # not found, not a valid name, or in a namespace with missing dependencies
        return False
    return True


def names() -> list[str]:
    """The names of all sets of TFDS."""
    return list(_tfds().list_builders(with_community_datasets=False))


def prepare(name: str, folder: Path) -> dict[str, np.ndarray]:
    """Any other image-classification set, downloaded and prepared by TFDS with TensorFlow."""
    tfds = _tfds()
    try:
        import tensorflow  # type: ignore[import-not-found] # noqa: F401
    except ImportError:
        raise UserError(
            f"data.name: preparing {name!r} takes TensorFlow, which is not installed; install "
            f"tensorflow, or put {name}.npz into {str(folder)!r}."
        ) from None
    builder = tfds.builder(name, data_dir=str(folder))
    if builder.url_infos:
        _look_first(name, builder.url_infos, folder)
    try:
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # the types differ between data sets
        raise _unreachable(name, folder, _first_line(error)) from error
    return read_prepared(Path(builder.data_dir))


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
