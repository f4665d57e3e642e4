"""Common layouts of image archives besides the documented one, and lines of numpy that convert them."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

Arrays = Mapping[str, np.ndarray]
_IMAGES = {"x", "image", "images", "img", "imgs", "data", "input", "inputs", "feature", "features"}
_LABELS = {"y", "label", "labels", "target", "targets", "class"}
_PARTS = {"train": "train", "training": "train", "test": "test", "testing": "test", "t10k": "test",
          "val": "val", "valid": "val", "validation": "val", "dev": "val"}  # fmt: skip
_NAMES_SHOWN = 12


def line(path: Path, arrays: Arrays) -> str:
    """The line of numpy that writes an archive in the documented layout beside it; "" where none is known.

    Validation images, if there are any, are joined to the train images: a study holds out its own.

    Args:
        path: the archive.
        arrays: its arrays by key; of those without a role only `classes` counts.
    """
    of = roles(list(arrays))
    if not {"train_images", "train_labels", "test_images", "test_labels"} <= of.keys():
        return ""
    made = {}
    parts = {"train": ["train", "val"] if {"val_images", "val_labels"} <= of.keys() else ["train"]}
    for role in ("train_images", "train_labels", "test_images", "test_labels"):
        part, kind = role.split("_")
        keys = [of[f"{each}_{kind}"] for each in parts.get(part, [part])]
        convert = _of_images if kind == "images" else _of_labels
        forms = [convert(f"d[{key!r}]", arrays[key]) for key in keys]
        if None in forms:
            return ""
        made[role] = str(forms[0]) if len(forms) == 1 else f"np.concatenate([{', '.join(map(str, forms))}])"
    if all(value == f"d[{role!r}]" for role, value in made.items()):
        return ""
    name = f"{path.stem}_uint8"
    train = [arrays[of[f"{part}_labels"]] for part in parts["train"]]
    made |= _classes(arrays, train, arrays[of["test_labels"]])
    fields = ", ".join(f"{role}={value}" for role, value in made.items())
    text = (
        f"import numpy as np; d = np.load({str(path)!r}); np.savez({str(path.with_stem(name))!r}, {fields})"
    )
    return f"With --data.name {name} it can be read after this line of Python: {text}"


def roles(keys: Sequence[str]) -> dict[str, str]:
    """Role -> key: `train_images` of `x_train`, `X_train`, `trainX`, `training-images`, and so on.

    A key that has the name of its role comes before others.
    """
    found: dict[str, str] = {}
    for key in sorted(keys, key=lambda key: (role_of(key) != key, key)):
        if role := role_of(key):
            found.setdefault(role, key)
    return found


def role_of(key: str) -> str:
    """The role of a key, for example `train_images`; "" where it has none."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+[0-9]*k?|[A-Z]+", key)]
    parts = {_PARTS[word] for word in words if word in _PARTS}
    kinds = [word for word in words if word not in _PARTS]
    if len(parts) != 1 or len(kinds) != 1:
        return ""
    kind = "images" if kinds[0] in _IMAGES else "labels" if kinds[0] in _LABELS else ""
    return f"{parts.pop()}_{kind}" if kind else ""


def names(keys: Sequence[str]) -> str:
    """The keys of an archive, in words; "nothing" where there are none."""
    more = len(keys) - _NAMES_SHOWN
    return ", ".join(keys[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "") if keys else "nothing"


def _of_images(text: str, images: np.ndarray) -> str | None:
    """The expression for uint8 [N, H, W, C] of these images; None where their layout is not known."""
    pixels = _pixels(text, images)
    shape = images.shape
    if pixels is None or 0 in shape:
        return None
    if len(shape) == 2:
        side = round(shape[1] ** 0.5)
        return f"{pixels}.reshape(-1, {side}, {side}, 1)" if side * side == shape[1] else None
    if len(shape) == 3:
        return f"{pixels}[..., None]"
    if len(shape) != 4:
        return None
    return f"{pixels}.transpose(0, 2, 3, 1)" if channels_first(shape) else pixels


def channels_first(shape: Sequence[int]) -> bool:
    """Whether images [N, ...] of this shape are square ones with their one or three channels first."""
    return len(shape) == 4 and shape[1] in (1, 3) and shape[2] == shape[3] >= 8


def _pixels(text: str, images: np.ndarray) -> str | None:
    """The expression for pixels as uint8, 0 to 255; None where they are in no known range."""
    if images.dtype.kind not in "biuf" or not images.size:
        return None
    low, high = float(images.min()), float(images.max())
    if not 0 <= low <= high <= 255:
        return None
    if high <= 1:
        if images.dtype.kind == "f":
            return f"np.round(255 * {text}).astype(np.uint8)"
        return f"(255 * {text}.astype(np.uint8))"
    if images.dtype == np.uint8:
        return text
    whole = images.dtype.kind in "iu" or bool((images == np.round(images)).all())
    return f"{text}.astype(np.uint8)" if whole else None


def _of_labels(text: str, labels: np.ndarray) -> str | None:
    """The expression for whole numbers [N] of these labels; None where they are none."""
    if labels.dtype.kind not in "biuf" or not labels.size:
        return None
    if labels.ndim == 2 and labels.shape[1] > 1:
        one_hot = bool(((labels == 0) | (labels == 1)).all() and (labels.sum(1) == 1).all())
        return f"{text}.argmax(1)" if one_hot else None
    if labels.ndim not in (1, 2):
        return None
    flat = f"{text}[:, 0]" if labels.ndim == 2 else text
    if labels.dtype.kind in "iu":
        return flat
    whole = labels.dtype.kind == "b" or bool((labels == np.round(labels)).all())
    return f"{flat}.astype(np.int64)" if whole else None


def _classes(arrays: Arrays, train: Sequence[np.ndarray], test: np.ndarray) -> dict[str, str]:
    """The field `classes` as the archive declares it, or by the columns of its one-hot labels.

    None where that would be refused: a number of no more than a label, or of more than the train images.
    """
    labels = [*train, test]
    columns = max((of.shape[1] for of in labels if of.ndim == 2), default=0)
    highest = max(int((of.argmax(1) if of.ndim == 2 and of.shape[1] > 1 else of).max()) for of in labels)

    def fits(number: float) -> bool:
        return max(1, highest) < number <= sum(map(len, train))

    declared = arrays.get("classes", np.empty(0))
    number = float(declared) if declared.shape == () and declared.dtype.kind in "iuf" else 0.0
    if number.is_integer() and fits(number):
        return {"classes": "int(d['classes'])"}
    return {"classes": str(columns)} if fits(columns) else {}


def unused_classes(labels: np.ndarray, classes: int) -> str:
    """A warning of labels that start from 1, or of classes without a train image; "" if there are none.

    Args:
        labels: of the train images, from 0.
        classes: their number.
    """
    counts = np.bincount(labels, minlength=min(classes, 1 << 20))
    empty = np.flatnonzero(counts[:classes] == 0)
    if not len(empty):
        return ""
    if empty.tolist() == [0]:
        return (
            f"train_labels run from 1 to {classes - 1}, so that the network has an output for label 0, which "
            "no image has; subtract 1 from all labels if they were counted from 1"
        )
    shown = ", ".join(map(str, empty[:5])) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
    several = "s" if len(empty) > 1 else ""
    return f"no train image has the label{several} {shown}; the network has {classes} outputs all the same"
