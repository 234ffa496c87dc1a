"""lbfgs: the same numbers as torch, recorded and live; and its line search on its own."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functorch_optim.algorithms import strong_wolfe
from functorch_optim.algorithms.lbfgs import LBFGSState, lbfgs
from tests.support.parity import assert_close
from tests.tables.lbfgs import CASES, RECORDED, Case, our_rows, torch_rows

COUNTS = 3  # n_iter, func_evals and pairs come first in a row
NUMBERS = 3  # then t, H_diag and prev_loss

over_cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@functools.cache
def ours(case: str) -> tuple[np.ndarray, LBFGSState]:
    with jax.enable_x64(True):
        return our_rows(next(c for c in CASES if c.name == case))


@functools.cache
def theirs(case: str) -> tuple[np.ndarray, Any]:
    return torch_rows(next(c for c in CASES if c.name == case))


@functools.cache
def recording() -> dict[str, np.ndarray]:
    with np.load(RECORDED) as file:
        return dict(file)


def assert_rows_agree(actual: np.ndarray, wanted: np.ndarray, case: Case) -> None:
    """All counts, and the parameters within rtol; what the state holds is less well conditioned."""
    np.testing.assert_array_equal(actual[:, :COUNTS], wanted[:, :COUNTS])
    for i, (row, other) in enumerate(zip(actual, wanted, strict=True)):
        np.testing.assert_array_equal(np.isnan(row), np.isnan(other))
        row, other = np.nan_to_num(row), np.nan_to_num(other)
        start = COUNTS + NUMBERS
        assert_close(row[start:], other[start:], case.rtol, f"parameters after update {i}")
        np.testing.assert_allclose(
            row[COUNTS:start], other[COUNTS:start], rtol=max(1e-6, case.rtol), atol=1e-12
        )


@over_cases
def test_agrees_with_what_torch_did(case: Case) -> None:
    assert_rows_agree(ours(case.name)[0], recording()[case.name], case)


@over_cases
def test_agrees_with_torch(case: Case) -> None:
    """And the state that torch keeps is in ours under its names."""
    pytest.importorskip("torch", reason="compares with torch's own run")
    rows, state = ours(case.name)
    wanted, their_state = theirs(case.name)
    assert_rows_agree(rows, wanted, case)
    count, size = int(wanted[-1, 2]), state.ro.size
    ring = [(int(state.pairs) - count + i) % size for i in range(count)]
    if wanted[-1, 0] == 0 or case.problem in ("wall", "overflow"):
        return
    for name in ("d", "prev_flat_grad"):
        found, other = np.asarray(getattr(state, name)), their_state[name].numpy()
        np.testing.assert_allclose(found, other, rtol=1e-4, atol=1e-6 * np.max(np.abs(other)))
    for name in ("old_dirs", "old_stps", "ro"):
        for j, theirs_row in zip(ring, their_state[name], strict=True):
            found, other = np.asarray(getattr(state, name)[j]), theirs_row.numpy()
            np.testing.assert_allclose(found, other, rtol=1e-4, atol=1e-6 * np.max(np.abs(other)))


@over_cases
def test_torch_still_does_what_was_recorded(case: Case) -> None:
    pytest.importorskip("torch", reason="compares the recorded results with torch's own")
    assert_rows_agree(theirs(case.name)[0], recording()[case.name], case)


def test_what_is_recorded_are_the_cases() -> None:
    names = [case.name for case in CASES]
    assert len({*names}) == len(names)
    assert {*recording()} == {*names}, "run `python tests/golden/record_lbfgs.py` again"


def test_the_cases_go_where_they_are_meant_to() -> None:
    """Pairs are rejected, the history runs over, runs end early, values are NaN."""
    rows = recording()
    last = {name: row[-1] for name, row in rows.items()}
    assert last["cosines-lr=0.3-max_iter=6"][2] < last["cosines-lr=0.3-max_iter=6"][0] - 1
    assert last["linear-lr=0.125"][2] == 0
    assert last["rosenbrock-wolfe-history_size=3"][2] == 3
    assert last["rosenbrock-wolfe-history_size=3"][0] > 20
    assert last["at_minimum-wolfe"][0] == 0
    assert list(rows["rosenbrock-wolfe-tolerance_grad=1.0"][:, 0]) == [6, 6, 6]
    assert last["stairs-wolfe-lr=10.0"][1] > 10 * last["stairs-wolfe-lr=10.0"][0]
    assert np.isnan(last["wall-wolfe-lr=10.0-stop_on_nan=False-max_iter=4"]).any()
    assert np.isfinite(last["overflow-wolfe-lr=6000.0-stop_on_nan=False"]).all()


def test_arguments_and_their_defaults_are_torchs() -> None:
    torch = pytest.importorskip("torch", reason="compares signatures with torch's")
    ours = inspect.signature(lbfgs).parameters
    wanted = inspect.signature(torch.optim.LBFGS).parameters
    positional = [name for name, p in ours.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert ["params", *positional] == [*wanted]
    for name in positional:
        assert ours[name].default == wanted[name].default, name


# The line search on its own, against the same rules written as loops.

Function = Callable[[float], tuple[float, float]]


class Found(NamedTuple):
    t: float
    f: float
    slope: float


def minimum_of_cubic(p: Found, q: Found, least: float, most: float) -> float:
    """Where the cubic with these values and slopes is least."""
    with np.errstate(all="ignore"):
        d1 = p.slope + q.slope - np.float64(3) * (p.f - q.f) / (np.float64(p.t) - q.t)
        square = d1**2 - p.slope * q.slope
        if not square >= 0:
            return (least + most) / 2
        d2 = np.sqrt(square)
        a, b = (p, q) if p.t <= q.t else (q, p)
        t = b.t - (b.t - a.t) * ((b.slope + d2 - d1) / (b.slope - a.slope + 2 * d2))
    return float(min(max(t, least), most))


def searched(
    function: Function, t: float, f0: float, slope0: float, size: float, limit: int
) -> tuple[list[float], Found]:
    """All trial steps, and the point that the search ends at."""
    trials: list[float] = []

    def evaluate(t: float) -> Found:
        trials.append(t)
        return Found(t, *function(t))

    def high(p: Found) -> bool:
        return p.f > f0 + 1e-4 * p.t * slope0

    def is_flat(p: Found) -> bool:
        return abs(p.slope) <= -0.9 * slope0

    start = previous = Found(0.0, f0, slope0)
    new, count = evaluate(t), 0
    ends: list[Found] = []
    while count < limit:
        if high(new) or (count > 1 and new.f >= previous.f):
            ends = [previous, new]
            break
        if is_flat(new):
            return trials, new
        if new.slope >= 0:
            ends = [previous, new]
            break
        bounds = new.t + 0.01 * (new.t - previous.t), new.t * 10
        t = minimum_of_cubic(previous, new, *bounds)
        previous, new = new, evaluate(t)
        count += 1
    if count == limit:
        ends = [start, new]

    low = 0 if ends[0].f <= ends[1].f else 1
    too_near = done = False
    while not done and count < limit:
        left, right = sorted(p.t for p in ends)
        if (right - left) * size < 1e-9:
            break
        t = minimum_of_cubic(ends[0], ends[1], left, right)
        margin = 0.1 * (right - left)
        if min(right - t, t - left) < margin:
            if too_near or t >= right or t <= left:
                t = right - margin if abs(t - right) < abs(t - left) else left + margin
                too_near = False
            else:
                too_near = True
        else:
            too_near = False
        new = evaluate(t)
        count += 1
        if high(new) or new.f >= ends[low].f:
            ends[1 - low] = new
            low = 0 if ends[0].f <= ends[1].f else 1
        else:
            if is_flat(new):
                done = True
            elif new.slope * (ends[1 - low].t - ends[low].t) >= 0:
                ends[1 - low] = ends[low]
            ends[low] = new
    return trials, ends[low]


def driven(
    function: Function, t: float, f0: float, slope0: float, size: float, limit: int
) -> tuple[list[float], Found]:
    """The same by the library's search, one operation at a time as numpy computes."""
    number = functools.partial(jnp.asarray, dtype=jnp.float64)
    search = strong_wolfe.begin(
        number(t), number(f0), number(slope0), number(size), jnp.asarray(limit, jnp.int32)
    )
    trials: list[float] = []
    best = Found(0.0, f0, slope0)
    for _ in range(limit + 1):
        trial = float(search.t)
        trials.append(trial)
        f, slope = function(trial)
        search, outcome = strong_wolfe.advance(search, number(f), number(slope))
        if outcome.trial_is_low:
            best = Found(trial, f, slope)
        if outcome.start_is_low:
            best = Found(0.0, f0, slope0)
        if outcome.ended:
            break
    else:
        raise AssertionError("more trials than allowed")
    low = Found(*map(float, search.low))
    assert low == best, "what the outcome says became low is not what is low"
    return trials, low


def rippled(coefficients: list[float], ripple: float, quantum: float | None) -> Function:
    """A polynomial from 0 with the slope -1 there, with ripples on it, its values rounded down."""
    weights = np.array([-1.0, *coefficients])
    powers = np.arange(1, weights.size + 1)

    def function(t: float) -> tuple[float, float]:
        f = float(np.sum(weights * t**powers) + ripple * (1 - math.cos(20 * t)))
        slope = float(np.sum(weights * powers * t ** (powers - 1)) + 20 * ripple * math.sin(20 * t))
        return (f if quantum is None else math.floor(f / quantum) * quantum), slope

    return function


def thousandths(least: int, most: int) -> st.SearchStrategy[float]:
    return st.integers(1000 * least, 1000 * most).map(lambda n: n / 1000)


functions = st.builds(
    rippled,
    st.tuples(thousandths(-2, 2), thousandths(-2, 2), thousandths(0, 2)).map(list),
    st.sampled_from([0.0, 0.0, 0.01, -0.1]),
    st.sampled_from([None, None, 0.25, 2.0]),
)
first_trials = st.sampled_from([1e-3, 0.1, 0.3, 1.0, 3.0, 30.0])
limits = st.sampled_from([0, 1, 2, 3, 5, 12, 25, 25])


@hypothesis.example(rippled([-1.6, 1.9, 0.5], 0.0, 2.0), 1.0, 1.0, 25)  # a tie in the zoom
@hypothesis.example(rippled([-0.1, 1.2, 1.0], 0.01, 2.0), 1e-3, 1.0, 25)  # one while trials grow
@hypothesis.settings(max_examples=50)
@hypothesis.given(functions, first_trials, st.sampled_from([1e-9, 1e-6, 1.0]), limits)
def test_search_tries_and_finds_what_the_rules_say(
    function: Function, t: float, size: float, limit: int
) -> None:
    f0, slope0 = function(0.0)
    with jax.enable_x64(True):
        found = driven(function, t, f0, slope0, size, limit)
    assert found == searched(function, t, f0, slope0, size, limit)


@hypothesis.example(rippled([-1.6, 1.9, 0.5], 0.0, 2.0), 1.0, 25)
@hypothesis.example(rippled([-0.1, 1.2, 1.0], 0.01, 2.0), 1e-3, 25)
@hypothesis.settings(max_examples=100)
@hypothesis.given(functions, first_trials, limits)
def test_the_rules_are_torchs(function: Function, t: float, limit: int) -> None:
    """torch's first iteration from 0 searches along d = 1, so that x is the step."""
    torch = pytest.importorskip("torch", reason="compares with torch's own search")
    x = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
    points: list[float] = []

    def closure() -> float:
        points.append(float(x.detach()))
        f, slope = function(points[-1])
        x.grad = torch.tensor(slope, dtype=torch.float64)
        return f

    torch.optim.LBFGS(
        [x], lr=t, max_iter=1, max_eval=limit + 1, tolerance_grad=0.0, line_search_fn="strong_wolfe"
    ).step(closure)
    trials, low = searched(function, t, *function(0.0), size=1.0, limit=limit)
    # torch computes with 0-d tensors; its roundings differ in places.
    np.testing.assert_allclose(points[1:], trials, rtol=1e-9)
    np.testing.assert_allclose(float(x.detach()), low.t, rtol=1e-9)


def test_many_searches_run_under_one_vmap() -> None:
    """Compiled, each ends as it does alone; those that are over wait for the others."""
    random = np.random.RandomState(5)
    drawn = random.uniform([-0.5, -1, 0.1], [1.5, 1, 2.1], (80, 3))
    firsts = 10 ** random.uniform(-2, 1.5, 80)

    def search(weights: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        def function(t: jax.Array) -> tuple[jax.Array, jax.Array]:
            a, b, c = weights
            return -t + a * t**2 + b * t**3 + c * t**4, -1 + 2 * a * t + 3 * b * t**2 + 4 * c * t**3

        def turn(carry: Any) -> Any:
            after, outcome = strong_wolfe.advance(carry[0], *function(carry[0].t))
            return after, outcome.ended

        zero, one = jnp.zeros(()), jnp.ones(())
        begun = strong_wolfe.begin(t, zero, -one, one, jnp.asarray(25, jnp.int32))
        after, _ = jax.lax.while_loop(lambda carry: ~carry[1], turn, (begun, jnp.asarray(False)))
        return after.low.t, after.trials

    with jax.enable_x64(True):
        steps, counts = jax.jit(jax.vmap(search))(jnp.asarray(drawn), jnp.asarray(firsts))
    for w, first, t, count in zip(drawn, firsts, steps, counts, strict=True):
        trials, low = searched(rippled(list(w), 0.0, None), first, 0.0, -1.0, 1.0, 25)
        assert len(trials) == count
        np.testing.assert_allclose(t, low.t, rtol=1e-9)
    assert max(counts) > 5
