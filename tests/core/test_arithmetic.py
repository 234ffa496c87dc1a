"""Arithmetic on numbers: double on the host, accurate in float32 when traced."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

import functorch_optim as fo
from functorch_optim.core import arithmetic

STEPS = np.unique(np.logspace(0, 5, 200).astype(np.int64))
BETAS = [0.0, 0.3, 0.5, 0.9, 0.95, 0.99, 0.999, 0.9999]


def exact_one_minus_power(beta: float, t: Any) -> np.ndarray:
    """`1 - beta**t` in double, without the cancellation of the subtraction."""
    return -np.expm1(np.asarray(t, np.float64) * np.log(beta)) if beta else np.ones(np.shape(t))


def test_with_numbers_alone_the_result_is_the_number_that_torch_computes() -> None:
    for beta, t in ((0.9, 1), (0.999, 7.0), (0.0, 1), (0.9999, 100_000)):
        result = arithmetic.one_minus_power(beta, t)
        assert isinstance(result, float)
        assert result == 1 - beta**t
    assert arithmetic.sqrt(2.0) == math.sqrt(2.0)
    assert arithmetic.minimum(3, 2.5) == 2.5
    assert isinstance(arithmetic.minimum(3, 2), int)
    assert arithmetic.maximum(3, 2.5) == 3
    assert arithmetic.remainder(7, 4) == 3
    assert arithmetic.subtract(7, 4) == 3
    assert arithmetic.at_least(4, 4) is True
    assert arithmetic.where(True, 1, 2) == 1
    assert arithmetic.cos(math.pi) == -1.0


@pytest.mark.parametrize("beta", BETAS)
def test_bias_corrections_are_accurate_in_float32(beta: float) -> None:
    """At every step up to 100,000, where `1 - beta**t` in float32 is off by up to 2e-4."""
    exact = exact_one_minus_power(beta, STEPS)
    traced = jax.jit(lambda t: arithmetic.one_minus_power(beta, t))(STEPS.astype(np.float32))
    assert traced.dtype == np.float32
    np.testing.assert_allclose(traced, exact, rtol=3e-7)


@pytest.mark.parametrize("beta", BETAS)
def test_bias_corrections_are_accurate_for_an_array_beta(beta: float) -> None:
    """As accurate as the beta that was given: one rounded to float32 is another number."""
    rounded = np.float32(beta)
    exact = exact_one_minus_power(float(rounded), STEPS)
    traced = jax.jit(arithmetic.one_minus_power)(jnp.asarray(rounded), STEPS.astype(np.float32))
    np.testing.assert_allclose(traced, exact, rtol=5e-7)


@pytest.mark.parametrize("beta", BETAS)
def test_bias_corrections_are_exact_in_float64(beta: float, x64: None) -> None:
    exact = exact_one_minus_power(beta, STEPS)
    t = STEPS.astype(np.float64)
    np.testing.assert_allclose(arithmetic.one_minus_power(beta, jnp.asarray(t)), exact, rtol=1e-14)
    traced = jax.jit(arithmetic.one_minus_power)(jnp.asarray(beta), t)
    np.testing.assert_allclose(traced, exact, rtol=1e-14)


@pytest.mark.parametrize("step", [1, 2, 1_000, 100_000])
def test_adams_update_is_accurate_in_float32_at_any_step(step: int) -> None:
    """With beta 0.9999, to 1e-6 of the update computed in double."""
    beta1, beta2, lr, eps = 0.9, 0.9999, 1e-3, 1e-8
    tx = fo.adam(lr, betas=(beta1, beta2), eps=eps)
    m, v, g = (np.float32(x) for x in (0.3, 0.2, -0.7))
    state = fo.AdamState(jnp.float32(step - 1), jnp.asarray(m), jnp.asarray(v), None)
    for update in (tx.update, jax.jit(tx.update)):
        actual, new = update(jnp.asarray(g), state)
        m1 = beta1 * float(m) + (1 - beta1) * float(g)
        v1 = beta2 * float(v) + (1 - beta2) * float(g) ** 2
        corrected = m1 / exact_one_minus_power(beta1, step)
        root = math.sqrt(v1 / exact_one_minus_power(beta2, step))
        np.testing.assert_allclose(actual, -lr * corrected / (root + eps), rtol=1e-6)
        assert new.step == step


def test_the_slope_of_the_bias_correction_is_right_and_finite_at_the_ends(x64: None) -> None:
    def correction(beta: Any) -> Any:
        return arithmetic.one_minus_power(beta, jnp.arange(1.0, 5.0))

    for beta in (0.3, 0.9, 0.999):
        jax.test_util.check_grads(correction, (jnp.asarray(beta),), 1, rtol=1e-6)
    slopes = jax.jacobian(correction)(jnp.asarray(0.0))
    np.testing.assert_array_equal(slopes, [-1.0, 0.0, 0.0, 0.0])
    slope = jax.grad(arithmetic.one_minus_power, argnums=1)
    assert slope(jnp.asarray(0.0), jnp.asarray(3.0)) == 0
    np.testing.assert_allclose(slope(jnp.asarray(0.5), jnp.asarray(3.0)), 0.125 * math.log(2))


def test_the_slope_of_the_root_is_zero_at_zero() -> None:
    x = jnp.asarray([0.0, 4.0, 1e-30])
    np.testing.assert_array_equal(arithmetic.sqrt(x), jnp.sqrt(x))
    slopes = jax.vmap(jax.grad(arithmetic.sqrt))(x)
    np.testing.assert_allclose(slopes, [0.0, 0.25, 0.5 / np.sqrt(np.float32(1e-30))], rtol=1e-6)
    _, tangent = jax.jvp(arithmetic.sqrt, (x,), (jnp.ones(3),))
    np.testing.assert_array_equal(tangent, slopes)


def test_whole_numbers_stay_whole_as_long_as_possible() -> None:
    """float32 does not know 2**24 + 1."""
    big = 2**24 + 1
    count = jnp.asarray(big)
    for result in (
        arithmetic.minimum(count, 2**25),
        arithmetic.maximum(count, 0),
        arithmetic.remainder(count, 2**25),
        arithmetic.subtract(count, 0),
    ):
        assert jnp.issubdtype(result.dtype, jnp.integer)
        assert int(result) == big
    assert not arithmetic.at_least(count, big + 1)
    assert arithmetic.at_least(count, big)


def test_a_mix_of_kinds_becomes_the_widest_float(x64: None) -> None:
    for x, y in ((jnp.int32(3), 2.5), (jnp.float32(3), 2), (3, jnp.float64(2.5))):
        result = arithmetic.minimum(x, y)
        assert result.dtype == np.float64
        assert result == min(float(x), float(y))


def test_where_takes_numbers_and_arrays_under_strict_promotion() -> None:
    assert arithmetic.where(np.bool_(False), 1, 2.5) == 2.5
    chosen = jax.jit(lambda c: arithmetic.where(c, 1, jnp.float32(2)))(True)
    assert (chosen.dtype, float(chosen)) == (np.float32, 1.0)
    assert not chosen.weak_type


@pytest.mark.parametrize("x", [1, 2.0, True, np.float32(1), np.int64(3)])
def test_what_counts_as_a_number(x: Any) -> None:
    assert arithmetic.is_number(x)


@pytest.mark.parametrize("x", [jnp.asarray(1.0), np.ones(()), "1", None, abs])
def test_what_does_not_count_as_a_number(x: Any) -> None:
    assert not arithmetic.is_number(x)
