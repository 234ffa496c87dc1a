"""Prodigy against a loop in numpy, the authors' package and optax. Its row has the rest."""

from __future__ import annotations

import functools
import inspect
import math
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import functorch_optim as fo
from functorch_optim.algorithms.prodigy import prodigy
from tests.support.problems import assert_trees_close, at, one_step, problem, types
from tests.tables.algorithm import case_id
from tests.tables.algorithms import prodigy as prodigy_row

SHAPES = {"w": (2, 3), "b": (4,)}
STEPS = 50
# Larger than the default where parameters are compared to 1e-12: the estimate depends on p0 - p,
# and of a way of 1e-6 only ten digits are left in parameters of size 1.
D0 = 1e-2
Tree = dict[str, np.ndarray]


def start(seed: int = 1) -> Tree:
    random = np.random.RandomState(seed)
    return {name: random.standard_normal(shape) for name, shape in SHAPES.items()}


def gradient(params: Tree, step: int) -> Tree:
    """Downhill towards another point, with noise; 0 at the first step and at one more."""
    random = np.random.RandomState(100 + step)
    goal = start(2)
    factor = 0.0 if step in (0, 7) else 1.0
    return {
        name: factor * (np.tanh(params[name] - goal[name]) + 0.1 * random.standard_normal(shape))
        for name, shape in SHAPES.items()
    }


def expected(params: Tree, steps: int, rate: Any = lambda step: 1.0, **options: Any) -> Any:
    """All parameters and estimates of the published algorithm, in plain numpy."""
    beta1, beta2 = options.get("betas", (0.9, 0.999))
    beta3 = options.get("beta3") or math.sqrt(beta2)
    eps, d0 = options.get("eps", 1e-8), options.get("d0", 1e-6)
    growth = options.get("growth_rate", math.inf)
    weight_decay = options.get("weight_decay", 0)
    decoupled = options.get("decoupled_weight_decay", True)
    d = d_max = d0
    r, k = 0.0, 0
    p0 = params
    zeros = {name: np.zeros_like(p) for name, p in params.items()}
    m, v, s = dict(zeros), dict(zeros), dict(zeros)
    history = []
    for step in range(steps):
        grads = gradient(params, step)
        lr = rate(step)
        history.append((params, d))
        if lr == 0:
            continue
        correction = 1.0
        if options.get("use_bias_correction"):
            correction = math.sqrt(1 - beta2 ** (k + 1)) / (1 - beta1 ** (k + 1))
        dlr = d * lr * correction
        new_r, size = beta3 * r, 0.0
        for name, g in grads.items():
            if not decoupled:
                g = g + weight_decay * params[name]
            new_r += d / d0 * dlr * np.sum(g * (p0[name] - params[name]))
            m[name] = beta1 * m[name] + d * (1 - beta1) * g
            v[name] = beta2 * v[name] + d * d * (1 - beta2) * g * g
            weight = d / d0 * (d if options.get("safeguard_warmup") else dlr)
            s[name] = beta3 * s[name] + weight * g
            size += np.sum(np.abs(s[name]))
        if size == 0:
            continue
        r, k = new_r, k + 1
        d_hat = options.get("d_coef", 1.0) * r / size
        if d == d0:
            d = max(d, d_hat)
        d_max = max(d_max, d_hat)
        d = min(d_max, d * growth)
        decay = weight_decay * dlr if decoupled else 0.0
        params = {
            name: p - decay * p - dlr * m[name] / (np.sqrt(v[name]) + d * eps)
            for name, p in params.items()
        }
    history.append((params, d))
    return history


def actual(tx: fo.GradientTransformation, params: Tree, steps: int) -> Any:
    history = []
    params = jax.tree.map(jnp.asarray, params)
    state, step = tx.init(params), jax.jit(functools.partial(one_step, tx))
    for i in range(steps):
        history.append((params, float(state.d)))
        grads = gradient(jax.tree.map(np.asarray, params), i)
        params, state = step(params, state, jax.tree.map(jnp.asarray, grads))
    return [*history, (params, float(state.d))], state


def assert_same_history(actual: Any, expected: Any, tolerance: float) -> None:
    for (params, d), (wanted, wanted_d) in zip(actual, expected, strict=True):
        np.testing.assert_allclose(d, wanted_d, rtol=tolerance)
        for name in wanted:
            np.testing.assert_allclose(params[name], wanted[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("warmup", [False, True], ids=["constant", "warmup"])
@pytest.mark.parametrize("options", prodigy_row.ROW.cases, ids=case_id)
def test_it_is_the_published_algorithm(options: Any, warmup: bool, x64: None) -> None:
    """With gradients of 0 at first, and a schedule that starts at 0, where nothing may move."""
    rate = (lambda step: step * 0.05) if warmup else (lambda step: 1.0)
    lr = (lambda count: rate(count.astype(np.float64))) if warmup else 1.0
    options = {"d0": D0, **options}
    history, state = actual(prodigy(lr, **options), start(), STEPS)
    wanted = expected(start(), STEPS, rate, **options)
    assert_same_history(history, wanted, 1e-12)
    assert wanted[-1][1] > 2 * options["d0"]  # the estimate took part
    assert int(state.step) == STEPS
    if options.get("use_bias_correction"):  # the first update had a gradient of 0
        assert int(state.steps_taken) == STEPS - 1
    else:
        assert state.steps_taken is None


def test_the_defaults_are_the_published_ones(x64: None) -> None:
    history, _ = actual(prodigy(), start(), STEPS)
    assert_same_history(history, expected(start(), STEPS), 1e-9)
    arguments = {k: p.default for k, p in inspect.signature(prodigy).parameters.items()}
    assert arguments == {
        "lr": 1.0,
        "betas": (0.9, 0.999),
        "beta3": None,
        "eps": 1e-8,
        "weight_decay": 0,
        "decoupled_weight_decay": True,
        "use_bias_correction": False,
        "safeguard_warmup": False,
        "d0": 1e-6,
        "d_coef": 1.0,
        "growth_rate": math.inf,
        "maximize": False,
    }
    for name in arguments:
        assert f"  {name}: " in (prodigy.__doc__ or "")


@pytest.mark.parametrize("options", prodigy_row.ROW.cases, ids=case_id)
def test_it_agrees_with_the_authors_package(options: Any, x64: None) -> None:
    torch = pytest.importorskip("torch", reason="compares with prodigyopt")
    prodigyopt = pytest.importorskip("prodigyopt", reason="compares with prodigyopt")
    tensors = {name: torch.nn.Parameter(torch.tensor(p)) for name, p in start().items()}
    theirs = {"d0": D0, **options}
    history, _ = actual(prodigy(**theirs), start(), STEPS)
    theirs["decouple"] = theirs.pop("decoupled_weight_decay", True)
    optimizer = prodigyopt.Prodigy(tensors.values(), **theirs)
    for i in range(STEPS):
        grads = gradient({name: p.detach().numpy() for name, p in tensors.items()}, i)
        for name, p in tensors.items():
            p.grad = torch.tensor(grads[name])
        optimizer.step()
    for name, p in tensors.items():
        np.testing.assert_allclose(history[-1][0][name], p.detach().numpy(), rtol=1e-11)


def test_it_agrees_with_optax_where_gradients_are_not_zero(x64: None) -> None:
    """optax always corrects the bias. (From gradients of 0 it makes NaN.)"""
    options = {"weight_decay": 0.1, "safeguard_warmup": True}
    ours = prodigy(0.9, d0=1e-3, d_coef=1.5, use_bias_correction=True, **options)
    theirs = optax.contrib.prodigy(0.9, estim_lr0=1e-3, estim_lr_coef=1.5, **options)
    params, grads = problem("float64", steps=STEPS)

    def run(tx: Any) -> Any:
        def body(carry: Any, g: Any) -> tuple[Any, None]:
            g = jax.tree.map(lambda noise, p: 0.1 * noise + jnp.tanh(p - 1), g, carry[0])
            updates, state = tx.update(g, carry[1], carry[0])
            return (fo.apply_updates(carry[0], updates), state), None

        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            return jax.lax.scan(body, (params, tx.init(params)), grads)[0]

    (p, state), (q, other) = run(ours), run(theirs)
    assert_trees_close(p, q, 1e-12)
    np.testing.assert_allclose(state.d, other.estim_lr, rtol=1e-12)
    assert float(state.d) > 2e-3


def test_maximize_ascends(x64: None) -> None:
    params, grads = problem("float64")
    descent, ascent = prodigy(d0=0.1), prodigy(d0=0.1, maximize=True)
    up, _ = ascent.update(at(grads, 0), ascent.init(params), params)
    down, _ = descent.update(jax.tree.map(jnp.negative, at(grads, 0)), descent.init(params), params)
    assert_trees_close(up, down, 0.0)
    assert float(jnp.vdot(up["kernel"], grads["kernel"][0])) > 0


def test_complex_parameters_are_pairs_of_reals(x64: None) -> None:
    random = np.random.RandomState(5)
    params, grads = (random.standard_normal((2, 3, 2)) for _ in range(2))
    tx = prodigy(d0=0.1)

    def run(params: Any, grads: Any) -> Any:
        params, grads = jnp.asarray(params), jnp.asarray(grads)
        state = tx.init(params)
        for _ in range(3):
            params, state = one_step(tx, params, state, grads)
        return params, state

    real, state = run(params, grads)
    pair, complex_state = run(params @ np.array([1, 1j]), grads @ np.array([1, 1j]))
    assert pair.dtype == np.complex128
    assert complex_state.d.dtype == np.float64
    wanted = np.asarray(real) @ np.array([1, 1j])
    np.testing.assert_allclose(pair, wanted, rtol=1e-13)
    np.testing.assert_allclose(complex_state.d, state.d, rtol=1e-13)


def test_the_estimate_is_in_the_widest_dtype_of_the_parameters(x64: None) -> None:
    kinds = ("bfloat16", "float16", "float32", "float64", "complex64", "complex128")
    params = {kind: jax.ShapeDtypeStruct((2,), kind) for kind in kinds}
    tx = prodigy(d0=0.1, weight_decay=jnp.float32(0.1))
    state = jax.eval_shape(tx.init, params)
    assert (state.d.dtype, state.step.dtype) == (np.float64, np.int32)
    updates, after = jax.eval_shape(tx.update, params, state, params)
    assert types(after) == types(state)
    assert {kind: x.dtype.name for kind, x in updates.items()} == {k: k for k in kinds}
    for kind in ("bfloat16", "float32", "complex64"):
        state = jax.eval_shape(prodigy().init, jax.ShapeDtypeStruct((2,), kind))
        assert (state.d.dtype, state.p0.dtype) == (np.float32, kind)


def test_the_sums_of_half_precision_are_in_float32() -> None:
    """1 + 4096 times 2**-9 is 1 in bfloat16."""
    tx = prodigy(d0=1.0)
    p = jnp.ones(4097, jnp.bfloat16)
    g = jnp.full(4097, 2.0**-9, jnp.bfloat16).at[0].set(1)
    state = tx.init(p)._replace(p0=p + 1)  # the way is the sum of g, and so is the size
    _, state = tx.update(g, state, p)
    np.testing.assert_allclose(state.d_numerator, 9.0, rtol=1e-6)


def test_a_state_shares_no_memory_with_an_array_that_was_given() -> None:
    """So that a donated state does not take it along."""
    d0 = jnp.asarray(0.1)
    state = prodigy(d0=d0).init({})
    places = [x.unsafe_buffer_pointer() for x in (d0, state.d, state.d_max)]
    assert len(set(places)) == 3
