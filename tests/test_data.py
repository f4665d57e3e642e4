import gzip
import hashlib
import http.server
import io
import json
import shutil
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import FULL, about, arrays, write_npz

from analysis.run import Run
from lthjax import catalogue, data
from lthjax.errors import UserError, unknown


def test_embedded() -> None:
    got = data.load("mnist_10k", "nowhere")
    assert got.train_images.shape == (10_000, 28, 28, 1)
    assert got.test_images.shape == (2_000, 28, 28, 1)
    np.testing.assert_array_equal(np.bincount(got.train_labels), [1000] * 10)
    np.testing.assert_array_equal(np.bincount(got.test_labels), [200] * 10)
    assert (Path(data.__file__).parent / "assets" / "mnist_10k.npz").stat().st_size <= 3e6


@pytest.mark.skipif(not (FULL / "mnist.npz").is_file(), reason="needs the full mnist.npz in data/")
def test_embedded_is_the_start_of_the_full_set() -> None:
    few, full = data.load("mnist_10k"), data.load("mnist", FULL)
    for digit in range(10):
        expected = full.train_images[full.train_labels == digit][:1000]
        np.testing.assert_array_equal(few.train_images[few.train_labels == digit], expected)


@pytest.mark.skipif(not (FULL / "mnist.npz").is_file(), reason="needs the full mnist.npz in data/")
def test_published_mean_and_deviation_of_mnist() -> None:
    split = data.split(data.load("mnist", FULL), 0, 5000)
    assert split.mean == pytest.approx([0.1307], abs=5e-4)
    assert split.std == pytest.approx([0.3081], abs=5e-4)


def test_npz_round_trip_and_digest(tmp_path: Path) -> None:
    write_npz(tmp_path, "own")
    first = data.load("own", tmp_path)
    assert (first.shape, first.classes, first.name) == ((28, 28, 1), 10, "own")
    np.testing.assert_array_equal(first.train_images, arrays()["train_images"])
    assert first.train_labels.dtype == np.int32
    write_npz(tmp_path, "own", train_labels=arrays()["train_labels"].astype(np.int64))
    assert data.load("own", tmp_path).digest == first.digest
    changed = arrays()["train_images"].copy()
    changed[3, 4, 5, 0] ^= 1
    write_npz(tmp_path, "own", train_images=changed)
    assert data.load("own", tmp_path).digest != first.digest
    # Another number of classes is another network, and so another folder.
    for classes, same in ((10, True), (12, False)):
        write_npz(tmp_path, "own", classes=np.int64(classes))
        assert (data.load("own", tmp_path).digest == first.digest) is same


FLOATS = arrays()["train_images"].astype(np.float32) / 255
NAN = FLOATS.copy()
NAN[0, 0, 0, 0] = np.nan


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"test_labels": None}, "lacks test_labels; it must hold train_images, train_labels"),
        ({"train_images": FLOATS}, "train_images has dtype float32; it must be uint8"),
        ({"train_images": NAN}, "train_images has dtype float32 and holds NaN"),
        ({"train_images": np.zeros((80, 28, 28), np.uint8)}, r"shape \(80, 28, 28\); it must be \[N"),
        ({"test_images": np.zeros((20, 8, 8, 1), np.uint8)}, "they must be alike"),
        ({"train_labels": np.zeros(79, np.uint8)}, r"train_labels has shape \(79,\)"),
        ({"train_labels": np.zeros(80)}, "train_labels has dtype float64; it must be whole numbers"),
        ({"train_labels": np.full(80, 12, np.uint8)}, "run from 12 to 12; they must lie in 0 to 9"),
        ({"test_labels": np.full(20, -1, np.int32)}, "run from -1 to -1; they must lie in 0 to 9\\.$"),
        ({"train_images": np.array([None])}, "cannot be read as an npz of plain arrays"),
    ],
)
def test_malformed_npz(tmp_path: Path, changed: dict, sentence: str) -> None:
    write_npz(tmp_path, "mnist", **changed)
    with pytest.raises(UserError, match=sentence) as caught:
        data.load("mnist", tmp_path)
    assert "mnist.npz" in str(caught.value)


def test_not_an_npz(tmp_path: Path) -> None:
    (tmp_path / "mnist.npz").write_text("hello")
    with pytest.raises(UserError, match="cannot be read as an npz"):
        data.load("mnist", tmp_path)
    whole = write_npz(tmp_path, "mnist").read_bytes()
    (tmp_path / "mnist.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be read as an npz"):
        data.load("mnist", tmp_path)


def test_a_flipped_bit_never_raises_anything_else(tmp_path: Path) -> None:
    """The file is compressed by numpy.savez_compressed, so zlib and zipfile can raise their own errors."""
    np.savez_compressed(tmp_path / "few.npz", **arrays(train=20, test=10))  # type: ignore[arg-type]
    good = (tmp_path / "few.npz").read_bytes()
    generator, refused = np.random.default_rng(0), 0
    for at in [*generator.integers(0, 8 * len(good), 150), *generator.integers(0, 8 * 60, 50)]:
        bad = bytearray(good)
        bad[at // 8] ^= 1 << (at % 8)
        (tmp_path / "few.npz").write_bytes(bad)
        try:
            data._read_npz(tmp_path / "few.npz")
        except UserError:
            refused += 1
    assert refused > 100


def test_labels_without_bound_and_a_single_array(tmp_path: Path) -> None:
    write_npz(tmp_path, "own", train_labels=np.r_[np.zeros(79, int), 10**9])
    with pytest.raises(UserError, match="train_labels run from 0 to 1000000000; they must lie in 0 to 79"):
        data.load("own", tmp_path)
    write_npz(tmp_path, "own", train_labels=np.full(80, -1))
    with pytest.raises(UserError, match="run from -1 to -1; they must lie at 0 and above"):
        data.load("own", tmp_path)
    write_npz(tmp_path, "own", test_labels=np.full(20, 10))
    with pytest.raises(
        UserError, match=r"they must lie in 0 to 9, or classes must say how many there are\.$"
    ):
        data.load("own", tmp_path)
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    with pytest.raises(UserError, match="it is a single array"):
        data.load("one", tmp_path)


def test_one_class_is_not_enough(tmp_path: Path) -> None:
    write_npz(tmp_path, "own", train_labels=np.zeros(80, int), test_labels=np.zeros(20, int))
    with pytest.raises(UserError, match="one class only"):
        data.load("own", tmp_path)


# Split, normalisation, batches


def test_split_is_a_partition_by_seed(tmp_path: Path) -> None:
    write_npz(tmp_path, "own")
    dataset = data.load("own", tmp_path)
    one, again, other = (data.split(dataset, seed, 30) for seed in (1, 1, 2))
    np.testing.assert_array_equal(np.sort(np.r_[one.train, one.validation]), np.arange(80))
    assert len(one.validation) == 30
    np.testing.assert_array_equal(one.train, again.train)
    assert not np.array_equal(one.train, other.train)


def test_normalised_train_split_has_mean_0_and_deviation_1(tmp_path: Path) -> None:
    write_npz(tmp_path, "own", **arrays(shape=(9, 7, 3)))
    dataset = data.load("own", tmp_path)
    split = data.split(dataset, 0, 30)
    pixels = dataset.train_images[split.train] / 255
    np.testing.assert_allclose(split.mean, pixels.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(split.std, pixels.std((0, 1, 2)), rtol=1e-6)
    stacked = data.stack(dataset)
    batch = data.gather(stacked.images, split.train, split.mean, split.std)
    np.testing.assert_allclose(np.mean(batch, (0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(np.std(batch, (0, 1, 2)), 1, atol=1e-5)
    np.testing.assert_array_equal(stacked.images[80:], dataset.test_images)
    np.testing.assert_array_equal(stacked.labels[80:], dataset.test_labels)


def test_constant_images_do_not_divide_by_zero(tmp_path: Path) -> None:
    write_npz(tmp_path, "own", train_images=np.full((80, 8, 8, 1), 7, np.uint8),
              test_images=np.zeros((20, 8, 8, 1), np.uint8))  # fmt: skip
    assert (data.split(data.load("own", tmp_path), 0, 10).std > 0).all()


def test_augmentation_is_a_shifted_and_perhaps_flipped_image() -> None:
    image = np.arange(1, 82, dtype=np.uint8).reshape(1, 9, 9, 1)
    batch = np.repeat(image, 300, axis=0)
    got = np.asarray(data.augment(jax.random.key(0), jax.numpy.asarray(batch), pad=2))
    padded = np.pad(image[0], ((2, 2), (2, 2), (0, 0)))
    allowed = {}
    for i in range(5):
        for j in range(5):
            crop = padded[i : i + 9, j : j + 9]
            allowed[crop.tobytes()] = (i, j, False)
            allowed[crop[:, ::-1].tobytes()] = (i, j, True)
    seen = {allowed[np.ascontiguousarray(picture).tobytes()] for picture in got}
    assert len(seen) > 40  # of 50


# TFDS


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A prepared TFDS folder: PNG images in tf.train.Example records in array_record files."""
    import tensorflow_datasets as tfds
    from array_record.python import array_record_module
    from PIL import Image
    from tensorflow_datasets.proto import tf_example_pb2

    folder = tmp_path / "digits" / "1.2.0"
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(28, 28, 1)),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
    )
    made = arrays()
    splits = []
    for part in ("train", "test"):
        images, labels = made[f"{part}_images"], made[f"{part}_labels"]
        path = folder / f"digits-{part}.array_record-00000-of-00001"
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        size = 0
        for image, label in zip(images, labels, strict=True):
            png = io.BytesIO()
            Image.fromarray(image[..., 0]).save(png, "PNG")
            example = tf_example_pb2.Example()
            example.features.feature["image"].bytes_list.value.append(png.getvalue())
            example.features.feature["label"].int64_list.value.append(int(label))
            record = example.SerializeToString()
            writer.write(record)
            size += len(record)
        writer.close()
        splits.append(
            f'{{"filepathTemplate": "{{DATASET}}-{{SPLIT}}.{{FILEFORMAT}}-{{SHARD_X_OF_Y}}", '
            f'"name": "{part}", "numBytes": "{size}", "shardLengths": ["{len(images)}"]}}'
        )
    features.save_config(str(folder))
    (folder / "dataset_info.json").write_text(
        '{"name": "digits", "version": "1.2.0", "fileFormat": "array_record", '
        '"supervisedKeys": {"tuple": {"items": [{"featureKey": "image"}, {"featureKey": "label"}]}}, '
        f'"splits": [{", ".join(splits)}]}}'
    )
    return tmp_path


def test_prepared_tfds_folder_is_read_and_cached(prepared: Path) -> None:
    got = data.load("digits", prepared)
    for key, value in arrays().items():
        np.testing.assert_array_equal(getattr(got, key), value)
    assert got.classes == 10
    cached = data.load("digits", prepared)
    assert cached.source == str(prepared / "digits.npz")
    assert cached.digest == got.digest


def test_a_prepared_set_of_several_configs_asks_for_one(prepared: Path) -> None:
    for config in ("letters", "balanced"):
        shutil.copytree(prepared / "digits" / "1.2.0", prepared / "emn" / config / "1.2.0")
    with pytest.raises(
        UserError, match=r"'emn' has several configs in .*; choose one of emn/balanced, emn/l"
    ):
        data.load("emn", prepared)
    assert not (prepared / "emn.npz").exists()
    (prepared / "emn" / "balanced" / "1.3.0").mkdir()
    (prepared / "emn" / "balanced" / "1.3.0" / "dataset_info.json").write_text("{")
    for name, version in (("emn/letters", "1.2.0"), ("emn/balanced", "1.3.0"), ("emn/balanced/1.2.0", "")):
        assert catalogue.prepared_folder(prepared, name) == prepared / name / version
    assert data.load("emn/letters", prepared).source == str(prepared / "emn" / "letters" / "1.2.0")
    assert (prepared / "emn" / "letters.npz").exists()


@pytest.mark.parametrize(
    ("name", "meant"),
    [("MNIST", "mnist"), ("FashionMNIST", "fashion_mnist"), ("CIFAR-10", "cifar10")],
)
def test_another_spelling_of_a_known_set_is_no_set_of_tfds(name: str, meant: str, tmp_path: Path) -> None:
    write_npz(tmp_path, "my_own")
    with pytest.raises(UserError, match=rf"^data\.name: '{name}' is not known; did you mean '{meant}'\?$"):
        data.load(name, tmp_path)
    # An archive that differs in capitals alone is nearer.
    write_npz(tmp_path, name.swapcase())
    with pytest.raises(UserError, match=f"did you mean '{name.swapcase()}'"):
        data.load(name, tmp_path)


def test_a_suggestion_does_not_look_at_capitals() -> None:
    assert "did you mean 'Adam'? " in str(unknown("name", "ADAMS", ["Adam", "sgd"]))


def test_prepared_folder_that_cannot_be_read(prepared: Path) -> None:
    info = prepared / "digits" / "1.2.0" / "dataset_info.json"
    info.write_text(info.read_text().replace('"name": "test"', '"name": "other"'))
    with pytest.raises(UserError, match="needs the splits train and test"):
        data.load("digits", prepared)
    info.write_text("{")
    with pytest.raises(UserError, match="cannot read it without TensorFlow"):
        data.load("digits", prepared)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99, None])
@pytest.mark.parametrize("file", ["digits-train*", "digits-test*", "features.json", "dataset_info.json"])
def test_prepared_folder_that_is_cut_short(prepared: Path, file: str, share: float | None) -> None:
    (path,) = (prepared / "digits" / "1.2.0").glob(file)
    content = path.read_bytes()
    if share is None:
        path.unlink()
    else:
        path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"cannot read it without TensorFlow|preparing|'digits' is not known"):
        data.load("digits", prepared)
    assert not (prepared / "digits.npz").exists()


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    return gzip.compress(header + array.astype(np.uint8).tobytes())


def cifar(name: str, made: dict[str, np.ndarray]) -> bytes:
    """The binary archive of CIFAR-10 or CIFAR-100."""
    hundred = name == "cifar100"

    def rows(images: np.ndarray, labels: np.ndarray) -> bytes:
        planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        coarse = np.full((len(images), 1), 3, np.uint8)
        columns = [coarse, labels[:, None], planes] if hundred else [labels[:, None], planes]
        return np.concatenate(columns, axis=1).astype(np.uint8).tobytes()

    files: dict[str, bytes] = {}
    if hundred:
        files["cifar-100-binary/train.bin"] = rows(made["train_images"], made["train_labels"])
        files["cifar-100-binary/test.bin"] = rows(made["test_images"], made["test_labels"])
    else:
        for i in range(5):
            part = slice(16 * i, 16 * i + 16)
            files[f"cifar-10-batches-bin/data_batch_{i + 1}.bin"] = rows(
                made["train_images"][part], made["train_labels"][part]
            )
        files["cifar-10-batches-bin/test_batch.bin"] = rows(made["test_images"], made["test_labels"])
    files["cifar-10-batches-bin/readme.html"] = b"hello"
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for path, content in files.items():
            info = tarfile.TarInfo(path)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, bytes]], dict[str, str]]]:
    """Serves files on loopback, and has TFDS's catalogue list them with their checksums."""
    files: dict[str, bytes] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(b"")

        def do_GET(self) -> None:
            self._answer(files.get(self.path[1:]))

        def _answer(self, content: bytes | None) -> None:
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def offer(contents: dict[str, bytes], promised: dict[str, bytes] | None = None) -> dict[str, str]:
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core.download import checksums
        from tensorflow_datasets.core.utils import Size

        files.update(contents)
        root = f"http://127.0.0.1:{server.server_port}/"
        infos = {
            root + name: checksums.UrlInfo(Size(len(c)), hashlib.sha256(c).hexdigest(), name)
            for name, c in (promised or contents).items()
        }
        monkeypatch.setattr(tfds, "builder_cls", lambda name: SimpleNamespace(url_infos=infos))
        return {name: root + name for name in contents}

    yield offer
    server.shutdown()
    thread.join()
    server.server_close()


def archives(name: str) -> tuple[dict[str, bytes], dict[str, np.ndarray]]:
    """The official files of a set with random images, and their contents."""
    if name.startswith("cifar"):
        classes = 100 if name == "cifar100" else 10
        made = arrays(shape=(32, 32, 3), classes=classes)
        return {f"{name}-binary.tar.gz": cifar(name, made)}, made
    made = arrays()
    return {
        "train-images-idx3-ubyte.gz": idx(made["train_images"][..., 0]),
        "train-labels-idx1-ubyte.gz": idx(made["train_labels"]),
        "t10k-images-idx3-ubyte.gz": idx(made["test_images"][..., 0]),
        "t10k-labels-idx1-ubyte.gz": idx(made["test_labels"]),
    }, made


@pytest.mark.parametrize("name", [name for name, row in data.SOURCES.items() if not row.packaged])
def test_official_archives_are_fetched_and_decoded(name: str, tmp_path: Path, serve: Callable) -> None:
    files, made = archives(name)
    serve(files)
    got = data.load(name, tmp_path)
    for key, value in made.items():
        np.testing.assert_array_equal(getattr(got, key), value)
    assert got.classes == (100 if name == "cifar100" else 10)
    assert data.load(name, tmp_path).source == str(tmp_path / f"{name}.npz")


@pytest.mark.parametrize("name", [name for name, row in data.SOURCES.items() if not row.packaged])
def test_the_real_catalogue_lists_the_files_that_are_decoded(name: str) -> None:
    import tensorflow_datasets as tfds

    listed = {url.rpartition("/")[2] for url in tfds.builder_cls(name).url_infos}
    expected = {
        "cifar10": {"cifar-10-binary.tar.gz"},
        "cifar100": {"cifar-100-binary.tar.gz"},
    }.get(name, set(archives("mnist")[0]))
    assert listed == expected


def test_a_changed_archive_is_refused(tmp_path: Path, serve: Callable) -> None:
    files, _ = archives("mnist")
    serve(files, {**files, "t10k-labels-idx1-ubyte.gz": b"something else"})
    with pytest.raises(UserError, match="NonMatchingChecksumError"):
        data.load("mnist", tmp_path)
    assert not (tmp_path / "mnist.npz").exists()


def test_an_archive_in_another_format_is_refused(tmp_path: Path, serve: Callable) -> None:
    files, _ = archives("mnist")
    serve({**files, "t10k-labels-idx1-ubyte.gz": gzip.compress(b"no idx file")})
    with pytest.raises(UserError, match="not in the official format"):
        data.load("mnist", tmp_path)


def test_no_network_fails_at_once_in_two_lines(tmp_path: Path, serve: Callable) -> None:
    files, _ = archives("mnist")
    serve(files)
    import tensorflow_datasets as tfds

    infos = {"http://127.0.0.1:9/train-images-idx3-ubyte.gz": None}
    tfds.builder_cls = lambda name: SimpleNamespace(url_infos=infos)  # serve's monkeypatch undoes it
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        data.load("mnist", tmp_path)
    assert time.monotonic() - began < 5
    assert len(str(caught.value).splitlines()) == 2
    assert "with --data-dir, or put mnist.npz (" in str(caught.value)
    assert str(caught.value).endswith(", or use --data.name mnist_10k, which is built in.")


@pytest.mark.parametrize("open_", [lambda run, to: run.dataset(to), lambda run, to: run.prepared([0], to)])
def test_an_analysis_of_a_run_is_offered_no_other_data(
    tmp_path: Path, serve: Callable, open_: Callable[[Run, Path], object]
) -> None:
    """It takes no --data.name, and needs the data that the run was trained on."""
    import tensorflow_datasets as tfds

    serve({})
    infos = {"http://127.0.0.1:9/train-images-idx3-ubyte.gz": None}
    tfds.builder_cls = lambda name: SimpleNamespace(url_infos=infos)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "study.json").write_text(json.dumps(about("mnist")))
    with pytest.raises(UserError, match=r"with --data-dir, or put mnist\.npz") as caught:
        open_(Run(tmp_path / "run"), tmp_path)
    assert "--data.name" not in str(caught.value)


def test_a_silent_address_fails_within_five_seconds(tmp_path: Path, serve: Callable) -> None:
    import socket

    import tensorflow_datasets as tfds

    serve({})
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # accepts, and never answers
        infos = {f"http://127.0.0.1:{deaf.getsockname()[1]}/x": None}
        tfds.builder_cls = lambda name: SimpleNamespace(url_infos=infos)
        began = time.monotonic()
        with pytest.raises(UserError, match="could not be downloaded"):
            data.load("mnist", tmp_path)
        assert time.monotonic() - began < 5


def test_unknown_names(tmp_path: Path) -> None:
    write_npz(tmp_path, "own")
    with pytest.raises(UserError, match=r"'mnits' is not known; did you mean 'mnist'\?.*in '.*': own;"):
        data.load("mnits", tmp_path)


def test_a_folder_that_cannot_be_written_is_no_obstacle(
    tmp_path: Path, serve: Callable, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, made = archives("mnist")
    serve(files)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(data.np, "savez", refuse)
    got = data.load("mnist", tmp_path)
    np.testing.assert_array_equal(got.train_labels, made["train_labels"])
    assert "could not be written" in caplog.text
    assert not (tmp_path / "mnist.npz").exists()
