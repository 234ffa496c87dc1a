"""Rules of one's own: buffers of any shape, and numbers that depend on the whole tree."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim as fo
from functorch_optim.core.arithmetic import sqrt
from functorch_optim.core.pair import Hyperparameter
from functorch_optim.rules import (
    Buffers,
    Carried,
    Rule,
    StepNumbers,
    WholeTree,
    per_leaf,
)


class ShapesState(NamedTuple):
    """A number, a row and a buffer like the parameter."""

    step: Any
    total: Any
    row: Any
    last: Any


def shapes_init(p: jax.Array, h: SimpleNamespace) -> Buffers:
    return jnp.zeros((), p.dtype), jnp.zeros(p.shape[-1:], p.dtype), jnp.zeros_like(p)


def shapes_leaf(g: jax.Array, p: Any, buffers: Buffers, s: StepNumbers) -> Any:
    total, row, last = buffers
    total = total + jnp.sum(g * g)
    row = row + jnp.sum(g.reshape(-1, g.shape[-1]), 0)
    return -s.lr * g / sqrt(total), (total, row, g + last)


@per_leaf(Rule("Shapes", ShapesState, shapes_init, lambda t, h: StepNumbers(lr=h.lr), shapes_leaf))
def shapes(lr: Hyperparameter = 0.1) -> None:
    """Normalized steps."""


@pytest.mark.parametrize("shape", [(2,), (3, 2), (2, 3, 2)])
def test_buffers_of_a_complex_leaf_may_have_any_shape(shape: tuple[int, ...]) -> None:
    """They see pairs of reals: a row of a matrix of three columns of numbers is one of two."""
    random = np.random.RandomState(0)
    z = (random.normal(size=shape) + 1j * random.normal(size=shape)).astype(np.complex64)
    p = {"z": jnp.zeros(shape, jnp.complex64), "x": jnp.zeros((4,))}
    g = {"z": jnp.asarray(z), "x": jnp.ones(4)}
    tx = shapes(1.0)
    state = tx.init(p)
    assert (state.total["z"].shape, state.total["z"].dtype) == ((), jnp.float32)
    assert (state.row["z"].shape, state.row["z"].dtype) == ((2,), jnp.float32)
    assert (state.last["z"].shape, state.last["z"].dtype) == (shape, jnp.complex64)
    for update in (tx.update, jax.jit(tx.update)):
        updates, new = update(g, state, p)
        size = np.sum(np.abs(z) ** 2)
        np.testing.assert_allclose(updates["z"], -z / np.sqrt(size), rtol=1e-5)
        np.testing.assert_allclose(new.total["z"], size, rtol=1e-5)
        np.testing.assert_allclose(
            new.row["z"], [np.sum(z.real), np.sum(z.imag)], rtol=1e-4, atol=1e-5
        )
        np.testing.assert_array_equal(new.last["z"], z)
        assert jax.tree.structure(new) == jax.tree.structure(state)
    with pytest.raises(ValueError, match=r"differ in shape at \['z'\]: row has shape \(3,\)"):
        tx.update(g, state._replace(row={**state.row, "z": jnp.zeros(3)}), p)


class DoGState(NamedTuple):
    """The way so far and the sum of squares, of the whole tree; each leaf's start."""

    step: Any
    way: Any
    squares: Any
    p0: Any


def dog_measure(g: jax.Array, p: Any, buffers: Buffers, s: StepNumbers) -> Any:
    (start,) = buffers
    return {"way": jnp.sum((p - start) ** 2), "squares": jnp.sum(g * g)}


def dog_settle(s: StepNumbers, totals: Any) -> StepNumbers:
    way = jnp.maximum(s.way, sqrt(totals["way"]))
    squares = s.squares + totals["squares"]
    # Without any gradient so far there is nothing to divide.
    root = sqrt(jnp.where(squares == 0, jnp.ones_like(squares), squares))
    return s.with_(way=way, squares=squares, step_size=way / root)


@per_leaf(
    Rule(
        "DoG",
        DoGState,
        lambda p, h: (jnp.copy(p),),
        lambda t, h, way, squares: StepNumbers(way=way, squares=squares, lr=h.lr),
        lambda g, p, buffers, s: (-s.lr * s.step_size * g, buffers),
        whole_tree=WholeTree(dog_measure, dog_settle),
        carried=Carried(("way", "squares"), lambda h: (h.first, 0.0), in_float32=False),
        needs_params="its step is as long as the way so far",
    )
)
def dog(lr: Hyperparameter = 1.0, first: Hyperparameter = 1e-2) -> None:
    """Distance over gradients.

    Args:
      first: the first way.
    """


STEPS = 4
TREE = {
    "w": jnp.asarray([[1.0, -2.0], [0.5, 3.0]]),
    "b": jnp.asarray([0.3, -0.7, 0.2], jnp.bfloat16),
    "z": jnp.asarray([1 + 2j, -0.5j], jnp.complex64),
    "n": None,
    "i": jnp.arange(2),
}


def gradients(params: Any) -> Any:
    """Of sum |p|**2, in each leaf's dtype; none for integers."""
    floats = {k: p for k, p in params.items() if p is not None and k != "i"}
    return {**{k: 2 * p for k, p in floats.items()}, "n": None, "i": None}


def run(params: Any, lr: Any = 1.0, step: Any = lambda f: f) -> tuple[Any, Any]:
    tx = dog(lr)
    state = tx.init(params)

    @step
    def one(params: Any, state: Any) -> Any:
        updates, state = tx.update(gradients(params), state, params)
        return fo.apply_updates(params, updates), state

    for _ in range(STEPS):
        params, state = one(params, state)
    return params, state


def reference() -> tuple[dict[str, np.ndarray], float]:
    start = {k: np.asarray(TREE[k]).astype(complex) for k in "wbz"}
    now, way, squares = dict(start), 1e-2, 0.0
    for _ in range(STEPS):
        moved = sum(np.sum(np.abs(now[k] - start[k]) ** 2) for k in now)
        squares += sum(np.sum(np.abs(2 * now[k]) ** 2) for k in now)
        way = max(way, np.sqrt(moved))
        now = {k: p - way / np.sqrt(squares) * 2 * p for k, p in now.items()}
    return now, way


def test_a_sum_over_the_whole_tree_takes_every_kind_of_leaf() -> None:
    """Complex, half precision, nothing, integers: eagerly and compiled."""
    wanted, way = reference()
    for step in (lambda f: f, jax.jit):
        params, state = run(TREE, step=step)
        for name, rtol in (("w", 1e-3), ("z", 1e-3), ("b", 2e-2)):
            assert params[name].dtype == TREE[name].dtype
            np.testing.assert_allclose(params[name].astype(complex), wanted[name], rtol=rtol)
        np.testing.assert_allclose(state.way, way, rtol=5e-2)
        assert params["n"] is None
        np.testing.assert_array_equal(params["i"], TREE["i"])


def test_it_runs_under_vmap_and_has_a_slope() -> None:
    params = {"w": TREE["w"], "n": None, "i": TREE["i"]}

    def end(lr: Any) -> jax.Array:
        return jnp.sum(run(params, lr)[0]["w"])

    rates = jnp.asarray([0.5, 1.0, 2.0])
    np.testing.assert_allclose(jax.vmap(end)(rates), [end(lr) for lr in rates], rtol=1e-5)
    slope = jax.grad(end)(rates[2])  # at 1 the way and the first step tie: a kink
    difference = (end(jnp.float32(2.02)) - end(jnp.float32(1.98))) / 0.04
    np.testing.assert_allclose(slope, difference, rtol=1e-2)


@pytest.mark.parametrize("empty", [{}, (), {"n": None}])
def test_a_tree_without_anything_to_train(empty: Any) -> None:
    tx = dog()
    state = tx.init(empty)
    for update in (tx.update, jax.jit(tx.update)):
        updates, new = update(empty, state, empty)
        assert jax.tree.leaves(updates) == []
        assert int(new.step) == 1
        assert float(new.squares) == 0
        assert jax.tree.structure(new) == jax.tree.structure(state)
