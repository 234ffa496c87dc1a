"""Algorithms that torch lacks: the formulas of their papers in numpy, and optax where it agrees.

Each formula is a loop over one real array in float64, with the learning rate of every step. A
complex parameter enters it as pairs of reals.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import functorch_optim as fo
from functorch_optim.algorithms.lamb import lamb
from functorch_optim.algorithms.lars import lars
from tests.support.parity import LR_CHANGE, STEPS, as_reals, assert_close, inputs
from tests.tables.algorithms import Algorithm, Kwargs, case_id, every_subset
from tests.tables.algorithms_beyond_torch import ADABELIEF, ADAN, ADOPT, LAMB, LARS, LION

Result = dict[str, np.ndarray]
Reference = Callable[..., Result]


def lion_formula(
    p: np.ndarray, gs: np.ndarray, lrs: Any, betas: Any = (0.9, 0.99), weight_decay: float = 0.0
) -> Result:
    m = np.zeros_like(p)
    for g, lr in zip(gs, lrs, strict=True):
        direction = np.sign(betas[0] * m + (1 - betas[0]) * g)
        p = p - lr * (direction + weight_decay * p)
        m = betas[1] * m + (1 - betas[1]) * g
    return {"params": p, "exp_avg": m}


def adan_formula(
    p: np.ndarray,
    gs: np.ndarray,
    lrs: Any,
    betas: Any = (0.98, 0.92, 0.99),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    no_prox: bool = False,
) -> Result:
    b1, b2, b3 = betas
    m, v, n = np.zeros((3, *p.shape))
    last = gs[0]
    for t, (g, lr) in enumerate(zip(gs, lrs, strict=True), 1):
        change, last = g - last, g
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * change
        n = b3 * n + (1 - b3) * (g + b2 * change) ** 2
        step_size = lr / (np.sqrt(n / (1 - b3**t)) + eps)
        moved = step_size * (m / (1 - b1**t) + b2 * v / (1 - b2**t))
        if no_prox:
            p = p * (1 - lr * weight_decay) - moved
        else:
            p = (p - moved) / (1 + lr * weight_decay)
    return {"params": p, "exp_avg": m, "exp_avg_sq": n, "exp_avg_diff": v, "previous_grad": last}


def lamb_formula(
    p: np.ndarray,
    gs: np.ndarray,
    lrs: Any,
    betas: Any = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
) -> Result:
    m, v = np.zeros((2, *p.shape))
    for t, (g, lr) in enumerate(zip(gs, lrs, strict=True), 1):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        r = m / (1 - betas[0] ** t) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
        u = r + weight_decay * p
        weight_norm, step_norm = np.sqrt(np.sum(p**2)), np.sqrt(np.sum(u**2))
        ratio = weight_norm / step_norm if weight_norm > 0 and step_norm > 0 else 1.0
        p = p - lr * ratio * u
    return {"params": p, "exp_avg": m, "exp_avg_sq": v}


def lars_formula(
    p: np.ndarray,
    gs: np.ndarray,
    lrs: Any,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    trust_coefficient: float = 0.001,
    eps: float = 0.0,
) -> Result:
    buf = np.zeros_like(p)
    for g, lr in zip(gs, lrs, strict=True):
        weight_norm, grad_norm = np.sqrt(np.sum(p**2)), np.sqrt(np.sum(g**2))
        norm = grad_norm + weight_decay * weight_norm
        local = 1.0
        if weight_norm > 0 and norm > 0:
            local = trust_coefficient * weight_norm / (norm + eps)
        step = lr * local * (g + weight_decay * p)
        buf = momentum * buf + step
        p = p - (step + momentum * buf if nesterov else buf)
    return {"params": p} | ({"momentum_buffer": buf} if momentum else {})


def adabelief_formula(
    p: np.ndarray,
    gs: np.ndarray,
    lrs: Any,
    betas: Any = (0.9, 0.999),
    eps: float = 1e-16,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    decoupled_weight_decay: bool = False,
) -> Result:
    m, s, largest = np.zeros((3, *p.shape))
    for t, (g, lr) in enumerate(zip(gs, lrs, strict=True), 1):
        if decoupled_weight_decay:
            p = p - lr * weight_decay * p
        else:
            g = g + weight_decay * p
        m = betas[0] * m + (1 - betas[0]) * g
        s = betas[1] * s + (1 - betas[1]) * (g - m) ** 2 + eps
        largest = np.maximum(largest, s)
        root = np.sqrt((largest if amsgrad else s) / (1 - betas[1] ** t))
        p = p - lr * m / (1 - betas[0] ** t) / (root + eps)
    result = {"params": p, "exp_avg": m, "exp_avg_var": s}
    return result | ({"max_exp_avg_var": largest} if amsgrad else {})


def adopt_formula(
    p: np.ndarray,
    gs: np.ndarray,
    lrs: Any,
    betas: Any = (0.9, 0.9999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    clip_exponent: float | None = 0.25,
    decoupled_weight_decay: bool = False,
) -> Result:
    coupled = 0.0 if decoupled_weight_decay else weight_decay
    m, v = np.zeros_like(p), (gs[0] + coupled * p) ** 2
    for t, (g, lr) in enumerate(zip(gs[1:], lrs[1:], strict=True), 1):
        g = g + coupled * p
        if decoupled_weight_decay:
            p = p - lr * weight_decay * p
        normed = g / np.maximum(np.sqrt(v), eps)
        if clip_exponent is not None:
            normed = np.clip(normed, -(t**clip_exponent), t**clip_exponent)
        m = betas[0] * m + (1 - betas[0]) * normed
        p = p - lr * m
        v = betas[1] * v + (1 - betas[1]) * g**2
    return {"params": p, "exp_avg": m, "exp_avg_sq": v}


CASES: tuple[tuple[Algorithm, Reference, tuple[Kwargs, ...]], ...] = (
    (
        LION,
        lion_formula,
        (
            {},
            *every_subset({"lr": 0.02, "betas": (0.7, 0.95)}, weight_decay=0.3, maximize=True),
            {"lr": 0.02, "betas": (0.0, 0.5)},
        ),
    ),
    (
        ADAN,
        adan_formula,
        (
            {},
            *every_subset({"lr": 0.02}, weight_decay=2.0, no_prox=True, maximize=True),
            {"lr": 0.02, "betas": (0.3, 0.6, 0.5), "eps": 0.1, "weight_decay": 0.3},
            {"betas": (0.0, 0.0, 0.0), "eps": 0.1},
        ),
    ),
    (
        LAMB,
        lamb_formula,
        (
            {},
            *every_subset({"lr": 0.02}, weight_decay=0.3, maximize=True),
            {"lr": 0.02, "betas": (0.3, 0.5), "eps": 0.1, "weight_decay": 1.0},
        ),
    ),
    (
        LARS,
        lars_formula,
        (
            {},
            *every_subset({"lr": 1.0}, weight_decay=0.3, maximize=True, nesterov=True),
            {"lr": 1.0, "trust_coefficient": 0.02, "eps": 0.5, "momentum": 0.5},
            {"lr": 1.0, "trust_coefficient": 0.02, "weight_decay": 0.3, "momentum": 0.0},
        ),
    ),
    (
        ADABELIEF,
        adabelief_formula,
        (
            {},
            *every_subset(
                {"lr": 0.02, "eps": 1e-8},
                weight_decay=0.3,
                amsgrad=True,
                decoupled_weight_decay=True,
            ),
            {"lr": 0.02, "betas": (0.3, 0.5), "eps": 0.1, "amsgrad": True, "maximize": True},
        ),
    ),
    (
        ADOPT,
        adopt_formula,
        (
            {},
            *every_subset(
                {"lr": 0.02},
                weight_decay=0.3,
                decoupled_weight_decay=True,
                clip_exponent=None,
            ),
            {
                "lr": 0.02,
                "betas": (0.3, 0.5),
                "eps": 0.1,
                "clip_exponent": 0.1,
                "maximize": True,
                "weight_decay": 0.1,
            },
        ),
    ),
)

over_cases = pytest.mark.parametrize(
    ("row", "formula", "case"),
    [
        pytest.param(row, formula, case, id=f"{row.name}-{case_id(case)}")
        for row, formula, cases in CASES
        for case in cases
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


def check(row: Algorithm, formula: Reference, case: Kwargs, dtype: str, rtol: float) -> None:
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
        wanted = formula(as_reals(p).astype(np.float64), gs, lrs, **numbers)
        actual = {field: getattr(state, field) for field in row.state[1:]}
        actual = {"params": new} | {field: x for field, x in actual.items() if x is not None}
        assert list(actual) == list(wanted)
        for field, x in wanted.items():
            assert_close(np.asarray(actual[field][name]), x, rtol, f"{field} {name}")


@over_cases
def test_float64_agrees_with_the_formula(
    row: Algorithm, formula: Reference, case: Kwargs, x64: None
) -> None:
    check(row, formula, case, "float64", 1e-12)


@over_cases
def test_float32_agrees_with_the_formula(row: Algorithm, formula: Reference, case: Kwargs) -> None:
    check(row, formula, case, "float32", 5e-6)


OPTAX: tuple[tuple[str, Algorithm, Kwargs, Callable[[], Any]], ...] = (
    (
        "lion",
        LION,
        {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.3},
        lambda: optax.lion(0.02, 0.8, 0.95, weight_decay=0.3),
    ),
    (
        # At beta2 = 0.5 alone: optax looks ahead by 1 - beta2 and not by beta2. Its decay has no
        # proximal form.
        "adan",
        ADAN,
        {"lr": 0.02, "betas": (0.9, 0.5, 0.95), "weight_decay": 0.3, "no_prox": True},
        lambda: optax.adan(0.02, 0.9, 0.5, 0.95, eps_root=0.0, weight_decay=0.3),
    ),
    (
        "lamb",
        LAMB,
        {"lr": 0.02, "weight_decay": 0.3},
        lambda: optax.lamb(0.02, weight_decay=0.3),
    ),
    (
        # Without weight decay: optax divides by the norm of the sum of gradient and decay.
        "lars",
        LARS,
        {"lr": 1.0, "trust_coefficient": 0.02, "eps": 0.1},
        lambda: optax.lars(1.0, trust_coefficient=0.02, eps=0.1),
    ),
    (
        "lars-nesterov",
        LARS,
        {"lr": 1.0, "trust_coefficient": 0.02, "nesterov": True, "momentum": 0.5},
        lambda: optax.lars(1.0, trust_coefficient=0.02, nesterov=True, momentum=0.5),
    ),
    (
        "adabelief",
        ADABELIEF,
        {"lr": 0.02, "eps": 1e-8},
        lambda: optax.adabelief(0.02, eps=1e-8, eps_root=1e-8),
    ),
    (
        "adopt",
        ADOPT,
        {"lr": 0.02, "betas": (0.9, 0.99)},
        lambda: optax.contrib.adopt(0.02, b2=0.99),
    ),
    (
        "adopt-unclipped",
        ADOPT,
        {"lr": 0.02, "clip_exponent": None},
        lambda: optax.contrib.adopt(0.02, use_clipping=False),
    ),
)


@pytest.mark.parametrize(("row", "case", "build"), [pytest.param(*x, id=i) for i, *x in OPTAX])
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


@pytest.mark.parametrize("row", [LAMB, LARS], ids=lambda row: row.name)
def test_params_are_needed_without_weight_decay_too(row: Algorithm) -> None:
    tx = row.factory(lr=0.1)
    p = jnp.ones(3)
    with pytest.raises(ValueError, match=r"`params` of update is missing.* parameters\. Call"):
        tx.update(p, tx.init(p))


def test_adopt_does_not_move_at_its_first_update() -> None:
    """Whatever the gradient is: without clipping it may be infinite by an eps that small."""
    p = jnp.asarray([1.0, -2.0, 3.0])
    g = jnp.asarray([1e30, 0.0, -1.0])
    options = {"weight_decay": 0.1, "decoupled_weight_decay": True, "eps": 1e-12}
    for exponent in (0.25, None):
        tx = ADOPT.factory(lr=0.1, clip_exponent=exponent, **options)
        updates, state = tx.update(g, tx.init(p), p)
        np.testing.assert_array_equal(updates, jnp.zeros(3))
        np.testing.assert_array_equal(state.exp_avg, jnp.zeros(3))
