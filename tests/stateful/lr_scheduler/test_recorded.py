"""Sequences recorded from torch 2.13.0, and what differs from it on purpose. Without torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.support.lr_scheduler import OURS, Build, advance, optimizer, seen

SEQUENCES: dict[str, tuple[Build, list[float]]] = {
    "Step": (lambda lib, opt: lib.StepLR(opt, 3), [0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.001]),
    "MultiStep": (
        lambda lib, opt: lib.MultiStepLR(opt, [2, 2, 5]),
        [0.1, 0.1, 0.001, 0.001, 0.001, 0.0001],
    ),
    "Constant": (
        lambda lib, opt: lib.ConstantLR(opt, total_iters=3),
        [0.0333333333, 0.0333333333, 0.0333333333, 0.1, 0.1],
    ),
    "Linear": (
        lambda lib, opt: lib.LinearLR(opt, total_iters=3),
        [0.0333333333, 0.0555555556, 0.0777777778, 0.1, 0.1],
    ),
    "Polynomial": (
        lambda lib, opt: lib.PolynomialLR(opt, 4, 2),
        [0.1, 0.05625, 0.025, 0.00625, 0.0, 0.0],
    ),
    "Cosine": (
        lambda lib, opt: lib.CosineAnnealingLR(opt, 4),
        [0.1, 0.0853553391, 0.05, 0.0146446609, 0, 0.0146446609, 0.05, 0.0853553391, 0.1],
    ),
    "Cyclic": (
        lambda lib, opt: lib.CyclicLR(opt, 0.01, 0.1, 4),
        [0.01, 0.0325, 0.055, 0.0775, 0.1, 0.0775, 0.055, 0.0325, 0.01],
    ),
    "Restarts": (
        lambda lib, opt: lib.CosineAnnealingWarmRestarts(opt, 3, 2),
        [0.1, 0.075, 0.025, 0.1, 0.0933012702, 0.075, 0.05, 0.025, 0.0066987298, 0.1],
    ),
    "OneCycle": (
        lambda lib, opt: lib.OneCycleLR(opt, 0.1, total_steps=8),
        [
            0.004,
            0.0819275105,
            0.0971941778,
            0.0811745654,
            0.0555984014,
            0.0283060998,
            0.0076641594,
            4e-7,
            0.0076641594,
        ],
    ),
    "SWA": (
        lambda lib, opt: lib.SWALR(opt, 0.05, 4),
        [0.1, 0.0926776695, 0.075, 0.0573223305, 0.05, 0.05],
    ),
}
BOTH_AT_1: dict[str, tuple[Build, list[float]]] = {
    "Sequential": (
        lambda lib, opt: lib.SequentialLR(
            opt, [lib.LinearLR(opt, 0.1, total_iters=3), lib.CosineAnnealingLR(opt, 5)], [3]
        ),
        [0.1, 0.4, 0.7, 1, 0.9045084972, 0.6545084972, 0.3454915028, 0.0954915028, 0, 0.0954915028],
    ),
    "Chained": (
        lambda lib, opt: lib.ChainedScheduler(
            [lib.ConstantLR(opt, 0.1, 2), lib.ExponentialLR(opt, 0.9)]
        ),
        [0.1, 0.09, 0.81, 0.729, 0.6561],
    ),
}


def rates(opt: Any) -> list[float]:
    return [float(group["lr"]) for group in opt.param_groups]


def sequence_of(scheduler: Any, opt: Any, steps: int) -> list[list[float]]:
    """The learning rates at construction and after each step."""
    found = [rates(opt)]
    for _ in range(steps):
        advance(opt, scheduler)
        found.append(rates(opt))
    return found


@pytest.mark.parametrize(("build", "wanted"), SEQUENCES.values(), ids=list(SEQUENCES))
def test_recorded(build: Build, wanted: list[float]) -> None:
    opt = optimizer(OURS)
    scheduler = build(OURS, opt)
    found = sequence_of(scheduler, opt, len(wanted) - 1)
    np.testing.assert_allclose([first for first, _ in found], wanted, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(("build", "wanted"), BOTH_AT_1.values(), ids=list(BOTH_AT_1))
def test_recorded_from_a_rate_of_1(build: Build, wanted: list[float]) -> None:
    opt = optimizer(OURS, lr=1.0)
    scheduler = build(OURS, opt)
    found = sequence_of(scheduler, opt, len(wanted) - 1)
    np.testing.assert_allclose([first for first, _ in found], wanted, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose([x for _, x in found], 0.03 * np.array(wanted), 1e-9, 1e-12)


def test_one_cycle_has_one_step_too_many_and_no_more() -> None:
    opt = optimizer(OURS)
    scheduler = OURS.OneCycleLR(opt, 0.1, total_steps=8)
    for _ in range(8):
        advance(opt, scheduler)
    before = seen(opt), scheduler.state_dict()
    words = "Tried to step 9 times. The specified number of total steps is 8"
    for _ in range(2):
        with pytest.raises(ValueError, match=f"^{words}$"):
            scheduler.step()
        assert (seen(opt), scheduler.state_dict()) == before


def test_momentum_goes_the_other_way() -> None:
    opt = optimizer(OURS, "Adam")
    scheduler = OURS.CyclicLR(opt, 0.01, 0.1, 2)
    found = []
    for _ in range(5):
        found.append(opt.param_groups[0]["betas"])
        advance(opt, scheduler)
    np.testing.assert_allclose([first for first, _ in found], [0.9, 0.85, 0.8, 0.85, 0.9])
    assert {second for _, second in found} == {0.999}


# What is not as in torch.


def test_cyclic_starts_from_its_own_rate() -> None:
    """torch: 0.5 at first, the `initial_lr` of the scheduler before."""
    opt = optimizer(OURS, lr=0.5)
    OURS.StepLR(opt, 3)
    scheduler = OURS.CyclicLR(opt, 0.1, 0.2, 2)
    found = sequence_of(scheduler, opt, 4)
    np.testing.assert_allclose([first for first, _ in found], [0.1, 0.15, 0.2, 0.15, 0.1])
    assert scheduler.base_lrs == [0.1, 0.1]


INNER: dict[str, tuple[Callable[[Any], Any], list[float]]] = {
    "Sequential": (
        lambda opt: OURS.SequentialLR(
            opt, [OURS.ConstantLR(opt, 0.5, 9), OURS.StepLR(opt, 1, 0.5)], [2]
        ),
        [0.5, 0.5, 1, 0.5, 0.25, 0.125, 0.0625],
    ),
    "Chained": (
        lambda opt: OURS.ChainedScheduler(
            [OURS.ConstantLR(opt, 0.1, 2), OURS.ExponentialLR(opt, 0.9)]
        ),
        [0.1, 0.09, 0.81, 0.729, 0.6561, 0.59049, 0.531441],
    ),
    "Chained Sequential": (
        lambda opt: OURS.ChainedScheduler(
            [
                OURS.SequentialLR(opt, [OURS.ConstantLR(opt, 0.5, 9), OURS.StepLR(opt, 9)], [2]),
                OURS.MultiplicativeLR(opt, lambda epoch: 2),
            ]
        ),
        # at the milestone the inner StepLR starts from the starting rate
        [0.5, 1, 2, 4, 8, 16, 32],
    ),
}
over_inner = pytest.mark.parametrize(("build", "wanted"), INNER.values(), ids=list(INNER))


@over_inner
@pytest.mark.parametrize("milestone", [1, 4])
def test_a_nested_scheduler_takes_over_at_a_milestone(
    build: Callable[[Any], Any], wanted: list[float], milestone: int
) -> None:
    """torch: NotImplementedError."""
    opt = optimizer(OURS, lr=1.0)
    scheduler = OURS.SequentialLR(opt, [OURS.ExponentialLR(opt, 0.3), build(opt)], [milestone])
    found = [first for first, _ in sequence_of(scheduler, opt, milestone + len(wanted) - 1)]
    np.testing.assert_allclose(found[:milestone], 0.3 ** np.arange(milestone))
    np.testing.assert_allclose(found[milestone:], wanted)


@over_inner
def test_a_nested_scheduler_that_is_first_is_not_ahead(
    build: Callable[[Any], Any], wanted: list[float]
) -> None:
    """torch: it is one step ahead from the start."""
    opt = optimizer(OURS, lr=1.0)
    scheduler = OURS.SequentialLR(opt, [build(opt), OURS.StepLR(opt, 9)], [6])
    found = [first for first, _ in sequence_of(scheduler, opt, 6)]
    np.testing.assert_allclose(found, [*wanted[:6], 1.0])


def test_nested_twice() -> None:
    opt = optimizer(OURS, lr=1.0)
    for build in (INNER["Sequential"][0], INNER["Chained"][0]):
        inner = OURS.SequentialLR(opt, [OURS.ExponentialLR(opt, 0.5), build(opt)], [2])
        outer = OURS.SequentialLR(opt, [OURS.ConstantLR(opt, 0.1, 9), inner], [2])
        found = [first for first, _ in sequence_of(outer, opt, 6)]
        wanted = INNER["Sequential"][1] if build is INNER["Sequential"][0] else INNER["Chained"][1]
        np.testing.assert_allclose(found, [0.1, 0.1, 1, 0.5, *wanted[:3]])


RESUMED: dict[str, Callable[..., Any]] = {
    "Lambda": lambda opt, last: OURS.LambdaLR(opt, lambda e: 0.9**e, last),
    "Multiplicative": lambda opt, last: OURS.MultiplicativeLR(opt, lambda e: 0.9, last),
    "Step": lambda opt, last: OURS.StepLR(opt, 3, last_epoch=last),
    "MultiStep": lambda opt, last: OURS.MultiStepLR(opt, [2, 2, 5], last_epoch=last),
    "Constant": lambda opt, last: OURS.ConstantLR(opt, 0.5, 4, last),
    "Linear": lambda opt, last: OURS.LinearLR(opt, last_epoch=last),
    "Exponential": lambda opt, last: OURS.ExponentialLR(opt, 0.9, last),
    "Polynomial": lambda opt, last: OURS.PolynomialLR(opt, 9, 2.0, last),
    "Cosine": lambda opt, last: OURS.CosineAnnealingLR(opt, 6, 0.01, last),
    "Restarts": lambda opt, last: OURS.CosineAnnealingWarmRestarts(opt, 2, 2, last_epoch=last),
    "Restarts equal": lambda opt, last: OURS.CosineAnnealingWarmRestarts(opt, 3, last_epoch=last),
    "Cyclic": lambda opt, last: OURS.CyclicLR(opt, 0.01, 0.1, 2, last_epoch=last),
    "OneCycle": lambda opt, last: OURS.OneCycleLR(opt, 0.1, 30, last_epoch=last),
    "SWA": lambda opt, last: OURS.SWALR(opt, 0.05, 6, last_epoch=last),
    "SWA at once": lambda opt, last: OURS.SWALR(opt, 0.05, 0, last_epoch=last),
}


@pytest.mark.parametrize("build", RESUMED.values(), ids=list(RESUMED))
@pytest.mark.parametrize("epochs", range(1, 8))
def test_last_epoch_resumes(build: Callable[..., Any], epochs: int) -> None:
    """On an optimizer whose loaded rates are those of the epoch, at boundaries too."""
    opt, other = optimizer(OURS), optimizer(OURS, lr=5.0)
    scheduler = build(opt, -1)
    for _ in range(epochs):
        advance(opt, scheduler)
    other.load_state_dict(opt.state_dict())
    resumed = build(other, epochs - 1)
    assert resumed.last_epoch == scheduler.last_epoch == epochs
    np.testing.assert_allclose(seen(other), seen(opt), rtol=1e-12)
    for _ in range(9):
        advance(opt, scheduler)
        advance(other, resumed)
        np.testing.assert_allclose(seen(other), seen(opt), rtol=1e-12, atol=1e-15)


def test_restarts_are_found_where_a_logarithm_misses_them() -> None:
    """torch: `T_cur` 81 of 81."""
    opt = optimizer(OURS)
    scheduler = OURS.CosineAnnealingWarmRestarts(opt, 1, 3)
    scheduler.step(121)
    assert (scheduler.T_cur, scheduler.T_i) == (0, 243)
    assert rates(opt) == [0.1, 0.03]


def test_warnings_of_a_nested_scheduler_point_at_the_users_line() -> None:
    opt = optimizer(OURS)
    scheduler = INNER["Chained Sequential"][0](opt)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scheduler.step()
    assert [w.filename for w in caught] == [__file__] * 2
    assert all(str(w.message).startswith("Detected call of") for w in caught)
