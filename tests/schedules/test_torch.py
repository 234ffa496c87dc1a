"""Every schedule has the numbers and the errors of torch's scheduler."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

import functorch_optim as fo
from functorch_optim import Schedule

# What torch 2.13's schedulers hold after construction and after each step.
GOLDEN: dict[str, tuple[Schedule, list[float]]] = {
    "step": (fo.step_lr(0.1, 3), [0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.001]),
    "multi step": (fo.multi_step_lr(0.1, [2, 2, 5]), [0.1, 0.1, 0.001, 0.001, 0.001, 0.0001]),
    "polynomial": (fo.polynomial_lr(0.1, 4, 2.0), [0.1, 0.05625, 0.025, 0.00625, 0, 0]),
    "cyclic": (
        fo.cyclic_lr(0.01, 0.1, 4),
        [0.01, 0.0325, 0.055, 0.0775, 0.1, 0.0775, 0.055, 0.0325, 0.01],
    ),
    "warm restarts": (
        fo.cosine_annealing_warm_restarts(0.1, 3, 2),
        [0.1, 0.075, 0.025, 0.1, 0.0933013, 0.075, 0.05, 0.025, 0.00669873],
    ),
    "one cycle": (
        fo.one_cycle_lr(0.1, 8),
        [
            *(0.004, 0.0819275, 0.0971942, 0.0811746, 0.0555984, 0.0283061),
            *(0.00766416, 4e-7, 0.00766416),
        ],
    ),
    "swa": (fo.swa_lr(0.1, 0.05, 4), [0.1, 0.0926777, 0.075, 0.0573223, 0.05, 0.05]),
    "chained": (
        fo.chained([fo.constant_lr(1.0, 0.1, 2), fo.exponential_lr(1.0, 0.9)]),
        [0.1, 0.09, 0.81, 0.729, 0.6561],
    ),
}


@pytest.mark.parametrize(("schedule", "values"), GOLDEN.values(), ids=GOLDEN)
def test_the_recorded_values_of_torch(schedule: Schedule, values: list[float]) -> None:
    for count, value in enumerate(values):
        result = schedule(count)
        assert type(result) is float
        assert result == pytest.approx(value, rel=2e-6, abs=1e-15)


def shrinking(step: Any) -> Any:
    return 1 - 1 / (step + 9)


def inverse_root(x: Any) -> Any:
    return x**-0.5


# torch's class and its arguments after the optimizer; ours has lr in front of them.
LIVE: list[tuple[str, Callable[..., Schedule], dict[str, Any]]] = [
    ("LambdaLR", fo.lambda_lr, {"lr_lambda": shrinking}),
    ("LambdaLR", fo.lambda_lr, {"lr_lambda": math.cos}),
    ("MultiplicativeLR", fo.multiplicative_lr, {"lr_lambda": shrinking}),
    ("MultiplicativeLR", fo.multiplicative_lr, {"lr_lambda": lambda step: 0.95}),
    ("StepLR", fo.step_lr, {"step_size": 30}),
    ("StepLR", fo.step_lr, {"step_size": 1, "gamma": 0.9}),
    ("StepLR", fo.step_lr, {"step_size": 7, "gamma": 1.5}),
    ("MultiStepLR", fo.multi_step_lr, {"milestones": [20, 3, 20, 150], "gamma": 0.7}),
    ("MultiStepLR", fo.multi_step_lr, {"milestones": [1]}),
    ("MultiStepLR", fo.multi_step_lr, {"milestones": []}),
    ("ConstantLR", fo.constant_lr, {"factor": 0.25, "total_iters": 100}),
    ("LinearLR", fo.linear_lr, {"start_factor": 0.1, "end_factor": 0.9, "total_iters": 150}),
    ("ExponentialLR", fo.exponential_lr, {"gamma": 0.97}),
    ("ExponentialLR", fo.exponential_lr, {"gamma": 1.01}),
    ("ExponentialLR", fo.exponential_lr, {"gamma": 0.0}),
    ("PolynomialLR", fo.polynomial_lr, {}),
    ("PolynomialLR", fo.polynomial_lr, {"total_iters": 150, "power": 0.7}),
    ("PolynomialLR", fo.polynomial_lr, {"total_iters": 199, "power": 3}),
    ("CosineAnnealingLR", fo.cosine_annealing_lr, {"T_max": 23, "eta_min": 0.02}),
    ("CosineAnnealingWarmRestarts", fo.cosine_annealing_warm_restarts, {"T_0": 7}),
    (
        "CosineAnnealingWarmRestarts",
        fo.cosine_annealing_warm_restarts,
        {"T_0": 3, "T_mult": 2, "eta_min": 0.02},
    ),
    ("CosineAnnealingWarmRestarts", fo.cosine_annealing_warm_restarts, {"T_0": 1, "T_mult": 5}),
    ("SWALR", fo.swa_lr, {"swa_lr": 0.05}),
    ("SWALR", fo.swa_lr, {"swa_lr": 0.5, "anneal_epochs": 77, "anneal_strategy": "linear"}),
    ("SWALR", fo.swa_lr, {"swa_lr": 0.05, "anneal_epochs": 0}),
    ("SWALR", fo.swa_lr, {"swa_lr": 0.05, "anneal_epochs": 1, "anneal_strategy": "linear"}),
]

CYCLIC: list[dict[str, Any]] = [
    {},
    {"step_size_up": 7},
    {"step_size_up": 5, "step_size_down": 9, "mode": "triangular2"},
    {"step_size_up": 11, "mode": "exp_range", "gamma": 0.97},
    {"step_size_up": 5, "step_size_down": 1, "scale_fn": inverse_root},
    {"step_size_up": 6, "scale_fn": shrinking, "scale_mode": "iterations"},
    {"step_size_up": 2.5, "step_size_down": 4.2},
]

ONE_CYCLE: list[dict[str, Any]] = [
    {"total_steps": 200},
    {"epochs": 8, "steps_per_epoch": 25, "anneal_strategy": "linear"},
    {"total_steps": 199, "three_phase": True, "pct_start": 0.2},
    {"total_steps": 60, "three_phase": True, "pct_start": 0.5},
    {"total_steps": 60, "three_phase": True, "pct_start": 0.8, "anneal_strategy": "linear"},
    {"total_steps": 1},
    {"total_steps": 7, "pct_start": 0.0},
    {"total_steps": 7, "pct_start": 0.1},
]


def torch_values(name: str, kwargs: dict[str, Any], key: str, *lrs: float) -> list[float]:
    """What a group holds after 0, 1, ... steps of a scheduler, at most 200 of them."""
    torch = pytest.importorskip("torch", reason="compares with torch's schedulers")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3, momentum=0.5)
    home = torch.optim.swa_utils if name == "SWALR" else torch.optim.lr_scheduler
    scheduler = getattr(home, name)(optimizer, *lrs, **kwargs)
    values = [optimizer.param_groups[0][key]]
    for _ in range(min(kwargs.get("total_steps", 200), 200)):
        optimizer.step()
        scheduler.step()
        values.append(optimizer.param_groups[0][key])
    return values


def assert_same(schedule: Schedule, values: list[float]) -> None:
    for count, value in enumerate(values):
        assert schedule(count) == pytest.approx(value, rel=1e-12, abs=1e-15), count


@pytest.mark.parametrize(("name", "ours", "kwargs"), LIVE)
def test_live_torch_agrees(name: str, ours: Callable[..., Schedule], kwargs: Any) -> None:
    assert_same(ours(0.3, **kwargs), torch_values(name, kwargs, "lr"))


@pytest.mark.parametrize("kwargs", CYCLIC)
def test_live_torch_agrees_about_triangles(kwargs: dict[str, Any]) -> None:
    values = torch_values("CyclicLR", kwargs, "lr", 0.01, 0.1)
    assert_same(fo.cyclic_lr(0.01, 0.1, **kwargs), values)
    kwargs = {**kwargs, "base_momentum": 0.6, "max_momentum": 0.95}
    values = torch_values("CyclicLR", kwargs, "momentum", 0.01, 0.1)
    assert_same(fo.cyclic_momentum(**kwargs), values)


@pytest.mark.parametrize("kwargs", ONE_CYCLE)
def test_live_torch_agrees_about_one_cycle(kwargs: dict[str, Any]) -> None:
    """One step more than the cycle has included."""
    factors = {"div_factor": 10.0, "final_div_factor": 100.0}
    values = torch_values("OneCycleLR", {**kwargs, **factors}, "lr", 0.1)
    assert_same(fo.one_cycle_lr(0.1, **kwargs, **factors), values)
    kwargs = {**kwargs, "base_momentum": 0.7, "max_momentum": 0.99}
    assert_same(fo.one_cycle_momentum(**kwargs), torch_values("OneCycleLR", kwargs, "momentum", 1))


@pytest.mark.parametrize("T_mult", [1, 2])
def test_live_torch_agrees_about_float_epochs(T_mult: int) -> None:
    torch = pytest.importorskip("torch", reason="compares with torch's schedulers")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    lrs = torch.optim.lr_scheduler
    scheduler = lrs.CosineAnnealingWarmRestarts(optimizer, 3, T_mult, 0.01)
    schedule = fo.cosine_annealing_warm_restarts(0.3, 3, T_mult, 0.01)
    by_step = fo.per_epoch(schedule, 8, fractional=True)
    by_epoch = fo.per_epoch(schedule, 8)
    for count in range(200):
        scheduler.step(count / 8)
        wanted = pytest.approx(scheduler.get_last_lr()[0], rel=1e-12)
        assert schedule(count / 8) == wanted
        assert by_step(count) == wanted
        if count % 8 == 0:
            epoch = wanted
        assert by_epoch(count) == epoch
    # With lengths in steps, the same schedule in whole numbers.
    steps = fo.cosine_annealing_warm_restarts(0.3, 24, T_mult, 0.01)
    assert [steps(n) for n in range(200)] == pytest.approx([by_step(n) for n in range(200)])


def test_live_torch_agrees_about_products() -> None:
    torch = pytest.importorskip("torch", reason="compares with torch's schedulers")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    lrs = torch.optim.lr_scheduler
    parts = lrs.LinearLR(optimizer, 0.2, 1.0, 15), lrs.StepLR(optimizer, 40, 0.5)
    scheduler = lrs.ChainedScheduler([*parts, lrs.ExponentialLR(optimizer, 0.99)], optimizer)
    factors = [fo.step_lr(1.0, 40, 0.5), fo.exponential_lr(1.0, 0.99)]
    schedule = fo.chained([fo.linear_lr(0.3, 0.2, 1.0, 15), *factors])
    for count in range(200):
        assert schedule(count) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        scheduler.step()


def test_live_torch_agrees_about_what_comes_before_weight_averaging() -> None:
    """The start of the last part is where the one before it left the learning rate."""
    torch = pytest.importorskip("torch", reason="compares with torch's schedulers")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    main = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    ours = fo.exponential_lr(0.3, 0.9)
    schedule = fo.sequential_lr([ours, fo.swa_lr(ours(20), 0.05, 8)], [20])
    last: Any = None
    for count in range(40):
        if count == 20:
            last = torch.optim.swa_utils.SWALR(optimizer, 0.05, 8)
        assert schedule(count) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        (last or main).step()


ERRORS: list[tuple[str, Callable[..., Schedule], tuple[float, ...], dict[str, Any]]] = [
    *(
        ("OneCycleLR", fo.one_cycle_lr, (0.1,), kwargs)
        for kwargs in (
            {},
            {"epochs": 3},
            {"steps_per_epoch": 3},
            {"total_steps": 0},
            {"total_steps": 2.5},
            {"epochs": -1, "steps_per_epoch": 2},
            {"epochs": 1, "steps_per_epoch": 0},
            {"total_steps": 9, "pct_start": 1},
            {"total_steps": 9, "pct_start": 1.5},
            {"total_steps": 9, "pct_start": -0.5},
            {"total_steps": 9, "anneal_strategy": "exp"},
        )
    ),
    ("CyclicLR", fo.cyclic_lr, (0.1, 0.2), {"mode": "square"}),
    *(
        ("CosineAnnealingWarmRestarts", fo.cosine_annealing_warm_restarts, (), kwargs)
        for kwargs in (
            {"T_0": 0},
            {"T_0": 3.0},
            {"T_0": 3, "T_mult": 0},
            {"T_0": 3, "T_mult": 1.5},
            {"T_0": 3, "eta_min": "0"},
        )
    ),
    ("MultiplicativeLR", fo.multiplicative_lr, (), {"lr_lambda": 0.5}),
    ("SWALR", fo.swa_lr, (), {"swa_lr": 0.1, "anneal_epochs": -1}),
    ("SWALR", fo.swa_lr, (), {"swa_lr": 0.1, "anneal_epochs": 1.5}),
    ("SWALR", fo.swa_lr, (), {"swa_lr": 0.1, "anneal_strategy": "exp"}),
]


@pytest.mark.parametrize(("name", "ours", "lrs", "kwargs"), ERRORS)
def test_errors_are_torchs(name: str, ours: Any, lrs: tuple[float, ...], kwargs: Any) -> None:
    with pytest.raises((ValueError, TypeError)) as actual:
        ours(*(lrs or (0.3,)), **kwargs)
    with pytest.raises((ValueError, TypeError)) as wanted:
        torch_values(name, kwargs, "lr", *lrs)
    assert actual.type is wanted.type
    assert str(actual.value) == str(wanted.value)


def test_one_step_too_many() -> None:
    for schedule in (fo.one_cycle_lr(0.1, 8), fo.one_cycle_momentum(8)):
        schedule(8)
        with pytest.raises(ValueError) as error:
            schedule(9)
        assert str(error.value) == (
            "Tried to step 9 times. The specified number of total steps is 8"
        )


def test_other_errors() -> None:
    with pytest.raises(ValueError, match=r"^Expected non-negative epoch, but got -1$"):
        fo.cosine_annealing_warm_restarts(0.1, 3)(-1)
    with pytest.raises(ValueError, match=r"^ChainedScheduler expects at least one scheduler to be"):
        fo.chained([])
    with pytest.raises(TypeError, match=r"^lr_lambda should be a function, but got float$"):
        fo.lambda_lr(0.1, 0.5)
    with pytest.raises(ValueError, match=r"^Expected non-negative start_factor, but got -1$"):
        fo.warmup(fo.step_lr(0.1, 3), 3, -1)


@pytest.mark.parametrize("length", [-1, 0, 2.5, 3.0, "3", None])
@pytest.mark.parametrize(
    ("ours", "args", "name"),
    [
        (fo.step_lr, (0.1,), "step_size"),
        (fo.linear_lr, (0.1,), "total_iters"),
        (fo.polynomial_lr, (0.1,), "total_iters"),
        (fo.cosine_annealing_lr, (0.1,), "T_max"),
        (fo.per_epoch, (fo.step_lr(0.1, 3),), "steps_per_epoch"),
    ],
)
def test_lengths_are_positive_integers(ours: Any, args: Any, name: str, length: Any) -> None:
    ours(*args, **{name: 3})  # equal to 3.0, and yet no excuse for it
    with pytest.raises(ValueError) as error:
        ours(*args, **{name: length})
    assert str(error.value) == f"Expected positive integer {name}, but got {length}"


def test_lengths_that_may_be_zero() -> None:
    with pytest.raises(ValueError, match=r"^Expected non-negative integer total_iters, but got -1"):
        fo.constant_lr(0.1, 0.5, -1)
    with pytest.raises(ValueError, match=r"^Expected non-negative integer steps, but got 1\.5$"):
        fo.warmup(fo.constant_lr(0.1), 1.5)
    assert fo.constant_lr(0.1, 0.5, 0)(0) == 0.1
    assert fo.warmup(fo.exponential_lr(0.1, 0.5), 0)(1) == 0.05


@pytest.mark.parametrize("size", [0, -1.5, "3"])
def test_sizes_are_positive(size: Any) -> None:
    for name in ("step_size_up", "step_size_down"):
        with pytest.raises(ValueError) as error:
            fo.cyclic_lr(0.1, 0.2, **{name: size})
        assert str(error.value) == f"Expected positive {name}, but got {size}"
