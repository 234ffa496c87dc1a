"""schedule_free against the published formulas in numpy and optax. Its row has the rest."""

from __future__ import annotations

from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import functorch_optim as fo
from functorch_optim.transforms.schedule_free import (
    ScheduleFreeState,
    schedule_free,
    schedule_free_eval_params,
)
from tests.support.problems import assert_trees_close, at, one_step, problem, types

STEPS = 30
KINDS = ("bfloat16", "float16", "float32", "float64", "complex64", "complex128")
PAIRS = {
    "sgd": (lambda lr: fo.sgd(lr), lambda lr: optax.sgd(lr)),
    "adam": (
        lambda lr: fo.adam(lr, betas=(0.0, 0.999)),
        lambda lr: optax.adam(lr, b1=0.0),
    ),
    "adamw": (
        lambda lr: fo.adamw(lr, betas=(0.0, 0.999), weight_decay=0.1),
        lambda lr: optax.adamw(lr, b1=0.0, weight_decay=0.1),
    ),
}


def warm(count: Any) -> Any:
    """0, 0.02, 0.04, ... 0.1, and then falling, which weights do not follow."""
    count = count.astype(jax.dtypes.canonicalize_dtype(np.float64))
    return jnp.minimum(count * 0.02, 0.1) * jnp.where(count > 20, 0.5, 1.0)


def warm_in_numpy(count: int) -> float:
    return min(count * 0.02, 0.1) * (0.5 if count > 20 else 1.0)


def run(tx: Any, params: Any, grads: Any) -> Any:
    """Parameters and state after all steps."""

    def body(carry: Any, g: Any) -> tuple[Any, None]:
        updates, state = tx.update(g, carry[1], carry[0])
        return (fo.apply_updates(carry[0], updates), state), None

    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        return jax.jit(lambda: jax.lax.scan(body, (params, tx.init(params)), grads)[0])()


@pytest.mark.parametrize(
    ("name", "scheduled", "dtype"),
    [
        ("sgd", False, "float32"),
        ("sgd", True, "float32"),
        ("adam", False, "float32"),
        ("adam", True, "float32"),
        ("sgd", True, "float64"),
        ("adam", False, "float64"),
        ("adamw", True, "float64"),
    ],
)
def test_it_agrees_with_optax(name: str, scheduled: bool, dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        lr = warm if scheduled else 0.05
        ours, theirs = PAIRS[name]
        params, grads = problem(dtype, steps=STEPS)
        # It asks the weights' schedule one update further on than the inner transform does.
        weights = (lambda count: warm(count - 1)) if scheduled else lr
        wanted, theirs_state = run(
            optax.contrib.schedule_free(theirs(lr), weights, b1=0.8), params, grads
        )
        average = optax.contrib.schedule_free_eval_params(theirs_state, wanted)
        assert not np.allclose(average["kernel"], wanted["kernel"], rtol=1e-3)
        for inner in (theirs, ours):
            tolerance = 1e-6 if dtype == "float32" else 1e-12
            if inner is ours and dtype == "float32" and name != "sgd":
                tolerance = 5e-5  # optax's 1 - 0.999**t loses as much
            p, state = run(schedule_free(inner(lr), lr, beta=0.8), params, grads)
            assert_trees_close(p, wanted, tolerance)
            assert_trees_close(state.z, theirs_state.z, tolerance)
            assert_trees_close(schedule_free_eval_params(state, p), average, tolerance)


@pytest.mark.parametrize(
    ("scheduled", "power"), [(False, 2.0), (True, 2.0), (True, 1.0), (True, 0.0)]
)
def test_it_is_the_published_formulas(scheduled: bool, power: float, x64: None) -> None:
    """x, y and z kept apart, with gradient steps, each weighted by its own rate."""
    params, grads = problem("float64", steps=50)
    beta = 0.9
    lr: Any = warm if scheduled else 0.05
    p, state = run(schedule_free(fo.sgd(lr), lr, beta, power), params, grads)
    x = schedule_free_eval_params(state, p)
    for leaf in ("kernel", "rest"):
        pick = (lambda tree: tree["rest"][0]) if leaf == "rest" else (lambda tree: tree["kernel"])
        average = z = y = np.asarray(pick(params))
        largest = total = 0.0
        for t in range(50):
            rate = warm_in_numpy(t) if scheduled else 0.05
            largest = max(largest, rate)
            weight = largest**power
            total += weight
            share = weight / total if total else 0.0
            z = z - rate * np.asarray(pick(grads))[t]
            average = (1 - share) * average + share * z
            y = (1 - beta) * z + beta * average
        np.testing.assert_allclose(pick(p), y, rtol=1e-12)
        np.testing.assert_allclose(pick(x), average, rtol=1e-12)
        np.testing.assert_allclose(pick(state.z), z, rtol=1e-12)
    np.testing.assert_allclose(state.weight_sum, total, rtol=1e-12)
    np.testing.assert_allclose(state.max_lr, largest, rtol=1e-12)
    assert (int(state.step), state.step.dtype) == (50, np.int32)


@pytest.mark.parametrize("name", ["sgd", "sgd with a warmup", "adamw"])
def test_it_agrees_with_the_authors_package(name: str, x64: None) -> None:
    torch = pytest.importorskip("torch", reason="compares with schedulefree")
    theirs = pytest.importorskip("schedulefree", reason="compares with schedulefree")
    params, grads = problem("float64", steps=STEPS)
    tensor = torch.nn.Parameter(torch.tensor(np.asarray(params["kernel"])))
    steps = 10 if "warmup" in name else 0

    def rate(count: Any) -> Any:
        return 0.1 * (jnp.minimum((count + 1).astype(np.float64) / steps, 1.0) if steps else 1.0)

    if name == "adamw":
        optimizer = theirs.AdamWScheduleFree([tensor], lr=0.1, weight_decay=0.1)
        inner = fo.adamw(0.1, betas=(0.0, 0.999), weight_decay=0.1)
    else:
        optimizer = theirs.SGDScheduleFree([tensor], lr=0.1, warmup_steps=steps)
        inner = fo.sgd(rate)
    tx = schedule_free(inner, rate)
    p, state = run(tx, params["kernel"], grads["kernel"])
    optimizer.train()
    for i in range(STEPS):
        tensor.grad = torch.tensor(np.asarray(grads["kernel"][i]))
        optimizer.step()
    np.testing.assert_allclose(p, tensor.detach().numpy(), rtol=1e-12)
    optimizer.eval()
    x = schedule_free_eval_params(state, p)
    np.testing.assert_allclose(x, tensor.detach().numpy(), rtol=1e-12)


def test_beta_of_one_trains_the_average_itself(x64: None) -> None:
    params, grads = problem("float64")
    p, state = run(schedule_free(fo.sgd(0.1), 0.1, beta=1), params, grads)
    assert_trees_close(schedule_free_eval_params(state, p), p, 1e-15)


def test_numbers_may_be_traced_and_batched(x64: None) -> None:
    params, grads = problem("float64")

    def result(lr: Any, beta: Any, power: Any) -> Any:
        tx = schedule_free(fo.sgd(lr), lr, beta, power)

        def body(carry: Any, g: Any) -> tuple[Any, None]:
            return one_step(tx, *carry, g), None

        last, state = jax.lax.scan(body, (params, tx.init(params)), grads)[0]
        return last, schedule_free_eval_params(state, last)

    lanes = (0.1, 0.9, 2.0), (0.0, 0.5, 1.0), (0.3, 0.8, 0.0)
    batched = jax.jit(jax.vmap(result))(*map(jnp.asarray, zip(*lanes, strict=True)))
    for i, lane in enumerate(lanes):
        alone = jax.tree.map(lambda x, i=i: x[i], batched)
        assert_trees_close(alone, result(*lane), 1e-12)
    assert_trees_close(jax.tree.map(lambda x: x[1], batched), (params, params), 0.0)  # lr of 0


def test_derivatives_are_finite_and_right(x64: None) -> None:
    params, grads = problem("float64")

    def loss(lr: Any, beta: Any, grads: Any) -> jax.Array:
        tx = schedule_free(
            fo.adam(lr, betas=(0.0, 0.999)), lambda count: lr * count.astype(np.float64), beta
        )

        def body(carry: Any, g: Any) -> tuple[Any, None]:
            return one_step(tx, *carry, g), None

        last, state = jax.lax.scan(body, (params, tx.init(params)), grads)[0]
        return jnp.sum(schedule_free_eval_params(state, last)["kernel"] ** 2)

    slopes = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    _, slope = slopes(0.1, 0.9, grads)
    near = [slopes(0.1 + e, 0.9, grads)[0] for e in (1e-6, -1e-6)]
    np.testing.assert_allclose(slope[0], (near[0] - near[1]) / 2e-6, rtol=1e-6)
    near = [slopes(0.1, 0.9 + e, grads)[0] for e in (1e-6, -1e-6)]
    np.testing.assert_allclose(slope[1], (near[0] - near[1]) / 2e-6, rtol=1e-5, atol=1e-8)
    for lr, factor in ((0.1, 0.0), (0.0, 1.0), (0.0, 0.0)):
        _, slope = slopes(lr, 0.9, jax.tree.map(lambda g, factor=factor: g * factor, grads))
        assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(slope))


def test_the_average_of_a_leaf_without_gradients_is_the_leaf() -> None:
    params = {"a": jnp.ones(2), "b": jnp.ones(2), "c": jnp.arange(2), "n": None}
    tx = schedule_free(fo.sgd(0.5), 0.5)
    state = tx.init(params)
    assert state.z["c"] is None
    grads = {"a": jnp.ones(2), "b": None, "c": np.zeros(2, jax.dtypes.float0), "n": None}
    updates, after = tx.update(grads, state, params)
    assert after.z["b"] is state.z["b"]
    np.testing.assert_allclose(updates["a"], [-0.5, -0.5])  # the first average is z itself
    x = schedule_free_eval_params(after, fo.apply_updates(params, updates))
    assert x["c"] is params["c"]
    assert x["n"] is None
    np.testing.assert_allclose(x["a"], [0.5, 0.5])
    np.testing.assert_array_equal(x["b"], params["b"])
    assert schedule_free_eval_params(tx.init({}), {}) == {}


@pytest.mark.parametrize(
    ("state_dtype", "kept"),
    [
        (None, KINDS),
        ("float32", ("float32",) * 4 + ("complex64",) * 2),
        ("float64", ("float64",) * 4 + ("complex128",) * 2),
        ("bfloat16", ("bfloat16",) * 4 + ("complex64",) * 2),
    ],
)
def test_z_has_the_dtype_asked_for_and_nothing_else_changes(
    state_dtype: Any, kept: tuple[str, ...], x64: None
) -> None:
    params = {kind: jax.ShapeDtypeStruct((2,), kind) for kind in KINDS}
    tx = schedule_free(fo.sgd(0.1), jnp.float32(0.1), state_dtype=state_dtype)
    state = jax.eval_shape(tx.init, params)
    assert tuple(state.z[kind].dtype.name for kind in KINDS) == kept
    assert state.beta.dtype == state.max_lr.dtype == state.weight_sum.dtype == np.float64
    updates, after = jax.eval_shape(tx.update, params, state, params)
    assert types(after) == types(state)
    for tree in (updates, jax.eval_shape(schedule_free_eval_params, after, params)):
        assert tuple(tree[kind].dtype.name for kind in KINDS) == KINDS
    half = schedule_free(fo.sgd(0.1), 0.1).init(jnp.ones(2, jnp.bfloat16))
    assert half.beta.dtype == np.float32


def test_a_wide_z_follows_steps_that_a_half_precision_one_loses() -> None:
    params, g = jnp.ones(2, jnp.bfloat16), jnp.full(2, 1e-3, jnp.bfloat16)

    def z(tx: fo.GradientTransformation) -> float:
        grads = jnp.broadcast_to(g, (100, 2))
        return float(run(tx, params, grads)[1].z[0].astype(jnp.float32))

    assert z(schedule_free(fo.sgd(1.0), 1.0)) == 1.0
    wanted = 1 - 100 * float(g[0].astype(jnp.float32))
    np.testing.assert_allclose(z(schedule_free(fo.sgd(1.0), 1.0, state_dtype=jnp.float32)), wanted)
    np.testing.assert_allclose(z(fo.float32_state(schedule_free(fo.sgd(1.0), 1.0))), wanted)


def test_complex_parameters_are_pairs_of_reals(x64: None) -> None:
    random = np.random.RandomState(5)
    params, grads = random.standard_normal((2, 3, 2)), random.standard_normal((4, 2, 3, 2))
    unit = np.array([1, 1j])
    tx = schedule_free(fo.adam(0.1, betas=(0.0, 0.9)), 0.1)
    real, _ = run(tx, jnp.asarray(params), jnp.asarray(grads))
    pair, state = run(tx, jnp.asarray(params @ unit), jnp.asarray(grads @ unit))
    np.testing.assert_allclose(pair, np.asarray(real) @ unit, rtol=1e-13)
    assert schedule_free_eval_params(state, pair).dtype == np.complex128


def test_it_hands_extra_arguments_on() -> None:
    params, grads = problem()
    tx = schedule_free(fo.chain(fo.scale_by_plateau(), fo.sgd(0.1)), 0.1)
    state = tx.init(params)
    assert isinstance(state, ScheduleFreeState)
    _, state = tx.update(at(grads, 0), state, params, value=jnp.ones(()), other=1)
    assert float(state.inner[0].plateau.best) == 1.0
    with pytest.raises(ValueError, match="the argument `value` of update is missing"):
        tx.update(at(grads, 0), state, params)


def test_a_state_shares_no_memory_with_an_array_that_was_given() -> None:
    """So that a donated state does not take it along."""
    beta = jnp.asarray(0.9)
    state = schedule_free(fo.sgd(0.1), 0.1, beta).init({})
    assert state.beta.unsafe_buffer_pointer() != beta.unsafe_buffer_pointer()


def test_what_it_cannot_use_is_refused() -> None:
    sgd = fo.sgd(0.1)
    with pytest.raises(TypeError, match=r"the transform of schedule_free should be an \(init, up"):
        schedule_free(fo.sgd, 0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^Invalid learning rate: -0\.1$"):
        schedule_free(sgd, -0.1)
    for beta in (0.0, 1.5, -0.1, float("nan")):
        with pytest.raises(ValueError, match=f"^Invalid beta value: {beta}$"):
            schedule_free(sgd, 0.1, beta)
    with pytest.raises(ValueError, match=r"^Invalid weight_lr_power value: -1$"):
        schedule_free(sgd, 0.1, weight_lr_power=-1)
    for name in ("beta", "weight_lr_power"):
        for value in ("1", None, fo.linear_lr(0.1)):
            with pytest.raises(TypeError, match=f"^{name} should be a number or an array|^{name} "):
                schedule_free(sgd, 0.1, **{name: value})
    for dtype in (jnp.int32, jnp.complex64):
        with pytest.raises(TypeError, match="state_dtype should be a real floating dtype"):
            schedule_free(sgd, 0.1, state_dtype=dtype)
    p = {"w": jnp.ones(2)}
    tx = schedule_free(sgd, 0.1)
    state = tx.init(p)
    with pytest.raises(
        TypeError, match="needs the state of schedule_free, but got one of type tup"
    ):
        schedule_free_eval_params((state,), p)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"z and params differ in structure.*\['v'\]"):
        schedule_free_eval_params(state, {"v": p["w"]})
    with pytest.raises(ValueError, match=r"z and params differ in shape at \['w'\]"):
        schedule_free_eval_params(state, {"w": jnp.ones(1)})
