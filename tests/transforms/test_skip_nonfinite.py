"""skip_nonfinite: steps with infinite or NaN gradients, left out."""

from __future__ import annotations

from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import functorch_optim as fo
from functorch_optim.transforms.nonfinite import SkipNonfiniteState, all_finite, skip_nonfinite
from tests.support.problems import assert_trees_close, at, loop, problem, types

FLOAT0 = np.zeros(2, jax.dtypes.float0)
BAD = (np.nan, np.inf, -np.inf)


def spoiled(grads: Any, at_calls: tuple[int, ...]) -> Any:
    """Gradients with one element that is not finite, in one leaf, at some calls."""
    rest = np.array(grads["rest"][0])
    for number, i in enumerate(at_calls):
        rest[i, 1, 2] = BAD[number % 3]
    return {**grads, "rest": [jnp.asarray(rest)]}


def test_all_finite_looks_at_every_floating_point_element() -> None:
    fine = {
        "f": jnp.ones(3),
        "h": jnp.full(2, 65504.0, jnp.float16),
        "c": jnp.ones(2, jnp.complex64),
        "i": jnp.arange(3),
        "n": None,
        "z": FLOAT0,
        "e": jnp.ones((0, 2)),
        "x": 1.0,
    }
    for tree, wanted in (
        (fine, True),
        ({}, True),
        (None, True),
        ({**fine, "f": jnp.asarray([1.0, jnp.nan])}, False),
        ({**fine, "h": jnp.asarray([1.0, -jnp.inf], jnp.bfloat16)}, False),
        ({**fine, "c": jnp.asarray([complex(0, np.inf)], jnp.complex64)}, False),
        ({**fine, "x": float("nan")}, False),
    ):
        finite = all_finite(tree)
        assert (finite.shape, finite.dtype) == ((), np.bool_)
        assert bool(finite) is wanted


def test_a_skipped_step_leaves_no_trace() -> None:
    """The run with bad gradients is the run without those calls."""
    params, grads = problem(steps=5)
    bad = spoiled(grads, (1, 2, 4))
    tx = skip_nonfinite(fo.adam(0.1))
    state, seen = tx.init(params), []
    step, p = jax.jit(tx.update), params
    for i in range(5):
        updates, state = step(at(bad, i), state, p)
        p = fo.apply_updates(p, updates)
        seen.append((int(state.consecutive), int(state.total)))
        assert np.any(updates["kernel"]) == (i in (0, 3))
    assert seen == [(0, 0), (1, 1), (2, 2), (0, 2), (1, 3)]
    assert not bool(state.too_many)
    good = jax.tree.map(lambda g: g[np.array([0, 3])], grads)
    wanted, plain = loop(fo.adam(0.1), params, good)
    assert_trees_close(p, wanted, 1e-6)
    assert_trees_close(state.inner_state, plain, 1e-6)


def test_the_updates_are_those_of_optax_up_to_its_limit() -> None:
    """Beyond the limit optax lets NaN through; here the alarm is raised and skipping goes on."""
    params, grads = problem(steps=6)
    bad = spoiled(grads, (1, 2, 3, 4))
    ours, theirs = skip_nonfinite(optax.sgd(0.1), 3), optax.apply_if_finite(optax.sgd(0.1), 3)
    state, their_state, alarms = ours.init(params), theirs.init(params), []
    for i in range(6):
        updates, state = jax.jit(ours.update)(at(bad, i), state, params)
        wanted, their_state = jax.jit(theirs.update)(at(bad, i), their_state, params)
        alarms.append(bool(state.too_many))
        if i == 4:
            assert np.isnan(wanted["rest"][0]).any()
            assert not any(np.any(x) for x in jax.tree.leaves(updates))
        else:
            assert_trees_close(updates, wanted, 1e-6)
    assert alarms == [False, False, False, True, True, True]
    assert [x.dtype.name for x in state[1:]] == ["int32", "int32", "bool"]
    assert (int(state.consecutive), int(state.total)) == (0, 4)


def test_the_inner_update_is_not_computed_and_extra_arguments_reach_it() -> None:
    ran = []

    def update(updates: Any, state: Any, params: Any = None, *, value: Any) -> tuple[Any, Any]:
        jax.debug.callback(lambda v: ran.append(float(v)), value)
        return updates, state

    tx = skip_nonfinite(fo.GradientTransformation(lambda params: (), update))
    state = tx.init(jnp.ones(2))
    for i, g in enumerate((1.0, np.nan, 2.0)):
        _, state = tx.update(jnp.asarray([1.0, g]), state, value=jnp.float32(i), unknown=1)
    jax.effects_barrier()
    assert ran == [0.0, 2.0]


def test_leaves_without_a_gradient_and_dtypes() -> None:
    params = {
        "a": jnp.ones(2),
        "b": jnp.ones(2),
        "c": jnp.arange(2),
        "h": jnp.ones(2, jnp.bfloat16),
        "z": jnp.ones(2, jnp.complex64),
        "n": None,
    }
    tx = skip_nonfinite(fo.adam(0.1))
    for bad in (1.0, np.nan):
        grads = {**params, "a": jnp.asarray([1.0, bad]), "b": None, "c": FLOAT0}
        updates, state = tx.update(grads, tx.init(params), params)
        assert updates["b"] is updates["c"] is updates["n"] is None
        for name in ("a", "h", "z"):
            assert updates[name].dtype == params[name].dtype
            assert np.any(updates[name].astype(np.complex64)) == (bad == 1.0)
        assert types(state) == types(tx.init(params))
    updates, state = tx.update({}, tx.init({}), {})
    assert updates == {} and isinstance(state, SkipNonfiniteState)
    assert int(state.total) == 0


def test_a_state_keeps_its_dtypes_under_wider_gradients() -> None:
    """optax's buffers take the gradients' dtype; the two sides of a condition need one type."""
    p = jnp.ones(2, jnp.bfloat16)
    tx = skip_nonfinite(optax.trace(0.9))
    with jax.numpy_dtype_promotion("standard"):
        updates, state = tx.update(jnp.ones(2), tx.init(p), p)
    assert types(state) == types(tx.init(p))
    np.testing.assert_array_equal(updates, [1.0, 1.0])


def test_scans_batches_differentiates_and_compiles_once() -> None:
    params, grads = problem(steps=4)
    bad = spoiled(grads, (1,))
    tx = skip_nonfinite(fo.adam(0.1))
    traces = []

    def body(carry: Any, g: Any) -> Any:
        traces.append(1)
        params, state = carry
        updates, state = tx.update(g, state, params)
        return (fo.apply_updates(params, updates), state), None

    start = (params, tx.init(params))
    last, _ = jax.lax.scan(body, start, bad)
    assert types(last[1]) == types(start[1])
    traces.clear()
    step, carry = jax.jit(body, donate_argnums=0), jax.tree.map(jnp.copy, start)
    carry = (carry[0], tx.init(params))  # a fresh state can be given away
    for i in range(4):
        carry, _ = step(carry, at(bad, i))
    assert len(traces) == 1
    assert_trees_close(carry[0], last[0], 1e-6)

    both = jax.tree.map(lambda g, b: jnp.stack([g[1], b[1]]), grads, bad)
    updates, state = jax.vmap(lambda g: tx.update(g, start[1], params))(both)
    np.testing.assert_array_equal(state.total, [0, 1])
    assert np.all(updates["kernel"][0] != 0) and not np.any(updates["kernel"][1])

    def loss(lr: Any, grads: Any) -> Any:
        tx = skip_nonfinite(fo.adam(lr))
        updates, _ = tx.update(grads, tx.init(params), params)
        return jnp.sum(updates["kernel"])

    # Under vmap both sides of the condition are computed.
    slopes = jax.vmap(jax.grad(loss), (None, 0))(jnp.float32(0.1), both)
    np.testing.assert_allclose(slopes[0], 10 * np.sum(np.asarray(updates["kernel"][0])), rtol=1e-5)
    assert slopes[1] == 0
    assert jax.grad(loss)(jnp.float32(0.1), at(bad, 1)) == 0


@pytest.mark.parametrize("bad", [1.0, np.nan])
def test_the_data_of_a_sparse_gradient_is_looked_at(bad: float) -> None:
    sparse = pytest.importorskip("jax.experimental.sparse")
    g = sparse.BCOO((jnp.asarray([bad]), jnp.asarray([[1]])), shape=(3,))
    tx = skip_nonfinite(fo.sgd(0.5))
    updates, _ = tx.update(g, tx.init(jnp.ones(3)), jnp.ones(3))
    np.testing.assert_array_equal(updates.todense(), [0, -0.5 if bad == 1 else 0, 0])


def test_exports() -> None:
    params = jnp.ones(3)
    tx = skip_nonfinite(fo.adam(0.1))
    exported = jax.export.export(jax.jit(tx.update), platforms=("cpu", "cuda", "tpu"))(
        params, tx.init(params), params
    )
    updates, _ = exported.call(params * np.nan, tx.init(params), params)
    assert not np.any(updates)


def test_equal_pairs_and_what_is_refused() -> None:
    assert skip_nonfinite(fo.sgd()) is skip_nonfinite(fo.sgd(), max_consecutive=10)
    for count in (0, 1.5):
        with pytest.raises(ValueError, match="Expected positive integer max_consecutive"):
            skip_nonfinite(fo.sgd(), count)
    with pytest.raises(TypeError, match="the transform of skip_nonfinite should be an"):
        skip_nonfinite(fo.sgd)
