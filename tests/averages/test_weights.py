"""Weight averages as pure pairs, against formulas in double."""

from __future__ import annotations

from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim as fo
from functorch_optim.averages.weights import (
    AverageState,
    WeightAverage,
    average,
    ema_average,
    joint_average,
    swa_average,
)
from tests.support.problems import assert_trees_close, at, problem, types
from tests.support.stateful import compilations, exactly

STEPS = 4


def halves_decay(average: Any, params: Any, n_averaged: Any) -> Any:
    """An avg_fn as torch's users write it; it would divide by 0 at the first update."""
    return average + (params - average) * 0.5 / n_averaged.astype(average.dtype)


def warm_up(n_averaged: Any) -> Any:
    """The decay of a moving average whose memory grows."""
    n = n_averaged.astype(np.float32)
    return jnp.minimum(0.9, (1.0 + n) / (10.0 + n))


def rising(n: int) -> float:
    return min(0.9, (1.0 + n) / (10.0 + n))


# name: (the pair, f(average so far, parameters, count) in double)
PAIRS: dict[str, tuple[Any, Any]] = {
    "swa": (swa_average(), lambda a, p, n: a + (p - a) / (n + 1)),
    "ema": (ema_average(0.9), lambda a, p, n: 0.9 * a + (1 - 0.9) * p),
    "ema, array": (ema_average(jnp.asarray([0.75])), lambda a, p, n: 0.75 * a + 0.25 * p),
    "ema, schedule": (
        ema_average(warm_up),
        lambda a, p, n: rising(n) * a + (1 - rising(n)) * p,
    ),
    "avg_fn": (average(halves_decay), lambda a, p, n: a + (p - a) * 0.5 / n),
}
DEBIASED: dict[str, tuple[Any, Any]] = {
    "number": (ema_average(0.999, debias=True), lambda n: 0.999),
    "array": (ema_average(jnp.asarray(0.75), debias=True), lambda n: 0.75),
    "schedule": (ema_average(warm_up, debias=True), rising),
}


def walk(dtype: str = "float32") -> list[Any]:
    """The parameters after each update."""
    _, grads = problem(dtype, steps=STEPS)
    return [at(grads, i) for i in range(STEPS)]


def in_double(tree: Any) -> Any:
    def wide(x: Any) -> np.ndarray:
        x = np.asarray(x)
        return x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)

    return jax.tree.map(wide, tree)


def check(found: Any, wanted: Any, rtol: float) -> None:
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        x = in_double(x)
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * np.max(np.abs(y)))


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("name", PAIRS)
def test_the_formula(name: str, dtype: str) -> None:
    averaging, formula = PAIRS[name]
    steps = walk(dtype)
    state = averaging.init(jax.tree.map(jnp.zeros_like, steps[0]))
    wanted = in_double(steps[0])
    for n, params in enumerate(steps):
        found, state = averaging.update(params, state)
        if n:
            wanted = jax.tree.map(lambda a, p, n=n: formula(a, p, n), wanted, in_double(params))
        check(found, wanted, 1e-6)
        assert exactly(found) == exactly(state.average)
        assert types(found) == types(params)
        assert int(state.n_averaged) == n + 1


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("name", ["swa", "ema", "avg_fn"])
def test_in_double(name: str, dtype: str, x64: None) -> None:
    averaging, formula = PAIRS[name]
    steps = walk(dtype)
    state = averaging.init(steps[0])
    wanted = in_double(steps[0])
    for n, params in enumerate(steps):
        found, state = averaging.update(params, state)
        if n:
            wanted = jax.tree.map(lambda a, p, n=n: formula(a, p, n), wanted, in_double(params))
    assert types(found) == types(steps[0])
    check(found, wanted, 1e-14)


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("name", DEBIASED)
def test_a_debiased_average_starts_from_zeros(name: str, dtype: str) -> None:
    averaging, decay = DEBIASED[name]
    steps = walk(dtype)
    state = averaging.init(steps[0])
    raw = jax.tree.map(np.zeros_like, in_double(steps[0]))
    product = 1.0
    for n, params in enumerate(steps):
        found, state = averaging.update(params, state)
        d = decay(n)
        product *= d
        raw = jax.tree.map(lambda a, p, d=d: d * a + (1 - d) * p, raw, in_double(params))
        check(state.average, raw, 1e-6)
        check(found, jax.tree.map(lambda a, w=1 - product: a / w, raw), 1e-6)
        assert types(found) == types(params)
    assert (state.log_remaining is None) == (name != "schedule")


def test_a_debiased_average_in_double(x64: None) -> None:
    def slow(n: Any) -> Any:
        return 1 - 1e-3 / (n + 1).astype(np.float64)

    averaging = ema_average(slow, debias=True)
    xs = np.random.RandomState(2).standard_normal(5)
    state = averaging.init(jnp.asarray(xs[0]))
    raw, product = 0.0, 1.0
    for n, x in enumerate(xs):
        found, state = averaging.update(jnp.asarray(x), state)
        d = 1 - 1e-3 / (n + 1)
        raw, product = d * raw + (1 - d) * x, product * d
    np.testing.assert_allclose(found, raw / (1 - product), rtol=1e-12)


def test_a_debiased_average_before_any_weight_is_the_parameters() -> None:
    averaging = ema_average(lambda n: jnp.where(n < 2, 1.0, 0.5), debias=True)
    p = {"w": jnp.asarray([1.0, 2.0])}
    state = averaging.init(p)
    for factor in (1.0, 3.0, 5.0):
        now = jax.tree.map(lambda x, f=factor: x * f, p)
        found, state = averaging.update(now, state)
        assert_trees_close(found, now, 1e-6)


def test_the_mean_of_many_is_their_mean() -> None:
    """Through a scan; and the weak types of what is given do not matter."""
    xs = np.random.RandomState(0).standard_normal((1000, 3)).astype(np.float32)
    averaging = swa_average()
    state = averaging.init({"x": jnp.full(3, 1.0), "one": 1.0})

    def step(state: AverageState, x: Any) -> Any:
        found, state = averaging.update({"x": x, "one": 1.0}, state)
        return state, found["x"]

    state, running = jax.lax.scan(step, state, xs)
    np.testing.assert_allclose(running[-1], xs.astype(np.float64).mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(running[6], xs[:7].astype(np.float64).mean(0), rtol=1e-5, atol=1e-6)
    assert int(state.n_averaged) == 1000


def test_leaves_that_are_not_averaged() -> None:
    def params(i: int) -> Any:
        return {"w": jnp.full(2, float(i)), "n": jnp.asarray(10 * i), "on": i > 1, "none": None}

    for averaging in (swa_average(), ema_average(0.5, debias=True)):
        state = averaging.init(params(1))
        for i in (1, 2):
            found, state = averaging.update(params(i), state)
        assert int(found["n"]) == int(state.average["n"]) == 20
        assert bool(found["on"])
        assert found["none"] is None
        assert found["n"].dtype == params(1)["n"].dtype
    for empty in ({}, None, [None]):
        found, state = swa_average().update(empty, swa_average().init(empty))
        assert found == empty


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_rounded_once(dtype: str) -> None:
    steps = [x.astype(dtype) for x in np.random.RandomState(1).standard_normal((3, 64))]
    averaging = ema_average(0.9)
    state = averaging.init(jnp.asarray(steps[0]))
    before = steps[0].astype(np.float64)
    for n, p in enumerate(steps):
        found, state = averaging.update(jnp.asarray(p), state)
        if n:
            before = 0.9 * before + (1 - 0.9) * p.astype(np.float64)
            wrong = np.asarray(found) != before.astype(dtype)
            assert wrong.mean() <= 0.02  # a tie that float32 rounds the other way
        assert found.dtype == dtype


def test_a_float32_average_of_bfloat16_parameters() -> None:
    """Which is what a decay near 1 needs: in bfloat16 the average would stand still."""
    p = jnp.ones(2, jnp.bfloat16)
    still, follows = ema_average(0.999), fo.float32_state(ema_average(0.999))
    states = [tx.init(p) for tx in (still, follows)]
    for x in (p, 2 * p, 2 * p):
        results = [tx.update(x, s) for tx, s in zip((still, follows), states, strict=True)]
        states = [state for _, state in results]
    np.testing.assert_array_equal(results[0][0], np.ones(2))
    assert results[1][0].dtype == np.float32
    np.testing.assert_allclose(results[1][0], np.full(2, 2 - 0.999**2), rtol=1e-6)


ALL = {
    **{name: pair for name, (pair, _) in PAIRS.items()},
    **{f"debiased, {name}": pair for name, (pair, _) in DEBIASED.items()},
}


@pytest.mark.parametrize("name", ["swa", "ema, schedule", "avg_fn", "debiased, schedule"])
def test_compiled_donated_and_never_compiled_again(name: str) -> None:
    averaging = ALL[name]
    steps = walk()
    state = averaging.init(steps[0])
    donated = averaging.init(steps[0])
    update = jax.jit(averaging.update, donate_argnums=1)
    before = types(donated)
    outcomes = []
    for i, params in enumerate(steps):
        wanted, state = averaging.update(params, state)
        with compilations() as compiled:
            found, donated = update(params, donated)
        assert bool(compiled) == (i == 0)
        outcomes.append((found, exactly(found)))
        assert_trees_close(found, wanted, 1e-6)
        assert types(donated) == before
    for found, then in outcomes:  # no later step took their memory
        assert exactly(found) == then


@pytest.mark.parametrize("name", ["swa", "ema", "debiased, number"])
def test_under_vmap(name: str) -> None:
    averaging = ALL[name]
    steps = walk()
    state = jax.vmap(averaging.init)(steps[0])
    for params in steps[1:]:
        found, state = jax.vmap(averaging.update)(params, state)
    one = averaging.init(jax.tree.map(lambda x: x[1], steps[0]))
    for params in steps[1:]:
        wanted, one = averaging.update(jax.tree.map(lambda x: x[1], params), one)
    assert_trees_close(jax.tree.map(lambda x: x[1], found), wanted, 1e-6)


@pytest.mark.parametrize("name", ALL)
def test_the_derivatives_are_the_weights(name: str) -> None:
    """Of the last average with respect to each of the parameters: they add up to 1."""
    averaging = ALL[name]
    xs = jnp.asarray([1.0, -2.0, 4.0])

    def last(xs: jax.Array) -> jax.Array:
        state = averaging.init(xs[0])
        for x in xs:
            found, state = averaging.update(x, state)
        return found

    weights = jax.grad(last)(xs)
    np.testing.assert_allclose(jnp.sum(weights), 1.0, rtol=1e-5)
    np.testing.assert_allclose(jnp.sum(weights * xs), last(xs), rtol=1e-4)
    assert bool(jnp.all(weights > 0))


def test_the_first_update_does_not_call_for_what_divides_by_the_count() -> None:
    found = jax.grad(lambda p: average(halves_decay).update(p, average(halves_decay).init(p))[0])(
        jnp.asarray(2.0)
    )
    np.testing.assert_array_equal(found, 1.0)


def test_exported_for_all_platforms() -> None:
    averaging = ema_average(warm_up, debias=True)
    params = walk()[0]
    state = averaging.init(params)
    exporting = jax.export.export(jax.jit(averaging.update), platforms=("cpu", "cuda", "tpu"))
    found, _ = exporting(params, state).call(params, state)
    assert_trees_close(found, averaging.update(params, state)[0], 1e-6)
    assert types(jax.eval_shape(averaging.update, params, state)[1]) == types(state)


def test_a_fresh_state_shares_no_memory() -> None:
    params = walk()[0]
    state = swa_average().init(params)
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves((params, state.average))]
    assert len(set(pointers)) == 4


def test_lists_of_all_arrays() -> None:
    seen = []

    def common(averages: list[Any], params: list[Any], n: Any) -> list[Any]:
        seen.append(len(params))
        pairs = zip(averages, params, strict=True)
        return [a + (p - a) / (n.astype(a.dtype) + 1.0) for a, p in pairs]

    pair = joint_average(common)
    steps = walk()
    states = pair.init(steps[0]), swa_average().init(steps[0])
    for params in steps:
        found, mine = pair.update(params, states[0])
        wanted, theirs = swa_average().update(params, states[1])
        states = mine, theirs
        assert_trees_close(found, wanted, 1e-6)
    assert set(seen) == {2}


def test_agrees_with_optax() -> None:
    """optax's `ema` starts from zeros, and divides by 1 - decay**n with debias."""
    import optax

    ours, theirs = ema_average(0.9, debias=True), optax.ema(0.9, debias=True)
    steps = walk()
    state, reference = ours.init(steps[0]), theirs.init(steps[0])
    for params in steps:
        found, state = ours.update(params, state)
        with jax.numpy_dtype_promotion("standard"):
            wanted, reference = theirs.update(params, reference)
        assert_trees_close(found, wanted, 1e-5)


def test_equal_arguments_give_one_pair() -> None:
    assert swa_average() is swa_average()
    assert ema_average(0.9) is ema_average(decay=0.9)
    assert ema_average(0.9) is not ema_average(0.9, debias=True)
    assert average(halves_decay) is average(halves_decay)
    assert isinstance(ema_average(), WeightAverage)


@pytest.mark.parametrize("decay", [-0.1, 1.5, float("nan")])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    message = rf"Invalid decay value {decay} provided. Please provide a value in \[0,1\] range."
    with pytest.raises(ValueError, match=message):
        ema_average(decay)


def test_the_bounds_of_decay() -> None:
    steps = walk()
    for decay, kept in ((0, steps[-1]), (1, steps[0])):
        state = ema_average(decay).init(steps[0])
        for params in steps:
            found, state = ema_average(decay).update(params, state)
        assert_trees_close(found, kept, 0.0)
    with pytest.raises(ValueError, match="which is 0 with decay=1"):
        ema_average(1.0, debias=True)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="decay should be a number, an array or a schedule"):
        ema_average("0.9")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="decay must be 1-element"):
        ema_average(jnp.ones(2))
    with pytest.raises(TypeError, match="avg_fn should be a function"):
        average(0.9)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="multi_avg_fn should be a function"):
        joint_average(0.9)  # type: ignore[arg-type]


def test_wrong_trees_and_results_are_refused() -> None:
    steps = walk()
    state = swa_average().init(steps[0])
    with pytest.raises(TypeError, match="params and average differ in structure"):
        swa_average().update({"kernel": steps[0]["kernel"]}, state)
    with pytest.raises(ValueError, match=r"differ in shape at \['kernel'\]"):
        swa_average().update({**steps[0], "kernel": jnp.zeros(2)}, state)
    with pytest.raises(TypeError, match=r"complex at \['kernel'\], where their average is real"):
        swa_average().update({**steps[0], "kernel": steps[0]["kernel"].astype("complex64")}, state)
    with pytest.raises(ValueError, match="should have that shape"):
        average(lambda a, p, n: jnp.sum(a)).update(steps[0], state)
    with pytest.raises(TypeError, match="should return a list of 2 arrays, but returned NoneType"):
        joint_average(lambda a, p, n: None).update(steps[0], state)  # type: ignore[arg-type,return-value]
