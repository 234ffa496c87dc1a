"""A Parameter computes as its value does, and what it hands out stays when steps follow."""

from __future__ import annotations

import operator
import pickle
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim.stateful as optim
from tests.support.stateful import exactly, numbers, run


def trained(value: Any = None) -> tuple[optim.Optimizer, optim.Parameter]:
    """A Parameter whose memory the next step would reuse."""
    p = optim.Parameter(np.abs(numbers(0, (3, 3))) + 0.5 if value is None else value)
    opt = optim.SGD([p], lr=0.25)
    run(opt, 2)
    return opt, p


Y = jnp.asarray(np.abs(numbers(1, (3, 3))) + 0.5)

BINARY = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "@": operator.matmul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": operator.pow,
    "divmod": divmod,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

READINGS: dict[str, Callable[[Any], Any]] = {
    "neg": operator.neg,
    "pos": operator.pos,
    "abs": abs,
    "round": lambda x: round(x, 1),
    "double": lambda x: 2 * x,
    "power": lambda x: x**2,
    "with itself": lambda x: x + x,
    "row": lambda x: x[0],
    "element": lambda x: x[1, 2],
    "slice": lambda x: x[:2, 1:],
    "whole": lambda x: x[:],
    "ellipsis": lambda x: x[...],
    "new axis": lambda x: x[None],
    "mask": lambda x: x[np.array([True, False, True])],
    "at": lambda x: x.at[0].set(1.0),
    "at get": lambda x: x.at[0].get(),
    "T": lambda x: x.T,
    "mT": lambda x: x.mT,
    "list": list,
    "sum": lambda x: x.sum(),
    "mean": lambda x: x.mean(axis=0),
    "max": lambda x: x.max(),
    "reshape": lambda x: x.reshape(9),
    "reshape to the same": lambda x: x.reshape(3, 3),
    "ravel": lambda x: x.ravel(),
    "astype": lambda x: x.astype(jnp.float16),
    "astype the same": lambda x: x.astype(jnp.float32),
    "view": lambda x: x.view(jnp.int32),
    "copy": lambda x: x.copy(),
    "squeeze": lambda x: x.squeeze(),
    "block_until_ready": lambda x: x.block_until_ready(),
    "shards": lambda x: x.addressable_shards[0].data,
    "global shards": lambda x: x.global_shards[0].data,
    "addressable data": lambda x: x.addressable_data(0),
    "to_device": lambda x: x.to_device(jax.devices()[0]),
    "jnp.asarray": jnp.asarray,
    "jnp.stack": lambda x: jnp.stack([x, x]),
    "jnp.einsum": lambda x: jnp.einsum("ij,jk->ik", x, x),
    "np.asarray": np.asarray,
    "np.exp": np.exp,
    "np.sum": np.sum,
    "np.transpose": np.transpose,
    "np.from_dlpack": np.from_dlpack,
    "jnp.from_dlpack": jnp.from_dlpack,
    "len": len,
    "format": lambda x: f"{x[0, 0]:.3f}",
    "device": lambda x: str(x.device),
    "sharding": lambda x: str(x.sharding),
    "nbytes": lambda x: x.nbytes,
}


def check(held: Any, wanted: Any) -> None:
    assert not any(isinstance(x, optim.Parameter) for x in jax.tree.leaves(held))
    assert jax.tree.structure(held) == jax.tree.structure(wanted)
    for x, y in zip(jax.tree.leaves(held), jax.tree.leaves(wanted), strict=True):
        assert type(x) is type(y)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.mark.parametrize("read", READINGS.values(), ids=READINGS)
def test_gives_what_its_value_gives_and_that_stays(read: Any) -> None:
    opt, p = trained()
    wanted = read(jnp.asarray(np.array(p._data)))
    held = read(p)
    check(held, wanted)
    run(opt, 3)
    check(held, wanted)
    run(opt, 1)
    assert np.isfinite(np.asarray(p.data)).all()


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("other", ["jax", "numpy", "number", "scalar", "parameter"])
def test_operators_on_both_sides(name: str, other: str) -> None:
    if name == "@" and other in ("number", "scalar"):
        pytest.skip("a number has no matrix product")
    opt, p = trained()
    x, function = jnp.asarray(np.array(p._data)), BINARY[name]
    kinds = {"jax": Y, "numpy": np.asarray(Y), "number": 2, "scalar": np.float32(2)}
    y = {**kinds, "parameter": optim.Parameter(Y)}[other]
    plain = y.data if isinstance(y, optim.Parameter) else y
    wanted = function(x, plain), function(plain, x)
    held = function(p, y), function(y, p)
    check(held, wanted)
    run(opt, 2)
    check(held, wanted)


@pytest.mark.parametrize("name", ["and_", "or_", "xor", "lshift", "rshift"])
def test_operators_of_integers(name: str) -> None:
    p, function = optim.Parameter(np.array([6, 1, 3], np.int32)), getattr(operator, name)
    for y in 2, np.array([1, 2, 1], np.int32):
        check((function(p, y), function(y, p)), (function(p.data, y), function(y, p.data)))
    check(~p, ~p.data)
    assert [10, 11, 12][optim.Parameter(1)] == 11
    check(Y[p[1:] - 1], Y[p.data[1:] - 1])


def test_numbers() -> None:
    opt, p = trained(np.float32(2.5))
    value = float(p._data)
    assert (float(p), p.item(), complex(p), bool(p)) == (value, value, complex(value), True)
    assert int(p) == int(value)
    assert f"{p:.2f}" == f"{value:.2f}"
    assert f"{p}" == repr(p)
    assert (p.numel(), Y.size, optim.Parameter(Y).numel()) == (1, 9, 9)
    run(opt, 1)
    assert p.item() != value


def test_conversions_that_arrays_refuse() -> None:
    p = optim.Parameter(Y)
    for convert in float, int, bool:
        with pytest.raises((TypeError, ValueError)):
            convert(p)
    with pytest.raises(TypeError):
        len(optim.Parameter(2.0))
    with pytest.raises(TypeError):
        p + "text"


def test_detach_is_the_value() -> None:
    opt, p = trained()
    held = p.detach()
    assert held is p.data
    before = np.array(held)
    run(opt, 2)
    np.testing.assert_array_equal(held, before)


def test_a_shard_of_a_parameter_on_a_mesh_stays() -> None:
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("d",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
    opt, p = trained(jax.device_put(jnp.arange(8.0), spread))
    assert p.sharding == spread
    before = np.array(p._data)
    held = [shard.data for shard in p.addressable_shards]
    run(opt, 3)
    np.testing.assert_array_equal(np.concatenate([np.asarray(x) for x in held]), before)


IN_PLACE = {"+": "iadd", "-": "isub", "*": "imul", "@": "imatmul", "/": "itruediv"} | {
    "//": "ifloordiv",
    "%": "imod",
    "**": "ipow",
    "&": "iand",
    "|": "ior",
    "^": "ixor",
    "<<": "ilshift",
    ">>": "irshift",
}


@pytest.mark.parametrize("symbol", IN_PLACE)
def test_nothing_changes_in_place(symbol: str) -> None:
    model = {"w": optim.Parameter(Y)}
    with pytest.raises(RuntimeError, match="in-place operation") as caught:
        model["w"] = getattr(operator, IN_PLACE[symbol])(model["w"], Y)
    assert f"p.data = p.data {symbol} x" in str(caught.value)
    assert isinstance(model["w"], optim.Parameter)


def test_an_element_is_not_assigned() -> None:
    p = optim.Parameter(Y)
    with pytest.raises(TypeError, match=r"write p\.data = p\.data\.at\[index\]\.set\(x\)"):
        p[0] = 1.0
    with pytest.raises(AttributeError, match=r"no attribute 'add_'"):
        p.add_(1.0)
    with pytest.raises(AttributeError, match=r"write p\.data = p\.data\.clip\(\.\.\.\)"):
        p.clip_(1.0)
    np.testing.assert_array_equal(p.data, Y)


def test_the_value_is_changed_by_assignment() -> None:
    opt, p = trained()
    before = np.array(p._data)
    p.data += Y
    p.data = p.data.at[0].set(0.0)
    np.testing.assert_array_equal(p.data[1:], (before + np.asarray(Y))[1:])
    np.testing.assert_array_equal(p.data[0], np.zeros(3))
    run(opt, 1)
    assert np.isfinite(p.data).all()


def test_is_equal_only_to_itself_and_a_key() -> None:
    p, q = optim.Parameter(Y), optim.Parameter(Y)
    same = p
    assert (p == same, p == q, p != q, p == Y, p == np.asarray(Y)) == (True, False, True) + (
        False,
    ) * 2
    assert {p: 1, q: 2}[p] == 1
    assert p in [q, p]
    assert q not in [p]
    assert float(Y[0, 0]) in optim.Parameter(Y[0])
    assert float(Y[0, 0]) + 1 not in optim.Parameter(Y[0])


def test_is_a_constant_of_a_traced_function() -> None:
    opt, p = trained()
    before = np.array(p._data)
    compiled = jax.jit(lambda x: jnp.sum(x @ p) + 2 * p.sum())
    slope = jax.jit(jax.grad(lambda x: jnp.sum(p * x)))
    wanted = np.sum(np.asarray(Y) @ before) + 2 * np.sum(before)
    for _ in range(2):  # a compiled program keeps what it was traced with
        np.testing.assert_allclose(compiled(Y), wanted, rtol=1e-5)
        np.testing.assert_array_equal(slope(Y), before)
        run(opt, 2)


def test_is_an_argument_of_a_loss() -> None:
    _, p = trained()
    _, q = trained(np.ones((3, 3), np.float32))
    opt = optim.SGD([q], lr=0.0)

    def loss_fn(params: Any, x: Any) -> Any:
        return jnp.sum(params["q"] * x)

    train_step = opt.make_step(loss_fn, {"q": q})
    for _ in range(3):
        wanted = jnp.sum(q.data * p.data)
        np.testing.assert_allclose(optim.backward(loss_fn, {"q": q}, p), wanted, rtol=1e-6)
        np.testing.assert_allclose(train_step(p), wanted, rtol=1e-6)
        p.data = p.data + 1.0  # it is read at every call


def test_is_a_leaf_whatever_it_can_do() -> None:
    p = optim.Parameter(Y)
    assert jax.tree.leaves({"a": [p, 1.0]}) == [p, 1.0]
    assert jax.tree.map(lambda x: x * 2, [p])[0].shape == (3, 3)
    assert len(optim.SGD({"a": p}, lr=0.1).param_groups[0]["params"]) == 1
    assert optim.SGD([{"params": p}], lr=0.1).param_groups[0]["params"] == [p]
    with pytest.raises(TypeError, match="should be an iterable of Tensors or dicts"):
        optim.SGD(p, lr=0.1)
    p.grad = Y
    assert float(optim.clip_grad_norm_(p, 100.0)) == float(jnp.linalg.norm(Y.ravel()))


def test_knows_no_attribute_that_an_array_lacks() -> None:
    p = optim.Parameter(Y)
    for name in "todense", "indices", "unknown", "__cuda_array_interface__", "_npy_value":
        assert not hasattr(p, name)
    assert exactly(pickle.loads(pickle.dumps(p))) == exactly(p)
    assert not hasattr(object.__new__(optim.Parameter), "data")
