"""`load_state_dict`: torch's dicts go on identically, and what does not fit changes nothing."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import functorch_optim.stateful as optim
from tests.support.stateful import (
    all_parameters,
    cells,
    exactly,
    numbers,
    progress,
    run,
    snapshot,
    with_arrays,
)
from tests.support.twin import Twin, plain

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "dampening": 0.5},
    "Adam": {"lr": 0.1, "amsgrad": True},
    "AdamW": {"lr": 0.1, "betas": (0.5, 0.6)},
}
over_optimizers = pytest.mark.parametrize("name", OPTIMIZERS)
SHAPES = (3,), (2, 2), ()


def build(name: str, **kwargs: Any) -> optim.Optimizer:
    """Two groups, of two parameters and of one."""
    p, q, r = cells(*SHAPES)
    p.name = "first"
    groups = [{"params": [p, q]}, {"params": [r], "lr": 0.05}]
    return getattr(optim, name)(groups, **{**OPTIMIZERS[name], **kwargs})


def stepped(name: str, steps: int = 2, **kwargs: Any) -> optim.Optimizer:
    opt = build(name, **kwargs)
    run(opt, steps)
    return opt


def copy_values(source: optim.Optimizer, target: optim.Optimizer) -> None:
    for p, q in zip(all_parameters(source), all_parameters(target), strict=True):
        q.data = jnp.copy(p.data)


@over_optimizers
def test_a_loaded_optimizer_goes_on_identically(name: str) -> None:
    opt, other = stepped(name), build(name, lr=7.0)
    copy_values(opt, other)
    other.load_state_dict(opt.state_dict())
    assert exactly(other.state_dict()) == exactly(opt.state_dict())
    for x in opt, other:
        run(x, 3, start=5)
    assert progress(other) == progress(opt)


@over_optimizers
def test_torchs_dict_goes_on_as_in_torch(name: str) -> None:
    twin = Twin(name, **OPTIMIZERS[name])
    twin.step(2, without=(1,))
    twin.step(2)
    saved = plain(twin.reference.state_dict())
    fresh = getattr(optim, name)([{"params": twin.ours[:2]}, {"params": twin.ours[2:]}], lr=7.0)
    fresh.load_state_dict(saved)
    twin.opt = fresh
    twin.check(5e-6)
    twin.step(3)
    twin.check(5e-6)


@over_optimizers
def test_torch_goes_on_from_our_dict(name: str) -> None:
    twin = Twin(name, **OPTIMIZERS[name])
    twin.step(3)
    tensors = with_arrays(lambda x: twin.torch.tensor(np.array(x)), twin.opt.state_dict())
    twin.reference = getattr(twin.torch.optim, name)(
        [{"params": twin.theirs[:2]}, {"params": twin.theirs[2:]}]
    )
    twin.reference.load_state_dict(tensors)
    twin.step(3)
    twin.check(5e-6)


def test_parameters_are_matched_by_position() -> None:
    """Ids only link the two parts of a dict; names are not looked at."""
    opt = stepped("Adam")
    saved = opt.state_dict()
    other_ids = {0: 70, 1: 3, 2: 0}
    renamed = {
        "state": {other_ids[key]: saved["state"][key] for key in (2, 0, 1)},
        "param_groups": [
            {**group, "params": [other_ids[i] for i in group["params"]]}
            for group in saved["param_groups"]
        ],
    }
    other = build("Adam")
    other.load_state_dict(renamed)
    for p, q in zip(all_parameters(opt), all_parameters(other), strict=True):
        assert exactly(dict(other.state[q])) == exactly(dict(opt.state[p]))
    assert list(other.state_dict()["state"]) == [2, 0, 1]  # as listed in what was loaded


def test_hyperparameters_are_taken_over_in_their_order() -> None:
    opt = stepped("SGD")
    saved = opt.state_dict()
    group = saved["param_groups"][0]
    saved["param_groups"][0] = {"note": "kept", "lr": 0.7} | {
        key: value for key, value in group.items() if key != "lr"
    }
    opt.load_state_dict(saved)
    assert list(opt.param_groups[0])[:2] == ["note", "lr"]
    assert opt.param_groups[0]["note"] == "kept"
    assert opt.param_groups[0]["lr"] == 0.7
    assert list(opt.param_groups[0])[-1] == "params"
    assert opt.defaults["lr"] == 0.1


def test_a_hyperparameter_that_is_missing_stays() -> None:
    """torch drops it."""
    opt = stepped("Adam")
    saved = opt.state_dict()
    for group in saved["param_groups"]:
        del group["betas"], group["amsgrad"]
    opt.param_groups[0]["betas"] = (0.3, 0.4)
    opt.load_state_dict(saved)
    assert opt.param_groups[0]["betas"] == (0.3, 0.4)
    assert opt.param_groups[1]["betas"] == (0.9, 0.999)
    assert opt.param_groups[0]["amsgrad"] is True
    run(opt, 1)


def test_state_that_is_missing_starts_anew() -> None:
    opt = stepped("Adam")
    saved = opt.state_dict()
    del saved["state"][1]
    opt.load_state_dict(saved)
    assert list(opt.state_dict()["state"]) == [0, 2]
    run(opt, 1)
    steps = [float(opt.state[p]["step"]) for p in all_parameters(opt)]
    assert steps == [3, 1, 3]


def test_state_is_dropped_that_was_not_saved() -> None:
    opt = stepped("Adam")
    opt.load_state_dict({**opt.state_dict(), "state": {}})
    assert opt.state_dict()["state"] == {}
    assert len(opt.state) == 0


def test_a_momentum_buffer_of_none_is_a_first_step() -> None:
    """As checkpoints of older torch releases have it."""
    opt, fresh = build("SGD"), build("SGD")
    saved = opt.state_dict()
    saved["state"] = {i: {"momentum_buffer": None} for i in range(3)}
    opt.load_state_dict(saved)
    for x in opt, fresh:
        run(x, 2)
    assert exactly(opt.state_dict()) == exactly(fresh.state_dict())
    assert len(opt.state_dict()["state"]) == 3


def test_a_loaded_momentum_buffer_is_no_first_step() -> None:
    (p,) = cells((3,))
    opt = optim.SGD([p], lr=0.1, momentum=0.9, dampening=0.5)
    saved = opt.state_dict()
    saved["state"] = {0: {"momentum_buffer": np.ones(3, np.float32)}}
    opt.load_state_dict(saved)
    p.grad = np.ones(3, np.float32)
    opt.step()
    np.testing.assert_allclose(opt.state[p]["momentum_buffer"], np.full(3, 1.4), rtol=1e-6)


def test_adamw_stays_decoupled_whatever_is_loaded() -> None:
    adam, adamw = stepped("Adam", amsgrad=False), build("AdamW", weight_decay=0.3)
    adamw.load_state_dict(adam.state_dict())
    assert [g["decoupled_weight_decay"] for g in adamw.param_groups] == [True, True]
    assert adamw.param_groups[0]["weight_decay"] == 0


def test_a_dict_of_adamw_makes_an_adam_decoupled() -> None:
    adamw, adam = stepped("AdamW", weight_decay=0.3), build("Adam", weight_decay=0.0)
    copy_values(adamw, adam)
    adam.load_state_dict(adamw.state_dict())
    assert [g["decoupled_weight_decay"] for g in adam.param_groups] == [True, True]
    for x in adamw, adam:
        run(x, 2, start=4)
    assert progress(adam) == progress(adamw)


def test_loading_between_the_adams_is_torchs() -> None:
    for names in (("Adam", "AdamW"), ("AdamW", "Adam")):
        source, target = (Twin(n, lr=0.1, weight_decay=0.2) for n in names)
        source.step(2)
        target.opt.load_state_dict(source.opt.state_dict())
        target.reference.load_state_dict(copy.deepcopy(source.reference.state_dict()))
        target.step(2)
        target.check(5e-6)


def test_buffers_are_cast_to_their_parameters_dtype() -> None:
    p = optim.Parameter(jnp.ones(3, jnp.bfloat16))
    opt = optim.Adam([p])
    saved = stepped_alone().state_dict()
    opt.load_state_dict(saved)
    entries = opt.state[p]
    assert entries["exp_avg"].dtype == jnp.bfloat16
    assert entries["exp_avg_sq"].dtype == jnp.bfloat16
    assert entries["step"].dtype == jnp.float32
    assert saved["state"][0]["exp_avg"].dtype == jnp.float32


def stepped_alone() -> optim.Optimizer:
    opt = optim.Adam(cells((3,)), lr=0.1)
    run(opt, 2)
    return opt


@pytest.mark.parametrize(
    "step", [2, 2.0, np.int64(2), np.float64(2), np.array([2.0]), jnp.int32(2), np.float16(2)]
)
def test_a_step_may_be_any_number(step: Any) -> None:
    opt = stepped_alone()
    wanted = exactly(opt.state_dict())
    saved = opt.state_dict()
    saved["state"][0]["step"] = step
    opt.load_state_dict(saved)
    assert exactly(opt.state_dict()) == wanted


Change = Callable[[dict[str, Any]], Any]


def entry(name: str, value: Any) -> Change:
    return lambda saved: saved["state"][1].update({name: value})


REFUSED: dict[str, tuple[Change, type[Exception], str]] = {
    "a group less": (
        lambda saved: saved["param_groups"].pop(),
        ValueError,
        "loaded state dict has a different number of parameter groups",
    ),
    "a group more": (
        lambda saved: saved["param_groups"].append(saved["param_groups"][0]),
        ValueError,
        "loaded state dict has a different number of parameter groups",
    ),
    "a parameter less": (
        lambda saved: saved["param_groups"][0]["params"].pop(),
        ValueError,
        "loaded state dict contains a parameter group that doesn't match the size of optimizer's "
        "group",
    ),
    "parameters in other groups": (
        lambda saved: saved["param_groups"][1]["params"].append(
            saved["param_groups"][0]["params"].pop()
        ),
        ValueError,
        "doesn't match the size of optimizer's group",
    ),
    "no groups": (lambda saved: saved.pop("param_groups"), KeyError, "param_groups"),
    "no state": (lambda saved: saved.pop("state"), KeyError, "state"),
    "no list of parameters": (
        lambda saved: saved["param_groups"][1].pop("params"),
        KeyError,
        "params",
    ),
    "another shape": (
        entry("exp_avg", np.ones((2, 3), np.float32)),
        ValueError,
        "state of parameter 1: exp_avg has shape (2, 3), but its parameter has shape (2, 2)",
    ),
    "another rank": (entry("exp_avg_sq", np.ones(4, np.float32)), ValueError, "exp_avg_sq"),
    "a complex buffer": (
        entry("exp_avg", np.ones((2, 2), np.complex64)),
        TypeError,
        "exp_avg has dtype complex64, but its parameter has dtype float32",
    ),
    "a buffer of booleans": (entry("exp_avg", np.ones((2, 2), bool)), TypeError, "dtype bool"),
    "a buffer of strings": (
        entry("exp_avg", np.array([["a", "b"], ["c", "d"]])),
        TypeError,
        "exp_avg",
    ),
    "a step that is NaN": (entry("step", float("nan")), ValueError, "step should be a count"),
    "an infinite step": (entry("step", np.float32("inf")), ValueError, "step should be a count"),
    "a negative step": (entry("step", -1), ValueError, "count of updates, but is -1"),
    "a fraction of a step": (entry("step", 1.5), ValueError, "count of updates, but is 1.5"),
    "several steps": (entry("step", np.ones(2)), TypeError, "step should be a number"),
    "a step in words": (entry("step", "two"), TypeError, "step should be a number"),
    "no step": (lambda saved: saved["state"][1].pop("step"), ValueError, "step is missing"),
    "no dict": (lambda saved: saved["state"].update({1: [1.0]}), TypeError, "should be a dict"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused_and_changes_nothing(what: str) -> None:
    change, error, words = REFUSED[what]
    opt, untouched = stepped("Adam"), stepped("Adam")
    before = snapshot(opt)
    saved = stepped("Adam", steps=4, lr=0.7).state_dict()  # all else in it would be a change
    change(saved)
    with pytest.raises(error, match=re.escape(words)):
        opt.load_state_dict(saved)
    assert snapshot(opt) == before
    for x in opt, untouched:
        run(x, 1, start=9)
    assert snapshot(opt) == snapshot(untouched)


def test_a_refusal_names_the_parameter() -> None:
    opt = stepped("Adam")
    saved = opt.state_dict()
    saved["state"][0]["exp_avg"] = np.ones(9, np.float32)
    with pytest.raises(ValueError, match=r"state of parameter 0 \(first\): exp_avg"):
        opt.load_state_dict(saved)


@pytest.mark.parametrize("names", [("SGD", "Adam"), ("Adam", "SGD")])
def test_a_dict_of_another_algorithm_is_refused(names: tuple[str, str]) -> None:
    source, target = stepped(names[0]), stepped(names[1])
    before = snapshot(target)
    with pytest.raises((ValueError, TypeError, KeyError), match="state of parameter 0"):
        target.load_state_dict(source.state_dict())
    assert snapshot(target) == before


def test_a_missing_buffer_is_told_at_the_step_and_changes_nothing() -> None:
    opt = stepped("Adam")
    saved = opt.state_dict()
    del saved["state"][1]["exp_avg_sq"]
    opt.load_state_dict(saved)
    before = snapshot(opt)
    with pytest.raises(KeyError, match="exp_avg_sq"):
        opt.step()
    assert snapshot(opt) == before


def test_amsgrad_loaded_as_switched_on_needs_its_buffer() -> None:
    """torch's KeyError, at the step."""
    source, target = stepped("Adam", amsgrad=False), build("Adam")
    saved = source.state_dict()
    for group in saved["param_groups"]:
        group["amsgrad"] = True
    target.load_state_dict(saved)
    with pytest.raises(KeyError, match="max_exp_avg_sq"):
        run(target, 1)


configurations = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["SGD", "Adam", "AdamW"]),
        "lr": st.floats(0, 1),
        "weight_decay": st.sampled_from([0, 0.1]),
        "masks": st.lists(st.sampled_from([{0, 1, 2}, {0, 2}, {1}]), max_size=4),
    }
)


@settings(max_examples=12)
@given(configurations)
def test_a_state_dict_goes_round(chosen: dict[str, Any]) -> None:
    """For any configuration and any history, also of parameters that lack gradients."""
    kwargs = {key: chosen[key] for key in ("lr", "weight_decay")}
    opt, other = build(chosen["name"], **kwargs), build(chosen["name"])
    for i, mask in enumerate(chosen["masks"]):
        for j, p in enumerate(all_parameters(opt)):
            p.grad = jnp.asarray(numbers(10 * i + j, p.shape)) if j in mask else None
        opt.step()
    copy_values(opt, other)
    saved = opt.state_dict()
    other.load_state_dict(saved)
    assert exactly(other.state_dict()) == exactly(saved)
    again = build(chosen["name"])
    again.load_state_dict(with_arrays(np.array, saved))
    assert exactly(again.state_dict()) == exactly(saved)
    for x in opt, other:
        run(x, 1)
    assert progress(other) == progress(opt)


def test_ids_that_became_strings_are_refused() -> None:
    """torch takes them for entries of no parameter, and every moment starts anew."""
    opt = optim.Adam([jnp.ones(2)])
    opt.step([jnp.ones(2)])
    saved = opt.state_dict()
    as_json = {**saved, "state": {str(key): entry for key, entry in saved["state"].items()}}
    with pytest.raises(ValueError, match=r"has the strings \['0'\] for keys"):
        opt.load_state_dict(as_json)
