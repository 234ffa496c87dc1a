"""What holds for schedules of any arguments."""

from __future__ import annotations

import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

import functorch_optim as fo

FRACTIONS = st.floats(0.01, 1.0)
LENGTHS = st.integers(1, 300)
STEPS = st.integers(0, 5000)
LONG = st.integers(1, 1000)


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


@hypothesis.given(FRACTIONS, st.floats(0.0, 1.0), LONG, STEPS)
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


@hypothesis.given(LONG, STEPS, st.floats(0.0, 1.0))
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


@hypothesis.given(FRACTIONS, LONG, STEPS)
def test_a_constant_factor_ends_at_its_length(factor: float, length: int, count: int) -> None:
    value = fo.constant_lr(3.0, factor, length)(count)
    assert value == (3.0 * factor if count < length else 3.0)


@hypothesis.given(st.lists(LONG, max_size=4), STEPS)
def test_a_sequence_is_its_parts_counted_anew(gaps: list[int], count: int) -> None:
    milestones = list(np.cumsum(gaps, dtype=int).tolist())
    parts = [fo.linear_lr(float(k + 1), 0.5, 1.0, 50) for k in range(len(gaps) + 1)]
    begins = [0, *milestones]
    active = max(k for k, begin in enumerate(begins) if begin <= count)
    wanted = parts[active](count - begins[active])
    assert fo.sequential_lr(parts, milestones)(count) == wanted
