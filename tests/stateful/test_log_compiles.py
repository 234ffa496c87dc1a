"""`log_compiles`: which input caused a program to be compiled."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim.stateful as optim
from tests.support.stateful import give_gradients, new_shape, numbers


@pytest.fixture(autouse=True)
def _captured(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="functorch_optim")


def warm(name: str = "SGD", log: bool = True, **kwargs: Any) -> optim.Optimizer:
    """After two steps of parameters `a` and `b`."""
    parameters = [optim.Parameter(numbers(i, new_shape()), name="ab"[i]) for i in range(2)]
    opt = getattr(optim, name)(parameters, **{"lr": 0.1, **kwargs})
    opt.log_compiles = log
    step(opt)
    step(opt)
    return opt


def step(opt: optim.Optimizer) -> None:
    give_gradients([p for group in opt.param_groups for p in group["params"]])
    opt.step()


def logged(caplog: pytest.LogCaptureFixture, what: Callable[[], Any]) -> list[str]:
    """The messages of a call."""
    caplog.clear()
    what()
    assert all(record.name == "functorch_optim" for record in caplog.records)
    return [record.getMessage() for record in caplog.records]


def test_the_first_step(caplog: pytest.LogCaptureFixture) -> None:
    assert logged(caplog, warm) == ["SGD: compiled its first step"]


def test_nothing_is_logged_unless_asked(caplog: pytest.LogCaptureFixture) -> None:
    assert optim.SGD([optim.Parameter(np.ones(2))]).log_compiles is False
    assert logged(caplog, lambda: warm(log=False)) == []


def test_nothing_is_logged_when_nothing_compiles(caplog: pytest.LogCaptureFixture) -> None:
    opt = warm("Adam", weight_decay=0.2)

    def steps() -> None:
        for change in {"lr": 0.5}, {"lr": 1}, {"betas": (0.5, 0.6)}, {"weight_decay": 0.1}:
            opt.param_groups[0].update(change)
            step(opt)

    assert logged(caplog, steps) == []
    assert opt.compile_count == 1


def test_weight_decay_that_was_not_there(caplog: pytest.LogCaptureFixture) -> None:
    opt = warm("Adam")
    opt.param_groups[0]["weight_decay"] = 0.1
    assert logged(caplog, lambda: step(opt)) == [
        "Adam: compiled a step because of param_groups[0]['weight_decay']: 0 -> a number"
    ]


def test_a_flag(caplog: pytest.LogCaptureFixture) -> None:
    opt = warm(momentum=0.9)
    opt.param_groups[0]["nesterov"] = True
    assert logged(caplog, lambda: step(opt)) == [
        "SGD: compiled a step because of param_groups[0]['nesterov']: False -> True"
    ]
    assert logged(caplog, lambda: step(opt)) == []


def test_only_the_cause_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """Not what changed beside it and selects nothing."""
    opt = warm("Adam", amsgrad=True)
    others = {"foreach": True, "lr": np.float32(0.5), "betas": [0, 0.5], "note": "anything"}
    opt.param_groups[0].update(others)
    assert logged(caplog, lambda: step(opt)) == []
    opt.param_groups[0].update(foreach=None, lr=0.25, betas=(0.5, 0.5), note="else", maximize=True)
    assert logged(caplog, lambda: step(opt)) == [
        "Adam: compiled a step because of param_groups[0]['maximize']: False -> True"
    ]


def test_an_array_for_a_number(caplog: pytest.LogCaptureFixture) -> None:
    opt = warm()
    opt.param_groups[0]["lr"] = jnp.float32(0.5)
    (message,) = logged(caplog, lambda: step(opt))
    assert "param_groups[0]['lr']: a number -> float32[]" in message
    opt.param_groups[0]["lr"] = jnp.float32(0.25)
    assert logged(caplog, lambda: step(opt)) == []


def test_a_parameter_without_gradient(caplog: pytest.LogCaptureFixture) -> None:
    opt = warm()
    a, b = opt.param_groups[0]["params"]

    def only_a() -> None:
        give_gradients([a])
        b.grad = None
        opt.step()

    (message,) = logged(caplog, only_a)
    assert f"parameter b: float32[{b.size}] -> absent" in message
    assert "parameter a" not in message


def test_a_new_parameter(caplog: pytest.LogCaptureFixture) -> None:
    opt = warm()
    opt.add_param_group({"params": optim.Parameter(np.ones(2, np.float32))})
    (message,) = logged(caplog, lambda: step(opt))
    assert "parameter param_groups[1]['params'][0]: absent -> float32[2]" in message
    assert "param_groups[1]['momentum']: absent -> a number" in message


def test_another_dtype_of_a_gradient(caplog: pytest.LogCaptureFixture) -> None:
    opt = warm()
    a, b = opt.param_groups[0]["params"]

    def step_with_half() -> None:
        give_gradients([a, b])
        a.grad = a.grad.astype(jnp.bfloat16)
        opt.step()

    assert logged(caplog, step_with_half) == [
        f"SGD: compiled a step because of input [0][0]: float32[{a.size}] -> bfloat16[{a.size}]"
    ]


def test_another_shape_of_a_batch(caplog: pytest.LogCaptureFixture) -> None:
    model = {"w": optim.Parameter(numbers(0, new_shape()), name="w")}
    opt = optim.SGD(model, lr=0.1)
    opt.log_compiles = True
    train_step = opt.make_step(
        lambda params, batch: jnp.sum(params["w"]) * jnp.sum(batch["x"]), model
    )
    assert logged(caplog, lambda: train_step({"x": jnp.ones(3)})) == [
        "SGD: compiled its first step"
    ]
    assert logged(caplog, lambda: train_step({"x": jnp.ones(3)})) == []
    assert logged(caplog, lambda: train_step({"x": jnp.ones(5)})) == [
        "SGD: compiled a step because of input [0]['x']: float32[3] -> float32[5]"
    ]


def test_another_loss_function(caplog: pytest.LogCaptureFixture) -> None:
    model = {"w": optim.Parameter(numbers(0, new_shape()), name="w")}
    opt = optim.SGD(model, lr=0.1)
    opt.log_compiles = True
    opt.make_step(lambda params: jnp.sum(params["w"]), model)()
    again = opt.make_step(lambda params: jnp.sum(params["w"]), model)
    (message,) = logged(caplog, again)
    assert "another loss function" in message


def test_steps_that_differ(caplog: pytest.LogCaptureFixture) -> None:
    opt = warm("Adam")
    a, b = opt.param_groups[0]["params"]
    give_gradients([a])
    b.grad = None
    opt.step()
    opt.log_compiles = False
    opt.log_compiles = True
    (message,) = logged(caplog, lambda: step(opt))
    assert "Adam: compiled a step" in message
    assert "parameter b: absent ->" in message


def test_switched_on_later(caplog: pytest.LogCaptureFixture) -> None:
    """The first step was long ago: it is not said to be this one."""
    opt = warm(log=False, momentum=0.9)
    opt.log_compiles = True
    opt.param_groups[0]["nesterov"] = True
    (message,) = logged(caplog, lambda: step(opt))
    assert "first step" not in message


def test_every_optimizer_tells_its_own(caplog: pytest.LogCaptureFixture) -> None:
    first, second = warm(momentum=0.9), warm("Adam")
    first.param_groups[0]["nesterov"] = True
    second.param_groups[0]["maximize"] = True

    def both() -> None:
        step(first)
        step(second)

    messages = logged(caplog, both)
    assert [message.split(":")[0] for message in messages] == ["SGD", "Adam"]
    assert "nesterov" in messages[0]
    assert "maximize" in messages[1]
