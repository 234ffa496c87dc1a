"""accumulate: one real update for several gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import functorch_optim as fo
from functorch_optim.transforms.accumulation import AccumulateState, accumulate
from tests.support.problems import assert_trees_close, at, problem, types

FLOAT0 = np.zeros(2, jax.dtypes.float0)


def run(tx: Any, params: Any, grads: Any) -> tuple[list[Any], Any]:
    """The updates of every call, and the last state, by a jitted loop."""
    step = jax.jit(tx.update)
    state, seen = tx.init(params), []
    for i in range(len(jax.tree.leaves(grads)[0])):
        updates, state = step(at(grads, i), state, params)
        params = fo.apply_updates(params, updates)
        seen.append(updates)
    return seen, state


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_every_kth_call_is_the_plain_pair_on_the_mean(dtype: str, average: bool) -> None:
    params, grads = problem(dtype, steps=6)
    seen, state = run(accumulate(fo.adam(0.1), 3, average), params, grads)
    totals = jax.tree.map(lambda g: np.asarray(g).reshape(2, 3, 2, 3).sum(1), grads)
    mean = jax.tree.map(lambda g: jnp.asarray(g / np.float32(3 if average else 1)), totals)
    wanted, plain = run(fo.adam(0.1), params, mean)
    for i, updates in enumerate(seen):
        if i % 3 == 2:
            assert_trees_close(updates, wanted[i // 3], 1e-5)
        else:
            assert all(not np.any(x) for x in jax.tree.leaves(updates))
    assert_trees_close(state.inner_state, plain, 1e-5)
    assert (int(state.mini_step), int(state.step)) == (0, 2)
    assert state.mini_step.dtype == state.step.dtype == np.int32
    assert all(not np.any(x) for x in jax.tree.leaves(state.grad_sum))


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("every_k", [2, lambda step: jnp.where(step < 1, 1, 3)])
def test_the_updates_are_those_of_optax(every_k: Any, average: bool) -> None:
    params, grads = problem(steps=7)
    other = optax.MultiSteps(optax.sgd(0.1, momentum=0.9), every_k, use_grad_mean=average)
    with jax.numpy_dtype_promotion("standard"):  # MultiSteps multiplies updates by a boolean
        wanted, theirs = run(other, params, grads)
    for tx in (fo.sgd(0.1, momentum=0.9), optax.sgd(0.1, momentum=0.9)):
        seen, ours = run(accumulate(tx, every_k, average), params, grads)
        for x, y in zip(seen, wanted, strict=True):
            assert_trees_close(x, y, 1e-5)
        assert int(ours.step) == int(theirs.gradient_step)
        assert int(ours.mini_step) == int(theirs.mini_step)


def test_inner_schedules_count_real_updates_and_extra_arguments_are_the_last_calls() -> None:
    values = []

    def update(updates: Any, state: Any, params: Any = None, *, value: Any) -> tuple[Any, Any]:
        return jax.tree.map(lambda g: g * value, updates), state

    recorder = fo.GradientTransformation(lambda params: (), update)
    tx = accumulate(
        fo.chain(fo.scale_by_schedule(lambda step: step.astype(np.float32) + 1), recorder), 2
    )
    state = tx.init(jnp.zeros(()))
    for i in range(4):
        updates, state = tx.update(jnp.asarray(1.0 + i), state, value=jnp.float32(10 * i))
        values.append(float(updates))
    np.testing.assert_allclose(values, [0, 1.5 * 1 * 10, 0, 3.5 * 2 * 30])


def test_the_number_of_gradients_may_be_traced_a_float_and_change() -> None:
    g = jnp.ones(2)

    @jax.jit
    def calls_until_update(k: Any) -> Any:
        tx = accumulate(fo.sgd(1.0), k)

        def body(state: Any, _: Any) -> Any:
            updates, state = tx.update(g, state)
            return state, updates[0]

        return jax.lax.scan(body, tx.init(g), length=5)[1]

    np.testing.assert_allclose(calls_until_update(jnp.int32(1)), [-1, -1, -1, -1, -1])
    np.testing.assert_allclose(calls_until_update(jnp.int32(4)), [0, 0, 0, -1, 0])
    np.testing.assert_allclose(calls_until_update(jnp.float32(1.9999999)), [0, -1, 0, -1, 0])
    assert calls_until_update._cache_size() == 2  # one for each dtype


def test_the_inner_update_is_not_computed_in_between() -> None:
    ran = []

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        jax.debug.callback(lambda: ran.append(1))
        return updates, state

    tx = accumulate(fo.GradientTransformation(lambda params: (), update), 3)
    state = tx.init(jnp.ones(2))
    for _ in range(7):
        _, state = jax.jit(tx.update)(jnp.ones(2), state)
    jax.effects_barrier()
    assert len(ran) == 2


def test_half_precision_sums_are_wide_unless_a_narrow_one_is_asked_for() -> None:
    """256 + 0.5 is 256 in bfloat16: a narrow sum stands still, a wide one does not."""
    p = jnp.zeros((), jnp.bfloat16)
    grads = jnp.asarray([256.0] + [0.5] * 15, jnp.bfloat16)
    narrow = accumulate(fo.sgd(1.0), 16, average=False, state_dtype=jnp.bfloat16)
    plain = accumulate(fo.sgd(1.0), 16, average=False)
    for tx, dtype, wanted in (
        (narrow, jnp.bfloat16, -256.0),
        (plain, jnp.float32, -264.0),
        (fo.float32_state(plain), jnp.float32, -264.0),
    ):
        assert tx.init(p).grad_sum.dtype == dtype
        seen, state = run(tx, p, grads)
        assert seen[-1].dtype == seen[0].dtype == jnp.bfloat16
        assert float(seen[-1]) == wanted
        assert state.grad_sum.dtype == dtype


def test_leaves_without_a_gradient() -> None:
    params = {"a": jnp.ones(2), "b": jnp.ones(2), "c": jnp.arange(2), "d": None}
    tx = accumulate(fo.adam(0.1, weight_decay=0.1), 2)
    state = tx.init(params)
    assert state.grad_sum["c"] is None and state.grad_sum["d"] is None
    full = {"a": jnp.ones(2), "b": jnp.full(2, 4.0), "c": FLOAT0, "d": None}
    _, state = tx.update(full, state, params)
    for _ in range(3):  # the second call updates, without b
        updates, state = tx.update({**full, "b": None}, state, params)
    assert updates["b"] is updates["c"] is updates["d"] is None
    assert np.all(updates["a"] != 0)
    np.testing.assert_array_equal(state.grad_sum["b"], [4.0, 4.0])
    np.testing.assert_array_equal(state.inner_state.exp_avg["b"], [0.0, 0.0])
    _, state = tx.update(full, state, params)
    updates, state = tx.update(full, state, params)
    np.testing.assert_allclose(state.inner_state.exp_avg["b"], 0.1 * (12 / 2 + 0.1), rtol=1e-6)


def test_an_infinite_sum_is_not_kept() -> None:
    """A sum times 0 would be NaN for ever."""
    tx = accumulate(fo.sgd(1.0), 1)
    _, state = tx.update(jnp.asarray([jnp.inf, jnp.nan]), tx.init(jnp.ones(2)))
    np.testing.assert_array_equal(state.grad_sum, [0, 0])


def test_scans_batches_differentiates_and_compiles_once() -> None:
    params, grads = problem(steps=4)
    tx = accumulate(fo.adam(0.1), 2)
    traces = []

    def body(carry: Any, g: Any) -> Any:
        traces.append(1)
        params, state = carry
        updates, state = tx.update(g, state, params)
        return (fo.apply_updates(params, updates), state), updates

    start = (params, tx.init(params))
    (last, state), scanned = jax.lax.scan(body, start, grads)
    assert types(state) == types(tx.init(params))
    seen, _ = run(tx, params, grads)
    assert_trees_close(at(scanned, 3), seen[3], 1e-5)

    traces.clear()
    step, carry = jax.jit(body, donate_argnums=0), (jax.tree.map(jnp.copy, params), start[1])
    for i in range(4):
        carry, _ = step(carry, at(grads, i))
    assert len(traces) == 1
    assert_trees_close(carry[0], last, 1e-5)

    # Members of a batch that are at different calls.
    init = jax.tree.map(lambda x: jnp.stack([x, x]), tx.init(params))
    init = init._replace(mini_step=jnp.asarray([0, 1], jnp.int32))
    updates, _ = jax.vmap(lambda s: tx.update(at(grads, 0), s, params))(init)
    assert not np.any(updates["kernel"][0]) and np.all(updates["kernel"][1] != 0)

    def loss(lr: Any) -> Any:
        tx = accumulate(fo.adam(lr), 2)
        params, state = start[0], tx.init(start[0])
        for i in range(2):
            updates, state = tx.update(at(grads, i), state, params)
            params = fo.apply_updates(params, updates)
        return jnp.sum(params["kernel"])

    slope = jax.grad(loss)(jnp.float32(0.1))
    np.testing.assert_allclose(slope, np.sum(np.asarray(seen[1]["kernel"])) / 0.1, rtol=1e-4)


def test_outside_of_jit_the_inner_update_is_traced_once() -> None:
    traces = []

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        traces.append(1)
        return updates, state

    tx = accumulate(fo.GradientTransformation(lambda params: (), update), 2)
    state = tx.init(jnp.ones(3))
    _, state = tx.update(jnp.ones(3), state, value=jnp.ones(()))
    count = len(traces)
    for _ in range(3):
        _, state = tx.update(jnp.ones(3), state, value=jnp.ones(()))
    assert len(traces) == count
    _, state = tx.update(jnp.ones(3), state, value="no array")
    assert len(traces) > count


def test_sparse_gradients_are_summed_dense() -> None:
    sparse = pytest.importorskip("jax.experimental.sparse")
    tx = accumulate(fo.sgd(1.0), 2)
    state = tx.init(jnp.ones(3))
    for row in (0, 2):
        g = sparse.BCOO((jnp.ones(1), jnp.asarray([[row]])), shape=(3,))
        updates, state = tx.update(g, state)
    np.testing.assert_array_equal(updates, [-0.5, 0, -0.5])


def test_exports() -> None:
    params = jnp.ones(3)
    tx = accumulate(fo.adam(0.1), 2)
    exported = jax.export.export(jax.jit(tx.update), platforms=("cpu", "cuda", "tpu"))(
        params, tx.init(params), params
    )
    updates, _ = exported.call(params, tx.init(params), params)
    assert not np.any(updates)


def test_empty_trees_and_equal_pairs() -> None:
    tx = accumulate(fo.adam(0.1), 2)
    assert tx is accumulate(fo.adam(0.1), every_k=2)
    updates, state = tx.update({}, tx.init({}), {})
    assert updates == {} and isinstance(state, AccumulateState)


def test_what_is_refused() -> None:
    for k in (0, -1, 1.5, True - 1, "2"):
        with pytest.raises(ValueError, match="Expected positive integer every_k"):
            accumulate(fo.sgd(), k)
    with pytest.raises(TypeError, match="the transform of accumulate should be an"):
        accumulate(fo.sgd, 2)
    tx = accumulate(fo.sgd(), 2)
    state = tx.init({"a": jnp.ones(2)})
    with pytest.raises(TypeError, match=r"grads and state differ in structure"):
        tx.update({"b": jnp.ones(2)}, state)
    with pytest.raises(ValueError, match=r"grads and state differ in shape at \['a'\]"):
        tx.update({"a": jnp.ones(3)}, state)
    with pytest.raises(TypeError, match="complex64 cannot be added to a sum of float32"):
        tx.update({"a": jnp.ones(2, jnp.complex64)}, state)
