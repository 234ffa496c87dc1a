"""Prodigy: against a loop in numpy, the authors' package and optax, and under JAX's transforms."""

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
from jax.experimental import sparse

import functorch_optim as fo
from functorch_optim.algorithms.prodigy import ProdigyState, prodigy
from tests.support.problems import assert_trees_close, at, one_step, problem, types

SHAPES = {"w": (2, 3), "b": (4,)}
STEPS = 50
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


# d0 is larger than the default where parameters are compared to 1e-12: the estimate depends on
# p0 - p, and of a way of 1e-6 only ten digits are left in parameters of size 1.
OPTIONS: list[dict[str, Any]] = [
    {},
    {"use_bias_correction": True},
    {"weight_decay": 0.1},
    {"weight_decay": 0.1, "decoupled_weight_decay": False},
    {"growth_rate": 1.02},
    {"safeguard_warmup": True, "d_coef": 0.5, "growth_rate": 1.5},
    {"beta3": 0.5, "betas": (0.8, 0.95), "eps": 1e-4},
]


@pytest.mark.parametrize("warmup", [False, True], ids=["constant", "warmup"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "default")
def test_it_is_the_published_algorithm(options: Any, warmup: bool, x64: None) -> None:
    """With gradients of 0 at first, and a schedule that starts at 0, where nothing may move."""
    rate = (lambda step: step * 0.05) if warmup else (lambda step: 1.0)
    lr = (lambda count: rate(count.astype(np.float64))) if warmup else 1.0
    options = {"d0": 1e-2, **options}
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


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "default")
def test_it_agrees_with_the_authors_package(options: Any, x64: None) -> None:
    torch = pytest.importorskip("torch", reason="compares with prodigyopt")
    prodigyopt = pytest.importorskip("prodigyopt", reason="compares with prodigyopt")
    tensors = {name: torch.nn.Parameter(torch.tensor(p)) for name, p in start().items()}
    theirs = {"d0": 1e-2, **options}
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


def test_it_compiles_once_and_scans() -> None:
    params, grads = problem()
    tx = prodigy(fo.linear_lr(1.0), weight_decay=0.1, use_bias_correction=True)
    traces = []

    def body(carry: Any, g: Any) -> tuple[Any, None]:
        traces.append(1)
        return one_step(tx, *carry, g), None

    first = (params, tx.init(params))
    scanned, _ = jax.lax.scan(body, first, grads)
    assert types(scanned) == types(first)
    traces.clear()
    step, carry = jax.jit(body), first
    for i in range(3):
        carry, _ = step(carry, at(grads, i))
    assert len(traces) == 1
    assert_trees_close(carry, scanned, 1e-5)
    eager = first
    for i in range(3):
        eager, _ = body(eager, at(grads, i))
    assert_trees_close(eager, scanned, 1e-5)


def test_numbers_may_be_traced_and_batched(x64: None) -> None:
    params, grads = problem("float64")

    def result(lr: Any, d0: Any, growth_rate: Any, beta2: Any) -> Any:
        tx = prodigy(
            lr, betas=(0.9, beta2), d0=d0, growth_rate=growth_rate, use_bias_correction=True
        )

        def body(carry: Any, g: Any) -> tuple[Any, None]:
            return one_step(tx, *carry, g), None

        return jax.lax.scan(body, (params, tx.init(params)), grads)[0]

    lanes = (0.0, 0.1, 1.1, 0.9), (1.0, 0.2, math.inf, 0.999)
    batched = jax.jit(jax.vmap(result))(*map(jnp.asarray, zip(*lanes, strict=True)))
    for i, lane in enumerate(lanes):
        alone = jax.tree.map(lambda x, i=i: x[i], batched)
        assert_trees_close(alone, result(*lane), 1e-12)
    np.testing.assert_array_equal(batched[0]["kernel"][0], params["kernel"])  # its lr is 0


def test_derivatives_are_finite_and_right(x64: None) -> None:
    params = {"w": jnp.asarray([1.0, -2.0, 0.5]), "z": jnp.zeros(2)}
    goal = {"w": jnp.asarray([-1.0, 2.0, 0.5]), "z": jnp.zeros(2)}  # two gradients are always 0

    def loss(lr: Any, params: Any, growth_rate: Any) -> jax.Array:
        tx = prodigy(lr, d0=0.1, growth_rate=growth_rate, weight_decay=0.1)

        def body(carry: Any, _: None) -> tuple[Any, None]:
            grads = jax.tree.map(jnp.subtract, carry[0], goal)
            return one_step(tx, *carry, grads), None

        (last, _), _ = jax.lax.scan(body, (params, tx.init(params)), None, length=4)
        return jnp.sum((last["w"] - goal["w"]) ** 2) + jnp.sum(last["z"])

    slopes = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    for growth_rate in (math.inf, 1.1):
        _, slope = slopes(1.0, params, growth_rate)
        assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(slope))
        near = [slopes(1.0 + e, params, growth_rate)[0] for e in (1e-6, -1e-6)]
        np.testing.assert_allclose(slope[0], (near[0] - near[1]) / 2e-6, rtol=1e-6)
    tx = prodigy()
    zeros = jax.tree.map(jnp.zeros_like, params)
    through = jax.grad(lambda g: jnp.sum(tx.update(g, tx.init(params), params)[0]["w"]))(zeros)
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(through))


def test_leaves_without_gradients_are_skipped() -> None:
    float0 = np.zeros(2, jax.dtypes.float0)
    params = {"a": jnp.ones(2), "b": jnp.ones(2), "c": jnp.arange(2), "n": None}
    tx = prodigy(d0=0.1)
    state = tx.init(params)
    for name in ("exp_avg", "exp_avg_sq", "s", "p0"):
        assert getattr(state, name)["c"] is None
        assert getattr(state, name)["n"] is None
    grads = {"a": jnp.ones(2), "b": None, "c": float0, "n": None}
    updates, after = tx.update(grads, state, params)
    assert updates["b"] is updates["c"] is updates["n"] is None
    assert after.exp_avg["b"] is state.exp_avg["b"]
    alone = prodigy(d0=0.1)
    wanted, _ = alone.update({"a": jnp.ones(2)}, alone.init({"a": jnp.ones(2)}), {"a": jnp.ones(2)})
    np.testing.assert_array_equal(updates["a"], wanted["a"])
    updates, after = tx.update({}, tx.init({}), {})
    assert updates == {}
    assert (int(after.step), float(after.d)) == (1, np.float32(0.1))


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


def test_dtypes_stay_what_they_are(x64: None) -> None:
    kinds = ("bfloat16", "float16", "float32", "float64", "complex64", "complex128")
    params = {kind: jnp.ones(2, kind) for kind in kinds}
    tx = prodigy(d0=0.1, weight_decay=jnp.float32(0.1))
    state = tx.init(params)
    assert (state.d.dtype, state.step.dtype) == (np.float64, np.int32)
    updates, after = jax.jit(tx.update)(params, state, params)
    assert types(after) == types(state)
    assert {kind: x.dtype.name for kind, x in updates.items()} == {k: k for k in kinds}
    for kind in ("bfloat16", "float32", "complex64"):
        state = prodigy().init(jnp.ones(2, kind))
        assert (state.d.dtype, state.p0.dtype) == (np.float32, kind)


def test_half_precision_is_computed_in_float32() -> None:
    """The sums too: 1 + 4096 times 2**-9 is 1 in bfloat16."""
    params, grads = problem()
    tx, wide = fo.float32_state(prodigy()), prodigy()
    for half in ("bfloat16", "float16"):
        p, g = (jax.tree.map(lambda x, half=half: x.astype(half), t) for t in (params, grads))
        q, h = (jax.tree.map(lambda x: x.astype(jnp.float32), t) for t in (p, g))
        state, wide_state = tx.init(p), wide.init(q)
        for i in range(3):
            _, state = tx.update(at(h, i), state, q)
            _, wide_state = wide.update(at(h, i), wide_state, q)
        assert_trees_close(state, wide_state, 0.0)
        updates, _ = tx.update(at(g, 0), tx.init(p), p)
        wanted, _ = wide.update(at(h, 0), wide.init(q), q)
        assert_trees_close(updates, jax.tree.map(lambda x, half=half: x.astype(half), wanted), 1e-2)
    bias = prodigy(d0=1.0)
    p = jnp.ones(4097, jnp.bfloat16)
    g = jnp.full(4097, 2.0**-9, jnp.bfloat16).at[0].set(1)
    state = bias.init(p)._replace(p0=p + 1)  # the way is the sum of g, and so is the size
    _, state = bias.update(g, state, p)
    np.testing.assert_allclose(state.d_numerator, 9.0, rtol=1e-6)


def test_a_fresh_state_can_be_donated_and_shares_no_memory() -> None:
    params, grads = problem()
    d0 = jnp.asarray(0.1)
    tx = prodigy(d0=d0)
    step = jax.jit(functools.partial(one_step, tx), donate_argnums=(0, 1))
    wanted = one_step(tx, params, tx.init(params), at(grads, 0))
    given = jax.tree.map(jnp.copy, params)
    result = step(given, tx.init(given), at(grads, 0))
    assert_trees_close(result, wanted, 1e-5)
    assert float(d0) == np.float32(0.1)  # not deleted with the state


def test_it_is_exported_to_every_platform() -> None:
    params, grads = problem()
    tx = prodigy(use_bias_correction=True)
    state = tx.init(params)
    step = jax.jit(functools.partial(one_step, tx))
    arguments = (params, state, at(grads, 0))
    exported = jax.export.export(step, platforms=["cpu", "cuda", "tpu"])(*arguments)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert jax.tree.map(lambda x: (x.shape, x.dtype), tuple(exported.out_avals)) == tuple(
        (x.shape, x.dtype) for x in jax.tree.leaves(step(*arguments))
    )


def test_equal_arguments_give_the_same_pair_and_extra_arguments_are_ignored() -> None:
    assert prodigy() is prodigy(1.0)
    assert prodigy(0.5) is not prodigy(1.0)
    params, grads = problem()
    tx = prodigy(betas=[0.9, 0.999])  # type: ignore[arg-type]
    state = tx.init(params)
    assert isinstance(state, ProdigyState)
    with_extra = tx.update(at(grads, 0), state, params, value=1.0)
    assert_trees_close(with_extra, prodigy().update(at(grads, 0), state, params), 0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "Invalid learning rate: -1.0"),
        ({"eps": 0.0}, "Invalid epsilon value: 0.0"),
        ({"eps": -1e-8}, "Invalid epsilon value: -1e-08"),
        ({"betas": (1.0, 0.9)}, "Invalid beta parameter at index 0: 1.0"),
        ({"betas": (0.9, -0.1)}, "Invalid beta parameter at index 1: -0.1"),
        ({"beta3": 1.5}, "Invalid beta3 value: 1.5"),
        ({"beta3": -0.5}, "Invalid beta3 value: -0.5"),
        ({"weight_decay": -1}, "Invalid weight_decay value: -1"),
        ({"d0": 0.0}, "Invalid d0 value: 0.0"),
        ({"d0": math.nan}, "Invalid d0 value: nan"),
        ({"d_coef": -1.0}, "Invalid d_coef value: -1.0"),
        ({"growth_rate": math.nan}, "Invalid growth_rate value: nan"),
    ],
)
def test_values_out_of_range_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        prodigy(**options)


def test_what_an_update_cannot_use_is_refused() -> None:
    for name in ("lr", "beta3", "d0", "d_coef", "growth_rate", "eps"):
        with pytest.raises(TypeError, match=f"^{name} should be a number, an array or a schedule"):
            prodigy(**{name: "1"})
    p = {"w": jnp.ones(2)}
    tx = prodigy()
    state = tx.init(p)
    with pytest.raises(ValueError, match="prodigy: the argument `params` of update is missing"):
        tx.update(p, state)
    with pytest.raises(TypeError, match=r"grads and params differ in structure.*\['w'\]"):
        tx.update({"v": p["w"]}, state, p)
    with pytest.raises(ValueError, match=r"grads and params differ in shape at \['w'\]"):
        tx.update({"w": jnp.ones(1)}, state, p)
    with pytest.raises(ValueError, match=r"state and params differ in shape at \['w'\]"):
        tx.update({"w": jnp.ones(1)}, state, {"w": jnp.ones(1)})
    with pytest.raises(TypeError, match="a gradient of dtype complex64 cannot update"):
        tx.update({"w": jnp.ones(2, jnp.complex64)}, state, p)
    with pytest.raises(RuntimeError, match="Prodigy does not support sparse gradients"):
        tx.update({"w": sparse.BCOO.fromdense(jnp.ones(2))}, state, p)
