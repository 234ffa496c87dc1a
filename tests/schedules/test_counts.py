"""Schedules: torch's numbers, for counts of any kind, under jit and vmap."""

from __future__ import annotations

import functools
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

# What torch 2.13's schedulers hold after construction and after each step.
GOLDEN: dict[str, tuple[Schedule, list[float]]] = {
    "constant": (fo.constant_lr(0.1, total_iters=3), [0.1 / 3, 0.1 / 3, 0.1 / 3, 0.1, 0.1]),
    "linear": (
        fo.linear_lr(0.1, total_iters=3),
        [0.1 / 3, 0.05555555555555556, 0.07777777777777779, 0.1, 0.1],
    ),
    "cosine": (
        fo.cosine_annealing_lr(0.1, 4),
        [
            *(0.1, 0.0853553390593, 0.05, 0.0146446609407, 0),
            *(0.0146446609407, 0.05, 0.0853553390593, 0.1, 0.0853553390593),
        ],
    ),
    "sequential": (
        fo.sequential_lr(
            [fo.linear_lr(1.0, 0.1, total_iters=3), fo.cosine_annealing_lr(1.0, 5)], [3]
        ),
        [
            *(0.1, 0.4, 0.7, 1, 0.9045084971875),
            *(0.6545084971875, 0.3454915028125, 0.0954915028125, 0, 0.0954915028125),
        ],
    ),
}
over_golden = pytest.mark.parametrize(("schedule", "values"), GOLDEN.values(), ids=GOLDEN)


def typical_schedules() -> dict[str, Schedule]:
    """One of each kind, with no argument at its default."""
    linear = fo.linear_lr(0.3, 0.25, 0.75, 7)
    cosine = fo.cosine_annealing_lr(0.3, 9, 0.01)
    constant = fo.constant_lr(0.3, 0.5, 4)
    return {
        "constant": constant,
        "linear": linear,
        "cosine": cosine,
        "sequential": fo.sequential_lr([constant, linear, cosine], [6, 15]),
    }


over_schedules = pytest.mark.parametrize(
    "schedule", typical_schedules().values(), ids=typical_schedules()
)


@over_golden
def test_a_python_count_gives_torchs_double(schedule: Schedule, values: list[float]) -> None:
    for count, value in enumerate(values):
        result = schedule(count)
        assert isinstance(result, float)
        assert result == pytest.approx(value, rel=1e-10, abs=1e-15)
        assert schedule(float(count)) == pytest.approx(value, rel=1e-10, abs=1e-15)


@over_golden
@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_a_traced_count_gives_the_same_in_float32(
    schedule: Schedule, values: list[float], dtype: str
) -> None:
    counts = jnp.arange(len(values)).astype(dtype)
    for results in (
        jax.jit(jax.vmap(schedule))(counts),
        jax.jit(schedule)(counts),  # an array of counts is a fine argument, too
        jnp.stack([jax.jit(schedule)(count) for count in counts]),
    ):
        assert results.dtype == np.float32
        np.testing.assert_allclose(results, values, rtol=5e-7, atol=1e-7 * max(values))


@over_schedules
def test_a_traced_count_gives_the_same_in_float64(schedule: Schedule, x64: None) -> None:
    wanted = [schedule(count) for count in range(40)]
    for dtype in ("int32", "int64", "float64"):
        results = jax.jit(jax.vmap(schedule))(jnp.arange(40).astype(dtype))
        assert results.dtype == np.float64
        np.testing.assert_allclose(results, wanted, rtol=1e-14, atol=1e-17)


@pytest.mark.parametrize(
    ("torch_name", "kwargs", "ours"),
    [
        ("ConstantLR", {"factor": 0.5, "total_iters": 4}, fo.constant_lr),
        ("ConstantLR", {}, fo.constant_lr),
        ("ConstantLR", {"factor": 1.0, "total_iters": 3}, fo.constant_lr),
        ("LinearLR", {"start_factor": 0.25, "end_factor": 0.5, "total_iters": 6}, fo.linear_lr),
        ("LinearLR", {}, fo.linear_lr),
        ("LinearLR", {"start_factor": 1.0, "end_factor": 0.0, "total_iters": 3}, fo.linear_lr),
        ("CosineAnnealingLR", {"T_max": 7, "eta_min": 0.01}, fo.cosine_annealing_lr),
        ("CosineAnnealingLR", {"T_max": 1}, fo.cosine_annealing_lr),
    ],
)
def test_live_torch_agrees(
    torch_name: str, kwargs: dict[str, Any], ours: Callable[..., Schedule]
) -> None:
    torch = pytest.importorskip("torch", reason="compares with torch's schedulers")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    scheduler = getattr(torch.optim.lr_scheduler, torch_name)(optimizer, **kwargs)
    schedule = ours(0.3, **kwargs)
    for count in range(30):
        # torch multiplies its way forward, and so collects roundings.
        assert schedule(count) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12, abs=1e-15)
        optimizer.step()
        scheduler.step()


def test_live_torch_agrees_about_sequences() -> None:
    torch = pytest.importorskip("torch", reason="compares with torch's schedulers")
    lrs = torch.optim.lr_scheduler
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    parts = [
        lrs.LinearLR(optimizer, 0.25, 0.75, 7),
        lrs.ConstantLR(optimizer, 0.5, 4),
        lrs.CosineAnnealingLR(optimizer, 9, 0.01),
    ]
    scheduler = lrs.SequentialLR(optimizer, parts, [5, 12])
    schedule = fo.sequential_lr(
        [
            fo.linear_lr(0.3, 0.25, 0.75, 7),
            fo.constant_lr(0.3, 0.5, 4),
            fo.cosine_annealing_lr(0.3, 9, 0.01),
        ],
        [5, 12],
    )
    for count in range(40):
        assert schedule(count) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        scheduler.step()


ARGUMENTS = {
    fo.constant_lr: {"lr": 0.3, "factor": 0.5, "total_iters": 4},
    fo.linear_lr: {"lr": 0.3, "start_factor": 0.25, "end_factor": 0.75, "total_iters": 7},
    fo.cosine_annealing_lr: {"lr": 0.3, "T_max": 9, "eta_min": 0.01},
}


@pytest.mark.parametrize(
    ("build", "name"),
    [
        pytest.param(build, name, id=f"{build.__name__}-{name}")
        for build, arguments in ARGUMENTS.items()
        for name in arguments
    ],
)
@pytest.mark.parametrize("kind", [int, jnp.int32, jnp.float32])
def test_vmap_over_every_argument_equals_a_loop(
    build: Callable[..., Schedule], name: str, kind: Any
) -> None:
    """Lengths are batched as integers, and as floats where the count is a traced float."""
    value = ARGUMENTS[build][name]
    values = [value, value + 3, value + 1] if isinstance(value, int) else [value, value / 2, 0.9]
    batch = jnp.asarray(values)
    if kind is jnp.float32:
        batch = batch.astype(jnp.float32)

    def at(value: Any, count: Any) -> Any:
        return build(**{**ARGUMENTS[build], name: value})(count)

    for count in (0, 3, 4, 7, 25):
        results = jax.vmap(functools.partial(at, count=kind(count)))(batch)
        assert results.dtype == np.float32
        wanted = [at(value, count) for value in values]
        np.testing.assert_allclose(results, wanted, rtol=2e-6, atol=1e-7)


def test_vmap_over_milestones_equals_a_loop() -> None:
    def at(first: Any, second: Any, count: Any) -> Any:
        return fo.sequential_lr(list(typical_schedules().values())[:3], [first, second])(count)

    firsts, seconds = [2, 5, 7], [9, 12, 8]
    batched = jax.jit(jax.vmap(at, in_axes=(0, 0, None)))
    for count in range(15):
        results = batched(jnp.asarray(firsts), jnp.asarray(seconds), jnp.int32(count))
        wanted = [at(a, b, count) for a, b in zip(firsts, seconds, strict=True)]
        np.testing.assert_allclose(results, wanted, rtol=1e-6)


@pytest.mark.parametrize(
    "schedule",
    [
        fo.linear_lr(0.1, 0.5, 1.0, 20_000_000),
        fo.cosine_annealing_lr(0.1, 20_000_000),
        fo.cosine_annealing_lr(0.1, 1_000),
        fo.constant_lr(0.1, 0.5, 10_000_000),
        fo.sequential_lr(
            [fo.linear_lr(0.1, 0.5, 1.0, 9_999_990), fo.cosine_annealing_lr(0.1, 1_000)],
            [9_999_990],
        ),
    ],
    ids=["linear", "long cosine", "short cosine", "constant", "sequential"],
)
def test_late_counts_are_accurate_in_float32(schedule: Schedule) -> None:
    """Around 10 million, and beyond 2**24, where float32 skips counts."""
    counts = [9_999_989, 9_999_990, 9_999_999, 10_000_000, 10_000_001, 10_000_250, 2**24 + 251]
    results = jax.jit(jax.vmap(schedule))(jnp.asarray(counts, jnp.int32))
    wanted = [schedule(count) for count in counts]
    np.testing.assert_allclose(results, wanted, rtol=5e-7, atol=3e-8)


def test_equal_arguments_give_the_same_schedule() -> None:
    assert fo.constant_lr(0.1) is fo.constant_lr(0.1, 1 / 3, total_iters=5)
    assert fo.linear_lr(0.1) is fo.linear_lr(lr=0.1)
    assert fo.cosine_annealing_lr(0.1, 10) is fo.cosine_annealing_lr(0.1, T_max=10, eta_min=0.0)
    assert fo.cosine_annealing_lr(0.1, 10) is not fo.cosine_annealing_lr(0.1, 11)
    parts = fo.linear_lr(0.1), fo.constant_lr(0.1)
    assert fo.sequential_lr(list(parts), [3]) is fo.sequential_lr(parts, (3,))
    assert fo.sequential_lr(parts, [3]) is not fo.sequential_lr(parts, [4])


@over_schedules
def test_a_schedule_drives_lr_and_other_hyperparameters(schedule: Schedule) -> None:
    """The first update is made with the value at count 0."""
    g, p = jnp.asarray(1.0), jnp.asarray(2.0)
    tx = fo.sgd(schedule, weight_decay=schedule)
    state = tx.init(p)
    update = jax.jit(tx.update)
    for count in range(20):
        updates, state = update(g, state, p)
        value = schedule(count)
        np.testing.assert_allclose(updates, -value * (1 + value * 2.0), rtol=2e-6)


def test_derivatives_with_respect_to_a_schedules_arguments(x64: None) -> None:
    slope = jax.grad(lambda eta: fo.cosine_annealing_lr(0.1, 10, eta)(jnp.asarray(10)))
    np.testing.assert_allclose(slope(jnp.asarray(0.01)), 1.0)
    slope = jax.grad(lambda lr: fo.linear_lr(lr, 0.5, 1.0, 4)(2))
    np.testing.assert_allclose(slope(jnp.asarray(0.1)), 0.75)


class TestErrors:
    """torch's words, without torch and with it."""

    CASES = (
        (
            "ConstantLR",
            fo.constant_lr,
            {"factor": 1.5},
            "Constant multiplicative factor expected to be between 0 and 1.",
        ),
        (
            "ConstantLR",
            fo.constant_lr,
            {"factor": -0.5},
            "Constant multiplicative factor expected to be between 0 and 1.",
        ),
        (
            "LinearLR",
            fo.linear_lr,
            {"start_factor": 0.0},
            "Starting multiplicative factor expected to be greater than 0 and less or equal to 1.",
        ),
        (
            "LinearLR",
            fo.linear_lr,
            {"start_factor": 1.5},
            "Starting multiplicative factor expected to be greater than 0 and less or equal to 1.",
        ),
        (
            "LinearLR",
            fo.linear_lr,
            {"end_factor": -0.1},
            "Ending multiplicative factor expected to be between 0 and 1.",
        ),
    )

    @pytest.mark.parametrize(("torch_name", "build", "kwargs", "message"), CASES)
    def test_factors(
        self, torch_name: str, build: Callable[..., Any], kwargs: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError) as error:
            build(0.1, **kwargs)
        assert str(error.value) == message
        torch = pytest.importorskip("torch", reason="compares with torch's own errors")
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        with pytest.raises(ValueError) as error:
            getattr(torch.optim.lr_scheduler, torch_name)(optimizer, **kwargs)
        assert str(error.value) == message

    def test_sequences(self) -> None:
        part = fo.linear_lr(0.1)
        with pytest.raises(ValueError, match=r"^SequentialLR expects at least one scheduler, but"):
            fo.sequential_lr([], [])
        with pytest.raises(ValueError) as error:
            fo.sequential_lr([part, part], [1, 2])
        assert str(error.value) == (
            "Sequential Schedulers expects number of schedulers provided to be one more than the "
            "number of milestone points, but got number of schedulers 2 and the number of "
            "milestones to be equal to 2"
        )


FACTORS = st.floats(0.01, 1.0)
LENGTHS = st.integers(1, 1000)
COUNTS = st.integers(0, 5000)


@hypothesis.given(FACTORS, st.floats(0.0, 1.0), LENGTHS, COUNTS)
def test_a_ramp_is_monotone_stays_between_its_ends_and_arrives(
    start: float, end: float, length: int, count: int
) -> None:
    schedule = fo.linear_lr(2.0, start, end, length)
    here, following = schedule(count), schedule(count + 1)
    low, high = sorted((2 * start, 2 * end))
    assert low - 1e-12 <= here <= high + 1e-12
    assert (following - here) * (end - start) >= -1e-15
    assert schedule(0) == pytest.approx(2 * start)
    assert schedule(length + count) == pytest.approx(2 * end, abs=1e-15)


@hypothesis.given(LENGTHS, COUNTS, st.floats(0.0, 1.0))
def test_a_cosine_is_even_periodic_and_bounded(length: int, count: int, eta_min: float) -> None:
    schedule = fo.cosine_annealing_lr(1.0, length, eta_min)
    value = schedule(count)
    assert eta_min - 1e-12 <= value <= 1 + 1e-12
    assert schedule(count + 2 * length) == pytest.approx(value, abs=1e-12)
    assert schedule(-count) == pytest.approx(value, abs=1e-12)
    opposite = schedule(count + length)
    assert value + opposite == pytest.approx(1 + eta_min)
    # The formula as written, phase not reduced.
    plain = eta_min + (1 - eta_min) * (1 + math.cos(math.pi * count / length)) / 2
    assert value == pytest.approx(plain, abs=1e-10)


@hypothesis.given(FACTORS, LENGTHS, COUNTS)
def test_a_constant_factor_ends_at_its_length(factor: float, length: int, count: int) -> None:
    value = fo.constant_lr(3.0, factor, length)(count)
    assert value == (3.0 * factor if count < length else 3.0)


@hypothesis.given(st.lists(LENGTHS, max_size=4), COUNTS)
def test_a_sequence_is_its_parts_counted_anew(gaps: list[int], count: int) -> None:
    milestones = list(np.cumsum(gaps, dtype=int).tolist())
    parts = [fo.linear_lr(float(k + 1), 0.5, 1.0, 50) for k in range(len(gaps) + 1)]
    begins = [0, *milestones]
    active = max(k for k, begin in enumerate(begins) if begin <= count)
    wanted = parts[active](count - begins[active])
    assert fo.sequential_lr(parts, milestones)(count) == wanted


@hypothesis.settings(max_examples=20)
@hypothesis.given(st.sampled_from(sorted(typical_schedules())), COUNTS)
def test_traced_counts_agree_with_python_counts(name: str, count: int) -> None:
    schedule = typical_schedules()[name]
    traced = schedule(jnp.int32(count))
    assert isinstance(traced, jax.Array)
    assert float(traced) == pytest.approx(schedule(count), rel=1e-6, abs=3e-8)
