"""The ticket doctor: every check fails where it should, files of every kind, and no code of a file is run."""

import base64
import io
import pickle
import re
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from conftest import ROOT, about, result
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.doctor import Options, diagnose, files, line, pickled
from lthjax import prune
from lthjax.errors import UserError
from lthjax.folder.places import folder, state_folder
from lthjax.folder.store import Store
from lthjax.imp import DENSE, Cell
from lthjax.measures import doctor
from lthjax.measures.doctor import Check, Fault
from lthjax.models import Variables
from lthjax.prune._files import nested

Arrays = dict[str, np.ndarray]
Command = Callable[..., subprocess.CompletedProcess[str]]
TYPES = {"<f4": "FloatStorage", "<i8": "LongStorage", "|b1": "BoolStorage", "<f2": "HalfStorage"}


# A writer of torch.save's format: opcodes of pickle's protocol 2, and a zip beside them.


def pickled_value(value: Any, storages: list[np.ndarray]) -> bytes:
    if isinstance(value, np.ndarray):
        return pickled_tensor(value, storages)
    if isinstance(value, dict):
        made = b"ccollections\nOrderedDict\n)R("
        items = [pickled_value(k, storages) + pickled_value(v, storages) for k, v in value.items()]
        return made + b"".join(items) + b"u"
    if isinstance(value, tuple):
        return b"(" + b"".join(pickled_value(one, storages) for one in value) + b"t"
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    assert isinstance(value, int)
    return b"J" + struct.pack("<i", value)


def pickled_tensor(array: np.ndarray, storages: list[np.ndarray]) -> bytes:
    """A call of the function that rebuilds a tensor; Fortran order becomes strides, as of a transpose."""
    transposed = array.ndim > 1 and array.flags.f_contiguous
    storages.append(array.ravel(order="K" if transposed else "C"))
    kind = b"ctorch\n" + TYPES[array.dtype.str].encode() + b"\n"
    key, location = pickled_value(str(len(storages) - 1), []), pickled_value("cpu", [])
    storage = b"(" + pickled_value("storage", []) + kind + key + location
    storage += pickled_value(array.size, []) + b"tQ"
    strides = array.strides if transposed else np.zeros(array.shape, array.dtype).strides
    steps = tuple(step // array.itemsize for step in strides)
    size = pickled_value(array.shape, []) + pickled_value(steps, [])
    hooks = b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + size + b"\x89" + hooks + b"tR"


def write_torch(path: Path, value: Any, raw: bytes = b"", big: bool = False) -> Path:
    storages: list[np.ndarray] = []
    text = raw or b"\x80\x02" + pickled_value(value, storages) + b"."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("any/data.pkl", text)
        archive.writestr("any/byteorder", "big" if big else "little")
        for place, storage in enumerate(storages):
            archive.writestr(f"any/data/{place}", (storage.byteswap() if big else storage).tobytes())
    return path


@pytest.mark.parametrize("big", [False, True])
def test_a_state_dict_is_read_without_pytorch(tmp_path: Path, big: bool) -> None:
    generator = np.random.default_rng(0)
    state = {
        "fc.weight": generator.normal(size=(3, 4)).astype("f4"),
        "turned.weight": np.asfortranarray(generator.normal(size=(3, 5)).astype("f2")),
        "fc.weight_mask": generator.random((3, 4)) < 0.5,
        "bn.num_batches_tracked": np.array(7),
        "empty": np.zeros((0, 3), "f4"),
    }
    found = pickled.read(write_torch(tmp_path / "a.pt", state, big=big))
    assert [*found] == [*state]
    for name, array in state.items():
        np.testing.assert_array_equal(found[name], array)
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)


# What torch 2.13 saved of {"epoch": 3, "state_dict": ..., "optimizer": ...}, by zlib and base64.
SAVED = """
eNqlVk1oG0cUHlnyWlb8l8RR7KRO3f91Y8v6s2TVcWRvi3zY0joqhSUQlvVqrV2y1urtjuw0IBAUu+TWUGibHkqhh/bSc5ubA4VAaAu9FAo9
FHoIhYKPvXZm11J3VthK4pFGK2nn+9437837pHUxHEEoGkVdYxSdRdhQb2p4vqJgJVG/aZaEUXSdHa2+JiBe6icArW6pOoTEsBQjnxysYE2u
GCoGsiTMS4Pky001saMZVR1DRMWWreoJuYEN04nJtrbRMMyKjLWaY9nydjoG/TwvDbhMlq1UNeA8SKxkWgp+z/syBgNSiKxJQlQKk6tab8Cg
yGGIXROR2CeG9+CUGBZDezB0R1Ut09RUbFg1J/auXdFsrfIW0ReD4ZkyjGAYLcOYRLKBtg1tB07rRIDO6V6AFJzRB8UhDGeviWSLlHicvIns
wbk7OsXHMZwvw4SL1xVzEyY9/KFowVWdynV0X3Bp03CR0IYxPEf1hndhSgztwiWP8nkM02V4QYqThRu1RK2xJW8oWNU1R8a2QipTgReZIG9b
tWonwEtugAy8TAKEMLxCAszMeMSvYnitDHzDrYlVx8aWcVuzYaYJr3uldIsHl5swK6ImzPHurhys1SHBZCUL8x570seewpAuQ8atnXarLivb
VcgysAVY0N0q5TpVyntVWvQoChjeKMNSw5GGyPK6YitbctW2GnUHrtyA5SZc5aU+cse0obhWvH+Pji9c5RsaVhxYWSv+8xMdP68VD/795ff4
R5f3YFXi2mQOCDfgTREpDaXRSKyLA9F3Hn5y70dCSef6kT0RR4vtnkhsWvaWguVtzXbIiSoJ2WBrPNFI0eDfH/zxIc0LnUcHn/QFP+wJWTGN
am1Lq+FnjZ/LUgHFHfib5rPvWAFjaKUtYOMDrFm0hUrClWeK2x6mgbGpUQ27y39N0gJxx2oYRkW/K80nS8LSSQR4rK0ieVkhTzJbZH61QhWd
//jx3QlyY6KHojlGUaokzKATx0don8w/yUSrJPNkTpOZXKW6bjU3ryap6fXQdY7RlS4Jp7t1tYrT+yvubh9+t7T09PnPnDD/A4e8VEH9t8cW
DRntoWCZUZAtCQV0gvq3vN1zF01qcpEesVeZ2AslYflEx/86OmJQTdOPHnzd+/yNoNm2po4X8U8sKhOjkX79svp+7/6fQpmOAbnbdzTbIA50
W6G/qbJRKQnzT5uNVDq3uJDLZwq5Qi5LHulciozFQiaZL6SyuVSe3MtkC3mq8tHehc94ooN3VYao2I5Ov3+PdikP/I8Jgv3+G2eA42F0hOEH
OfwWOslw3PVxdPl2kMbvgmMMzZkI6nLfINrvWMMM+tMIYn0zCPWbCgvl+1loKgj1OwcL3Q9A00Gov+VZaJxjoZmuqL6OZaGfB6DZINTfWCx0
fICFLgSh/k4ZYaDf/g894oj4z+8UW9soOr6z1kWOmz1cfCk81wEOBa4Hfd71h2jbRjjXYb855X32/mH0cx5myF3vrf0P86mq0A==
"""


def test_a_file_that_torch_save_wrote(tmp_path: Path) -> None:
    """A tensor, a view that is transposed and begins inside its storage, bfloat16, and a count."""
    path = tmp_path / "a.pt"
    path.write_bytes(zlib.decompress(base64.b64decode(SAVED)))
    found = files.read(path, "--init")
    expected = {
        "fc.weight": np.arange(6, dtype="f4").reshape(2, 3),
        "view": np.arange(12, dtype="f4").reshape(3, 4).T[1:],
        "half": np.array([1, -2.5, 3], ml_dtypes.bfloat16),
        "bn.num_batches_tracked": np.array(7),
    }
    assert found.masks == {}
    assert [*found.values] == [*expected]
    for name, array in expected.items():
        np.testing.assert_array_equal(found.values[name], array)
        assert found.values[name].dtype == array.dtype
    assert pickled.read(path)["optimizer"]["param_groups"][0]["betas"] == (0.9, 0.999)


def test_a_state_dict_of_pytorch_itself(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(5, 3)
    tensors = {
        **layer.state_dict(),
        "view": torch.arange(12.0).reshape(3, 4).t()[1:],
        "b": torch.ones(2).bfloat16(),
    }
    torch.save({"epoch": 3, "state_dict": tensors}, tmp_path / "a.pth")
    found = files.read(tmp_path / "a.pth", "--init").values
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name].astype("f4"), tensor.detach().float().numpy())
    torch.save(layer, tmp_path / "b.pt")
    with pytest.raises(UserError, match=r"names torch.nn.modules.linear.Linear"):
        pickled.read(tmp_path / "b.pt")


class _Evil:
    def __init__(self, made: Any) -> None:
        self.made = made

    def __reduce__(self) -> Any:
        return self.made


EVIL: dict[str, Any] = {
    "a command": (exec, ("raise SystemExit('it ran')",)),
    "a getattr": (getattr, ("", "join")),
    "numpy": (np.load, ("x",)),
}


@pytest.mark.parametrize("what", EVIL)
def test_nothing_in_a_file_is_run(tmp_path: Path, what: str) -> None:
    path = write_torch(tmp_path / "a.pt", None, pickle.dumps({"w": _Evil(EVIL[what])}, 2))
    with pytest.raises(UserError, match=r"it names [\w.]+, and nothing but tensors is read"):
        pickled.read(path)


@pytest.mark.parametrize(
    "raw",
    [
        # Sets a default argument of the function that rebuilds tensors.
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\x00\x00\x00__defaults__)s\x86b.",
        b"\x80\x02ctorch\nFloatStorage\n)R.",
        b"\x80\x02(X\x03\x00\x00\x00abcQ.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"\x80\x02]q\x00.",
        # A memo of four thousand million places.
        b"\x80\x02}r\xff\xff\xff\xff.",
        b"no pickle",
    ],
)
def test_a_damaged_pickle_is_one_sentence(tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(UserError, match=r"^\S+a\.pt: it .*\w\.$"):
        pickled.read(write_torch(tmp_path / "a.pt", None, raw))


def test_a_compressed_file_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("any/data.pkl", b"\x80\x02}.")
        archive.writestr("any/data/0", bytes(10**6))
    with pytest.raises(UserError, match="parts of it are compressed"):
        pickled.read(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("size", "stride", "offset", "why"),
    [
        ((2, 3), (3, 1), 1, "longer than its storage"),
        ((7,), (1,), 0, "longer than its storage"),
        ((5_000_000,), (0,), 0, "repeats"),
        ((2,), (-1,), 3, "stride"),
        ((2,), (1,), -1, "offset"),
        ((2, 3), (1,), 0, "stride"),
    ],
)
def test_a_tensor_stays_in_its_storage(size: Any, stride: Any, offset: int, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        pickled._REBUILD["_rebuild_tensor_v2"](np.arange(6.0), offset, size, stride, False, None)


def test_flipped_bytes_never_run_anything(tmp_path: Path) -> None:
    path, generator = write_torch(tmp_path / "a.pt", {"w": np.ones((2, 2), "f4")}), np.random.default_rng(0)
    with zipfile.ZipFile(path) as archive:
        whole = archive.read("any/data.pkl")
    for _ in range(300):
        text = bytearray(whole)
        text[generator.integers(len(text))] = generator.integers(256)
        storages = {"any/data.pkl": bytes(text), "any/data/0": np.ones(4, "f4").tobytes()}
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in storages.items():
                archive.writestr(name, content)
        path.write_bytes(buffer.getvalue())
        try:
            assert isinstance(pickled.read(path), dict)
        except UserError as error:
            assert str(error).startswith(f"{path}: it")  # noqa: PT017


# Checks on arrays made by hand.


def ticket() -> tuple[Arrays, Arrays, Arrays]:
    """(initial weights, trained weights, mask) of a healthy ticket; half of either layer is pruned."""
    generator = np.random.default_rng(1)
    start = {
        "fc.weight": generator.normal(size=(6, 10)).astype("f4"),
        "fc.bias": np.zeros(6, "f4"),
        "norm.weight": np.ones((6, 1), "f4"),
        "out.weight": generator.normal(size=(4, 6)).astype("f4"),
    }
    mask = {name: np.arange(start[name].size).reshape(start[name].shape) % 2 > 0 for name in PRUNABLE}
    moved = {name: array + np.float32(0.5) for name, array in start.items()}
    return start, {n: np.where(mask[n], w, np.float32(0)) if n in mask else w for n, w in moved.items()}, mask


FEW = "no layer has 20 survivors of each sign"
PRUNABLE = ["fc.weight", "out.weight"]


def changed(arrays: Arrays, name: str, place: tuple[int, ...], value: Any) -> Arrays:
    copy = arrays[name].copy()
    copy[place] = value
    return {**arrays, name: copy}


def check_of(found: Check, *faults: Fault) -> None:
    assert [*found.faults] == [*faults]
    assert found.outcome == ("FAILED" if faults else "ok")


def test_what_is_prunable_is_judged_as_by_the_library() -> None:
    start, _, _ = ticket()
    assert doctor.prunable(start) == PRUNABLE
    assert doctor.prunable(start, r"^out") == ["out.weight"]
    with pytest.raises(UserError, match=r"names: .*matches none"):
        doctor.prunable(start, "conv")


def test_pruned_weights_are_zero_and_zero_has_no_sign() -> None:
    _, final, mask = ticket()
    check_of(doctor.zeros(final, mask))
    check_of(doctor.unsigned(final, mask))
    check_of(doctor.zeros(changed(final, "fc.weight", (0, 2), 1e-30), mask), Fault("fc.weight", 1, 30))
    ill = changed(changed(final, "out.weight", (0, 0), np.nan), "out.weight", (1, 0), 2.0)
    check_of(doctor.zeros(ill, mask), Fault("out.weight", 2, 12, "1 of them NaN"))
    signed = changed(final, "fc.weight", (0, 0), -0.0)
    check_of(doctor.zeros(signed, mask))
    check_of(doctor.unsigned(signed, mask), Fault("fc.weight", 1, 30))
    check_of(doctor.unsigned({n: w.astype(ml_dtypes.bfloat16) for n, w in signed.items()}, mask),
             Fault("fc.weight", 1, 30))  # fmt: skip
    imaginary = changed({n: w.astype("c8") for n, w in final.items()}, "fc.weight", (0, 0), 1j)
    check_of(doctor.zeros(imaginary, mask), Fault("fc.weight", 1, 30))
    # A survivor may be anything that is finite.
    check_of(doctor.zeros(changed(final, "fc.weight", (0, 1), -0.0), mask))
    check_of(doctor.unsigned(changed(final, "fc.weight", (0, 1), -0.0), mask))


def test_a_product_with_the_mask_is_what_the_checks_catch() -> None:
    start, _, mask = ticket()
    product = {name: start[name] * mask[name] for name in mask}
    negative = {name: int((start[name][~mask[name]] < 0).sum()) for name in mask}
    found = doctor.unsigned(product, mask)
    assert {fault.layer: fault.bad for fault in found.faults} == negative


def test_what_is_left_is_finite() -> None:
    _, final, mask = ticket()
    check_of(doctor.finite(final, mask))
    check_of(doctor.finite(changed(final, "fc.bias", (1,), np.inf), mask), Fault("fc.bias", 1, 6))
    check_of(doctor.finite(changed(final, "fc.weight", (0, 1), np.nan), mask), Fault("fc.weight", 1, 30))
    check_of(doctor.finite(changed(final, "fc.weight", (0, 0), np.nan), mask))


def test_the_mask_leaves_biases_and_norms() -> None:
    start, _, mask = ticket()
    check_of(doctor.left_alone({**mask, "fc.bias": np.ones(6, bool)}, start, PRUNABLE))
    ill = {**mask, "fc.bias": np.arange(6) > 1, "norm.weight": np.zeros((6, 1), bool)}
    faults = Fault("fc.bias", 2, 6, "pruned"), Fault("norm.weight", 6, 6, "pruned")
    check_of(doctor.left_alone(ill, start, PRUNABLE), *faults)


def test_a_mask_is_zero_or_one_and_fits() -> None:
    start, _, mask = ticket()
    check_of(doctor.binary({n: m.astype("f4") for n, m in mask.items()}, start))
    soft = {**mask, "fc.weight": np.where(mask["fc.weight"], 0.3, 0)}
    turned = {**mask, "out.weight": mask["out.weight"].T, "head.weight": np.ones((2, 2))}
    check_of(doctor.binary(soft, start), Fault("fc.weight", 30, 60, "neither 0 nor 1"))
    check_of(
        doctor.binary(turned, start),
        Fault("out.weight", 24, 24, "(6, 4), where the weight is (4, 6)"),
        Fault("head.weight", 4, 4, "there is no such weight"),
    )
    assert [*doctor.fitting(turned, start)] == ["fc.weight"]


def test_sparsity_counts_prunable_weights_only() -> None:
    start, _, mask = ticket()
    claimed = (start, PRUNABLE, 0.5, 0.0)
    for check in (doctor.sparsity, doctor.sparsity_by_layer):
        check_of(check(mask, *claimed))
    # Biases that a mask keeps, or leaves out, do not make it less sparse.
    check_of(doctor.sparsity({**mask, "fc.bias": np.ones(6, bool)}, *claimed))
    alone = {"fc.weight": mask["fc.weight"]}
    check_of(doctor.sparsity(alone, *claimed), Fault(doctor.ALL, 30, 84, "35.71 % pruned"))
    check_of(doctor.sparsity_by_layer(alone, *claimed), Fault("out.weight", 0, 24, "0.00 % pruned"))
    # In all as claimed, in no layer.
    other = {"fc.weight": np.arange(60).reshape(6, 10) >= 36, "out.weight": np.arange(24).reshape(4, 6) >= 6}
    check_of(doctor.sparsity(other, *claimed))
    assert [fault.bad for fault in doctor.sparsity_by_layer(other, *claimed).faults] == [36, 6]
    check_of(doctor.sparsity_by_layer(other, start, PRUNABLE, 0.5, 0.25))


def test_a_start_is_compared_bit_by_bit() -> None:
    start, _, mask = ticket()
    check_of(doctor.same_start({n: w * mask.get(n, 1) for n, w in start.items()}, start, mask))
    next_one = np.nextafter(start["fc.weight"][0, 1], np.float32(9))
    near = changed(start, "fc.weight", (0, 1), next_one)
    check_of(doctor.same_start(near, start, mask), Fault("fc.weight", 1, 30))
    check_of(doctor.same_rest(near, start, PRUNABLE))
    signed = changed(start, "fc.bias", (0,), -0.0)
    check_of(doctor.same_start(signed, start, mask))
    check_of(doctor.same_rest(signed, start, PRUNABLE), Fault("fc.bias", 1, 6))
    half = {**start, "out.weight": start["out.weight"].astype("f2")}
    why = "float16 (4, 6), not float32 (4, 6)"
    check_of(doctor.same_start(half, start, mask), Fault("out.weight", 24, 24, why))
    nan = changed(start, "fc.weight", (0, 1), np.nan)
    check_of(doctor.same_start(nan, dict(nan), mask, doctor.REWOUND))


def test_weights_frozen_by_a_threshold_without_a_magnitude_are_found() -> None:
    """Gradients zeroed where w < eps instead of |w| < eps freeze every negative weight."""
    start, final, mask = (
        {n: np.tile(a, (3, 1)) if a.ndim > 1 else a for n, a in of.items()} for of in ticket()
    )
    check_of(doctor.both_signs(start, final, mask))
    negative = mask["fc.weight"] & (start["fc.weight"] < 0)
    frozen = {**final, "fc.weight": np.where(negative, start["fc.weight"], final["fc.weight"])}
    n = int(negative.sum())
    why = "negative ones that kept their start"
    check_of(doctor.both_signs(start, frozen, mask), Fault("fc.weight", n, n, why))
    # A layer that no gradient reaches is not frozen for its signs.
    check_of(doctor.both_signs(start, {**final, "fc.weight": start["fc.weight"] * mask["fc.weight"]}, mask))
    # Two of two that did not move, of a layer with a handful left, are chance.
    handful = np.where(np.cumsum(negative).reshape(negative.shape) <= 2, mask["fc.weight"], ~negative)
    few = {**mask, "fc.weight": handful & mask["fc.weight"]}
    found = doctor.both_signs(start, frozen, few)
    assert (found.outcome, found.lacking) == ("not checked", FEW)


def test_a_control_has_the_tickets_densities() -> None:
    _, _, mask = ticket()
    generator = np.random.default_rng(0)
    shuffled = {n: generator.permutation(m.ravel()).reshape(m.shape) for n, m in mask.items()}
    check_of(doctor.same_density(mask, shuffled))
    why = "the ticket keeps 12, the control 11"
    one_less = changed(shuffled, "out.weight", tuple(np.argwhere(shuffled["out.weight"])[0]), False)
    check_of(doctor.same_density(mask, one_less), Fault("out.weight", 1, 24, why))
    why = "the ticket keeps 12, the control 24"
    check_of(doctor.same_density(mask, {"fc.weight": mask["fc.weight"]}), Fault("out.weight", 12, 24, why))


def test_levels_shrink_by_their_schedule() -> None:
    _, _, mask = ticket()
    after = changed(mask, "fc.weight", (0, 1), False)
    check_of(doctor.shrunk(mask, after))
    check_of(doctor.counted(mask, after, {"fc.weight": 1, "out.weight": 0}, {}))
    check_of(doctor.counted(mask, after, {doctor.ALL: 1}, {doctor.ALL: PRUNABLE}))
    check_of(doctor.shrunk(after, mask), Fault("fc.weight", 1, 60, "came back"))
    why = "it removes 1, the schedule 2"
    check_of(doctor.counted(mask, after, {"fc.weight": 2}, {}), Fault("fc.weight", 1, 60, why))
    check_of(
        doctor.counted(mask, after, {doctor.ALL: 2}, {doctor.ALL: PRUNABLE}), Fault(doctor.ALL, 1, 84, why)
    )


def test_files_hold_the_same_arrays() -> None:
    start, final, _ = ticket()
    check_of(doctor.alike({"--final": final, "--init": start}))
    other = {n: w.astype("f2") if n == "fc.weight" else w for n, w in start.items() if n != "fc.bias"}
    found = doctor.alike({"--final": final, "--init": other | {"more": np.ones(3)}})
    assert [(fault.layer, fault.bad, fault.why) for fault in found.faults] == [
        ("fc.bias", 6, "only in --final"),
        ("fc.weight", 60, "float16 (6, 10) in --init, float32 (6, 10) in --final"),
        ("more", 3, "only in --init"),
    ]


@given(st.lists(st.sampled_from([0.0, -0.0, np.nan, np.inf, 1.0, -1e-45]), min_size=1), st.data())
@settings(max_examples=60, deadline=None)
def test_faults_are_counted_as_python_counts_them(values: list[float], data: st.DataObject) -> None:
    kept = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    final, mask = {"w": np.array(values)}, {"w": np.array(kept)}
    gone = [value for value, keep in zip(values, kept, strict=True) if not keep]
    counts = {
        doctor.zeros: sum(value != 0 for value in gone),
        doctor.unsigned: sum(str(value) == "-0.0" for value in gone),
        doctor.finite: sum(
            keep and value not in (0, 1.0, -1e-45) for value, keep in zip(values, kept, strict=True)
        ),
    }
    for check, expected in counts.items():
        assert sum(fault.bad for fault in check(final, mask).faults) == expected


# Files and the command.


def written(path: Path, arrays: Arrays) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **arrays)  # type: ignore[arg-type]
    elif path.suffix == ".safetensors":
        safetensors.numpy.save_file(arrays, path)
    else:
        write_torch(path, arrays)
    return path


@pytest.mark.parametrize("kind", ["npz", "safetensors", "pt", "pth"])
def test_every_kind_of_file_and_every_check(tmp_path: Path, kind: str, command: Command) -> None:
    start, final, mask = ticket()
    contents = {
        "init": start, "final": final, "mask": mask, "rewound": start, "dense": start,
        "control": {name: ~m for name, m in mask.items()},
    }  # fmt: skip
    paths = {n: written(tmp_path / f"{n}.{kind}", arrays) for n, arrays in contents.items()}
    options = [word for n, path in paths.items() for word in (f"--{n}", path)]
    done = command("-m", "analysis.doctor", *options, "--claimed-sparsity", 0.5)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 13
    assert [text for text in lines if not text.startswith("ok ")] == [
        f"not checked  {doctor.START}: --dense says that the ticket is rewound to a later step",
        f"not checked  {doctor.BOTH_SIGNS}: {FEW}",
    ]
    # Every file is looked at: each change is seen by the check that it is for.
    ill = {
        "init": ("fc.bias", (0,), 1.0, []), "final": ("fc.weight", (0, 0), 1.0, [doctor.ZEROS]),
        "mask": ("fc.weight", (0, 1), False, [doctor.ZEROS, doctor.CONTROL]),
        "rewound": ("fc.weight", (0, 1), 9.0, [doctor.REWOUND]),
        "dense": ("fc.bias", (0,), 1.0, [doctor.REST]),
        "control": ("fc.weight", (0, 0), False, [doctor.CONTROL]),
    }  # fmt: skip
    for name, (array, place, value, claims) in ill.items():
        written(paths[name], changed(contents[name], array, place, value))
        found = diagnose(Options(**paths, claimed_sparsity=0.5, tolerance=0.05, quiet=True))  # type: ignore[arg-type]
        assert [check.claim for check in found if check.faults] == claims
        written(paths[name], contents[name])


def test_what_lacks_a_file_says_which(tmp_path: Path) -> None:
    start, final, mask = ticket()
    paths = {
        n: written(tmp_path / f"{n}.npz", a) for n, a in (("init", start), ("final", final), ("mask", mask))
    }
    found = {check.claim: check for check in diagnose(Options(**paths))}  # type: ignore[arg-type]
    lacking = {claim: check.lacking for claim, check in found.items() if check.outcome == "not checked"}
    assert lacking == {
        doctor.SPARSITY: "--claimed-sparsity gives it",
        doctor.SPARSITY_BY_LAYER: "--claimed-sparsity gives it",
        doctor.START: "--rewound gives it",
        doctor.REST: "--rewound gives it",
        doctor.REWOUND: "--rewound and --dense give it",
        doctor.BOTH_SIGNS: FEW,
        doctor.CONTROL: "--control gives it",
    }
    assert line(found[doctor.ZEROS]) == f"ok           {doctor.ZEROS} (2 layers, 42 weights)"


def test_a_checkpoint_may_hold_tensors_beside_the_state_dict(tmp_path: Path) -> None:
    start, final, mask = ticket()
    best, momentum = np.array(76.1, "f4"), {"state": {"0": {"momentum_buffer": np.ones((6, 10), "f4")}}}
    paths = {
        name: write_torch(tmp_path / f"{name}.pt", {"best": best, key: arrays, "optimizer": momentum})
        for name, key, arrays in (("init", "state_dict", start), ("final", "model", final))
    }
    options = Options(**paths, mask=written(tmp_path / "mask.npz", mask), claimed_sparsity=0.5)  # type: ignore[arg-type]
    assert not [check for check in diagnose(options) if check.faults]
    # Of no state dict all tensors are read.
    other = write_torch(tmp_path / "other.pt", {"w": best, "model": {"epoch": 3}})
    assert [*files.read(other, "--init").values] == ["w"]


def test_weights_and_masks_of_torch_prune(tmp_path: Path) -> None:
    """`weight_orig` moves under the mask by weight decay; the network multiplies it away, but not a NaN."""
    start, _, mask = ticket()
    moved = {name: array + np.float32(0.5) for name, array in start.items()}

    def paired(arrays: Arrays) -> Arrays:
        made = {f"module.{n}_orig" if n in mask else f"module.{n}": a for n, a in arrays.items()}
        return made | {f"module.{n}_mask": m.astype("f4") for n, m in mask.items()}

    init = written(tmp_path / "init.npz", start)
    final = written(tmp_path / "final.pt", {"epoch": 3, "state_dict": paired(moved)})  # type: ignore[dict-item]
    rewound = written(tmp_path / "rewound.pt", paired(start))
    options = Options(init=init, final=final, mask=final, rewound=rewound, claimed_sparsity=0.5)
    assert not [check for check in diagnose(options) if check.faults]
    written(final, paired(changed(moved, "fc.weight", (0, 0), np.nan)))
    (ill,) = [check for check in diagnose(options) if check.faults]
    assert (ill.claim, ill.faults) == (doctor.ZEROS, [Fault("fc.weight", 1, 30, "1 of them NaN")])
    # An array of another use may be called a mask.
    other = written(tmp_path / "other.npz", {"attention_mask": np.ones(3), "w": np.ones((2, 2))})
    assert [*files.read(other, "--init").values] == ["attention_mask", "w"]


def test_a_ticket_file_of_ours_is_all_three(tmp_path: Path) -> None:
    start, final, mask = (nested({n.replace(".", "/"): a for n, a in arrays.items()}) for arrays in ticket())
    full = {"fc": {"weight": mask["fc"]["weight"], "bias": np.True_}, "out": mask["out"],
            "norm": {"weight": np.True_}}  # fmt: skip
    path = tmp_path / "ticket.safetensors"
    prune.save(path, final, full, origin=start)
    options = Options(init=path, final=path, mask=path, rewound=path, claimed_sparsity=0.5)
    found = diagnose(options)
    assert {check.claim for check in found if not check.faults and check.layers} >= {
        doctor.ZEROS,
        doctor.START,
    }
    assert not [check for check in found if check.faults]
    prune.save(path, final, full)
    with pytest.raises(UserError, match=r"--init: the ticket .* without its origin"):
        diagnose(options)


def test_errors_are_one_sentence(tmp_path: Path, command: Command) -> None:
    path = written(tmp_path / "a.npz", ticket()[0])
    (tmp_path / "b.npz").write_bytes(b"no zip")
    (tmp_path / "b.safetensors").write_bytes(b"no header")
    (tmp_path / "b.pt").write_bytes(b"no zip")
    np.savez(tmp_path / "none.npz")
    np.savez(tmp_path / "text.npz", w=np.array(["a"]))
    np.savez(tmp_path / "bits.npz", w=np.ones(2, ml_dtypes.bfloat16))
    files_ = {"--init": path, "--final": path, "--mask": path}
    for changes, said in [
        ({"--mask": None}, "--mask: it is missing"),
        ({"--init": tmp_path / "c.npz"}, "--init: there is no file"),
        ({"--init": tmp_path}, "--init: there is no file"),
        ({"--init": tmp_path / "b.npz"}, "--init: .* cannot be read"),
        ({"--init": tmp_path / "b.safetensors"}, "--init: .* cannot be read"),
        ({"--init": tmp_path / "b.pt"}, "no file of torch.save's zip format"),
        ({"--init": tmp_path / "none.npz"}, "--init: .* holds no array"),
        ({"--init": tmp_path / "text.npz"}, "--init: 'w' in .* is <U1, no array of numbers"),
        ({"--init": tmp_path / "bits.npz"}, r"--init: 'w' in .* is \|V2, no array of numbers"),
        ({"--claimed-sparsity": 80}, "--claimed-sparsity: 80 is not allowed; it must be from 0 to 1"),
        ({"--names": "conv"}, "names: .*matches none"),
        ({"--names": "("}, r"names: '\(' is not a regex"),
        ({"--tolerance": "nan"}, "--tolerance: nan is not allowed"),
    ]:
        words = [word for n, v in {**files_, **changes}.items() if v is not None for word in (n, v)]
        done = command("-m", "analysis.doctor", *words)
        assert (done.returncode, done.stdout) == (2, "")
        assert re.match(f"error: .*{said}", done.stderr)
        assert done.stderr.count("\n") == 1


def test_the_example_of_the_page(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "doctor.md").read_text()
    (code,) = re.findall(r'```python title="product.py"\n(.*?)```', page, re.DOTALL)
    (said,) = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    (asked,) = re.findall(r"python -m analysis.doctor (--init start.*)", page)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "product.py", "exec"), {})
    words = [str(tmp_path / word) if word.endswith(".npz") else word for word in asked.split()]
    done = command("-m", "analysis.doctor", *words)
    assert (done.returncode, done.stdout) == (0, said)


# A run folder of ours, written without training.


KEPT = {"fc1": np.arange(60).reshape(10, 6) >= 12, "output": np.arange(24).reshape(6, 4) >= 2}


def layers(fc: Any, output: Any) -> Any:
    return {
        "fc1": {"kernel": fc, "bias": np.zeros(6, "f4")},
        "output": {"kernel": output, "bias": np.zeros(4, "f4")},
    }


def run_folder(path: Path, **changes: Any) -> Path:
    """A ticket of one level, rewound to step 3, and its random control: 80 % of 60 and 90 % of 24 weights.

    `changes` are `final` and `mask` of the ticket, `control`, the control's mask, `arm`, the control's name,
    and `density`.
    """
    start, _, _ = ticket()
    kernels = layers(start["fc.weight"].reshape(10, 6), start["out.weight"].reshape(6, 4))

    def tree(masks: Arrays) -> Any:
        return {n: {"kernel": m, "bias": np.True_} for n, m in masks.items()}

    own = changes.get("mask", KEPT)
    trained = {n: {"kernel": kernels[n]["kernel"] + np.float32(1), "bias": kernels[n]["bias"]} for n in KEPT}
    final = {n: {**of, "kernel": np.where(own[n], of["kernel"], np.float32(0))} for n, of in trained.items()}
    final = changes.get("final", lambda tree: tree)(final)
    full = {n: np.ones(m.shape, bool) for n, m in KEPT.items()}
    made = about()
    made["lengths"] = {**made["lengths"], "rewind": [3]}
    density = changes.get("density", sum(int(m.sum()) for m in own.values()) / 84)
    with Store(path, made) as store:  # type: ignore[arg-type]
        for step in (0, 3):
            store.write_state(0, step, Variables(kernels, {}))
        dense = Cell(0, DENSE, 0, DENSE)
        store.write(dense, {**result(dense), "density": 1.0}, tree(full), Variables(trained, {}))  # type: ignore[arg-type]
        parents = [folder(Path(), dense), state_folder(Path(), 0, changes.get("step", 3))]
        cell = Cell(0, "rewind-3", 1, "ticket")
        of = {**result(cell), "density": density}
        store.write(cell, of, tree(own), Variables(final, {}), parents)  # type: ignore[arg-type]
        control = changes.get("control", {n: m[::-1].copy() for n, m in own.items()})
        zeroed = {
            n: {**trained[n], "kernel": np.where(m, trained[n]["kernel"], np.float32(0))}
            for n, m in control.items()
        }
        cell = Cell(0, "rewind-3", 1, changes.get("arm", "random"))
        of = {**result(cell), "density": sum(int(m.sum()) for m in control.values()) / 84}
        store.write(cell, of, tree(control), Variables(zeroed, {}))  # type: ignore[arg-type]
    return path


def test_a_healthy_run_folder(tmp_path: Path, command: Command) -> None:
    done = command("-m", "analysis.doctor", run_folder(tmp_path / "run"), "--quiet")
    assert (done.returncode, done.stderr) == (0, ""), done
    lines = done.stdout.splitlines()
    assert all(text.startswith("ok ") for text in lines)
    assert len(lines) == 10
    done = command("-m", "analysis.doctor", tmp_path / "run", "--init", tmp_path / "a.npz")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    for option in (["--names", "fc"], ["--scope", "global"], ["--tolerance", "0.5"]):
        done = command("-m", "analysis.doctor", tmp_path / "run", *option)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert done.stderr.startswith(f"error: {option[0]}: it is of a ticket in files, and ")


def _spoilt(layer: str, place: tuple[int, int], value: float) -> Callable[[Any], Any]:
    return lambda tree: {**tree, layer: changed(tree[layer], "kernel", place, value)}


MORE = {**KEPT, "fc1": np.arange(60).reshape(10, 6) >= 13}
# As many as in KEPT, and two fewer.
SHIFTED = {"fc1": np.arange(60).reshape(10, 6) >= 6, "output": np.arange(24).reshape(6, 4) >= 8}
FEWER = {**SHIFTED, "output": np.arange(24).reshape(6, 4) >= 10}


@pytest.mark.parametrize(
    ("change", "claims"),
    [
        ({"final": _spoilt("fc1", (0, 0), 0.5)}, [doctor.ZEROS]),
        ({"final": _spoilt("output", (0, 0), -0.0)}, [doctor.UNSIGNED]),
        ({"final": _spoilt("output", (5, 3), np.nan)}, [doctor.FINITE]),
        ({"mask": MORE}, [doctor.COUNTED]),
        ({"density": 0.7}, [doctor.SPARSITY]),
        ({"control": MORE}, [doctor.CONTROL]),
        ({"control": SHIFTED}, [doctor.CONTROL]),
        ({"control": FEWER, "arm": "random_erk"}, [doctor.CONTROL_IN_ALL]),
        ({"control": FEWER, "arm": "mine"}, [doctor.CONTROL_IN_ALL]),
        ({"step": 0}, [doctor.REWOUND]),
    ],
)
def test_what_is_wrong_in_a_run_folder(tmp_path: Path, change: dict[str, Any], claims: list[str]) -> None:
    found = diagnose(Options(run=run_folder(tmp_path / "run", **change), quiet=True))
    assert [check.claim for check in found if check.outcome == "FAILED"] == claims
    first = next(fault for check in found for fault in check.faults)
    assert first.layer.startswith("seed=0/chain=rewind-3/level=01/")


@pytest.mark.parametrize("arm", ["random_uniform", "random_erk", "random_smart_ratio", "mine"])
@pytest.mark.parametrize("kept", [SHIFTED, MORE])
def test_an_arm_by_a_rule_has_the_tickets_density_in_all(tmp_path: Path, arm: str, kept: Arrays) -> None:
    """A rule that rounds in each of two layers may be one weight off."""
    found = diagnose(Options(run=run_folder(tmp_path / "run", control=kept, arm=arm), quiet=True))
    assert {check.outcome for check in found} == {"ok"}
    assert doctor.CONTROL_IN_ALL in [check.claim for check in found]
