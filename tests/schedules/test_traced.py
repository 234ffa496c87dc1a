"""Schedules inside jit, vmap and grad, early and late."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim as fo
from functorch_optim import Schedule
from functorch_optim.core.arithmetic import power


def shrinking(step: Any) -> Any:
    return 1 - 1 / (step + 9)


SWEEP: dict[str, tuple[Callable[..., Schedule], dict[str, Any]]] = {
    "lambda": (fo.lambda_lr, {"lr": 0.3, "lr_lambda": shrinking}),
    "multiplicative": (fo.multiplicative_lr, {"lr": 0.3, "lr_lambda": shrinking}),
    "step": (fo.step_lr, {"lr": 0.3, "step_size": 7, "gamma": 0.6}),
    "multi step": (fo.multi_step_lr, {"lr": 0.3, "milestones": (5, 9, 9, 30), "gamma": 0.6}),
    "constant": (fo.constant_lr, {"lr": 0.3, "factor": 0.4, "total_iters": 6}),
    "linear": (
        fo.linear_lr,
        {"lr": 0.3, "start_factor": 0.2, "end_factor": 0.9, "total_iters": 9},
    ),
    "exponential": (fo.exponential_lr, {"lr": 0.3, "gamma": 0.93}),
    "polynomial": (fo.polynomial_lr, {"lr": 0.3, "total_iters": 30, "power": 0.8}),
    "cosine": (fo.cosine_annealing_lr, {"lr": 0.3, "T_max": 13, "eta_min": 0.02}),
    "warm restarts": (
        fo.cosine_annealing_warm_restarts,
        {"lr": 0.3, "T_0": 3, "T_mult": 2, "eta_min": 0.02},
    ),
    "equal restarts": (
        fo.cosine_annealing_warm_restarts,
        {"lr": 0.3, "T_0": 5, "T_mult": 1, "eta_min": 0.02},
    ),
    "cyclic": (
        fo.cyclic_lr,
        {"base_lr": 0.1, "max_lr": 0.3, "step_size_up": 5, "step_size_down": 8},
    ),
    "cyclic, halved": (
        fo.cyclic_lr,
        {"base_lr": 0.1, "max_lr": 0.3, "step_size_up": 4, "mode": "triangular2"},
    ),
    "cyclic momentum": (
        fo.cyclic_momentum,
        {
            **{"base_momentum": 0.7, "max_momentum": 0.95, "step_size_up": 6},
            **{"mode": "exp_range", "gamma": 0.98},
        },
    ),
    "one cycle": (
        fo.one_cycle_lr,
        {
            **{"max_lr": 0.3, "epochs": 5, "steps_per_epoch": 10, "pct_start": 0.3},
            **{"div_factor": 20.0, "final_div_factor": 100.0},
        },
    ),
    "one cycle momentum": (
        fo.one_cycle_momentum,
        {
            **{"total_steps": 47, "pct_start": 0.3, "base_momentum": 0.8, "max_momentum": 0.9},
            **{"anneal_strategy": "linear", "three_phase": True},
        },
    ),
    "swa": (fo.swa_lr, {"lr": 0.3, "swa_lr": 0.05, "anneal_epochs": 11}),
    "per epoch": (
        fo.per_epoch,
        {"schedule": fo.exponential_lr(0.3, 0.8), "steps_per_epoch": 4},
    ),
    "fractional": (
        fo.per_epoch,
        {
            **{"schedule": fo.cosine_annealing_warm_restarts(0.3, 3, 2)},
            **{"steps_per_epoch": 4, "fractional": True},
        },
    ),
    "warmup": (
        fo.warmup,
        {"schedule": fo.cosine_annealing_lr(0.3, 20, 0.1), "steps": 6, "start_factor": 0.25},
    ),
}
SCHEDULES = {name: build(**arguments) for name, (build, arguments) in SWEEP.items()}
SCHEDULES["chained"] = fo.chained([SCHEDULES["step"], SCHEDULES["linear"]])
SCHEDULES["sequential"] = fo.sequential_lr([SCHEDULES["one cycle"], SCHEDULES["swa"]], [40])
over_schedules = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
COUNTS = 45


def numeric(kind: Any) -> Any:
    """Parametrizes over every argument of every schedule that is of this kind."""
    cases = [
        pytest.param(build, arguments, name, id=f"{schedule}-{name}")
        for schedule, (build, arguments) in SWEEP.items()
        for name, value in arguments.items()
        if isinstance(value, kind) and not isinstance(value, bool)
    ]
    return pytest.mark.parametrize(("build", "arguments", "name"), cases)


def values_of(schedule: Schedule) -> list[float]:
    return [schedule(count) for count in range(COUNTS)]


@over_schedules
def test_traced_counts_agree_with_python_counts(schedule: Schedule) -> None:
    """As one array, and one by one; as integers, and as floats."""
    wanted = values_of(schedule)
    compiled = jax.jit(schedule)
    for dtype in ("int32", "float32"):
        counts = jnp.arange(COUNTS).astype(dtype)
        results = compiled(counts)
        assert (results.shape, results.dtype) == ((COUNTS,), np.float32)
        np.testing.assert_allclose(results, wanted, rtol=1e-6, atol=3e-8)
    for count in (0, 6, 7, 44):
        result = compiled(jnp.int32(count))
        assert (result.shape, result.dtype) == ((), np.float32)
        np.testing.assert_allclose(result, wanted[count], rtol=1e-6, atol=3e-8)
    for count in (7, np.int64(7), np.float32(7.0)):
        assert type(schedule(count)) is float
        assert schedule(count) == wanted[7]


@over_schedules
def test_traced_counts_agree_in_double(schedule: Schedule, x64: None) -> None:
    wanted = values_of(schedule)
    for dtype in ("int32", "float64"):
        results = jax.jit(schedule)(jnp.arange(COUNTS).astype(dtype))
        assert results.dtype == np.float64
        np.testing.assert_allclose(results, wanted, rtol=1e-13, atol=1e-16)


def batch_around(value: Any) -> list[Any]:
    if isinstance(value, tuple):
        return [value, tuple(v + 1 for v in value), value[::-1]]
    return [value, value + 3, value + 1] if isinstance(value, int) else [value, value / 2, 0.9]


def assert_vmap_equals_a_loop(
    build: Callable[..., Schedule], arguments: dict[str, Any], name: str, dtype: Any, rtol: float
) -> None:
    batch = batch_around(arguments[name])

    def at(value: Any) -> Any:
        return build(**{**arguments, name: value})(jnp.arange(COUNTS, dtype=jnp.int32))

    results = jax.jit(jax.vmap(at))(jnp.asarray(batch))
    assert results.dtype == dtype
    wanted = [values_of(build(**{**arguments, name: value})) for value in batch]
    np.testing.assert_allclose(results, wanted, rtol=rtol, atol=rtol / 20)


@numeric((int, float, tuple))
def test_vmap_over_every_argument_equals_a_loop(
    build: Callable[..., Schedule], arguments: dict[str, Any], name: str
) -> None:
    assert_vmap_equals_a_loop(build, arguments, name, np.float32, rtol=2e-6)


@numeric((int, tuple))
def test_vmap_over_lengths_of_64_bits(
    build: Callable[..., Schedule], arguments: dict[str, Any], name: str, x64: None
) -> None:
    """The counts have 32."""
    assert_vmap_equals_a_loop(build, arguments, name, np.float64, rtol=1e-12)


@pytest.mark.parametrize(
    ("build", "lengths"),
    [
        (lambda a: fo.step_lr(0.3, a), [7.0, 3.0]),
        (lambda a: fo.cosine_annealing_warm_restarts(0.3, a, 2), [3.0, 4.0]),
        (lambda a: fo.cosine_annealing_warm_restarts(0.3, 3, a), [1.0, 3.0]),
        (lambda a: fo.cyclic_lr(0.1, 0.3, a, mode="triangular2"), [5.0, 2.0]),
        (lambda a: fo.one_cycle_lr(0.3, a), [50.0, 60.0]),
    ],
)
def test_lengths_may_be_float_arrays(build: Any, lengths: list[float]) -> None:
    results = jax.vmap(lambda a: build(a)(jnp.arange(COUNTS)))(jnp.asarray(lengths))
    wanted = [values_of(build(int(length))) for length in lengths]
    np.testing.assert_allclose(results, wanted, rtol=2e-6, atol=1e-7)


def test_traced_lengths_under_a_python_count() -> None:
    result = jax.jit(lambda n: fo.step_lr(0.1, n)(7) + fo.linear_lr(0.1, 0.5, 1.0, n)(2))(4)
    np.testing.assert_allclose(result, 0.01 + 0.075, rtol=1e-6)


@numeric(float)
def test_derivatives_are_those_of_the_formula(
    build: Callable[..., Schedule], arguments: dict[str, Any], name: str, x64: None
) -> None:
    """Summed over counts that include every boundary, against a difference quotient."""

    def total(value: Any) -> Any:
        values = build(**{**arguments, name: value})(jnp.arange(COUNTS))
        return jnp.sum(values * jnp.linspace(1, 2, COUNTS))

    @jax.jit
    def slopes(value: Any) -> Any:
        quotient = (total(value + 1e-6) - total(value - 1e-6)) / 2e-6
        return jax.grad(total)(value), jax.jvp(total, (value,), (jnp.ones(()),))[1], quotient

    backward, forward, quotient = slopes(jnp.asarray(arguments[name]))
    np.testing.assert_allclose(backward, quotient, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(forward, quotient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("build", "value"),
    [
        (lambda gamma: fo.exponential_lr(0.1, gamma), 0.0),
        (lambda gamma: fo.step_lr(0.1, 3, gamma), 0.0),
        (lambda power: fo.polynomial_lr(0.1, 4, power), 0.5),
        (lambda power: fo.polynomial_lr(0.1, 4, power), 0.0),
        (lambda length: fo.polynomial_lr(0.1, length, 0.5), 4.0),
        (lambda pct: fo.one_cycle_lr(0.1, 10, pct_start=pct), 0.1),
        (lambda pct: fo.one_cycle_lr(0.1, 10, pct_start=pct), 1.0),
        (lambda length: fo.linear_lr(0.1, 0.5, 1.0, length), 0.0),
        (lambda length: fo.swa_lr(0.1, 0.5, length), 0.0),
        (lambda steps: fo.warmup(fo.exponential_lr(0.1, 0.9), steps), 0.0),
    ],
)
def test_derivatives_are_finite_at_the_edges(build: Any, value: float) -> None:
    def total(x: Any) -> Any:
        return jnp.sum(build(x)(jnp.arange(10)))

    for slopes in (jax.value_and_grad(total), lambda x: jax.jvp(total, (x,), (1.0,))):
        assert np.isfinite(jax.jit(slopes)(value)).all()


LATE = {
    "step": fo.step_lr(0.1, 1000, 0.999),
    "step, twice": fo.step_lr(0.1, 9_999_999, 0.5),
    "multi step": fo.multi_step_lr(0.1, [9_999_990, 10_000_000, 2**24 + 1]),
    "exponential": fo.exponential_lr(0.1, 0.999999),
    "growing": fo.exponential_lr(0.1, 1.0000001),
    "polynomial": fo.polynomial_lr(0.1, 10_000_001, 0.9),
    "polynomial, far": fo.polynomial_lr(0.1, 2**24 + 300, 2.0),
    "warm restarts": fo.cosine_annealing_warm_restarts(0.1, 1000),
    "doubling": fo.cosine_annealing_warm_restarts(0.1, 100, 2),
    "twelvefold": fo.cosine_annealing_warm_restarts(0.1, 3, 12, 0.01),
    "cyclic": fo.cyclic_lr(0.01, 0.1, 1000, 777),
    "cyclic, float": fo.cyclic_lr(0.01, 0.1, 1000.0),
    "cyclic, exp_range": fo.cyclic_lr(0.01, 0.1, 250, mode="exp_range", gamma=0.9999999),
    "one cycle": fo.one_cycle_lr(0.1, 20_000_000),
    "one cycle, three phases": fo.one_cycle_lr(0.1, 10_000_001, pct_start=0.4, three_phase=True),
    "one cycle momentum": fo.one_cycle_momentum(20_000_000),
    "swa": fo.swa_lr(0.1, 0.01, 20_000_000),
    "per epoch": fo.per_epoch(fo.cosine_annealing_lr(0.1, 100), 1000),
    "warmup": fo.warmup(fo.cosine_annealing_lr(0.1, 1000), 9_999_995),
    "chained": fo.chained([fo.step_lr(0.1, 30, 0.9999999), fo.exponential_lr(1.0, 0.9999999)]),
}


@pytest.mark.parametrize("schedule", LATE.values(), ids=LATE)
def test_late_counts_are_accurate_in_float32(schedule: Schedule) -> None:
    """Around 10 million, and beyond 2**24, where float32 skips counts."""
    counts = [9_999_989, 9_999_990, 9_999_999, 10_000_000, 10_000_001, 10_000_250, 2**24 + 251]
    if "one_cycle" in schedule.__name__:
        counts = [count for count in counts if count <= 10_000_001]
    results = jax.jit(schedule)(jnp.asarray(counts, jnp.int32))
    wanted = [schedule(count) for count in counts]
    np.testing.assert_allclose(results, wanted, rtol=6e-7, atol=3e-8)


def test_the_end_of_one_cycle_is_accurate_in_float32() -> None:
    """The last values are a 250,000th of the highest, and have their digits all the same."""
    schedule = fo.one_cycle_lr(0.1, 10_000)
    counts = np.arange(9_900, 10_000)
    results = jax.jit(schedule)(jnp.asarray(counts))
    np.testing.assert_allclose(results, [schedule(int(n)) for n in counts], rtol=2e-6)


@pytest.mark.parametrize("factor", [2, 3, 1_000_000])
def test_cycles_longer_than_an_int32_do_not_wrap(factor: int) -> None:
    schedule = fo.cosine_annealing_warm_restarts(0.1, 1_000, factor)
    counts = [999, 1000, 1_000_999_999, 1_000_001_000, 2**31 - 2]
    wanted = [schedule(count) for count in counts]
    for traced in (1_000, jnp.int32(1_000)):
        again = fo.cosine_annealing_warm_restarts(0.1, traced, factor)
        results = again(jnp.asarray(counts, jnp.int32))
        np.testing.assert_allclose(results, wanted, rtol=1e-6, atol=3e-8)


def test_a_cycle_that_is_over_holds_its_last_value_when_traced() -> None:
    lr, momentum = fo.one_cycle_lr(0.1, 8), fo.one_cycle_momentum(8)
    counts = jnp.asarray([7, 8, 9, 1000])
    np.testing.assert_allclose(lr(counts), [lr(7), lr(8), lr(7), lr(7)], rtol=1e-6)
    np.testing.assert_allclose(momentum(counts)[2:], 0.95, rtol=1e-6)


@over_schedules
def test_a_schedule_compiles_once_for_all_counts(schedule: Schedule) -> None:
    traced = []

    @jax.jit
    def at(count: Any) -> Any:
        traced.append(count)
        return schedule(count)

    for count in range(3):
        at(jnp.int32(count))
    assert len(traced) == 1


def test_equal_schedules_compile_once() -> None:
    traced = []

    @functools.partial(jax.jit, static_argnums=0)
    def at(schedule: Schedule, count: Any) -> Any:
        traced.append(schedule)
        return schedule(count)

    for _ in range(2):
        at(fo.warmup(fo.step_lr(0.1, 30), steps=3), jnp.int32(1))
    assert len(traced) == 1


@pytest.mark.parametrize(("build", "arguments"), SWEEP.values(), ids=SWEEP)
def test_equal_arguments_give_the_same_schedule(
    build: Callable[..., Schedule], arguments: dict[str, Any]
) -> None:
    schedule = build(**arguments)
    listed = {k: list(v) if isinstance(v, tuple) else v for k, v in arguments.items()}
    assert build(**listed) is schedule
    bound = inspect.signature(build).bind(**arguments)
    bound.apply_defaults()
    assert build(*bound.args) is schedule
    assert schedule.__name__ == build.__name__
    first = next(k for k, v in arguments.items() if isinstance(v, int | float))
    assert build(**{**arguments, first: arguments[first] + 1}) is not schedule


def test_momentum_schedules_drive_momentum_and_betas() -> None:
    g = p = jnp.asarray(1.0)
    for schedule in (fo.one_cycle_momentum(10), fo.cyclic_momentum(step_size_up=3)):
        sgd, adam = fo.sgd(0.1, momentum=schedule), fo.adam(0.1, betas=(schedule, 0.999))
        buf, avg = 0.0, 0.0
        states = sgd.init(p), adam.init(p)
        for count in range(8):
            sgd_state = sgd.update(g, states[0], p)[1]
            states = sgd_state, adam.update(g, states[1], p)[1]
            beta = schedule(count)
            buf, avg = beta * buf + 1.0, beta * avg + (1 - beta)
            np.testing.assert_allclose(states[0].momentum_buffer, buf, rtol=1e-5)
            np.testing.assert_allclose(states[1].exp_avg, avg, rtol=1e-5)


def test_schedules_nest() -> None:
    parts = [fo.warmup(fo.step_lr(0.3, 5), 4), fo.chained([fo.exponential_lr(0.3, 0.9)])]
    schedule = fo.per_epoch(fo.sequential_lr(parts, [8]), 2)
    results = jax.jit(schedule)(jnp.arange(COUNTS))
    np.testing.assert_allclose(results, values_of(schedule), rtol=1e-6)


def test_a_constant_function_keeps_the_shape_of_the_counts() -> None:
    for build in (fo.lambda_lr, fo.multiplicative_lr):
        results = build(0.1, lambda step: 1.0)(jnp.arange(6).reshape(2, 3))
        np.testing.assert_allclose(results, np.full((2, 3), 0.1), rtol=1e-6)
    assert fo.multi_step_lr(0.1, [])(jnp.arange(3)).shape == (3,)
    np.testing.assert_allclose(fo.multi_step_lr(0.1, jnp.asarray([1, 2]))(1), 0.01, rtol=1e-6)


def test_a_product_of_many_factors() -> None:
    """More than one block of them, and none."""
    schedule = fo.multiplicative_lr(0.3, shrinking)
    counts = [0, 1, 1023, 1024, 1025, 5000]
    results = jax.jit(schedule)(jnp.asarray(counts))
    np.testing.assert_allclose(results, [0.3 * 9 / (n + 9) for n in counts], rtol=5e-6)


@pytest.mark.parametrize("base", [0.0, 0.5, 0.999999, 1, 1.0000001, -0.5, 1e-50])
def test_powers_of_a_number_are_accurate_in_float32(base: float) -> None:
    exponents = np.unique(np.logspace(0, 7, 100).astype(np.int32))
    results = jax.jit(lambda n: power(base, n))(exponents)
    np.testing.assert_allclose(results, np.float64(base) ** exponents, rtol=4e-7, atol=1e-37)
    assert power(base, 0) == 1
    assert power(1.5, 10**6) == math.inf


FRACTIONS = st.floats(0.01, 1.0)
LENGTHS = st.integers(1, 300)
STEPS = st.integers(0, 5000)


@hypothesis.given(LENGTHS, FRACTIONS, STEPS)
def test_a_stair_is_flat_between_its_steps(size: int, gamma: float, count: int) -> None:
    schedule = fo.step_lr(2.0, size, gamma)
    start = count // size * size
    assert schedule(count) == schedule(start)
    assert schedule(start + size) == pytest.approx(schedule(start) * gamma)
    assert schedule(count) == fo.multi_step_lr(2.0, range(size, 5001, size), gamma)(count)


@hypothesis.given(LENGTHS, st.integers(1, 4), STEPS)
def test_a_restart_begins_at_the_top(first: int, factor: int, count: int) -> None:
    schedule = fo.cosine_annealing_warm_restarts(1.0, first, factor, 0.1)
    begin, length = 0, first
    while begin + length <= count:
        begin, length = begin + length, length * factor
    assert schedule(begin) == 1.0
    done = (count - begin) / length
    wanted = 0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2
    assert schedule(count) == pytest.approx(wanted, abs=1e-12)
    assert schedule(begin + length) == 1.0


@hypothesis.given(LENGTHS, LENGTHS, STEPS)
def test_a_triangle_stays_between_its_bounds_and_repeats(up: int, down: int, count: int) -> None:
    lr, momentum = fo.cyclic_lr(0.1, 0.5, up, down), fo.cyclic_momentum(0.8, 0.9, up, down)
    value = lr(count)
    assert 0.1 <= value <= 0.5 + 1e-15
    assert lr(count + up + down) == value
    assert (lr(0), lr(up)) == (0.1, pytest.approx(0.5, rel=1e-15))
    assert (value - 0.1) / 0.4 == pytest.approx((0.9 - momentum(count)) / 0.1, abs=1e-12)


@hypothesis.given(st.integers(2, 300), FRACTIONS, st.booleans(), st.sampled_from(["cos", "linear"]))
def test_one_cycle_stays_between_its_ends(
    total: int, pct_start: float, three_phase: bool, strategy: str
) -> None:
    schedule = fo.one_cycle_lr(
        1.0, total, pct_start=pct_start, anneal_strategy=strategy, three_phase=three_phase
    )
    values = [schedule(count) for count in range(total)]
    assert min(values) >= 1 / 25 / 1e4 - 1e-12
    assert max(values) <= 1 + 1e-12


@hypothesis.given(LENGTHS, FRACTIONS, STEPS)
def test_a_warmup_delays_its_schedule(steps: int, start: float, count: int) -> None:
    main = fo.exponential_lr(2.0, 0.999)
    schedule = fo.warmup(main, steps, start)
    assert schedule(0) == pytest.approx(2.0 * start)
    assert schedule(steps + count) == main(count)
    in_parts = fo.sequential_lr([fo.linear_lr(2.0, start, 1.0, steps), main], [steps])
    assert schedule(count) == pytest.approx(in_parts(count), rel=1e-12)


@hypothesis.given(LENGTHS, st.floats(0.1, 4.0), STEPS)
def test_a_polynomial_falls_to_zero(length: int, exponent: float, count: int) -> None:
    schedule = fo.polynomial_lr(2.0, length, exponent)
    assert schedule(0) == 2.0
    assert schedule(length + count) == 0.0
    assert 0.0 <= schedule(count + 1) <= schedule(count)
