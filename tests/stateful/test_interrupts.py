"""Exceptions in the middle of a step: everything is as before it, or as after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import functorch_optim.stateful as optim
from functorch_optim.stateful.memory import record as storage
from functorch_optim.stateful.step import program
from tests.support.stateful import cells, exactly, give_gradients, progress, run, with_arrays

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.1, "momentum": 0.9},
    "Adam": {"lr": 0.1, "amsgrad": True},
    "NAdam": {"lr": 0.1},  # the only one here that carries a number from step to step
}
over_optimizers = pytest.mark.parametrize("name", OPTIMIZERS)
over_ways = pytest.mark.parametrize("way", ["step", "train_step"])


def build(name: str, steps: int = 2) -> tuple[optim.Optimizer, dict[str, Callable[[], Any]]]:
    """An optimizer of two groups with gradients, and its two ways to step."""
    p, q, r = cells((3,), (2, 2), ())
    opt = getattr(optim, name)([{"params": [p, q]}, {"params": r, "lr": 0.2}], **OPTIMIZERS[name])
    run(opt, steps)
    give_gradients([p, q, r], 50)
    model = [p, q, r]
    train_step = opt.make_step(lambda params: sum(jnp.sum(x * x) for x in params), model)
    return opt, {"step": opt.step, "train_step": train_step}


def raising_once(function: Callable[..., Any], at: int, error: type[BaseException]) -> Any:
    """The function, whose call number `at` raises instead."""
    calls = 0

    def wrapper(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise error
        return function(*args)

    return wrapper


@pytest.mark.parametrize(
    ("name", "way"), [*((name, "step") for name in OPTIMIZERS), ("SGD", "train_step")]
)
@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize("where", [optim.Parameter, storage.Record])
def test_an_interrupt_while_results_are_kept(
    where: Any, at: int, name: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (opt, steps), (undisturbed, other_steps) = build(name), build(name)
    with monkeypatch.context() as patch:
        patch.setattr(where, "replace", raising_once(where.replace, at, KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            steps[way]()
    other_steps[way]()
    assert progress(opt) == progress(undisturbed)  # the step was made, wholly
    for chosen in steps, other_steps:
        chosen[way]()
    for x in opt, undisturbed:
        run(x, 2, start=60)
    assert progress(opt) == progress(undisturbed)


@over_ways
def test_an_interrupt_in_the_first_step(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (opt, steps), (undisturbed, other_steps) = build("Adam", 0), build("Adam", 0)
    with monkeypatch.context() as patch:
        replace = raising_once(optim.Parameter.replace, 2, KeyboardInterrupt)
        patch.setattr(optim.Parameter, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            steps[way]()
    other_steps[way]()
    assert progress(opt) == progress(undisturbed)
    assert len(opt.state) == 3


def test_a_program_is_counted_whose_results_were_interrupted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opt, steps = build("SGD", 0)
    with monkeypatch.context() as patch:
        replace = raising_once(optim.Parameter.replace, 1, KeyboardInterrupt)
        patch.setattr(optim.Parameter, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            steps["train_step"]()
    steps["train_step"]()
    assert opt.compile_count == 1


def failing(*args: Any) -> Any:
    raise KeyboardInterrupt


def failing_after(function: Callable[..., Any], error: type[BaseException]) -> Any:
    def wrapper(*args: Any) -> Any:
        function(*args)
        raise error

    return wrapper


@over_optimizers
@pytest.mark.parametrize("steps", [0, 2])
def test_an_exception_before_donation_changes_nothing(
    steps: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (opt, ways), (undisturbed, other_ways) = build(name, steps), build(name, steps)
    before = progress(opt), exactly(opt.param_groups)
    with monkeypatch.context() as patch:
        patch.setattr(program, "compiled_update", failing)
        with pytest.raises(KeyboardInterrupt):
            ways["step"]()
    assert (progress(opt), exactly(opt.param_groups)) == before
    ways["step"]()
    other_ways["step"]()
    assert progress(opt) == progress(undisturbed)


@over_optimizers
def test_an_exception_while_a_train_step_is_traced_changes_nothing(name: str) -> None:
    (opt, _), (undisturbed, _) = build(name), build(name)
    model = [p for group in opt.param_groups for p in group["params"]]
    interrupted = True

    def loss_fn(params: Any) -> jax.Array:
        if interrupted:
            raise KeyboardInterrupt
        return jnp.sum(params[0])

    train_step = opt.make_step(loss_fn, model)
    with pytest.raises(KeyboardInterrupt):
        train_step()
    assert progress(opt) == progress(undisturbed)
    assert opt.compile_count == undisturbed.compile_count
    interrupted = False
    train_step()
    assert progress(opt) != progress(undisturbed)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_after_donation_the_loss_is_told(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    opt, ways = build("Adam")
    opt.step()  # the arrays are the optimizer's own now, and will be given away
    monkeypatch.setattr(program, "compiled_update", failing_after(program.compiled_update, error))
    with pytest.raises(RuntimeError, match="Restore them from a checkpoint") as lost:
        ways["step"]()
    assert isinstance(lost.value.__cause__, error)


def test_nothing_is_said_to_be_lost_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step works on copies of the arrays that the user gave."""
    (opt, ways), (undisturbed, other_ways) = build("SGD", 0), build("SGD", 0)
    with monkeypatch.context() as patch:
        patch.setattr(
            program, "compiled_update", failing_after(program.compiled_update, KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            ways["step"]()
    assert progress(opt) == progress(undisturbed)
    ways["step"]()
    other_ways["step"]()
    assert progress(opt) == progress(undisturbed)


def test_a_lost_optimizer_can_be_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    (opt, ways), (undisturbed, other_ways) = build("Adam"), build("Adam")
    parameters = [p for group in opt.param_groups for p in group["params"]]
    saved = with_arrays(jnp.copy, (opt.params, opt.state_dict()))
    with monkeypatch.context() as patch:
        opt.step()
        replaced = failing_after(program.compiled_update, ValueError)
        patch.setattr(program, "compiled_update", replaced)
        with pytest.raises(RuntimeError, match="lost"):
            opt.step()
    for p, value in zip(parameters, jax.tree.leaves(saved[0]), strict=True):
        p.data = value
    opt.load_state_dict(saved[1])
    ways["step"]()
    other_ways["step"]()
    assert exactly([p.data for p in parameters]) == exactly(jax.tree.leaves(undisturbed.params))
