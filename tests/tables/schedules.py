"""Every schedule, once: its arguments, its partner in torch, and what it can do."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

import functorch_optim as fo
from functorch_optim import Schedule

Arguments = dict[str, Any]
LENGTH = "Expected positive integer {}, but got {}"


@dataclass(frozen=True)
class Row:
    """A schedule.

    arguments: a typical call, with no number at its default.
    torch: the class whose numbers it has, given the same arguments but `lr`.
    key: the hyperparameter that the class writes them to.
    others: more calls to compare with torch, without the first argument.
    recorded: a call, and what torch 2.13 holds after construction and after each step.
    lengths: the arguments that are lengths, and the words that refuse one.
    far: calls with a length, which may be beyond every count.
    late: calls that change around count 10 million.
    ends: whether a count above its length has no value.
    """

    build: Callable[..., Schedule]
    arguments: Arguments
    torch: str | None = None
    key: str = "lr"
    others: tuple[Arguments, ...] = ()
    recorded: tuple[Schedule, list[float]] | None = None
    lengths: dict[str, str] = field(default_factory=dict)
    far: tuple[Callable[[int], Schedule], ...] = ()
    late: tuple[Schedule, ...] = ()
    ends: bool = False

    @property
    def schedule(self) -> Schedule:
        return self.build(**self.arguments)

    @property
    def calls(self) -> list[Arguments]:
        """The typical call and the others, all with the first argument."""
        first = next(iter(self.arguments))
        return [self.arguments, *({first: self.arguments[first]} | other for other in self.others)]


def shrinking(step: Any) -> Any:
    return 1 - 1 / (step + 9)


def inverse_root(x: Any) -> Any:
    return x**-0.5


def steady(step: Any) -> Any:
    return 0.95


TRIANGLES: tuple[Arguments, ...] = (
    {"step_size_up": 7},
    {"step_size_up": 5, "step_size_down": 9, "mode": "triangular2"},
    {"step_size_up": 11, "mode": "exp_range", "gamma": 0.97},
    {"step_size_up": 5, "step_size_down": 1, "scale_fn": inverse_root},
    {"step_size_up": 6, "scale_fn": shrinking, "scale_mode": "iterations"},
    {"step_size_up": 2.5, "step_size_down": 4.2},
    {},
)
ONE_CYCLES: tuple[Arguments, ...] = (
    {"total_steps": 200},
    {"epochs": 8, "steps_per_epoch": 25, "anneal_strategy": "linear"},
    {"total_steps": 199, "three_phase": True, "pct_start": 0.2},
    {"total_steps": 60, "three_phase": True, "pct_start": 0.5},
    {"total_steps": 60, "three_phase": True, "pct_start": 0.8, "anneal_strategy": "linear"},
    {"total_steps": 1},
    {"total_steps": 7, "pct_start": 0.0},
    {"total_steps": 7, "pct_start": 0.1},
)
SCHEDULES: dict[str, Row] = {
    "lambda": Row(
        fo.lambda_lr,
        {"lr": 0.3, "lr_lambda": shrinking},
        torch="LambdaLR",
        others=({"lr_lambda": math.cos},),
    ),
    "multiplicative": Row(
        fo.multiplicative_lr,
        {"lr": 0.3, "lr_lambda": shrinking},
        torch="MultiplicativeLR",
        others=({"lr_lambda": steady},),
    ),
    "step": Row(
        fo.step_lr,
        {"lr": 0.3, "step_size": 7, "gamma": 0.6},
        torch="StepLR",
        others=({"step_size": 30}, {"step_size": 1, "gamma": 0.9}, {"step_size": 7, "gamma": 1.5}),
        recorded=(fo.step_lr(0.1, 3), [0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.001]),
        lengths={"step_size": LENGTH},
        far=(lambda n: fo.step_lr(0.1, n, 0.5),),
        late=(fo.step_lr(0.1, 1000, 0.999), fo.step_lr(0.1, 9_999_999, 0.5)),
    ),
    "multi step": Row(
        fo.multi_step_lr,
        {"lr": 0.3, "milestones": (5, 9, 9, 30), "gamma": 0.6},
        torch="MultiStepLR",
        others=(
            {"milestones": (20, 3, 20, 150), "gamma": 0.7},
            {"milestones": (1,)},
            {"milestones": ()},
        ),
        recorded=(fo.multi_step_lr(0.1, [2, 2, 5]), [0.1, 0.1, 0.001, 0.001, 0.001, 0.0001]),
        far=(lambda n: fo.multi_step_lr(0.1, [n // 3, n // 2, n], 0.5),),
        late=(fo.multi_step_lr(0.1, [9_999_990, 10_000_000, 2**24 + 1]),),
    ),
    "constant": Row(
        fo.constant_lr,
        {"lr": 0.3, "factor": 0.4, "total_iters": 6},
        torch="ConstantLR",
        others=({}, {"factor": 1.0, "total_iters": 3}, {"factor": 0.25, "total_iters": 100}),
        recorded=(
            fo.constant_lr(0.1, total_iters=3),
            [0.1 / 3, 0.1 / 3, 0.1 / 3, 0.1, 0.1],
        ),
        lengths={"total_iters": "Expected non-negative integer {}, but got {}"},
        far=(lambda n: fo.constant_lr(0.1, 0.5, n),),
        late=(fo.constant_lr(0.1, 0.5, 10_000_000),),
    ),
    "linear": Row(
        fo.linear_lr,
        {"lr": 0.3, "start_factor": 0.2, "end_factor": 0.9, "total_iters": 9},
        torch="LinearLR",
        others=(
            {},
            {"start_factor": 1.0, "end_factor": 0.0, "total_iters": 3},
            {"start_factor": 0.1, "end_factor": 0.9, "total_iters": 150},
        ),
        recorded=(
            fo.linear_lr(0.1, total_iters=3),
            [0.1 / 3, 0.05555555555555556, 0.07777777777777779, 0.1, 0.1],
        ),
        lengths={"total_iters": LENGTH},
        far=(lambda n: fo.linear_lr(0.1, 0.25, 1.0, n),),
        late=(fo.linear_lr(0.1, 0.5, 1.0, 20_000_000),),
    ),
    "exponential": Row(
        fo.exponential_lr,
        {"lr": 0.3, "gamma": 0.93},
        torch="ExponentialLR",
        others=({"gamma": 0.97}, {"gamma": 1.01}, {"gamma": 0.0}),
        late=(fo.exponential_lr(0.1, 0.999999), fo.exponential_lr(0.1, 1.0000001)),
    ),
    "polynomial": Row(
        fo.polynomial_lr,
        {"lr": 0.3, "total_iters": 30, "power": 0.8},
        torch="PolynomialLR",
        others=({}, {"total_iters": 150, "power": 0.7}, {"total_iters": 199, "power": 3}),
        recorded=(fo.polynomial_lr(0.1, 4, 2.0), [0.1, 0.05625, 0.025, 0.00625, 0, 0]),
        lengths={"total_iters": LENGTH},
        far=(lambda n: fo.polynomial_lr(0.1, n, 2.0), lambda n: fo.polynomial_lr(0.1, n, 0.5)),
        late=(fo.polynomial_lr(0.1, 10_000_001, 0.9), fo.polynomial_lr(0.1, 2**24 + 300, 2.0)),
    ),
    "cosine": Row(
        fo.cosine_annealing_lr,
        {"lr": 0.3, "T_max": 13, "eta_min": 0.02},
        torch="CosineAnnealingLR",
        others=({"T_max": 23, "eta_min": 0.02}, {"T_max": 1}),
        recorded=(
            fo.cosine_annealing_lr(0.1, 4),
            [
                *(0.1, 0.0853553390593, 0.05, 0.0146446609407, 0),
                *(0.0146446609407, 0.05, 0.0853553390593, 0.1, 0.0853553390593),
            ],
        ),
        lengths={"T_max": LENGTH},
        far=(lambda n: fo.cosine_annealing_lr(0.1, n, 0.01),),
        late=(fo.cosine_annealing_lr(0.1, 20_000_000), fo.cosine_annealing_lr(0.1, 1_000)),
    ),
    "warm restarts": Row(
        fo.cosine_annealing_warm_restarts,
        {"lr": 0.3, "T_0": 3, "T_mult": 2, "eta_min": 0.02},
        torch="CosineAnnealingWarmRestarts",
        others=({"T_0": 7}, {"T_0": 1, "T_mult": 5}),
        recorded=(
            fo.cosine_annealing_warm_restarts(0.1, 3, 2),
            [0.1, 0.075, 0.025, 0.1, 0.0933013, 0.075, 0.05, 0.025, 0.00669873],
        ),
        lengths={"T_0": LENGTH, "T_mult": "Expected integer {} >= 1, but got {}"},
        far=(
            lambda n: fo.cosine_annealing_warm_restarts(0.1, n, 1, 0.01),
            lambda n: fo.cosine_annealing_warm_restarts(0.1, n, 3, 0.01),
            lambda n: fo.cosine_annealing_warm_restarts(0.1, 3, n, 0.01),
        ),
        late=(
            fo.cosine_annealing_warm_restarts(0.1, 1000),
            fo.cosine_annealing_warm_restarts(0.1, 100, 2),
            fo.cosine_annealing_warm_restarts(0.1, 3, 12, 0.01),
        ),
    ),
    "equal restarts": Row(
        fo.cosine_annealing_warm_restarts,
        {"lr": 0.3, "T_0": 5, "T_mult": 1, "eta_min": 0.02},
        torch="CosineAnnealingWarmRestarts",
    ),
    "cyclic": Row(
        fo.cyclic_lr,
        {"base_lr": 0.1, "max_lr": 0.3, "step_size_up": 5, "step_size_down": 8},
        torch="CyclicLR",
        others=tuple({"max_lr": 0.3} | other for other in TRIANGLES),
        recorded=(
            fo.cyclic_lr(0.01, 0.1, 4),
            [0.01, 0.0325, 0.055, 0.0775, 0.1, 0.0775, 0.055, 0.0325, 0.01],
        ),
        far=(
            lambda n: fo.cyclic_lr(0.1, 0.3, n, n // 2, mode="triangular2"),
            lambda n: fo.cyclic_lr(0.1, 0.3, 7, n, mode="exp_range", gamma=1 - 1e-9),
        ),
        late=(
            fo.cyclic_lr(0.01, 0.1, 1000, 777),
            fo.cyclic_lr(0.01, 0.1, 1000.0),
            fo.cyclic_lr(0.01, 0.1, 250, mode="exp_range", gamma=0.9999999),
        ),
    ),
    "cyclic, halved": Row(
        fo.cyclic_lr, {"base_lr": 0.1, "max_lr": 0.3, "step_size_up": 4, "mode": "triangular2"}
    ),
    "cyclic momentum": Row(
        fo.cyclic_momentum,
        {
            **{"base_momentum": 0.7, "max_momentum": 0.95, "step_size_up": 6},
            **{"mode": "exp_range", "gamma": 0.98},
        },
        torch="CyclicLR",
        key="momentum",
        others=tuple({"max_momentum": 0.95} | other for other in TRIANGLES),
        far=(lambda n: fo.cyclic_momentum(0.1, 0.3, n // 2, n // 2 + 1),),
    ),
    "one cycle": Row(
        fo.one_cycle_lr,
        {
            **{"max_lr": 0.3, "epochs": 5, "steps_per_epoch": 10, "pct_start": 0.3},
            **{"div_factor": 20.0, "final_div_factor": 100.0},
        },
        torch="OneCycleLR",
        others=tuple({"div_factor": 10.0, "final_div_factor": 100.0} | x for x in ONE_CYCLES),
        recorded=(
            fo.one_cycle_lr(0.1, 8),
            [
                *(0.004, 0.0819275, 0.0971942, 0.0811746, 0.0555984, 0.0283061),
                *(0.00766416, 4e-7, 0.00766416),
            ],
        ),
        far=(
            lambda n: fo.one_cycle_lr(0.1, n),
            lambda n: fo.one_cycle_lr(0.1, epochs=n // 2 + 1, steps_per_epoch=2),
            lambda n: fo.one_cycle_lr(0.1, n, three_phase=True, pct_start=0.2),
        ),
        late=(
            fo.one_cycle_lr(0.1, 20_000_000),
            fo.one_cycle_lr(0.1, 10_000_001, pct_start=0.4, three_phase=True),
        ),
        ends=True,
    ),
    "one cycle momentum": Row(
        fo.one_cycle_momentum,
        {
            **{"total_steps": 47, "pct_start": 0.3, "base_momentum": 0.8, "max_momentum": 0.9},
            **{"anneal_strategy": "linear", "three_phase": True},
        },
        torch="OneCycleLR",
        key="momentum",
        others=tuple({"total_steps": None, "max_momentum": 0.99} | x for x in ONE_CYCLES),
        far=(lambda n: fo.one_cycle_momentum(n),),
        late=(fo.one_cycle_momentum(20_000_000),),
        ends=True,
    ),
    "swa": Row(
        fo.swa_lr,
        {"lr": 0.3, "swa_lr": 0.05, "anneal_epochs": 11},
        torch="SWALR",
        others=(
            {"swa_lr": 0.5, "anneal_epochs": 77, "anneal_strategy": "linear"},
            {"swa_lr": 0.05, "anneal_epochs": 0},
            {"swa_lr": 0.05, "anneal_epochs": 1, "anneal_strategy": "linear"},
        ),
        recorded=(fo.swa_lr(0.1, 0.05, 4), [0.1, 0.0926777, 0.075, 0.0573223, 0.05, 0.05]),
        lengths={"anneal_epochs": "{} must be equal or greater than 0, got {}"},
        far=(lambda n: fo.swa_lr(0.1, 0.5, n),),
        late=(fo.swa_lr(0.1, 0.01, 20_000_000),),
    ),
    "per epoch": Row(
        fo.per_epoch,
        {"schedule": fo.exponential_lr(0.3, 0.8), "steps_per_epoch": 4},
        lengths={"steps_per_epoch": LENGTH},
        far=(lambda n: fo.per_epoch(fo.exponential_lr(0.1, 0.5), n),),
        late=(fo.per_epoch(fo.cosine_annealing_lr(0.1, 100), 1000),),
    ),
    "fractional": Row(
        fo.per_epoch,
        {
            **{"schedule": fo.cosine_annealing_warm_restarts(0.3, 3, 2)},
            **{"steps_per_epoch": 4, "fractional": True},
        },
        far=(lambda n: fo.per_epoch(fo.linear_lr(0.1, 0.1, 1.0, 1), n, fractional=True),),
    ),
    "warmup": Row(
        fo.warmup,
        {"schedule": fo.cosine_annealing_lr(0.3, 20, 0.1), "steps": 6, "start_factor": 0.25},
        lengths={"steps": "Expected non-negative integer {}, but got {}"},
        far=(lambda n: fo.warmup(fo.exponential_lr(0.1, 0.5), n, 0.1),),
        late=(fo.warmup(fo.cosine_annealing_lr(0.1, 1000), 9_999_995),),
    ),
    "chained": Row(
        fo.chained,
        {"schedules": (fo.step_lr(0.3, 7, 0.6), fo.linear_lr(0.3, 0.2, 0.9, 9))},
        recorded=(
            fo.chained([fo.constant_lr(1.0, 0.1, 2), fo.exponential_lr(1.0, 0.9)]),
            [0.1, 0.09, 0.81, 0.729, 0.6561],
        ),
        far=(lambda n: fo.chained([fo.linear_lr(0.1, 0.25, 1.0, n), fo.step_lr(1.0, n)]),),
        late=(fo.chained([fo.step_lr(0.1, 30, 0.9999999), fo.exponential_lr(1.0, 0.9999999)]),),
    ),
    "sequential": Row(
        fo.sequential_lr,
        {"schedules": (fo.one_cycle_lr(0.3, 50), fo.swa_lr(0.3, 0.05, 11)), "milestones": (40,)},
        recorded=(
            fo.sequential_lr(
                [fo.linear_lr(1.0, 0.1, total_iters=3), fo.cosine_annealing_lr(1.0, 5)], [3]
            ),
            [
                *(0.1, 0.4, 0.7, 1, 0.9045084971875),
                *(0.6545084971875, 0.3454915028125, 0.0954915028125, 0, 0.0954915028125),
            ],
        ),
        far=(
            lambda n: fo.sequential_lr([fo.linear_lr(0.1, 0.5, 1.0, n), fo.step_lr(0.1, n)], [n]),
            lambda n: fo.sequential_lr([fo.step_lr(0.1, 7), fo.cosine_annealing_lr(0.1, n)], [7]),
        ),
        late=(
            fo.sequential_lr(
                [fo.linear_lr(0.1, 0.5, 1.0, 9_999_990), fo.cosine_annealing_lr(0.1, 1_000)],
                [9_999_990],
            ),
        ),
    ),
}
over_rows = pytest.mark.parametrize("row", SCHEDULES.values(), ids=SCHEDULES)


def over(cases: Callable[[Row], Any]) -> Any:
    """Parametrizes over what each row gives, with the row."""
    found = [
        pytest.param(row, case, id=f"{name}-{index}")
        for name, row in SCHEDULES.items()
        for index, case in enumerate(cases(row))
    ]
    return pytest.mark.parametrize(("row", "case"), found)
