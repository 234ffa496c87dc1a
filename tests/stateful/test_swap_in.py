"""`swap_in`: other values and another state for a while, and the live ones back, bit for bit."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim.stateful as optim
from tests.support.stateful import (
    all_parameters,
    exactly,
    give_gradients,
    numbers,
    progress,
    run,
    snapshot,
)


def build(seed: int = 0, **kwargs: Any) -> optim.Optimizer:
    model = optim.parameters({"a": numbers(seed, (3,)), "b": numbers(seed + 1, (2, 2))})
    return optim.Adam(model, **{"lr": 0.1, "amsgrad": True, **kwargs})


def live() -> optim.Optimizer:
    """After three steps, with gradients."""
    opt = build()
    run(opt, 3)
    return opt


def other(steps: int = 5) -> optim.Optimizer:
    opt = build(10, lr=0.3)
    run(opt, steps, start=20)
    return opt


def everything(opt: optim.Optimizer) -> Any:
    return snapshot(opt), exactly(all_parameters(opt))


def test_steps_act_on_what_was_swapped_in() -> None:
    opt, source = live(), other()
    with opt.swap_in(source.params, source.state_dict()) as entered:
        assert entered is opt
        run(opt, 2, start=30)
        values, saved = opt.params, opt.state_dict()
    run(source, 2, start=30)
    assert exactly(values) == exactly(source.params)
    assert exactly(saved) == exactly(source.state_dict())


def test_the_live_ones_come_back() -> None:
    opt, source = live(), other()
    before = everything(opt)
    parameters, groups = all_parameters(opt), opt.param_groups
    with opt.swap_in(source.params, source.state_dict()):
        run(opt, 2)
        opt.param_groups[0]["lr"] = 9.0
        opt.param_groups[0]["new"] = 1
        assert everything(opt) != before
    assert everything(opt) == before
    assert all(p is q for p, q in zip(all_parameters(opt), parameters, strict=True))
    assert opt.param_groups is groups


def test_they_come_back_after_an_exception() -> None:
    opt, source = live(), other()
    before = everything(opt)

    def swapped() -> None:
        with opt.swap_in(source.params, source.state_dict()):
            run(opt, 1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        swapped()
    assert everything(opt) == before


def test_training_goes_on_as_if_nothing_had_been() -> None:
    opt, undisturbed, source = live(), live(), other()
    for i in range(3):
        with opt.swap_in(source.params, source.state_dict()):
            run(opt, 2)
        for x in opt, undisturbed:
            run(x, 1, start=40 + i)
    assert progress(opt) == progress(undisturbed)


def test_what_was_swapped_in_stays() -> None:
    """Steps on it neither overwrite nor consume what the user gave."""
    opt, source = live(), other()
    values, saved = source.params, source.state_dict()
    before = exactly((values, saved))
    with opt.swap_in(values, saved):
        run(opt, 3)
    assert exactly((values, saved)) == before
    assert exactly((source.params, source.state_dict())) == before


def test_results_can_be_swapped_in_again() -> None:
    """The loop of a search over several states with one optimizer."""
    opt, source = live(), other()
    values, saved = source.params, source.state_dict()
    for i in range(3):
        with opt.swap_in(values, saved):
            run(opt, 1, start=30 + i)
            values, saved = opt.params, opt.state_dict()
    run(source, 3, start=30)
    assert exactly((values, saved)) == exactly((source.params, source.state_dict()))


def test_gradients_are_away_meanwhile() -> None:
    opt, source = live(), other()
    grads = exactly([p.grad for p in all_parameters(opt)])
    with opt.swap_in(source.params, source.state_dict()):
        assert all(p.grad is None for p in all_parameters(opt))
        give_gradients(all_parameters(opt), 77)
    assert exactly([p.grad for p in all_parameters(opt)]) == grads


def test_numpy_values_can_be_swapped_in() -> None:
    opt, source = live(), other()
    values = jax.tree.map(np.array, source.params)
    with opt.swap_in(values, source.state_dict()):
        run(opt, 1)
        assert exactly(opt.params) != exactly(source.params)
    np.testing.assert_array_equal(values["a"], source.params["a"])


def test_a_state_without_steps_starts_anew() -> None:
    opt, fresh = live(), build(10)
    with opt.swap_in(fresh.params, fresh.state_dict()):
        assert len(opt.state) == 0
        run(opt, 1)
        run(fresh, 1)
        assert progress(opt) == progress(fresh)
    assert len(opt.state) == 2


def test_groups_take_a_list_of_trees() -> None:
    p, q = (optim.Parameter(numbers(i, (3,))) for i in range(2))
    opt = optim.SGD([{"params": {"x": p}}, {"params": [q], "lr": 0.5}], lr=1.0)
    before = everything(opt)
    with opt.swap_in([{"x": jnp.zeros(3)}, [jnp.ones(3)]], opt.state_dict()):
        p.grad = q.grad = np.ones(3, np.float32)
        opt.step()
        np.testing.assert_array_equal(p.data, -np.ones(3))
        np.testing.assert_array_equal(q.data, np.full(3, 0.5))
    assert everything(opt) == before


def test_a_train_step_acts_on_it_too() -> None:
    model = {"w": optim.Parameter(np.ones(2, np.float32))}
    opt = optim.SGD(model, lr=1.0)
    train_step = opt.make_step(lambda params, x: jnp.sum(params["w"]) * x, model)
    with opt.swap_in({"w": jnp.zeros(2)}, opt.state_dict()):
        train_step(jnp.float32(3.0))
        np.testing.assert_array_equal(opt.params["w"], [-3, -3])
    np.testing.assert_array_equal(opt.params["w"], [1, 1])
    train_step(jnp.float32(3.0))
    np.testing.assert_array_equal(opt.params["w"], [-2, -2])


def wrong(what: str) -> tuple[Any, Any]:
    source = other()
    values, saved = dict(source.params), source.state_dict()
    group = saved["param_groups"][0]
    if what == "structure":
        del values["b"]
    elif what == "one more leaf":
        values["c"] = values["b"]
    elif what == "shape of the last value":
        values["b"] = jnp.zeros(4)
    elif what == "dtype of the last value":
        values["b"] = values["b"].astype(jnp.bfloat16)
    elif what == "number of groups":
        saved["param_groups"] = [group, group]
    elif what == "number of parameters":
        saved["param_groups"] = [{**group, "params": [0]}]
    elif what == "shape of a buffer":
        saved["state"][1]["exp_avg"] = jnp.zeros(3)
    elif what == "state":
        saved["state"] = [1, 2]
    return values, saved


@pytest.mark.parametrize(
    "what",
    [
        "structure",
        "one more leaf",
        "shape of the last value",
        "dtype of the last value",
        "number of groups",
        "number of parameters",
        "shape of a buffer",
        "state",
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(what: str) -> None:
    opt = live()
    before = everything(opt)
    with pytest.raises((TypeError, ValueError)), opt.swap_in(*wrong(what)):
        pytest.fail("entered")
    assert everything(opt) == before
    undisturbed = live()
    for x in opt, undisturbed:
        run(x, 1)
    assert progress(opt) == progress(undisturbed)


def test_a_group_added_meanwhile_goes_away_again() -> None:
    opt, source = live(), other()
    before = everything(opt)
    with opt.swap_in(source.params, source.state_dict()):
        opt.add_param_group({"params": optim.Parameter(np.ones(2, np.float32))})
    assert everything(opt) == before
    assert list(opt.params) == ["a", "b"]


def test_giving_the_state_away_meanwhile_is_over_afterwards() -> None:
    """What was given away was what had been swapped in; the live state is here."""
    opt, source = live(), other()
    with opt.swap_in(source.params, source.state_dict()):
        opt.to_functional()
    run(opt, 1)
