"""Pickled and copied optimizers go on identically, and apart from the original."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import pytest

import functorch_optim.stateful as optim
from tests.support.stateful import all_parameters, cells, exactly, run, snapshot

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "dampening": 0.5},
    "Adam": {"lr": 0.1, "amsgrad": True},
    "AdamW": {"lr": 0.1},
}
over_optimizers = pytest.mark.parametrize("name", OPTIMIZERS)
DUPLICATES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
}
over_duplicates = pytest.mark.parametrize("duplicate", DUPLICATES.values(), ids=DUPLICATES)


def stepped(name: str) -> optim.Optimizer:
    p, q = cells((3,), (2, 2))
    p.name = "first"
    groups = [{"params": [p]}, {"params": [q], "lr": 0.05, "note": "kept"}]
    opt = getattr(optim, name)(groups, **OPTIMIZERS[name])
    run(opt, 2)
    return opt


@over_optimizers
@over_duplicates
def test_a_duplicate_goes_on_identically(name: str, duplicate: Any) -> None:
    opt = stepped(name)
    twin = duplicate(opt)
    assert type(twin) is type(opt)
    assert snapshot(twin) == snapshot(opt)
    assert exactly(twin.params) == exactly(opt.params)
    assert repr(twin) == repr(opt)
    for x in opt, twin:
        run(x, 3, start=5)
    assert snapshot(twin) == snapshot(opt)


@over_duplicates
def test_a_duplicate_goes_its_own_way(duplicate: Any) -> None:
    opt = stepped("Adam")
    before = snapshot(opt)
    twin = duplicate(opt)
    twin.param_groups[0]["lr"] = 7.0
    run(twin, 2)
    twin.zero_grad()
    assert snapshot(opt) == before
    before = snapshot(twin)
    run(opt, 2)
    assert snapshot(twin) == before


@over_duplicates
def test_a_model_and_its_optimizer_stay_linked(duplicate: Any) -> None:
    model = optim.parameters({"w": jnp.ones(3), "b": jnp.ones(())})
    opt = optim.SGD(model, lr=0.1)
    run(opt, 1)
    model, opt = duplicate((model, opt))
    assert all_parameters(opt) == [model["b"], model["w"]]
    before = exactly(model)
    run(opt, 1)
    assert exactly(model) != before
    assert exactly(opt.params) == exactly(optim.values(model))


@over_duplicates
def test_a_scheduler_stays_linked_to_its_optimizer(duplicate: Any) -> None:
    opt = stepped("SGD")
    scheduler = optim.lr_scheduler.StepLR(opt, 2)
    for _ in range(3):
        opt.step()
        scheduler.step()
    twin, twin_opt = duplicate((scheduler, opt))
    assert twin.optimizer is twin_opt
    for s, o in (scheduler, opt), (twin, twin_opt):
        o.step()
        s.step()
    assert twin_opt.param_groups[0]["lr"] == opt.param_groups[0]["lr"] == pytest.approx(1e-3)
    assert exactly(twin.state_dict()) == exactly(scheduler.state_dict())


@over_duplicates
def test_an_optimizer_before_its_first_step_can_be_duplicated(duplicate: Any) -> None:
    opt = optim.Adam(cells((3,)), lr=jnp.float32(0.1))
    twin = duplicate(opt)
    for x in opt, twin:
        run(x, 1)
    assert snapshot(twin) == snapshot(opt)


@over_duplicates
def test_what_was_hung_on_from_outside_stays_behind(duplicate: Any) -> None:
    """As in torch, where hooks and a scheduler's patch are not copied."""
    opt = stepped("SGD")
    optim.lr_scheduler.StepLR(opt, 2)
    opt.note = "not kept"
    assert "step" in vars(opt)
    twin = duplicate(opt)
    assert "step" not in vars(twin)
    assert not hasattr(twin, "note")
    run(twin, 1)
