"""Algorithms that torch lacks: the formulas of their papers in numpy, and optax where it agrees.

A row's formula is a loop over one real array in float64, with the learning rate of every step. A
complex parameter enters it as pairs of reals.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim as fo
from functorch_optim.algorithms.adopt import adopt
from functorch_optim.algorithms.lamb import lamb
from functorch_optim.algorithms.lars import lars
from tests.support.parity import LR_CHANGE, STEPS, as_reals, assert_close, inputs
from tests.tables.algorithm import Algorithm, Kwargs, case_id
from tests.tables.algorithms import TABLE

over_cases = pytest.mark.parametrize(
    ("row", "case"),
    [
        pytest.param(row, case, id=f"{row.name}-{case_id(case)}")
        for row in TABLE
        if row.formula is not None
        for case in row.cases
    ],
)


def scanned(tx: Any, params: Any, grads: Any) -> tuple[Any, Any]:
    """Parameters and state after all steps, in one compiled scan."""

    @jax.jit
    def run(params: Any, grads: Any) -> Any:
        def step(carry: Any, g: Any) -> tuple[Any, None]:
            params, state = carry
            updates, state = tx.update(g, state, params)
            return (fo.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), grads)[0]

    return run(params, grads)


def check(row: Algorithm, case: Kwargs, dtype: str, rtol: float) -> None:
    """A run with a schedule that changes lr in the middle, against the formula."""
    params, grads = inputs(row, dtype)
    steps = STEPS[dtype]
    numbers = {name: value for name, value in case.items() if name not in ("lr", "maximize")}
    first = case.get("lr", row.factory.defaults["lr"])
    lrs = np.where(np.arange(steps) < steps // 2, first, first * LR_CHANGE)

    def lr(count: Any) -> jax.Array:
        return jnp.where(count < steps // 2, first, first * LR_CHANGE)

    new, state = scanned(row.factory(**{**case, "lr": lr}), params, grads)
    assert float(state.step) == steps
    for name, p in params.items():
        gs = np.stack([as_reals(g) for g in grads[name]]).astype(np.float64)
        gs = -gs if case.get("maximize") else gs
        wanted = row.formula(as_reals(p).astype(np.float64), gs, lrs, **numbers)
        actual = {field: getattr(state, field) for field in row.state[1:]}
        actual = {"params": new} | {field: x for field, x in actual.items() if x is not None}
        assert list(actual) == list(wanted)
        for field, x in wanted.items():
            assert_close(np.asarray(actual[field][name]), x, rtol, f"{field} {name}")


@over_cases
def test_float64_agrees_with_the_formula(row: Algorithm, case: Kwargs, x64: None) -> None:
    check(row, case, "float64", row.rtol64)


@over_cases
def test_float32_agrees_with_the_formula(row: Algorithm, case: Kwargs) -> None:
    check(row, case, "float32", row.rtol32)


@pytest.mark.parametrize(
    ("row", "case", "build"),
    [
        pytest.param(row, case, build, id=f"{row.name}-{case_id(case)}")
        for row in TABLE
        for case, build in row.optax
    ],
)
def test_optax_agrees(row: Algorithm, case: Kwargs, build: Callable[[], Any], x64: None) -> None:
    """Real parameters alone: optax takes the sign and the square of a complex number otherwise."""
    random = np.random.RandomState(4)
    params = {name: random.standard_normal(shape) for name, shape in (("w", (2, 3)), ("b", (3,)))}
    grads = {name: random.standard_normal((20, *p.shape)) for name, p in params.items()}
    actual, _ = scanned(row.factory(**case), params, grads)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        wanted, _ = scanned(build(), params, grads)
    for name, p in wanted.items():
        assert_close(np.asarray(actual[name]), np.asarray(p), 1e-12, name)


@pytest.mark.parametrize("factory", [lamb, lars])
@pytest.mark.parametrize("zero", ["params", "grads", "both"])
def test_the_trust_ratio_is_one_where_a_norm_is_0(factory: Any, zero: str) -> None:
    """A parameter that starts at 0 is trained, by the plain step; derivatives are finite."""
    g = jnp.asarray([0.0, 0.0] if zero != "params" else [3.0, -4.0])
    p = jnp.asarray([0.0, 0.0] if zero != "grads" else [1.0, 2.0])
    tx = factory(lr=0.5, eps=1e-8)

    def updated(g: jax.Array, p: jax.Array) -> jax.Array:
        return tx.update(g, tx.init(p), p)[0]

    # lamb's first direction is the sign of the gradient
    direction = jnp.sign(g) if factory is lamb else g
    np.testing.assert_allclose(updated(g, p), -0.5 * direction, rtol=1e-6)
    slopes = jax.grad(lambda *x: jnp.sum(updated(*x)), argnums=(0, 1))(g, p)
    assert all(bool(jnp.all(jnp.isfinite(slope))) for slope in slopes)


def test_adopt_does_not_move_at_its_first_update() -> None:
    """Whatever the gradient is: without clipping it may be infinite by an eps that small."""
    p = jnp.asarray([1.0, -2.0, 3.0])
    g = jnp.asarray([1e30, 0.0, -1.0])
    options = {"weight_decay": 0.1, "decoupled_weight_decay": True, "eps": 1e-12}
    for exponent in (0.25, None):
        tx = adopt(lr=0.1, clip_exponent=exponent, **options)
        updates, state = tx.update(g, tx.init(p), p)
        np.testing.assert_array_equal(updates, jnp.zeros(3))
        np.testing.assert_array_equal(state.exp_avg, jnp.zeros(3))
