"""Tickets in files: loading returns what was saved, or saving fails with one sentence."""

import dataclasses
import hashlib
import json
import os
import re
import stat
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from safetensors.numpy import save as to_bytes

from lthjax import prune
from lthjax.prune._files import tensors

DTYPES = [
    *("bool", "int8", "uint8", "int16", "uint32", "int64", "float16", "float32", "float64"),
    *("complex64", "complex128", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz"),
    *("float8_e4m3fnuz", "float8_e5m2fnuz", "int4", "uint4"),
]


def dtype_of(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, name))


class Pair(NamedTuple):
    w: Any
    b: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    weight: Any
    rest: Any


def arrays(name: str, shape: tuple[int, ...]) -> st.SearchStrategy[np.ndarray]:
    """Arrays of any bits, including NaN and -0."""
    dtype = dtype_of(name)
    size = int(np.prod(shape)) * dtype.itemsize
    made = st.binary(min_size=size, max_size=size).map(lambda b: np.frombuffer(b, np.uint8))
    if name in ("bool", "int4", "uint4"):
        return made.map(lambda b: (b % 2).astype(dtype).reshape(shape))
    return made.map(lambda b: b.view(dtype).reshape(shape))


LEAVES = (
    st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3).map(tuple)).flatmap(
        lambda spec: arrays(*spec)
    )
    | st.sampled_from([2.5, 7, True, 1j, np.float32(3), np.int8(-4)])
    | st.integers(0, 9).map(lambda seed: jax.random.key(seed, impl="threefry2x32"))
)
# Parts that make paths collide: "/", ".", empty, and numbers that are also list indices.
KEYS = st.text("ab/.0", max_size=3)
TREES = st.recursive(
    LEAVES,
    lambda inside: (
        st.dictionaries(KEYS, inside, max_size=3)
        | st.dictionaries(st.integers(0, 2), inside, max_size=2)
        | st.lists(inside, max_size=2)
        | st.tuples(inside, st.none())
        | st.builds(Pair, inside, inside)
        | st.builds(Layer, inside, inside)
    ),
    max_leaves=5,
)


def bits(leaf: Any) -> tuple[Any, ...]:
    if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return (str(jax.random.key_impl(leaf)), leaf.shape, np.asarray(jax.random.key_data(leaf)).tobytes())
    array = np.asarray(leaf)
    return (array.dtype.name, array.shape, array.tobytes())


def nested(flat: dict[str, Any]) -> Any:
    """The documented form: dictionaries by the parts of the paths; None if there is no such form."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        place = tree
        *parents, last = path.split("/")
        for part in parents:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                return None
        if last in place:
            return None
        place[last] = bits(leaf)
    return tree


@given(TREES, st.booleans(), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_any_tree_comes_back_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, tree: Any, with_origin: bool, seed: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.unlink(missing_ok=True)
    names, leaves = prune.paths(tree), jax.tree.leaves(tree)
    draw = np.random.default_rng(seed)
    masks = [
        draw.random(x.shape) < 0.5 if isinstance(x, np.ndarray) and x.ndim else np.array(True) for x in leaves
    ]
    mask = jax.tree.unflatten(jax.tree.structure(tree), masks)
    expected = nested(dict(zip(names, leaves, strict=True))) if len(set(names)) == len(names) else None
    if expected is None:
        with pytest.raises(ValueError, match=r"^params: (two leaves have one path|the path of leaf) "):
            prune.save(path, tree, mask)
        assert not path.exists()
        return
    prune.save(path, tree, mask, origin=tree if with_origin else None)
    like = prune.load(path, like=tree)
    for saved, back in ((tree, like.params), (mask, like.mask), (tree, like.origin)):
        if back is not None:
            assert jax.tree.structure(back) == jax.tree.structure(tree)
            assert list(map(bits, jax.tree.leaves(back))) == list(map(bits, jax.tree.leaves(saved)))
    got = prune.load(path)
    assert jax.tree.map(bits, got.params) == expected
    assert jax.tree.map(bits, got.mask) == nested(dict(zip(names, masks, strict=True)))
    assert (got.origin is not None) == bool(with_origin and leaves)
    if got.origin is not None:
        assert jax.tree.map(bits, got.origin) == expected


def test_every_type_and_shape_comes_back(tmp_path: Path) -> None:
    params = {name: np.ones((2, 3), dtype_of(name)) for name in DTYPES}
    params |= {
        "scalar": np.float32(2),
        "none_of_it": np.zeros((0, 3)),
        "other_order": np.arange(3, dtype=">f4"),
    }
    params["columns"] = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    mask = {name: np.ones(np.shape(x), bool) for name, x in params.items()}
    prune.save(tmp_path / "t", params, mask)
    got = prune.load(tmp_path / "t")
    for name, leaf in params.items():
        assert got.params[name].shape == np.shape(leaf)
        assert got.params[name].dtype.name == leaf.dtype.name
        assert got.params[name].flags.writeable
        np.testing.assert_array_equal(got.params[name], leaf)
    # Types that safetensors has are stored under their own names, for any reader.
    assert set(json.loads(header(tmp_path / "t")["types"])) == {
        f"params/{name}" for name in DTYPES if name[-4:] in ("x128", "int4", "fnuz")
    }


def header(path: Path) -> dict[str, str]:
    data = path.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]


def digest(path: Path) -> str:
    """As `prune.save` documents it."""
    whole = hashlib.sha256()
    head = {key: value for key, value in header(path).items() if key != "sha256"}
    whole.update(json.dumps(sorted(head.items())).encode())
    for name, array in sorted(tensors(path)[1].items()):
        whole.update(json.dumps([name, array.dtype.name, array.shape]).encode() + array.tobytes())
    return whole.hexdigest()


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """Wherever it is: but for the name of the entry that would tell."""
    params = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "k": jax.random.key(0), "n": np.int8(3)}
    mask = {"w": np.arange(6).reshape(2, 3) > 2, "k": True, "n": True}
    path = tmp_path / "t"
    prune.save(path, params, mask, origin=params, metadata={"r": 2})
    whole, seen = path.read_bytes(), set()
    start = 8 + int.from_bytes(whole[:8], "little")
    name = whole.index(b'"sha256"')
    for place in range(0, 8 * len(whole), 23):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        if name < place // 8 <= name + 6:
            continue
        with pytest.raises(ValueError, match=r"not a ticket that prune\.save wrote, or damaged: ") as caught:
            prune.load(path)
        if place // 8 >= start:
            seen.add(str(caught.value).rpartition(": ")[2])
    assert seen == {"its sha256 is not that of its contents."}
    # A file of before, without the entry, that has lost the types of what it stores as bytes.
    head = {"format": "lthjax-ticket-2", "metadata": "{}"}
    (tmp_path / "old").write_bytes(to_bytes({"params/w": np.ones(2)}, head))
    with pytest.raises(ValueError, match="damaged: 'types'"):
        prune.load(tmp_path / "old")


def test_files_of_before_are_read_and_plain_ones_are_written_as_before(tmp_path: Path) -> None:
    head = {"format": "lthjax-ticket-1", "metadata": "{}"}
    old = {"params/net/w": np.ones((2, 2), np.float32), "params/net/t": np.ones(1, np.float32)}
    old |= {"mask/net/w": np.packbits([1, 0, 1, 1]), "params/f8": np.ones(2, ml_dtypes.float8_e5m2)}
    (tmp_path / "old").write_bytes(to_bytes(old, head))
    got = prune.load(tmp_path / "old")
    assert got.mask["net"]["w"].tolist() == [[True, False], [True, True]]
    assert (got.params["net"]["t"].shape, got.params["f8"].dtype) == ((1,), ml_dtypes.float8_e5m2)
    prune.save(tmp_path / "new", got.params, got.mask)
    assert header(tmp_path / "new").items() - head.items() == {("sha256", digest(tmp_path / "new"))}
    del old["params/f8"]
    (tmp_path / "old").write_bytes(to_bytes(old | {"params/net": np.ones(2, np.float32)}, head))
    with pytest.raises(ValueError, match=r"damaged: params: the path of leaf 'net' is the beginning of"):
        prune.load(tmp_path / "old")


@pytest.mark.parametrize(
    ("params", "mask", "said"),
    [
        ({"net": {"head": 1.0}, "net/head": {"w": 2.0}}, None, "leaf 'net/head' is the beginning of"),
        ({"a/b": 1.0, "a": {"b": 2.0}}, None, "two leaves have one path, 'a/b'"),
        ({"a": "text"}, None, "params: leaf 'a' is <U4, which is no type of JAX's"),
        ({"a": 2**80}, None, "params: leaf 'a' is object, which is no type of JAX's"),
        ({"a": np.zeros(2, jax.dtypes.float0)}, None, "params: leaf 'a' is .*float0.*, which is no type"),
        ({"\ud800": 1.0}, None, "is no text that a file can hold"),
        ({"a": np.ones(2)}, {"a": np.array([0.5, 1])}, r"mask: leaf 'a' is float64 \(2,\); it must be bool"),
        ({"a": np.ones(2)}, {"a": np.False_}, "mask: leaf 'a' is False; it must be bool, or the 0-d True"),
        ({"a": np.ones(2)}, {"b": np.True_}, "leaf 'a' is in the parameters and not in the mask"),
    ],
)
def test_what_cannot_be_saved_is_named(params: Any, mask: Any, said: str, tmp_path: Path) -> None:
    mask = jax.tree.map(lambda _: np.True_, params) if mask is None else mask
    with pytest.raises(ValueError, match=said) as caught:
        prune.save(tmp_path / "t", params, mask)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_place_that_can_hold_no_file_is_named(tmp_path: Path) -> None:
    for place, kind, said in (
        (tmp_path, IsADirectoryError, "it is a folder.*: '{}'"),
        (tmp_path / "no" / "t", FileNotFoundError, "there is no such folder.*: '{}/no'"),
    ):
        with pytest.raises(kind, match=said.format(re.escape(str(tmp_path))) + "$"):
            prune.save(place, {"w": 1.0}, {"w": np.True_})
    assert not list(tmp_path.iterdir())


def test_an_origin_of_another_tree_is_named(tmp_path: Path) -> None:
    params, mask = {"w": np.ones(2), "b": np.ones(3)}, {"w": np.ones(2, bool), "b": np.True_}
    for bias, said in ((np.ones(4), r"\(4,\)"), (np.ones(()), r"\(\)")):
        with pytest.raises(ValueError, match=rf"origin: leaf 'b' has shape {said}; it must be \(3,\)\."):
            prune.save(tmp_path / "t", params, mask, origin={"w": np.ones(2), "b": bias})
    with pytest.raises(ValueError, match=r"origin: .*leaf 'b' is in the parameters and not in the origin"):
        prune.save(tmp_path / "t", params, mask, origin={"w": np.ones(2)})


def test_an_array_that_is_traced_or_deleted_is_named(tmp_path: Path) -> None:
    def inside(w: jax.Array) -> jax.Array:
        prune.save(tmp_path / "t", {"w": w}, {"w": np.True_})
        return w

    with pytest.raises(ValueError, match="params: leaf 'w' is no array that can be saved") as caught:
        jax.eval_shape(inside, jnp.ones(2))
    assert "\n" not in str(caught.value)
    gone = jnp.arange(3.0)
    gone.delete()
    with pytest.raises(ValueError, match=r"params: leaf 'w' is no array that can be saved: .*deleted"):
        prune.save(tmp_path / "t", {"w": gone}, {"w": np.True_})


def test_damaged_types_are_one_sentence(tmp_path: Path) -> None:
    params = {"w": np.ones((2, 2), dtype_of("int4"))}
    prune.save(tmp_path / "t", params, {"w": np.True_})
    head, stored = tensors(tmp_path / "t")
    del head["sha256"]  # as of before
    for other in ("f4,f", "uint", "obje", "int6"):
        (tmp_path / "t").write_bytes(to_bytes(stored, head | {"types": head["types"].replace("int4", other)}))
        with pytest.raises(ValueError, match=r"damaged: (the type|uint8 \(2, 2, 1\))") as caught:
            prune.load(tmp_path / "t")
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.name != "posix", reason="there are no permissions of this kind")
def test_the_file_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        prune.save(tmp_path / "t", {"w": 1.0}, {"w": np.True_})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "t").stat().st_mode) == 0o640


def test_a_loaded_ticket_fits_the_containers_it_came_from(tmp_path: Path) -> None:
    params = {
        "net/a": Layer(np.arange(6.0).reshape(2, 3), [np.ones((2, 2)), np.float32(1)]),
        "3": Pair(1.0, 2.0),
    }
    mask = jax.tree.map(lambda x: np.asarray(x) > 2 if np.ndim(x) else np.True_, params)
    prune.save(tmp_path / "t", params, mask, origin=params)
    got = prune.load(tmp_path / "t")
    assert jax.tree.structure(got.mask) != jax.tree.structure(mask)
    here, there = prune.apply(params, got.mask), prune.apply(params, mask)
    assert jax.tree.structure(here) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, here, there)
    prune.save(tmp_path / "again", params, got.mask, origin=got.origin)
    again = prune.load(tmp_path / "again")
    assert jax.tree.map(bits, again) == jax.tree.map(bits, got)


def test_arrays_of_a_ticket_stay_as_they_are_beside_others_on_devices(tmp_path: Path) -> None:
    """A device would cut 64 bits to 32."""
    long = {"steps": np.array([2**40, 1]), "w": np.array([[1 / 3, 1.0]])}
    mask = {"steps": np.True_, "w": np.array([[True, False]])}
    there = jax.device_put({"steps": np.zeros(2, np.int32), "w": np.zeros((1, 2), "f4")}, jax.devices()[0])
    prune.save(tmp_path / "t", there, mask, origin=long)
    jax.tree.map(np.testing.assert_array_equal, prune.load(tmp_path / "t").origin, long)
    prune.save(tmp_path / "t", long, mask, origin=long)
    ticket = prune.load(tmp_path / "t", like=there)
    for got, saved in ((ticket.params, long), (ticket.origin, long), (ticket.mask, mask)):
        assert jax.tree.map(bits, got) == jax.tree.map(bits, saved)


def test_a_tickets_tree_is_ones_own(tmp_path: Path) -> None:
    """Haiku's names hold slashes, NNX boxes its leaves, a module has fields that are no arrays."""
    params = {
        "mlp/~/linear_0": {"w": np.arange(6.0).reshape(2, 3), "b": np.ones(3)},
        "heads": [np.ones((3, 1))],
    }
    mask = prune.ones(params)
    prune.save(tmp_path / "t", params, mask)
    plain = prune.load(tmp_path / "t")
    assert plain.params.keys() == {"mlp", "heads"}
    assert plain.params["mlp"]["~"]["linear_0"]["w"].shape == plain.mask["mlp"]["~"]["linear_0"]["w"].shape
    assert plain.params["heads"].keys() == {"0"}
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, params))
    for like in (params, shapes):
        got = prune.load(tmp_path / "t", like=like)
        assert got.origin is None
        jax.tree.map(np.testing.assert_array_equal, (got.params, got.mask), (params, mask))
    # A dictionary in a module's place, and leaves in other orders.
    prune.save(tmp_path / "m", {"weight": np.ones((2, 2)), "rest": {"value": np.zeros(2)}},
               {"weight": np.ones((2, 2), bool), "rest": {"value": np.True_}})  # fmt: skip
    module = prune.load(tmp_path / "m", like=Layer(jnp.zeros((2, 2)), jnp.zeros(2))).params
    assert isinstance(module, Layer)
    assert (module.weight.sum(), module.rest.sum()) == (4, 0)


@pytest.mark.parametrize(
    ("like", "said"),
    [
        ({"a": np.ones((2, 3))}, r"leaf 'b' is in the ticket and not in the given tree"),
        ({"a": np.ones((2, 3)), "b": 1.0, "c": 1.0}, "leaf 'c' is in the given tree and not in the ticket"),
        ({"a": np.ones((3, 2)), "b": 1.0}, r"like: leaf 'a' has shape \(3, 2\), and \(2, 3\) in the file"),
        ({"a": np.ones((2, 3)), "b": np.sin}, "like: leaf 'b' is a ufunc, no array; split off"),
    ],
)
def test_a_tree_of_another_network_is_named(like: Any, said: str, tmp_path: Path) -> None:
    params = {"a": np.ones((2, 3)), "b": 1.0}
    prune.save(tmp_path / "t", params, prune.ones(params))
    with pytest.raises(ValueError, match=said) as caught:
        prune.load(tmp_path / "t", like=like)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("torch", ["torch", "numpy in its place"])
def test_the_pages_reader_for_pytorch(torch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch == "torch":
        pytest.importorskip("torch")
    else:
        monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(as_tensor=np.asarray))
        monkeypatch.setitem(sys.modules, "safetensors.torch", SimpleNamespace(load_file=load_file))
    page = (Path(__file__).parent.parent / "docs" / "interop.md").read_text()
    (code,) = re.findall(r'^```python title="load_ticket_torch.py"\n(.*?)^```$', page, re.S | re.M)
    got: dict[str, Any] = {}
    exec(code, got)
    draw = np.random.default_rng(0)
    params = {"fc/1": {"kernel": draw.normal(size=(5, 3)).astype(np.float32), "bias": np.ones(3, np.float32)}}
    mask = {"fc/1": {"kernel": draw.random((5, 3)) < 0.5, "bias": np.True_}}
    prune.save(tmp_path / "t", prune.apply(params, mask), mask, origin=params)
    weights, masks = got["load_ticket_torch"](tmp_path / "t")
    assert weights.keys() == {"fc/1/kernel", "fc/1/bias"}
    assert masks.keys() == {"fc/1/kernel"}
    np.testing.assert_array_equal(masks["fc/1/kernel"], mask["fc/1"]["kernel"])
    np.testing.assert_array_equal(
        weights["fc/1/kernel"], np.where(mask["fc/1"]["kernel"], params["fc/1"]["kernel"], 0)
    )
