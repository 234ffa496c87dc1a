"""Arguments that no scheduler can use are named when they are given; and what a scheduler shows."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim.stateful as optim
from functorch_optim.stateful import lr_scheduler
from tests.support.lr_scheduler import OURS, optimizer, torchs
from tests.support.stateful import exactly

# A call that works, after the optimizer; the arguments that are numbers; those that are lengths.
CALLS: dict[str, tuple[dict[str, Any], str, str]] = {
    "StepLR": ({"step_size": 3, "gamma": 0.1}, "gamma", "step_size"),
    "MultiStepLR": ({"milestones": [2], "gamma": 0.1}, "gamma", ""),
    "ConstantLR": ({"factor": 0.5, "total_iters": 3}, "factor", "total_iters"),
    "LinearLR": (
        {"start_factor": 0.5, "end_factor": 1.0, "total_iters": 3},
        "start_factor end_factor",
        "total_iters",
    ),
    "ExponentialLR": ({"gamma": 0.5}, "gamma", ""),
    "PolynomialLR": ({"total_iters": 3, "power": 2.0}, "power", "total_iters"),
    "CosineAnnealingLR": ({"T_max": 3, "eta_min": 0.0}, "eta_min", "T_max"),
    "CosineAnnealingWarmRestarts": ({"T_0": 3, "T_mult": 2, "eta_min": 0.0}, "", "T_0 T_mult"),
    "CyclicLR": (
        {"base_lr": 0.1, "max_lr": 0.2, "gamma": 0.9, "step_size_up": 3, "step_size_down": 4}
        | {"base_momentum": 0.8, "max_momentum": 0.9},
        "base_lr max_lr gamma base_momentum max_momentum",
        "step_size_up step_size_down",
    ),
    "OneCycleLR": (
        {"max_lr": 0.2, "total_steps": 9, "pct_start": 0.3, "div_factor": 2.0}
        | {"final_div_factor": 9.0, "base_momentum": 0.8, "max_momentum": 0.9},
        "max_lr div_factor final_div_factor base_momentum max_momentum",
        "total_steps",
    ),
    "SWALR": ({"swa_lr": 0.1, "anneal_epochs": 3}, "swa_lr", "anneal_epochs"),
    "ReduceLROnPlateau": (
        {"factor": 0.5, "patience": 3, "threshold": 0.1, "cooldown": 2, "min_lr": 0.0, "eps": 0.0},
        "factor threshold min_lr eps",
        "patience cooldown",
    ),
}
NUMBERS = [(cls, name) for cls, (_, names, _) in CALLS.items() for name in names.split()]
LENGTHS = [(cls, name) for cls, (_, _, names) in CALLS.items() for name in names.split()]
NO_NUMBERS = ["0.1", 1j, None, {}, np.array(["a"]), np.array([1j]), np.str_("1"), object()]


def refused(cls: str, **wrong: Any) -> Exception:
    opt = optimizer(OURS)
    before = exactly(opt.param_groups)
    with pytest.raises((TypeError, ValueError)) as error:
        getattr(OURS, cls)(opt, **{**CALLS[cls][0], **wrong})
    assert exactly(opt.param_groups) == before
    assert "step" not in vars(opt)
    return error.value


@pytest.mark.parametrize(("cls", "name"), NUMBERS)
def test_what_is_no_number_is_named(cls: str, name: str) -> None:
    for value in NO_NUMBERS:
        error = refused(cls, **{name: value})
        assert type(error) is TypeError
        assert name in str(error)
    error = refused(cls, **{name: float("nan")})
    assert type(error) is ValueError
    assert name in str(error)


@pytest.mark.parametrize("cls", ["StepLR", "MultiStepLR", "ExponentialLR"])
def test_a_gamma_for_each_group_is_no_number(cls: str) -> None:
    assert "gamma" in str(refused(cls, gamma=[0.1, 0.2]))


@pytest.mark.parametrize(("cls", "name"), LENGTHS)
def test_what_is_no_length_is_named(cls: str, name: str) -> None:
    values: list[Any] = ["3", 1j, {}, float("nan"), -1, -2.5]
    if name not in ("total_iters", "anneal_epochs", "patience", "cooldown") and cls != "CyclicLR":
        values.append(0)
    for value in values:
        assert name in str(refused(cls, **{name: value}))


@pytest.mark.parametrize("cls", CALLS)
def test_an_epoch_to_go_on_from_is_a_number(cls: str) -> None:
    if cls == "ReduceLROnPlateau":
        assert "last_epoch" in str(refused(cls, last_epoch=3))  # it has no such argument
        return
    for value in "3", None, -2, float("nan"):
        assert "last_epoch" in str(refused(cls, last_epoch=value))


def test_words_and_functions_are_checked() -> None:
    for cls, name, values in (
        ("CyclicLR", "mode", [3, ["triangular"], None]),
        ("CyclicLR", "scale_mode", ["cycles", None, []]),
        ("CyclicLR", "scale_fn", [3, "x"]),
        ("CyclicLR", "cycle_momentum", [1, "False"]),
        ("OneCycleLR", "three_phase", ["False", None]),
        ("OneCycleLR", "anneal_strategy", [[], None, 3]),
        ("SWALR", "anneal_strategy", [[], None, 3]),
        ("ReduceLROnPlateau", "mode", [[], None, 3]),
        ("ReduceLROnPlateau", "min_lr", [["0", 0], [0, None]]),
        ("MultiStepLR", "milestones", ["ab", [None], [1j], 3]),
        ("SWALR", "swa_lr", [["1", 1]]),
    ):
        for value in values:
            assert name in str(refused(cls, **{name: value}))


@pytest.mark.parametrize("value", [None, "0.1", 1j, [0.1]])
def test_what_a_function_returns_is_checked_when_it_is_called(value: Any) -> None:
    opt = optimizer(OURS)
    with pytest.raises(TypeError, match="lr_lambda should return a number or an array"):
        OURS.LambdaLR(opt, lambda epoch: value)
    scheduler = OURS.MultiplicativeLR(opt, lambda epoch: value)
    opt.step()
    with pytest.raises(TypeError, match="lr_lambda should return a number or an array"):
        scheduler.step()
    with pytest.raises(TypeError, match="scale_fn should return a number or an array"):
        OURS.CyclicLR(opt, 0.1, 0.2, scale_fn=lambda cycle: value)


def test_what_torch_takes_is_taken() -> None:
    """Lengths need not be whole, and where nothing is divided by them, may be 0."""
    for lib in OURS, torchs():
        opt = optimizer(lib)
        for build in (
            lambda: lib.StepLR(opt, 2.5),  # noqa: B023
            lambda: lib.CosineAnnealingLR(opt, 7.5),  # noqa: B023
            lambda: lib.PolynomialLR(opt, 0),  # noqa: B023
            lambda: lib.ConstantLR(opt, 0.5, np.float64(2)),  # noqa: B023
            lambda: lib.CyclicLR(opt, np.float32(0.1), 1, 2.5, 3),  # noqa: B023
            lambda: lib.LambdaLR(opt, lambda epoch: epoch < 5),  # noqa: B023
            lambda: lib.ReduceLROnPlateau(opt, patience=1.5),  # noqa: B023
        ):
            scheduler = build()
            opt.step()
            scheduler.step(*([1.0] if lib.ReduceLROnPlateau is type(scheduler) else []))


METRICS = [
    *(2.0, 2, np.float32(2), np.float64(2), jnp.float32(2)),
    *(np.full((), 2.0), np.full((1,), 2.0), np.full((1, 1, 1), 2.0)),
    *(jnp.full((1,), 2.0), jnp.full((1, 1), 2.0), jnp.full((1, 1), 2, jnp.bfloat16)),
]


@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_is_one_number_in_any_shape(metric: Any) -> None:
    scheduler = OURS.ReduceLROnPlateau(optimizer(OURS))
    scheduler.step(metric)
    assert scheduler.best == 2.0


def test_a_metric_may_be_a_parameter_and_not_several_numbers() -> None:
    scheduler = OURS.ReduceLROnPlateau(optimizer(OURS))
    scheduler.step(optim.Parameter(np.full((1, 1), 2.0, np.float32)))
    assert scheduler.best == 2.0
    for wrong in (np.ones(2), jnp.ones((2, 1)), jnp.ones(0), "x", None, 1j, [1.0]):
        with pytest.raises((TypeError, ValueError), match="metrics should be a number"):
            scheduler.step(wrong)
    assert scheduler.last_epoch == 1


def test_torchs_name_of_the_warning_can_be_imported() -> None:
    torchs()
    import torch

    words = lr_scheduler.EPOCH_DEPRECATION_WARNING
    assert words == torch.optim.lr_scheduler.EPOCH_DEPRECATION_WARNING


def test_a_scheduler_shows_its_class_and_its_arguments() -> None:
    opt = optimizer(OURS)
    cosine = OURS.CosineAnnealingLR(opt, 50)
    for _ in range(3):
        opt.step()
        cosine.step()
    assert repr(cosine) == "CosineAnnealingLR(T_max=50, eta_min=0.0, last_epoch=3)"
    step = OURS.StepLR(opt, 3)
    assert repr(step) == "StepLR(step_size=3, gamma=0.1, last_epoch=0)"
    assert repr(OURS.ChainedScheduler([step])) == f"ChainedScheduler(schedulers=[{step!r}])"
    sequence = OURS.SequentialLR(opt, [step, cosine], [9])
    shown = f"SequentialLR(schedulers=[{step!r}, {cosine!r}], milestones=[9], last_epoch=0)"
    assert repr(sequence) == shown
    import functorch_optim as fo

    ours = OURS.from_schedule(opt, fo.step_lr, step_size=3)
    assert repr(ours) == "from_schedule(step_lr, step_size=3, last_epoch=0)"
    plateau = repr(OURS.ReduceLROnPlateau(opt, patience=3))
    assert plateau.startswith("ReduceLROnPlateau(mode='min', factor=0.1, patience=3,")


@pytest.mark.parametrize("cls", [*CALLS, "LambdaLR"])
def test_a_scheduler_shows_what_it_must_be_given(cls: str) -> None:
    arguments = CALLS[cls][0] if cls in CALLS else {"lr_lambda": abs}
    shown = repr(getattr(OURS, cls)(optimizer(OURS), **arguments))
    first = "mode" if cls == "ReduceLROnPlateau" else next(iter(arguments))
    assert shown.startswith(f"{cls}({first}=")
    assert "last_epoch=0" in shown
