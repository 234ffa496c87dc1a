"""Every schedule has the numbers and the errors of torch's scheduler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import functorch_optim as fo
from functorch_optim import Schedule
from tests.tables.schedules import Arguments, Row, over, over_rows


@over(lambda row: [row.recorded] if row.recorded else [])
def test_the_recorded_values_of_torch(row: Row, case: tuple[Schedule, list[float]]) -> None:
    schedule, values = case
    for count, value in enumerate(values):
        for given in (count, float(count)):
            result = schedule(given)
            assert type(result) is float
            assert result == pytest.approx(value, rel=2e-6, abs=1e-15)


def torch_values(name: str, kwargs: dict[str, Any], key: str, *lrs: float) -> list[float]:
    """What a group holds after 0, 1, ... steps of a scheduler, at most 200 of them."""
    torch = pytest.importorskip("torch", reason="compares with torch's schedulers")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3, momentum=0.5)
    home = torch.optim.swa_utils if name == "SWALR" else torch.optim.lr_scheduler
    scheduler = getattr(home, name)(optimizer, *lrs, **kwargs)
    values = [optimizer.param_groups[0][key]]
    total = kwargs.get("total_steps") or kwargs.get("epochs", 20) * kwargs.get(
        "steps_per_epoch", 10
    )
    for _ in range(min(total, 200)):
        optimizer.step()
        scheduler.step()
        values.append(optimizer.param_groups[0][key])
    return values


def assert_same(schedule: Schedule, values: list[float]) -> None:
    for count, value in enumerate(values):
        assert schedule(count) == pytest.approx(value, rel=1e-12, abs=1e-15), count


@over(lambda row: row.calls if row.torch else [])
def test_live_torch_agrees(row: Row, case: Arguments) -> None:
    assert row.torch is not None
    kwargs = {name: value for name, value in case.items() if name != "lr"}
    if row.key == "momentum":
        bounds = {"OneCycleLR": {"max_lr": 1}, "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1}}
        kwargs |= bounds[row.torch]
    assert_same(row.build(**case), torch_values(row.torch, kwargs, row.key))


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
    ("ConstantLR", fo.constant_lr, (), {"factor": 1.5}),
    ("ConstantLR", fo.constant_lr, (), {"factor": -0.5}),
    ("LinearLR", fo.linear_lr, (), {"start_factor": 0.0}),
    ("LinearLR", fo.linear_lr, (), {"start_factor": 1.5}),
    ("LinearLR", fo.linear_lr, (), {"end_factor": -0.1}),
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
    with pytest.raises(ValueError, match=r"^Expected non-negative epoch, but got -1$"):
        fo.cosine_annealing_warm_restarts(0.1, 3)(-1)
    with pytest.raises(ValueError, match=r"^ChainedScheduler expects at least one scheduler to be"):
        fo.chained([])
    with pytest.raises(TypeError, match=r"^lr_lambda should be a function, but got float$"):
        fo.lambda_lr(0.1, 0.5)
    with pytest.raises(ValueError, match=r"^Expected non-negative start_factor, but got -1$"):
        fo.warmup(fo.step_lr(0.1, 3), 3, -1)


@over_rows
@pytest.mark.parametrize("length", [-1, 2.5, 3.0, "3", None, 1j])
def test_lengths_are_whole_numbers(row: Row, length: Any) -> None:
    for name, words in row.lengths.items():
        row.build(**{**row.arguments, name: 3})  # equal to 3.0, and yet no excuse for it
        with pytest.raises(ValueError) as error:
            row.build(**{**row.arguments, name: length})
        assert str(error.value) == words.format(name, length)


@over_rows
def test_lengths_of_zero(row: Row) -> None:
    for name, words in row.lengths.items():
        if "positive" in words or ">= 1" in words:
            with pytest.raises(ValueError) as error:
                row.build(**{**row.arguments, name: 0})
            assert str(error.value) == words.format(name, 0)
        else:
            assert row.build(**{**row.arguments, name: 0})(0) > 0
    assert fo.constant_lr(0.1, 0.5, 0)(0) == 0.1
    assert fo.warmup(fo.exponential_lr(0.1, 0.5), 0)(1) == 0.05


@pytest.mark.parametrize("size", [0, -1.5, "3"])
def test_sizes_are_positive(size: Any) -> None:
    for name in ("step_size_up", "step_size_down"):
        with pytest.raises(ValueError) as error:
            fo.cyclic_lr(0.1, 0.2, **{name: size})
        assert str(error.value) == f"Expected positive {name}, but got {size}"
