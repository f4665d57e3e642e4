"""Damage to a run folder: flipped bits, cut files and misplaced folders are noticed before they are used."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import result, unsealed
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import check, load
from lthjax import config, manifest, prune, record, study
from lthjax.errors import UserError
from lthjax.folder import reader
from lthjax.folder.places import folder, set_aside, state_folder
from lthjax.folder.reader import Reader
from lthjax.folder.store import Store
from lthjax.folder.verified import checked, read_result, read_study
from lthjax.imp import DENSE, Cell
from lthjax.models import Variables

Make = Callable[..., study.Prepared]
ONE, OTHER = Cell(0, "rewind-0", 1, "ticket"), Cell(1, "rewind-0", 1, "ticket")
_RNG = np.random.default_rng(0)
_PARAMS = {"fc": {"kernel": _RNG.normal(size=(6, 5)).astype(np.float32), "bias": np.zeros(5, np.float32)}}
_MASK = prune.random(jax.random.key(0), prune.ones(_PARAMS), 0.5)


def variables(factor: float = 1.0) -> Variables:
    return Variables(jax.tree.map(lambda x: factor * x, _PARAMS), {"norm": {"mean": np.ones(3, np.float32)}})


def opened(path: Path, **changes: object) -> Store:
    """A run folder of a study on the packaged images."""
    fields = {"model": "lenet300", "data": config.Data(name="mnist_10k"), "train": config.Train(steps=5)}
    prepared = study.prepare(config.Study(**{**fields, **changes}))  # type: ignore[arg-type]
    facts = record.about(prepared.study, prepared.identity, prepared.lengths, prepared.dataset)
    return Store(path, facts)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two seeds with a state, a dense network and a ticket each, without training."""
    run = tmp_path_factory.mktemp("made") / "x-0123abcd"
    with opened(run) as store:
        for number, seed in enumerate((0, 1)):
            store.write_state(seed, 0, variables(1 + number))
            dense = Cell(seed, DENSE, 0, DENSE)
            start = state_folder(Path(), seed, 0)
            store.write(dense, result(dense), prune.ones(_PARAMS), variables(2 + number), [start])
            ticket = ONE._replace(seed=seed)
            store.write(ticket, result(ticket), _MASK, variables(3 + number), [folder(Path(), dense), start])
    return run


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / made.name)


def read_all(run: Path) -> list:
    """Reads everything that a program may use from the folder, through the functions that it uses."""
    store, found = Reader(run), [read_study(run)]
    for seed in (0, 1):
        found.append(store.state(seed, 0))
        for cell in (Cell(seed, DENSE, 0, DENSE), ONE._replace(seed=seed)):
            found += [store.result(cell), store.mask(cell), store.variables(cell)]
    return found


def equal(a: object, b: object) -> bool:
    leaves, others = jax.tree.leaves(a), jax.tree.leaves(b)
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.array_equal(x, y) for x, y in zip(leaves, others, strict=True)
    )


def told(run: Path, right: list) -> str:
    """The error that reading everything raises; "" if all is right."""
    try:
        assert equal(read_all(run), right)
    except UserError as error:
        return str(error)
    return ""


def used(run: Path) -> list[Path]:
    return sorted(p for p in run.rglob("*") if p.is_file() and p.stat().st_size)


def test_an_undamaged_folder_reads_and_checks(run: Path) -> None:
    _, start, first, ones, weights, *_ = read_all(run)
    assert equal(start, variables(1))
    assert equal((first, ones), (result(Cell(0, DENSE, 0, DENSE)), prune.ones(_PARAMS)))
    assert equal(weights, variables(2))
    found = check.check(run)
    assert (len(found.whole), found.unchecked, found.damaged) == (7, [], {})
    made = checked(folder(run, ONE))
    assert made is not None
    assert made.what == ONE._asdict()
    assert made.arrays["mask"] == {"fc/bias": [[], "bool"], "fc/kernel": [[6, 5], "bool"]}
    assert made.arrays["params"]["fc/kernel"] == [[6, 5], "float32"]
    assert made.arrays["stats"] == {"norm/mean": [[3], "float32"]}
    assert made.parents.keys() == {"seed=0/dense", "seed=0/state=0"}
    assert {"result.json", "mask.npz"} < made.files.keys()


@pytest.mark.parametrize("count", [1, pytest.param(12, marks=pytest.mark.faults)])
def test_every_flipped_bit_is_noticed_or_changes_nothing(made: Path, tmp_path: Path, count: int) -> None:
    """`count` bits of every file of the folder: Orbax alone missed 188 of 200."""
    run = shutil.copytree(made, tmp_path / made.name)
    right = read_all(run)
    generator = np.random.default_rng(1)
    noticed = 0
    for path in used(run):
        good = path.read_bytes()
        for at in generator.integers(0, 8 * len(good), count):
            bad = bytearray(good)
            bad[at // 8] ^= 1 << at % 8
            path.write_bytes(bad)
            said = told(run, right)
            noticed += bool(said)
            assert not said or (f"{run} --repair sets it aside" in said and "\n" not in said), said
            assert not said or check.check(run).damaged, (path, at)
        path.write_bytes(good)
    assert noticed > 0.9 * count * len(used(run))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_cut_grown_and_emptied_files_are_noticed(made: Path, data: st.DataObject) -> None:
    files = [p for p in used(made) if p.name not in ("study.json", manifest.FILE)]
    path = data.draw(st.sampled_from(files))
    good = path.read_bytes()
    length = data.draw(st.integers(0, max(len(good) - 1, 0)))
    bad = data.draw(st.sampled_from([good[:length], good + b"\0", b""]))
    if bad == good:
        return
    try:
        path.write_bytes(bad)
        with pytest.raises(UserError, match="its checksum is not the one that it was written with"):
            read_all(made)
    finally:
        path.write_bytes(good)


def test_what_is_copied_into_another_place_is_noticed(run: Path) -> None:
    one, other = folder(run, ONE), folder(run, OTHER)
    shutil.copy(other / "mask.npz", one / "mask.npz")
    shutil.copy(other / "result.json", one / "result.json")
    with pytest.raises(UserError, match=r"result\.json: its checksum"):
        read_result(one)
    shutil.rmtree(one)
    shutil.copytree(other, one)
    with pytest.raises(UserError, match=r"it is a copy of seed=1/chain=rewind-0/level=01/ticket"):
        read_result(one)
    start = state_folder(run, 0, 0)
    shutil.rmtree(start)
    shutil.copytree(state_folder(run, 1, 0), start)
    with pytest.raises(UserError, match=r"it is a copy of seed=1/state=0"):
        Reader(run).state(0, 0)


def test_a_cell_of_another_study_or_another_parent_is_noticed(run: Path, tmp_path: Path) -> None:
    with opened(tmp_path / "y-0", optim=config.Optim(lr=0.5)) as store:
        dense = Cell(0, DENSE, 0, DENSE)
        store.write(dense, result(dense), prune.ones(_PARAMS), variables(9))
    other = folder(tmp_path / "y-0", dense)
    shutil.rmtree(folder(run, dense))
    shutil.copytree(other, folder(run, dense))
    with pytest.raises(UserError, match="it is of another study"):
        read_result(folder(run, dense))
    # After a parent is made again with other bits, its old children no longer follow from it.
    set_aside(run, folder(run, dense))
    with opened(run) as store:
        store.write(dense, result(dense), prune.ones(_PARAMS), variables(9))
    read_result(folder(run, dense))
    with pytest.raises(UserError, match="it was made from another seed=0/dense than is there now"):
        read_result(folder(run, ONE))
    # The same bits count as the same parent, whatever its time.
    set_aside(run, folder(run, dense))
    with opened(run) as store:
        store.write(dense, result(dense) | {"seconds": 9.0}, prune.ones(_PARAMS), variables(2))
    read_result(folder(run, ONE))


def test_a_manifest_cannot_be_taken_away(run: Path) -> None:
    with opened(run):
        pass  # nor by continuing with the folder
    (folder(run, ONE) / manifest.FILE).unlink()
    with pytest.raises(UserError, match=r"manifest\.json: not there"):
        read_result(folder(run, ONE))
    text = (run / "study.json").read_text()
    for key in ("manifests", "sha256"):
        (run / "study.json").write_text(text.replace(f'"{key}"', '"other"'))
        with pytest.raises(UserError, match="checksum"):
            read_study(run)


@pytest.fixture
def shaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives the folder's network the shapes of its arrays, which folders without manifests lack."""
    network = SimpleNamespace(init=lambda key: variables())
    models = SimpleNamespace(MODELS={"lenet300"}, build=lambda *_: network)
    monkeypatch.setattr(reader, "models", models)
    reader._older_shapes.cache_clear()


@pytest.mark.usefixtures("shaped")
def test_folders_of_older_versions_are_read_and_said_to_be_unchecked(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    right = read_all(run)
    unsealed(run)
    caplog.clear()
    assert equal(read_all(run), right)
    assert [r.message for r in caplog.records] == [
        f"{run}: cells of an older version have no checksums; damage to them cannot be noticed."
    ]
    found = check.check(run)
    assert (len(found.whole), len(found.unchecked), found.damaged) == (0, 7, {})
    # If the run continues, new cells have manifests and old ones still need none.
    new = ONE._replace(level=2)
    with opened(run) as store:
        store.write(new, result(new), _MASK, variables(), [folder(Path(), ONE)])
    assert equal(read_all(run)[1:], right[1:])
    found = check.check(run)
    assert (len(found.whole), len(found.unchecked), found.damaged) == (2, 6, {})


@pytest.mark.usefixtures("shaped")
def test_masks_of_older_versions_are_not_padded(run: Path) -> None:
    unsealed(run)
    path = folder(run, ONE) / "mask.npz"
    with np.load(path) as packed:
        short = {name: packed[name][:1] for name in packed.files}
    np.savez(path, **short)
    with pytest.raises(UserError, match="fc/kernel has 1 bytes of uint8 for 30 bits"):
        Reader(run).mask(ONE)


def test_repair_sets_aside_and_deletes_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check.main([str(run)])
    assert capsys.readouterr().out == f"{run}: 7 as written, 0 damaged\n"
    path = folder(run, ONE) / "mask.npz"
    path.write_bytes(b"x" + path.read_bytes()[1:])
    with pytest.raises(SystemExit) as stop:
        check.main([str(run)])
    assert stop.value.code == 1
    assert f"{path}: its checksum" in capsys.readouterr().out
    before = {p.name: p.read_bytes() for p in path.parent.iterdir() if p.is_file()}
    check.main([str(run), "--repair"])
    said = capsys.readouterr().out
    where = run / "damaged" / "1" / path.parent.relative_to(run)
    assert f"{path.parent}: set aside as {where}" in said
    assert before == {p.name: p.read_bytes() for p in where.iterdir() if p.is_file()}
    check.main([str(run)])
    assert capsys.readouterr().out == f"{run}: 6 as written, 0 damaged\n"
    with pytest.raises(UserError, match=r"it is not a run folder \(no study.json in it\)"):
        check.check(run / "nowhere")


def test_a_damaged_study_is_mended_and_reported_to_the_same_numbers(tiny: Make, tmp_path: Path) -> None:
    prepared = tiny(seeds=(0,), levels=1, arms=("ticket",))
    run = study.run(prepared, tmp_path / "runs")
    before = [row._replace(seconds=0) for row in load(run)]
    cell = folder(run, Cell(0, DENSE, 0, DENSE))
    weights = max((cell / "variables").rglob("*"), key=lambda p: p.stat().st_size)
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 4
    weights.write_bytes(content)
    for path in (cell / "result.json", run / "study.json"):
        value = json.loads(path.read_text())
        path.write_text(json.dumps(value | {"seed": 7}))
    with pytest.raises(UserError, match=r"study\.json: it cannot be read"):
        study.run(prepared, tmp_path / "runs")
    check.main([str(run), "--repair"])
    assert study.run(prepared, tmp_path / "runs") == run
    assert [row._replace(seconds=0) for row in load(run)] == before
    assert not check.check(run).damaged
