"""Sums, means and norms of half-precision leaves: float32, and rounded once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim as fo

HALF = pytest.mark.parametrize("dtype", ["float16", "bfloat16"])


def wide(x: Any) -> np.ndarray:
    return np.asarray(x, np.float64)


@HALF
def test_many_micro_batches_sum_to_what_they_are(dtype: str) -> None:
    p = jnp.zeros(3, dtype)
    tx = fo.accumulate(fo.sgd(1.0), 512)
    g = jnp.asarray([1.0, 1.0078125, 0.3], dtype)

    def body(state: Any, _: Any) -> Any:
        updates, state = tx.update(g, state, p)
        return state, updates

    state, updates = jax.lax.scan(body, tx.init(p), None, length=512)
    assert state.grad_sum.dtype == np.float32
    assert updates.dtype == dtype
    np.testing.assert_array_equal(wide(updates[-1]), -wide(g))


@pytest.mark.parametrize("with_params", [True, False])
def test_a_sum_beyond_the_range_of_float16_reaches_the_inner_pair(with_params: bool) -> None:
    """Three gradients of 32,000; their sum has no float16, a hundredth of it has."""
    g = jnp.full(2, 32_000.0, jnp.float16)
    params = jnp.ones(2, jnp.float16) if with_params else None
    tx = fo.accumulate(fo.scale(-0.01), 3, average=False)
    state = tx.init(g)
    for _ in range(3):
        updates, state = jax.jit(tx.update)(g, state, params)
    assert updates.dtype == np.float16
    np.testing.assert_allclose(wide(updates), -960.0)


@HALF
@pytest.mark.parametrize("build", [fo.ema, fo.trace], ids=["ema", "trace"])
def test_a_running_sum_follows_what_its_leaves_cannot_hold(
    build: Callable[..., Any], dtype: str
) -> None:
    """It agrees with float32 all along, up to the rounding of each update."""
    grads = jnp.asarray(1 + np.random.RandomState(0).uniform(-0.1, 0.1, (300, 4)), dtype)
    narrow, exact = build(0.99), build(0.99)
    assert narrow is exact
    states = narrow.init(grads[0]), exact.init(grads[0].astype(jnp.float32))
    update = jax.jit(narrow.update)
    for g in grads:
        u, first = update(g, states[0])
        v, second = update(g.astype(jnp.float32), states[1])
        states = first, second
    assert u.dtype == dtype
    assert jax.tree.leaves(first)[1].dtype == np.float32
    np.testing.assert_array_equal(jax.tree.leaves(first)[1], jax.tree.leaves(second)[1])
    np.testing.assert_array_equal(u, v.astype(dtype))


@pytest.mark.parametrize(
    "build",
    [
        lambda **kwargs: fo.accumulate(fo.scale(1.0), 2, **kwargs),
        fo.ema,
        fo.trace,
        fo.swa_average,
        lambda **kwargs: fo.ema_average(0.9, **kwargs),
        lambda **kwargs: fo.ema_average(0.9, debias=True, **kwargs),
        lambda **kwargs: fo.average(lambda a, p, n: a, **kwargs),
    ],
    ids=["accumulate", "ema", "trace", "swa", "ema_average", "debiased", "average"],
)
def test_state_dtype_is_the_dtype_of_the_sum(build: Callable[..., Any], x64: None) -> None:
    kinds = ("bfloat16", "float16", "float32", "float64", "complex64", "complex128")
    params = {kind: jnp.ones(2, kind) for kind in kinds}
    wanted = {
        None: ["float32"] * 3 + ["float64", "complex64", "complex128"],
        jnp.bfloat16: ["bfloat16"] * 4 + ["complex64"] * 2,
        "float64": ["float64"] * 4 + ["complex128"] * 2,
    }
    for state_dtype, names in wanted.items():
        tx = build() if state_dtype is None else build(state_dtype=state_dtype)
        state = tx.init(params)
        buffers = [x for x in state if isinstance(x, dict)]
        assert [buffers[0][kind].dtype.name for kind in kinds] == names
        result, after = tx.update(params, state)
        assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, state)
        assert {kind: x.dtype.name for kind, x in result.items()} == {k: k for k in kinds}
    for bad in (jnp.int32, "complex64", "no dtype", 32):
        with pytest.raises(TypeError, match="state_dtype should be a real floating dtype"):
            build(state_dtype=bad)


@pytest.mark.parametrize("value", [1e-30, 1e-20, 1e-3, 1.0, 3e4, 1e20, 1e30])
@HALF
def test_norms_neither_overflow_nor_underflow(dtype: str, value: float) -> None:
    if dtype == "float16" and not 1e-4 < value < 6e4:
        value = {True: 6e-8, False: 6e4}[value < 1]  # the ends of its range
    x = jnp.asarray(np.full((4, 16), value), dtype)
    exact = 8 * float(wide(x)[0, 0])
    for norm in (fo.global_norm, jax.jit(fo.global_norm)):
        np.testing.assert_allclose(norm([x]), exact, rtol=1e-6)
    np.testing.assert_allclose(fo.global_norm([x, 0 * x]), exact, rtol=1e-6)
    if value >= 1e-3:
        for tx in (fo.clip_by_global_norm(1.0), fo.clip_by_leaf_norm(1.0)):
            updates, _ = tx.update([x], tx.init([x]))
            np.testing.assert_allclose(wide(updates[0]), min(value, 0.125), rtol=1e-2)
    ones = jnp.full((4, 16), 0.125, dtype)
    updates, _ = fo.trust_ratio().update(x, fo.EmptyState(), ones)
    np.testing.assert_allclose(wide(updates), 0.125, rtol=1e-2)
    clip = fo.adaptive_grad_clip(1.0, eps=0.0)
    updates, _ = clip.update(x, fo.EmptyState(), ones)
    np.testing.assert_allclose(wide(updates), min(float(wide(x)[0, 0]), 0.125), rtol=1e-2)


def test_a_norm_of_numbers_of_all_sizes() -> None:
    """Each size alone, and what is small beside what is large."""
    random = np.random.RandomState(1)
    for exponents in (
        (-120, -60),
        (-60, -50),
        (-57, -55),
        (-5, 5),
        (50, 60),
        (55, 120),
        (-120, 120),
    ):
        x = jnp.asarray(random.standard_normal(200) * 2.0 ** random.uniform(*exponents, 200))
        x = x.astype(jnp.bfloat16)
        exact = np.linalg.norm(wide(x))
        for norm in (fo.global_norm, jax.jit(fo.global_norm)):
            np.testing.assert_allclose(norm([x[:150], x[150:]]), exact, rtol=3e-6)
    for bad in (np.inf, np.nan):
        assert not np.isfinite(fo.global_norm([jnp.asarray([1.0, bad], jnp.bfloat16)]))
    slope = jax.grad(lambda x: fo.global_norm([x]))(jnp.asarray([3.0, 4.0], jnp.bfloat16))
    np.testing.assert_allclose(wide(slope), [0.6, 0.8], rtol=1e-2)
    np.testing.assert_array_equal(
        wide(jax.grad(lambda x: fo.global_norm([x]))(jnp.zeros(2, jnp.bfloat16))), [0, 0]
    )


@HALF
@pytest.mark.parametrize("debias", [False, True])
def test_an_average_with_a_decay_near_1_moves(dtype: str, debias: bool) -> None:
    """Rounded at each update it would stand still: 0.001 of a parameter is below its precision."""
    tx = fo.ema_average(0.999, debias=debias)
    state = tx.init(jnp.zeros(2, dtype))
    update = jax.jit(tx.update)
    _, state = update(jnp.zeros(2, dtype), state)
    for _ in range(300):
        average, state = update(jnp.ones(2, dtype), state)
    exact = (1 - 0.999**300) / (1 - 0.999**301 if debias else 1)
    assert average.dtype == dtype
    np.testing.assert_allclose(wide(average), exact, rtol=5e-3)


@HALF
def test_a_mean_of_many_parameters_is_their_mean(dtype: str) -> None:
    tx = fo.swa_average()
    steps = jnp.asarray(np.random.RandomState(2).uniform(0.5, 1.5, (400, 3)), dtype)
    average, state = jax.lax.scan(
        lambda state, p: tx.update(p, state)[::-1], tx.init(steps[0]), steps
    )[::-1]
    np.testing.assert_array_equal(
        wide(average[-1]), wide(jnp.mean(steps.astype(jnp.float32), 0).astype(dtype))
    )
    assert state.average.dtype == np.float32


@HALF
def test_a_mean_over_a_unit_is_not_a_mean_in_half_precision(dtype: str) -> None:
    u = jnp.asarray(300 + np.random.RandomState(3).uniform(-1, 1, (4096, 2)), dtype)
    updates, _ = fo.centralize().update(u, fo.EmptyState())
    np.testing.assert_allclose(wide(updates), wide(u) - wide(u).mean(0, keepdims=True), atol=2e-2)
