"""Any state through a safetensors file: structure, numbers and dtypes exactly."""

from __future__ import annotations

import collections
import importlib
import json
import os
import struct
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import functorch_optim as fo
import functorch_optim.stateful as optim
from tests.support.problems import at, loop, one_step, problem
from tests.support.stateful import cells, exactly, run

safetensors = pytest.importorskip("safetensors")
interop = importlib.import_module("functorch_optim.interop.safetensors")
save_state, load_state = interop.save_state, interop.load_state


def there_and_back(x: Any, path: Path, **kwargs: Any) -> Any:
    save_state(path, x)
    return load_state(path, **kwargs)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.safetensors"


VALUES: dict[str, Any] = {
    "numbers": [0, -1, 2**80, 0.1, -0.0, 1e300, 5e-324, 1.0, 1 + 2j],
    "not finite": [float("inf"), -float("inf"), float("nan"), complex(0, float("inf"))],
    "others": [None, True, False, "", "text, \u00e4 \U0001f600"],
    "containers": {"a": [], "b": (), "c": {}, "d": ((1,), [2, (3.0,)])},
    "keys": {0: 1, "0": 2, 1.5: 3, None: 4, True: 5, (1, "x"): 6, "a.b": {"c": 7}},
    "order": {"b": 1, "a": 2},
    "kinds": [collections.Counter({3: 2}), collections.OrderedDict(b=1, a=2)],
    "like our own marks": {"dict": [["tuple", {"array": 1}]], "float": "nan"},
    "a bare array": jnp.arange(3),
    "a bare number": 3,
    "scalars": [np.float64(0.1), np.int32(3), np.bool_(True), ml_dtypes.bfloat16(1.5)],
    "names that the format has not": {"__metadata__": jnp.ones(1), "\ud800": jnp.zeros(1)},
    "names that meet": {"a": {"b": jnp.ones(1)}, "a.b": jnp.zeros(2), "a.b'": jnp.zeros(3)},
}


@pytest.mark.parametrize("name", VALUES)
def test_values_go_round(name: str, path: Path) -> None:
    assert exactly(there_and_back(VALUES[name], path)) == exactly(VALUES[name])


DTYPES = [
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3b11fnuz",
    "int4",
    "uint4",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
    "complex64",
    "complex128",
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_go_round(dtype: str, path: Path, x64: None) -> None:
    arrays = [jnp.arange(6).astype(dtype).reshape(shape) for shape in ((6,), (2, 3), (1, 6, 1))]
    arrays += [jnp.ones((), dtype), jnp.zeros((0, 2), dtype)]
    value = {"jax": arrays, "numpy": [np.asarray(x) for x in arrays]}
    assert exactly(there_and_back(value, path)) == exactly(value)
    assert not any(x.weak_type for x in load_state(path)["jax"])


def test_numpys_layouts_go_round_as_numbers(path: Path) -> None:
    value = [np.arange(6.0).reshape(2, 3).T, np.arange(6, dtype=">i4")[::2]]
    for x, y in zip(there_and_back(value, path), value, strict=True):
        np.testing.assert_array_equal(x, y)


def test_without_x64_a_wide_array_is_numpys(path: Path) -> None:
    with jax.enable_x64(True):
        save_state(path, jnp.ones(2, jnp.float64))
    assert exactly(load_state(path)) == exactly(np.ones(2))


def test_random_keys_go_round(path: Path) -> None:
    keys = [jax.random.key(3), jax.random.split(jax.random.key(1, impl="rbg"), 2)]
    for x, y in zip(there_and_back(keys, path), keys, strict=True):
        assert x.dtype == y.dtype
        assert jnp.array_equal(jax.random.key_data(x), jax.random.key_data(y))


leaf = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.integers(0, 3).map(lambda n: jnp.ones(n, jnp.bfloat16)),
)
key = st.one_of(st.integers(), st.text(), st.none())
tree = st.recursive(
    leaf,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(key, inner, max_size=3),
    ),
    max_leaves=12,
)


@settings(max_examples=60)
@given(tree)
def test_any_nested_value_goes_round(tmp_path_factory: Any, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    assert exactly(there_and_back(value, path)) == exactly(value)


def test_an_optimizer_and_its_scheduler_go_on_from_a_file(path: Path) -> None:
    def build() -> Any:
        opt = optim.Adam(cells((3,), (2, 2)), lr=0.1, amsgrad=True)
        return opt, optim.lr_scheduler.OneCycleLR(opt, 0.1, 20)

    def go(opt: Any, scheduler: Any, start: int) -> None:
        for i in range(start, start + 3):
            run(opt, 1, i)
            scheduler.step()

    first, second = build(), build()
    go(*first, 0)
    go(*second, 0)
    saved = [x.state_dict() for x in first]
    loaded = there_and_back(saved, path)
    assert exactly(loaded) == exactly(saved)
    for x, state in zip(second, loaded, strict=True):
        x.load_state_dict(state)
    go(*first, 3)
    go(*second, 3)
    assert exactly(second[0].state_dict()) == exactly(first[0].state_dict())


def test_other_readers_see_the_arrays_by_name(path: Path) -> None:
    save_state(path, {"state": {0: {"exp_avg": jnp.ones(2), "step": jnp.float32(1)}}, "lr": 0.1})
    from safetensors.numpy import load_file

    assert load_file(path).keys() == {"state.0.exp_avg", "state.0.step"}


# The state of a pure pair.


def pair() -> fo.GradientTransformation:
    return fo.chain(
        fo.clip_by_global_norm(1.0),
        fo.partition(
            {"kernel": fo.adamw(1e-2, amsgrad=True), "rest": fo.sgd(0.1, momentum=0.9)},
            lambda params: {"kernel": "kernel", "rest": ["rest"]},
        ),
    )


def test_a_pairs_state_goes_on_from_a_file(path: Path) -> None:
    tx = pair()
    params, grads = problem()
    params, state = loop(tx, params, grads)
    loaded = there_and_back(state, path, like=tx.init(params))
    assert jax.tree.structure(loaded) == jax.tree.structure(state)
    types = [[(x.dtype, x.weak_type) for x in jax.tree.leaves(s)] for s in (loaded, state)]
    assert types[0] == types[1]
    for s in (state, loaded):
        new, _ = one_step(tx, params, s, at(grads, 0))
        assert exactly(new) == exactly(one_step(tx, params, state, at(grads, 0))[0])
    assert exactly(loaded) == exactly(state)


def test_optaxs_state_and_other_pytrees(path: Path) -> None:
    import optax

    tx = optax.adam(1e-3)
    state = tx.init({"w": jnp.ones(3)}), jax.tree_util.Partial(jnp.add, jnp.ones(2))
    loaded = there_and_back(state, path, like=state)
    assert jax.tree.structure(loaded) == jax.tree.structure(state)
    assert exactly(jax.tree.leaves(loaded)) == exactly(jax.tree.leaves(state))


def test_a_pairs_state_needs_like(path: Path) -> None:
    save_state(path, {"opt": fo.adam(0.1).init(jnp.ones(2))})
    with pytest.raises(ValueError, match=r"opt is a AdamState, whose class .*: give `like`"):
        load_state(path)


LIKE = {"a": jnp.ones(2), "b": [1, (2.0,)], "c": fo.adam(0.1).init(jnp.ones(2))}
MISFITS: dict[str, tuple[Any, str]] = {
    "shape": ({**LIKE, "a": jnp.ones(3)}, r"a is an array of shape \(2,\) .* shape \(3,\)"),
    "dtype": ({**LIKE, "a": jnp.ones(2, jnp.bfloat16)}, ".*float32, but `like` has .*bfloat16"),
    "no array": ({**LIKE, "a": 1}, "a is an array .* but `like` has 1 of type int"),
    "an array": ({**LIKE, "b": [jnp.ones(1), (2.0,)]}, r"b\.0 is 1, but `like` has an array"),
    "keys": ({"a": LIKE["a"], "b": LIKE["b"]}, r"value is a dict with the keys \['a', 'b', 'c'\]"),
    "length": ({**LIKE, "b": [1]}, "b is a list of 2, but `like` has a list of 1"),
    "kind": ({**LIKE, "b": (1, (2.0,))}, "b is a list of 2, but `like` has a tuple"),
    "class": ({**LIKE, "c": fo.sgd(0.1).init(jnp.ones(2))}, "c is a AdamState, but `like` has"),
    "field": (
        {**LIKE, "c": fo.adam(0.1, amsgrad=True).init(jnp.ones(2))},
        r"c\.max_exp_avg_sq is None, but `like` has an array",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_like_is_refused(name: str, path: Path) -> None:
    save_state(path, LIKE)
    other, words = MISFITS[name]
    with pytest.raises(ValueError, match=rf"state\.safetensors: {words}"):
        load_state(path, like=other)
    assert exactly(load_state(path, like=LIKE)) == exactly(LIKE)


# What is refused.


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": [len]}, r"a\.0 is a builtins\.builtin_function_or_method, which cannot be saved"),
        ({"p": optim.Parameter(jnp.ones(1))}, "p is a .*Parameter, .*: save its value"),
        ({"x": np.array(["a"])}, "x: an array of <U1 cannot be saved"),
        ({"x": np.array([None])}, "x: an array of object cannot be saved"),
        ({"x": {np.float64(1): 1}}, r"the key np\.float64\(1\.0\) of x cannot be saved"),
        ({"x": {1, 2}}, "x is a builtins.set"),
    ],
)
def test_what_cannot_be_saved_is_named(value: Any, words: str, path: Path) -> None:
    with pytest.raises(TypeError, match=words):
        save_state(path, value)
    assert not path.exists()


@pytest.mark.parametrize("kept", [0, 4, 50, -1])
def test_a_truncated_file_is_refused(kept: int, path: Path) -> None:
    save_state(path, LIKE)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"state\.safetensors is damaged"):
        load_state(path)


def rewritten(path: Path, **changes: Any) -> None:
    """A file whose metadata differs."""
    save_state(path, {"x": jnp.ones(2)})
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = {
        k: v for k, v in {**header["__metadata__"], **changes}.items() if v is not None
    }
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"functorch_optim.layout": "2"}, "has layout version '2', this release reads '1'"),
        ({"functorch_optim.layout": None}, "was not written by save_state"),
        ({"functorch_optim.structure": None}, "was not written by save_state"),
        ({"functorch_optim.structure": "{"}, "its structure is damaged"),
        ({"functorch_optim.structure": '{"what": 1}'}, "its structure is damaged"),
        ({"functorch_optim.structure": '{"array": ["y", "float32"]}'}, "its structure is damaged"),
        ({"functorch_optim.structure": '{"array": ["x", "f99"]}'}, "its structure is damaged"),
        ({"functorch_optim.structure": '{"tuple": 3}'}, "its structure is damaged"),
    ],
)
def test_another_structure_is_refused(changes: Any, words: str, path: Path) -> None:
    rewritten(path)
    assert exactly(load_state(path)) == exactly({"x": jnp.ones(2)})
    rewritten(path, **changes)
    with pytest.raises(ValueError, match=words):
        load_state(path)


def test_a_file_of_others_is_refused(path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"x": np.ones(2)}, path)
    with pytest.raises(ValueError, match="was not written by save_state"):
        load_state(path)


def test_an_interrupted_save_leaves_the_old_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_state(path, {"x": jnp.ones(2)})

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_state(path, {"x": jnp.zeros(2)})
    monkeypatch.undo()
    assert list(path.parent.iterdir()) == [path]
    assert exactly(load_state(path)) == exactly({"x": jnp.ones(2)})


def test_without_safetensors_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.delitem(sys.modules, "functorch_optim.interop.safetensors")
    with pytest.raises(ImportError, match=r'pip install "functorch_optim\[safetensors\]"'):
        importlib.import_module("functorch_optim.interop.safetensors")
