"""Archives in other layouts: what is said of them, and that the line of numpy in it converts them."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import arrays

from lthjax import data, layouts
from lthjax.errors import UserError

Made = dict[str, Any]
GOOD = arrays(shape=(8, 8, 1))
COLOUR = arrays(shape=(8, 8, 3))


def renamed(of: Made, form: Callable[[str, str], str]) -> Made:
    return {form(*key.split("_")): value for key, value in of.items()}


def of_images(of: Made, change: Callable[[np.ndarray], np.ndarray]) -> Made:
    return {key: change(value) if "images" in key else value for key, value in of.items()}


def of_labels(of: Made, change: Callable[[np.ndarray], np.ndarray]) -> Made:
    return {key: change(value) if "labels" in key else value for key, value in of.items()}


def medmnist(of: Made) -> Made:
    """The train images in two parts, grey images without a channel, labels [N, 1]."""
    flat = of_labels(of_images(of, lambda x: x[..., 0]), lambda y: y[:, None])
    kept = {key: value for key, value in flat.items() if "test" in key}
    parts = {f"{part}_{kind}": flat[f"train_{kind}"][where] for kind in ("images", "labels")
             for part, where in (("train", slice(60)), ("val", slice(60, None)))}  # fmt: skip
    return kept | parts


KERAS = {"images": "x", "labels": "y"}
LAYOUTS: dict[str, tuple[Made, Made, str]] = {
    "keras": (
        renamed(of_images(GOOD, lambda x: x[..., 0]), lambda part, kind: f"{KERAS[kind]}_{part}"),
        GOOD,
        "it lacks train_images, .*, test_labels; .* and holds x_train, y_train, x_test",
    ),
    "capitals": (renamed(GOOD, lambda part, kind: f"{part}{KERAS[kind].upper()}"), GOOD, "and holds trainX"),
    "medmnist": (medmnist(GOOD), GOOD, r"train_images has shape \(60, 8, 8\)"),
    "channels first": (
        of_images(COLOUR, lambda x: x.transpose(0, 3, 1, 2)),
        COLOUR,
        r"\(80, 3, 8, 8\), channels",
    ),
    "in [0, 1]": (of_images(COLOUR, lambda x: x.astype(np.float32) / 255), COLOUR, "dtype float32"),
    "floats to 255": (of_images(COLOUR, lambda x: x.astype(np.float64)), COLOUR, "dtype float64"),
    "rows": (of_images(GOOD, lambda x: x.reshape(len(x), -1)), GOOD, r"has shape \(80, 64\)"),
    "one-hot": (of_labels(GOOD, lambda y: np.eye(10)[y]), GOOD, "train_labels has dtype float64"),
    "float labels": (of_labels(GOOD, lambda y: y.astype(float)), GOOD, "train_labels has dtype float64"),
    "bool labels": (
        of_labels(GOOD, lambda y: y % 2 > 0),
        of_labels(GOOD, lambda y: y % 2),
        "train_labels has dtype bool",
    ),
    **{
        f"0 and 1 of {kind}": (
            of_images(renamed(GOOD, lambda part, kind: f"{KERAS[kind]}_{part}"), lambda x: x)
            | {f"x_{part}": (GOOD[f"{part}_images"] > 99).astype(kind) for part in ("train", "test")},
            of_images(GOOD, lambda x: np.uint8(255) * (x > 99)),
            "it lacks train_images",
        )
        for kind in ("uint8", "int8", "int64", "bool")
    },
    "all at once": (
        renamed(
            of_labels(of_images(COLOUR, lambda x: x.transpose(0, 3, 1, 2) / 255), lambda y: np.eye(10)[y]),
            lambda part, kind: f"{part}ing-{kind}",
        ),
        COLOUR,
        "it lacks train_images",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_line_converts_it(tmp_path: Path, layout: str) -> None:
    given, wanted, says = LAYOUTS[layout]
    np.savez(tmp_path / "own.npz", **given)
    with pytest.raises(UserError, match=says) as caught:
        data.load("own", tmp_path)
    assert "\n" not in str(caught.value)
    exec(str(caught.value).partition("line of Python: ")[2], {})
    (name,) = re.findall(r"--data\.name (\S+)", str(caught.value))
    got = data.load(name, tmp_path)
    for key, value in wanted.items():
        np.testing.assert_array_equal(getattr(got, key), value)


@pytest.mark.parametrize("form", ["x_train", "one-hot", "one-hot parts"])
def test_the_line_keeps_classes_without_an_image(tmp_path: Path, form: str) -> None:
    """As the archive declares them, or by the columns of its one-hot labels."""
    few = of_labels(GOOD, lambda y: y % 4)
    if form == "x_train":
        few = renamed(few, lambda part, kind: f"{KERAS[kind]}_{part}") | {"classes": np.float64(6)}
    else:
        few = of_labels(few, lambda y: np.eye(6)[y])
    if form == "one-hot parts":
        few = {key: value for key, value in few.items() if "test" in key} | {
            f"{part}_{kind}": few[f"train_{kind}"]
            for part in ("train", "val")
            for kind in ("images", "labels")
        }
    np.savez(tmp_path / "own.npz", **few)
    with pytest.raises(UserError) as caught:
        data.load("own", tmp_path)
    exec(str(caught.value).partition("line of Python: ")[2], {})
    assert data.load("own_uint8", tmp_path).classes == 6


@pytest.mark.parametrize(
    ("labels", "classes", "got"),
    [
        # No more than a label, one or none, and more than numpy's integers hold.
        (range(4), 3, 4),
        (range(1, 5), 4, 5),
        (range(4), 0, 4),
        (range(4), -1, 4),
        (range(4), 1e300, 4),
        # Names, saved as objects.
        (range(4), np.array(["a", None, "c", "d"], dtype=object), 4),
        # One-hot labels of more columns than there are train images.
        (np.eye(100)[:4], None, 4),
    ],
)
def test_the_line_leaves_out_classes_that_would_be_refused(
    tmp_path: Path, labels: Any, classes: Any, got: int
) -> None:
    few = of_labels(GOOD, lambda y: np.array(labels)[y % 4])
    few = renamed(few, lambda part, kind: f"{KERAS[kind]}_{part}")
    np.savez(tmp_path / "own.npz", **few | ({} if classes is None else {"classes": classes}))
    with pytest.raises(UserError) as caught:
        data.load("own", tmp_path)
    exec(str(caught.value).partition("line of Python: ")[2], {})
    assert data.load("own_uint8", tmp_path).classes == got


def test_pixels_that_end_at_one_are_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, top in (("dark", 1), ("black", 0), ("fine", 2)):
        np.savez(tmp_path / f"{name}.npz", **of_images(GOOD, lambda x, top=top: np.minimum(x, top)))
        for _ in range(2):
            data.load(name, tmp_path)
    said = [record.getMessage() for record in caplog.records]
    assert [re.sub(r"warning: .*/(\w+)\.npz: .* run from 0 to (\d), .*", r"\1 \2", one) for one in said] == [
        "dark 1",
        "black 0",
    ]
    assert all("multiply them by 255, before the cast" in one for one in said)


def test_images_that_are_low_or_have_many_channels_are_images(tmp_path: Path) -> None:
    for shape in ((3, 9, 8), (1, 16, 6), (8, 8, 8), (3, 3, 3)):
        np.savez(tmp_path / "own.npz", **arrays(shape=shape))  # type: ignore[arg-type]
        assert data.load("own", tmp_path).shape == shape
    assert layouts.line(tmp_path / "own.npz", GOOD) == ""


@pytest.mark.parametrize(
    "changed",
    [
        {"train_images": np.full((80, 8, 8, 1), -0.5)},
        {"train_images": np.full((80, 8, 8, 1), np.nan)},
        {"train_images": np.zeros((80, 10), np.uint8)},
        {"train_labels": np.full((80, 10), 0.5)},
        {"train_labels": np.array(["a"] * 80)},
    ],
)
def test_no_line_where_the_layout_is_not_known(tmp_path: Path, changed: Made) -> None:
    assert layouts.line(tmp_path / "own.npz", GOOD | changed) == ""
    np.savez(tmp_path / "own.npz", **GOOD | changed)
    with pytest.raises(UserError) as caught:
        data.load("own", tmp_path)
    assert "line of Python" not in str(caught.value)


def test_what_an_archive_holds_is_said(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", a=np.zeros(1), b=np.array([None]))
    with pytest.raises(UserError, match=r"and holds a, b\.$"):
        data.load("own", tmp_path)
    np.savez(tmp_path / "own.npz")
    with pytest.raises(UserError, match=r"and holds nothing\.$"):
        data.load("own", tmp_path)
    assert layouts.names([f"k{i}" for i in range(14)]).endswith("k10, k11 and 2 more")


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (
            np.arange(80) % 10 + 1,
            "train_labels run from 1 to 10, so that the network has an output for label 0",
        ),
        (np.arange(80) % 10 // 9 * 2, r"no train image has the label 1; the network has 3 outputs"),
        (np.where(np.arange(80) % 2, 9, 0), r"labels 1, 2, 3, 4, 5 and 3 more; the network has 10 outputs"),
        (np.arange(80) % 10, ""),
    ],
)
def test_labels_with_a_gap_are_named_once(
    tmp_path: Path, labels: np.ndarray, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    few = GOOD | {"train_labels": labels, "test_labels": labels[:20] * 0 + labels[0]}
    np.savez(tmp_path / "own.npz", **few)
    for _ in range(2):
        data.load("own", tmp_path)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == bool(says)
    assert all(re.search(f"^warning: .*own.npz: .*{says}", one) for one in said)
