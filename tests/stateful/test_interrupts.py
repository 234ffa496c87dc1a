"""Interrupts in the middle of a call: everything is as before it, or as after it.

An interrupt may come between any two instructions of Python, in this library or in JAX below it.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim as fo
import functorch_optim.stateful as optim
from functorch_optim.stateful.step import program
from tests.support.stateful import exactly, give_gradients, new_shape, progress, with_arrays

PACKAGE = str(Path(fo.__file__).parent)
# One that hits the callback of a weak reference is only told of.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class Interrupted(BaseException):
    """What comes in the middle."""


def interrupted_at(instruction: int, call: Callable[[], Any], ours: bool = False) -> int:
    """Calls, and raises before so many instructions were executed; returns how many there were.

    `ours` leaves out what JAX executes: interrupted while it traces it may go on tracing for ever.
    """
    count = 0

    def executes() -> None:
        nonlocal count
        count += 1
        if count == instruction:
            raise Interrupted

    try:
        call_watched(call, executes, PACKAGE if ours else "")
    except (Interrupted, SystemError):  # the latter where C called Python and does not look
        count = instruction
    return count


def call_watched(call: Callable[[], Any], executes: Callable[[], None], within: str) -> None:
    """Calls, with a call of `executes` before each instruction of the files that are within."""
    if sys.version_info >= (3, 12):  # where a trace function is not told of all of them
        monitoring, tool = sys.monitoring, sys.monitoring.DEBUGGER_ID
        here = sys._getframe().f_code  # which has to come to its end

        def instruction(code: CodeType, offset: int) -> Any:
            if within in code.co_filename and code is not here:
                executes()
                return None
            return monitoring.DISABLE

        monitoring.use_tool_id(tool, "interrupts")
        monitoring.register_callback(tool, monitoring.events.INSTRUCTION, instruction)
        monitoring.restart_events()  # the disabled ones of before
        monitoring.set_events(tool, monitoring.events.INSTRUCTION)
        try:
            call()
        finally:
            monitoring.set_events(tool, 0)
            monitoring.free_tool_id(tool)
        return

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        if within not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        if event == "opcode":
            executes()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)


def instructions(call: Callable[[], Any], ours: bool = False) -> int:
    return interrupted_at(-1, call, ours)


class Way(NamedTuple):
    """An optimizer, and a call that steps it."""

    opt: optim.Optimizer
    step: Callable[[], Any]


def loss_fn(params: Any) -> Any:
    return sum(jnp.sum((x - 1) ** 4) for x in jax.tree.leaves(params))


def way(name: str, how: str, shape: tuple[int, ...] = (3,)) -> Way:
    """A new optimizer of two parameters with gradients, and one of the ways to step it."""
    model = [optim.Parameter(np.linspace(0.1, 0.9, shape[0], dtype=np.float32)) for _ in range(2)]
    build = optim.from_transformation(fo.prodigy) if name == "prodigy" else getattr(optim, name)
    options: dict[str, dict[str, Any]] = {
        "SGD": {"lr": 0.1, "momentum": 0.9},
        "LBFGS": {"max_iter": 2, "tolerance_grad": 0, "tolerance_change": 0},  # it goes on and on
    }
    opt = build(model, **options.get(name, {}))

    def closure() -> Any:
        opt.zero_grad()
        return optim.backward(loss_fn, model)

    give_gradients(model)
    steps: dict[str, Callable[[], Any]] = {
        "step": opt.step,
        "make_step": opt.make_step(loss_fn, model),
        "aux": opt.make_step(lambda p: (loss_fn(p), Point(p[0][0])), model, has_aux=True),
        "closure": lambda: opt.step(closure),
    }
    return Way(opt, steps[how])


class Point(NamedTuple):
    """A container of a user's, which Python puts together."""

    x: Any


WAYS = [
    ("SGD", "step"),
    ("NAdam", "step"),  # carries a number from step to step
    ("Adam", "make_step"),
    ("Adam", "aux"),
    ("prodigy", "step"),
    ("LBFGS", "make_step"),
    ("LBFGS", "closure"),
]
over_ways = pytest.mark.parametrize(("name", "how"), WAYS)


def check_steps(name: str, how: str, stride: int) -> None:
    """Interrupts a warm step at every so many instructions (0: at some 50 of them)."""
    disturbed, undisturbed = way(name, how), way(name, how)
    for _ in range(3):
        disturbed.step()
        undisturbed.step()
    ours = how == "closure"  # which runs operations of JAX one by one
    usual = instructions(disturbed.step, ours)
    undisturbed.step()
    outcomes = set()
    every = stride or max(1, usual // 40)
    for left in sorted({*range(0, usual, every), *range(0, 20, 2)}):
        before = progress(undisturbed.opt)
        total = instructions(undisturbed.step, ours)  # not every step has as many
        after = progress(undisturbed.opt)
        interrupted_at(max(1, total - left), disturbed.step, ours)
        now = progress(disturbed.opt)
        assert now in (before, after), f"{left} instructions before the end of {total}"
        outcomes.add(now == after)
        if now == before:
            disturbed.step()
        assert progress(disturbed.opt) == after
    assert outcomes == {False, True}
    with ThreadPoolExecutor(1) as thread:  # nothing is left locked
        thread.submit(disturbed.step).result(timeout=60)


@over_ways
def test_a_step_is_made_or_not(name: str, how: str) -> None:
    check_steps(name, how, stride=0)


@pytest.mark.slow
@over_ways
def test_a_step_is_made_or_not_at_every_instruction(name: str, how: str) -> None:
    check_steps(name, how, stride=1)


def check_first_steps(name: str, how: str, shares: tuple[float, ...]) -> None:
    """Interrupts a step that compiles after these shares of its instructions."""
    total = instructions(way(name, how, new_shape()).step, ours=True)
    for share in shares:
        shape = new_shape()
        disturbed, undisturbed = way(name, how, shape), way(name, how, shape)
        before = progress(undisturbed.opt)
        interrupted_at(int(share * total), disturbed.step, ours=True)
        undisturbed.step()
        after = progress(undisturbed.opt)
        assert progress(disturbed.opt) in (before, after)
        if progress(disturbed.opt) == before:
            disturbed.step()
        assert progress(disturbed.opt) == after


@pytest.mark.parametrize(("name", "how"), [("SGD", "step"), ("Adam", "make_step")])
def test_a_first_step_is_made_or_not(name: str, how: str) -> None:
    check_first_steps(name, how, (0.3, 0.97, 0.999))


@pytest.mark.slow
@over_ways
def test_a_first_step_is_made_or_not_at_more_moments(name: str, how: str) -> None:
    check_first_steps(name, how, (0.001, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99, 0.999))


def failing(*args: Any) -> Any:
    raise KeyboardInterrupt


class FailingDevice:
    """A program that fails after it took its arguments, while it is told to."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self.fails = False

    def __call__(self, *args: Any) -> Any:
        result = self.function(*args)
        if self.fails:
            raise ValueError
        return result


def after(name: str, steps: int = 3) -> Way:
    """An optimizer after so many steps."""
    made = way(name, "step")
    for _ in range(steps):
        made.step()
    return made


@pytest.mark.parametrize("name", ["SGD", "NAdam"])
@pytest.mark.parametrize("steps", [0, 2])
def test_an_exception_before_donation_changes_nothing(
    steps: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (opt, step), (undisturbed, other_step) = after(name, steps), after(name, steps)
    before = progress(opt), exactly(opt.param_groups)
    with monkeypatch.context() as patch:
        patch.setattr(program, "compiled_update", failing)
        with pytest.raises(KeyboardInterrupt):
            step()
    assert (progress(opt), exactly(opt.param_groups)) == before
    step()
    other_step()
    assert progress(opt) == progress(undisturbed)


@pytest.mark.parametrize("name", ["SGD", "NAdam"])
def test_an_exception_while_a_train_step_is_traced_changes_nothing(name: str) -> None:
    (opt, _), (undisturbed, _) = after(name), after(name)
    model = opt.param_groups[0]["params"]
    interrupted = True

    def loss_fn(params: Any) -> jax.Array:
        if interrupted:
            raise KeyboardInterrupt
        return jnp.sum(params[0])

    compiled = opt.compile_count
    train_step = opt.make_step(loss_fn, model)
    with pytest.raises(KeyboardInterrupt):
        train_step()
    assert progress(opt) == progress(undisturbed)
    assert opt.compile_count == compiled
    interrupted = False
    train_step()
    assert progress(opt) != progress(undisturbed)


def test_nothing_is_said_to_be_lost_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step, and any that may compile, works on copies."""
    device = FailingDevice(program.compiled_update)
    monkeypatch.setattr(program, "compiled_update", device)
    (opt, step), (undisturbed, other_step) = after("SGD", 0), after("SGD", 0)
    device.fails = True
    with pytest.raises(ValueError):
        step()
    device.fails = False
    assert progress(opt) == progress(undisturbed)
    step()
    other_step()
    assert progress(opt) == progress(undisturbed)


def test_a_lost_optimizer_can_be_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    device = FailingDevice(program.compiled_update)
    monkeypatch.setattr(program, "compiled_update", device)
    (opt, step), (undisturbed, other_step) = after("Adam"), after("Adam")
    parameters = opt.param_groups[0]["params"]
    saved = with_arrays(jnp.copy, (opt.params, opt.state_dict()))
    step()
    device.fails = True
    with pytest.raises(RuntimeError, match="Restore them from a checkpoint") as lost:
        step()
    assert isinstance(lost.value.__cause__, ValueError)
    device.fails = False
    for p, value in zip(parameters, saved[0], strict=True):
        p.data = value
    opt.load_state_dict(saved[1])
    step()
    other_step()
    assert progress(opt) == progress(undisturbed)


def changed(value: Any) -> Any:
    return value + 0.5 if value.ndim and jnp.issubdtype(value.dtype, jnp.floating) else value


def sampled(total: int) -> list[int]:
    """Some of so many instructions, most of them near the end, where things change."""
    near = max(1, total - 120)
    return [*range(1, near, max(1, total // 20)), *range(near, total + 1, 3)]


def other_state(opt: optim.Optimizer) -> Any:
    return with_arrays(changed, opt.state_dict())


@pytest.mark.parametrize("name", ["SGD", "NAdam", "prodigy", "LBFGS"])
def test_a_state_is_loaded_or_not(name: str) -> None:
    opt, step = way(name, "make_step")
    step()
    here, there = opt.state_dict(), other_state(opt)
    outcomes = []

    def load() -> None:
        opt.load_state_dict(there)

    total = instructions(load, ours=True)
    after = exactly(opt.state_dict())
    opt.load_state_dict(here)
    before = exactly(opt.state_dict())
    for instruction in sampled(total):
        interrupted_at(instruction, load, ours=True)
        now = exactly(opt.state_dict())
        assert now in (before, after), f"at instruction {instruction} of {total}"
        outcomes.append(now == after)
        opt.load_state_dict(here)
    assert True in outcomes and False in outcomes


@pytest.mark.parametrize("name", ["SGD", "LBFGS"])
def test_what_was_swapped_in_is_swapped_out(name: str) -> None:
    opt, step = way(name, "make_step")
    step()
    params, state = [changed(x) for x in opt.params], other_state(opt)
    before = progress(opt)

    def swap() -> None:
        with opt.swap_in(params, state):
            pass

    total = instructions(swap, ours=True)
    assert progress(opt) == before
    for instruction in sampled(total):
        interrupted_at(instruction, swap, ours=True)
        assert progress(opt) == before, f"at instruction {instruction} of {total}"


@pytest.mark.parametrize("name", ["SGD", "NAdam", "prodigy", "LBFGS"])
def test_what_was_lent_is_taken_back_or_not(name: str) -> None:
    opt, step = way(name, "make_step")
    step()
    _, params, state = opt.to_functional()
    further = jax.tree.map(changed, params)

    def take_back() -> None:
        opt.from_functional(further, state)

    opt.from_functional(params, state)
    before = progress(opt)
    opt.to_functional()
    total = instructions(take_back, ours=True)
    after = progress(opt)
    outcomes = set()
    for instruction in sampled(total):
        opt.from_functional(params, state) if opt._lent else None
        opt.load_state_dict(opt.state_dict())
        for p, value in zip(opt.param_groups[0]["params"], params, strict=True):
            p.data = value
        opt.to_functional()
        interrupted_at(instruction, take_back, ours=True)
        assert progress(opt) in (before, after)
        assert opt._lent == (progress(opt) == before)
        outcomes.add(opt._lent)
    assert outcomes == {False, True}


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the system has no timers")
def test_signals_lose_nothing() -> None:
    """Real ones, at any moment of a loop of training steps."""
    model = optim.parameters([np.ones((64, 64), np.float32) for _ in range(4)])
    opt = optim.AdamW(model, lr=1e-3)
    train_step = opt.make_step(loss_fn, model)
    for _ in range(3):
        train_step()
    random = np.random.RandomState(0)
    interrupts = 0
    with interruptible():
        for _ in range(200):
            try:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-4, 3e-3))
                for _ in range(1000):
                    train_step()
            except KeyboardInterrupt:
                interrupts += 1
            steps = {int(entry["step"]) for entry in opt.state_dict()["state"].values()}
            assert len(steps) == 1
            chex.assert_tree_all_finite(opt.params)
    assert interrupts > 100  # Python ignores one that hits the callback of a weak reference
    train_step()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """A timer's signal raises KeyboardInterrupt."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
