"""Schedules inside jit, vmap and grad, early and late."""

from __future__ import annotations

import copy
import functools
import inspect
import math
import pickle
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim as fo
from functorch_optim import Schedule
from functorch_optim.core.arithmetic import power
from tests.tables.schedules import SCHEDULES, Row, over, over_rows, shrinking

COUNTS = 45


def numeric(kind: Any) -> Any:
    """Parametrizes over every argument of every schedule that is of this kind."""
    cases = [
        pytest.param(row.build, row.arguments, name, id=f"{schedule}-{name}")
        for schedule, row in SCHEDULES.items()
        for name, value in row.arguments.items()
        if isinstance(value, kind) and not isinstance(value, bool) and name != "schedules"
    ]
    return pytest.mark.parametrize(("build", "arguments", "name"), cases)


def values_of(schedule: Schedule) -> list[float]:
    return [schedule(count) for count in range(COUNTS)]


@over_rows
def test_traced_counts_agree_with_python_counts(row: Row) -> None:
    """As one array, and one by one; as integers, and as floats."""
    schedule = row.schedule
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


@over_rows
def test_traced_counts_agree_in_double(row: Row, x64: None) -> None:
    schedule = row.schedule
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


@over(lambda row: row.late)
def test_late_counts_are_accurate_in_float32(row: Row, case: Schedule) -> None:
    """Around 10 million, and beyond 2**24, where float32 skips counts."""
    counts = [9_999_989, 9_999_990, 9_999_999, 10_000_000, 10_000_001, 10_000_250, 2**24 + 251]
    if row.ends:
        counts = [count for count in counts if count <= 10_000_001]
    results = jax.jit(case)(jnp.asarray(counts, jnp.int32))
    wanted = [case(count) for count in counts]
    np.testing.assert_allclose(results, wanted, rtol=6e-7, atol=3e-8)


FAR = [1_200_000_000, 2**31, 10**10, 10**400]
FAR_COUNTS = [1, 10**9, 1_199_999_999, 1_200_000_000, 1_200_000_001, 2**31 - 2, 2**31 - 1]


def assert_far_lengths_are_right(
    build: Callable[[int], Schedule], ends: bool, dtype: Any, atol: float
) -> None:
    for length in FAR:
        counts = [count for count in FAR_COUNTS if not ends or count <= length]
        schedule = build(length)
        wanted = [schedule(count) for count in counts]
        results = jax.jit(schedule)(jnp.asarray(counts, jnp.int32))
        assert results.dtype == dtype
        np.testing.assert_allclose(results, wanted, rtol=0, atol=atol, err_msg=str(length))
        # A count in float32 is off itself, by as much as 64.
        np.testing.assert_allclose(schedule(jnp.float32(10**9)), schedule(10**9), atol=atol)


@over(lambda row: row.far)
def test_lengths_may_be_beyond_every_count(row: Row, case: Callable[[int], Schedule]) -> None:
    assert_far_lengths_are_right(case, row.ends, np.float32, atol=2e-7)


@over(lambda row: row.far)
def test_lengths_may_be_beyond_every_count_of_64_bits(
    row: Row, case: Callable[[int], Schedule], x64: None
) -> None:
    assert_far_lengths_are_right(case, row.ends, np.float64, atol=1e-12)


def test_a_batch_beside_a_length_beyond_every_count() -> None:
    def at(lr: Any, gamma: Any, count: Any) -> Any:
        return fo.step_lr(lr, sys.maxsize, gamma)(count) + fo.multi_step_lr(lr, [10**10])(count)

    results = jax.vmap(at)(jnp.arange(3.0), jnp.full(3, 0.5), jnp.full(3, 10**9, jnp.int32))
    np.testing.assert_allclose(results, 2 * np.arange(3.0))
    lengths = np.asarray([5, 10**10])
    assert float(fo.multi_step_lr(1.0, lengths, 0.5)(jnp.int32(7))) == 0.5


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


@over_rows
def test_a_schedule_compiles_once_for_all_counts(row: Row) -> None:
    schedule = row.schedule
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


@over_rows
def test_equal_arguments_give_the_same_schedule(row: Row) -> None:
    build, arguments, schedule = row.build, row.arguments, row.schedule
    listed = {k: list(v) if isinstance(v, tuple) else v for k, v in arguments.items()}
    assert build(**listed) is schedule
    bound = inspect.signature(build).bind(**arguments)
    bound.apply_defaults()
    assert build(*bound.args) is schedule
    assert schedule.__name__ == build.__name__
    for first in [k for k, v in arguments.items() if type(v) in (int, float)][:1]:
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


def test_vmap_over_milestones_equals_a_loop() -> None:
    parts = [fo.constant_lr(0.3, 0.5, 4), fo.linear_lr(0.3, 0.25, 0.75, 7)]
    parts.append(fo.cosine_annealing_lr(0.3, 9, 0.01))

    def at(first: Any, second: Any, count: Any) -> Any:
        return fo.sequential_lr(parts, [first, second])(count)

    firsts, seconds = [2, 5, 7], [9, 12, 8]
    batched = jax.jit(jax.vmap(at, in_axes=(0, 0, None)))
    for count in range(15):
        results = batched(jnp.asarray(firsts), jnp.asarray(seconds), jnp.int32(count))
        wanted = [at(a, b, count) for a, b in zip(firsts, seconds, strict=True)]
        np.testing.assert_allclose(results, wanted, rtol=1e-6)


@over_rows
def test_a_schedule_drives_lr_and_other_hyperparameters(row: Row) -> None:
    """The first update is made with the value at count 0."""
    schedule = row.schedule
    g, p = jnp.asarray(1.0), jnp.asarray(2.0)
    tx = fo.sgd(schedule, weight_decay=schedule)
    state = tx.init(p)
    update = jax.jit(tx.update)
    for count in range(4):
        updates, state = update(g, state, p)
        value = schedule(count)
        np.testing.assert_allclose(updates, -value * (1 + value * 2.0), rtol=2e-6)


@over_rows
def test_a_schedule_is_pickled_by_its_factory_and_its_arguments(row: Row) -> None:
    schedule = row.schedule
    assert callable(schedule)
    for twin in (pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule)):
        assert twin is schedule
    assert {schedule: 1}[schedule] == 1
    assert repr(schedule).startswith(f"{row.build.__name__}(")
    with pytest.raises(AttributeError):
        schedule.lr = 0.5  # type: ignore[attr-defined]


def test_a_schedule_shows_the_call_that_built_it() -> None:
    cosine = fo.cosine_annealing_lr(0.1, 50)
    assert repr(cosine) == "cosine_annealing_lr(0.1, T_max=50)"
    assert repr(fo.warmup(cosine, 5)) == f"warmup({cosine!r}, steps=5)"
    assert repr(fo.polynomial_lr(0.1)) == "polynomial_lr(0.1)"
    assert repr(fo.one_cycle_momentum(9)) == "one_cycle_momentum(9)"


def test_a_schedule_of_arrays_is_its_own_and_pickles() -> None:
    build = lambda: fo.warmup(fo.step_lr(jnp.float32(0.1), 3), 2)  # noqa: E731
    schedule = build()
    assert build() is not schedule
    twin = pickle.loads(pickle.dumps(schedule))
    assert float(twin(4)) == float(schedule(4))
