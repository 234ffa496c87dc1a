"""The stateful layer against torch.optim, run side by side."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.stateful import snapshot
from tests.support.twin import Twin

RTOL = {"float64": 1e-12, "float32": 5e-6}
NUMBERS = {  # what is changed in the middle of a run, one after the other
    "SGD": (
        (0, {"lr": 0.02}),
        (1, {"momentum": 0.5}),
        (0, {"weight_decay": 0.3}),
        (1, {"dampening": 0.1, "lr": 0.3}),
    ),
    "Adam": (
        (0, {"lr": 0.02}),
        (1, {"betas": (0.5, 0.7)}),
        (0, {"weight_decay": 0.3}),
        (1, {"eps": 0.1, "lr": 0.3}),
    ),
}
NUMBERS["AdamW"] = NUMBERS["Adam"]
CONFIGURATIONS = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True}),
    ("Adam", {"lr": 0.1}),
    ("Adam", {"lr": 0.1, "amsgrad": True, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.1, "decoupled_weight_decay": True, "weight_decay": 0.1}),
    ("AdamW", {"lr": 0.1}),
    ("AdamW", {"lr": 0.1, "amsgrad": True, "maximize": True, "weight_decay": 0.2}),
]


def led_through_changes(name: str, kwargs: dict[str, Any], dtype: str) -> Twin:
    """30 steps: numbers change every fourth, and some parameters lack gradients at times.

    Parameter 2, which is the second group, gets its first gradient late; parameter 0 misses a few.
    """
    twin = Twin(name, dtype=dtype, options=({}, {"lr": 0.05}), **kwargs)
    twin.step(3, without=(2,))
    twin.step(1)
    for index, changes in NUMBERS[name]:
        if kwargs.get("nesterov"):  # needs momentum and no dampening
            changes = {k: v for k, v in changes.items() if k != "dampening"}
        twin.set(index, **changes)
        twin.step(3)
        twin.step(1, without=(0,))
    twin.step(10)
    assert twin.steps == 30
    return twin


@pytest.mark.parametrize(("name", "kwargs"), CONFIGURATIONS)
def test_float64_run_with_changes_is_torchs(name: str, kwargs: dict[str, Any], x64: None) -> None:
    led_through_changes(name, kwargs, "float64").check(RTOL["float64"])


@pytest.mark.parametrize(("name", "kwargs"), [CONFIGURATIONS[i] for i in (2, 8)])
def test_float32_run_with_changes_is_torchs(name: str, kwargs: dict[str, Any]) -> None:
    led_through_changes(name, kwargs, "float32").check(RTOL["float32"])


def test_a_parameter_without_gradients_keeps_its_own_step() -> None:
    twin = Twin("Adam", lr=0.1)
    twin.step(2)
    twin.step(3, without=(1,))
    steps = [float(twin.opt.state[p]["step"]) for p in twin.ours]
    assert steps == [5, 2, 5]
    twin.check(5e-6)


def test_a_parameter_that_never_had_a_gradient_has_no_state() -> None:
    twin = Twin("AdamW", lr=0.1)
    before = twin.ours[1].data
    twin.step(3, without=(1,))
    assert list(twin.opt.state_dict()["state"]) == [0, 2]
    assert (twin.ours[1].data == before).all()  # no weight decay either
    twin.check(5e-6)


def test_state_is_listed_in_the_order_of_first_steps() -> None:
    twin = Twin("Adam", lr=0.1)
    twin.step(1, without=(0,))
    twin.step(1)
    assert list(twin.opt.state_dict()["state"]) == [1, 2, 0]
    twin.check(5e-6)


def test_a_zero_gradient_is_a_gradient() -> None:
    twin = Twin("AdamW", lr=0.1, weight_decay=0.5)
    for p, q in zip(twin.ours, twin.theirs, strict=True):
        p.grad = p.data * 0
        q.grad = q.detach() * 0
    twin.opt.step()
    twin.reference.step()
    assert (twin.ours[0].data != 0).all()
    twin.check(5e-6)


def test_sgd_momentum_can_be_switched_on_later() -> None:
    twin = Twin("SGD", lr=0.1, dampening=0.5)
    twin.step(2)
    twin.check(5e-6)
    assert twin.opt.state_dict()["state"] == {}
    twin.set(0, momentum=0.9)
    twin.step(3)
    twin.check(5e-6)
    twin.set(1, momentum=0.8)
    twin.step(3)
    twin.check(5e-6)
    assert len(twin.opt.state_dict()["state"]) == 3


def test_sgd_state_is_listed_in_the_order_in_which_buffers_came() -> None:
    twin = Twin("SGD", lr=0.1)
    twin.step(2, without=(0,))
    twin.set(0, momentum=0.9)
    twin.step(2)
    twin.check(5e-6)


def test_sgd_momentum_switched_off_and_on_goes_on_with_the_old_buffer() -> None:
    twin = Twin("SGD", lr=0.1, momentum=0.9, dampening=0.5)
    twin.step(2)
    twin.set(0, momentum=0)
    twin.step(2)
    twin.check(5e-6)
    twin.set(0, momentum=0.9)
    twin.step(2)
    twin.check(5e-6)


def test_nesterov_and_maximize_can_be_flipped() -> None:
    twin = Twin("SGD", lr=0.1, momentum=0.9)
    twin.step(2)
    twin.set(0, nesterov=True)
    twin.set(1, maximize=True)
    twin.step(2)
    twin.set(0, nesterov=False)
    twin.set(1, maximize=False)
    twin.step(2)
    twin.check(5e-6)


def test_amsgrad_switched_off_and_on_goes_on_with_the_old_maximum() -> None:
    twin = Twin("Adam", lr=0.1, amsgrad=True)
    twin.step(2)
    twin.set(0, amsgrad=False)
    twin.step(2)
    twin.check(5e-6)
    twin.set(0, amsgrad=True)
    twin.step(2)
    twin.check(5e-6)


def test_amsgrad_switched_on_late_is_refused_as_in_torch() -> None:
    twin = Twin("Adam", lr=0.1)
    twin.step(2)
    twin.set(1, amsgrad=True)
    twin.give_gradients()
    before = snapshot(twin.opt)
    for opt in twin.opt, twin.reference:
        with pytest.raises(KeyError, match="max_exp_avg_sq"):
            opt.step()
    assert snapshot(twin.opt) == before  # not even the first group
    twin.set(1, amsgrad=False)
    twin.opt.step()
    assert [float(twin.opt.state[p]["step"]) for p in twin.ours] == [3, 3, 3]


def test_amsgrad_switched_on_before_the_first_step_works() -> None:
    twin = Twin("Adam", lr=0.1)
    twin.step(2, without=(2,))
    twin.set(1, amsgrad=True)
    twin.step(2)
    assert "max_exp_avg_sq" in twin.opt.state_dict()["state"][2]
    twin.check(5e-6)


def test_a_group_added_later_is_stepped_as_in_torch() -> None:
    twin = Twin("Adam", lr=0.1)
    twin.step(2)
    fresh = Twin("Adam", shapes=(((5,),),), lr=0.1)
    twin.ours += fresh.ours
    twin.theirs += fresh.theirs
    twin.opt.add_param_group({"params": fresh.ours, "betas": (0.5, 0.6)})
    twin.reference.add_param_group({"params": fresh.theirs, "betas": (0.5, 0.6)})
    twin.step(3)
    assert float(twin.opt.state[fresh.ours[0]]["step"]) == 3
    twin.check(5e-6)


def test_lr_as_an_array_gives_the_numbers_of_the_number(x64: None) -> None:
    import jax.numpy as jnp

    twin = Twin("Adam", dtype="float64", lr=0.1)
    twin.opt.param_groups[0]["lr"] = jnp.asarray(0.1)
    twin.step(5, without=(1,))
    twin.step(5)
    twin.opt.param_groups[0]["lr"] = 0.1
    twin.check(1e-12)
