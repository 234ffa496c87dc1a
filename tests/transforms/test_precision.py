"""float32_state: the state of half-precision parameters is that of float32 ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim as fo
from tests.support.problems import Tree, at, problem, types
from tests.tables.algorithms import Algorithm
from tests.tables.every_algorithm import TABLE

STEPS = 3


def halved(tree: Tree, dtype: str) -> Tree:
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def widened(tree: Tree) -> Tree:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


@pytest.mark.parametrize(
    ("row", "dtype"),
    [pytest.param(row, half, id=f"{row.name}-{half}") for row in TABLE for half in row.halves],
)
def test_state_is_that_of_float32_and_updates_are_rounded_once(row: Algorithm, dtype: str) -> None:
    params, grads = (halved(tree, dtype) for tree in problem())
    tx, wide = fo.float32_state(row.pair()), row.pair()
    state, wide_state = tx.init(params), wide.init(widened(params))
    before = types(state)
    update, wide_update = jax.jit(tx.update), jax.jit(wide.update)
    for i in range(STEPS):
        g = at(grads, i)
        updates, state = update(g, state, params)
        wanted, wide_state = wide_update(widened(g), wide_state, widened(params))
        for u, w in zip(jax.tree.leaves(updates), jax.tree.leaves(wanted), strict=True):
            assert u.dtype == dtype
            np.testing.assert_allclose(
                u.astype(jnp.float32), w.astype(dtype).astype(jnp.float32), rtol=1e-2
            )
    assert types(state) == before == types(wide_state)
    for actual, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(wide_state), strict=True):
        assert actual.dtype == (
            jnp.float32 if actual.shape else wanted.dtype
        )  # the step is a count
        np.testing.assert_allclose(actual, wanted, rtol=1e-6)


def test_without_it_a_second_moment_stops_following() -> None:
    """In bfloat16, 0.999 * v is v, so an average that has risen does not fall."""
    params = {"w": jnp.ones(4, jnp.bfloat16)}

    def second_moment(tx: fo.GradientTransformation) -> float:
        state, update = tx.init(params), jax.jit(tx.update)
        for size in [1.0] * 20 + [0.0] * 200:
            _, state = update({"w": params["w"] * size}, state, params)
        return float(state.exp_avg_sq["w"][0])

    risen = 1 - 0.999**20
    assert second_moment(fo.float32_state(fo.adam())) == pytest.approx(risen * 0.999**200, rel=1e-3)
    assert second_moment(fo.adam()) > risen * 0.95


def test_it_reaches_the_members_of_a_chain() -> None:
    params = {"w": jnp.ones(4, jnp.bfloat16), "n": None, "i": jnp.arange(2)}
    tx = fo.float32_state(fo.chain(fo.clip_by_global_norm(1.0), fo.sgd(0.1, momentum=0.9)))
    state = tx.init(params)
    assert state[1].momentum_buffer["w"].dtype == jnp.float32
    assert state[1].momentum_buffer["n"] is None
    updates, _ = tx.update({"w": params["w"], "n": None, "i": None}, state, params)
    assert updates["w"].dtype == jnp.bfloat16
