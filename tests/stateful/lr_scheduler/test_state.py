"""Saving and restoring schedulers, here and from torch and back; copies and pickles."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest

from tests.support.lr_scheduler import (
    ALL,
    OURS,
    Build,
    Power,
    advance,
    assert_same,
    hyperbola,
    optimizer,
    over,
    pair,
    seen,
    torchs,
)
from tests.support.stateful import exactly

STOPS = pytest.mark.parametrize("epochs", [0, 4, 13])


def stepped(build: Build, epochs: int) -> tuple[Any, Any]:
    opt = optimizer(OURS, momentum=0.5)
    scheduler = build(OURS, opt)
    for _ in range(epochs):
        advance(opt, scheduler)
    return opt, scheduler


def assert_they_go_on_alike(first: tuple[Any, Any], second: tuple[Any, Any]) -> None:
    for _ in range(25):
        assert exactly(advance(*second)) == exactly(advance(*first))
    assert exactly(second[1].state_dict()) == exactly(first[1].state_dict())


@over(ALL)
@STOPS
@pytest.mark.parametrize("pickled", [False, True])
def test_restoring_changes_nothing(build: Build, epochs: int, pickled: bool) -> None:
    opt, scheduler = stepped(build, epochs)
    saved = opt.state_dict(), scheduler.state_dict()
    saved = pickle.loads(pickle.dumps(saved)) if pickled else copy.deepcopy(saved)
    other, restored = stepped(build, 2)
    other.load_state_dict(saved[0])
    before = exactly(saved[1])
    restored.load_state_dict(saved[1])
    assert exactly(restored.state_dict()) == exactly(scheduler.state_dict())
    assert_they_go_on_alike((opt, scheduler), (other, restored))
    assert exactly(saved[1]) == before  # neither loading nor going on changes what was saved


@over(ALL)
def test_what_was_saved_stays(build: Build) -> None:
    opt, scheduler = stepped(build, 4)
    saved = scheduler.state_dict()
    before = exactly(saved)
    for _ in range(20):
        advance(opt, scheduler)
    assert exactly(saved) == before


@over(ALL)
@STOPS
@pytest.mark.parametrize("there", [False, True], ids=["here", "to torch"])
def test_state_dicts_swap_with_torchs(build: Build, epochs: int, there: bool) -> None:
    """The scheduler's, with the groups' hyperparameters: those of the optimizer's state_dict."""
    ours, theirs = pair(build, momentum=0.5)
    for _ in range(epochs):
        advance(*ours)
        advance(*theirs)
    (opt, scheduler), (other, restored) = pair(build, momentum=0.5)
    if there:
        opt, scheduler, other, restored = other, restored, *ours
        source, target, going = (other, restored), (opt, scheduler), ours
    else:
        source, target, going = theirs, (opt, scheduler), theirs
    for mine, group in zip(target[0].param_groups, source[0].param_groups, strict=True):
        mine.update({k: v for k, v in group.items() if k != "params"})
    state = copy.deepcopy(source[1].state_dict())
    target[1].load_state_dict(state)
    for _ in range(25):
        assert_same(advance(*target), advance(*going))


@pytest.mark.parametrize("name", ["Lambda list", "Cyclic function", "Sequential", "MultiStep"])
def test_loading_leaves_its_argument_as_it_is(name: str) -> None:
    """torch takes a key out of that of CyclicLR."""
    _, scheduler = stepped(ALL[name], 3)
    saved = scheduler.state_dict()
    before = exactly(saved)
    opt, other = stepped(ALL[name], 0)
    other.load_state_dict(saved)
    other.load_state_dict(saved)
    advance(opt, other)
    assert exactly(saved) == before


def test_attributes_of_functions_are_saved() -> None:
    opt = optimizer(OURS)
    for build, key, wanted in (
        (lambda f: OURS.LambdaLR(opt, [f, hyperbola]), "lr_lambdas", [{"base": 0.5}, None]),
        (lambda f: OURS.CyclicLR(opt, 0.1, 1.0, scale_fn=f), "_scale_fn_custom", {"base": 0.5}),
    ):
        saved = build(Power(0.5)).state_dict()
        assert saved[key] == wanted
        assert list(saved)[-1] == key
        function = Power(0.1)
        build(function).load_state_dict(saved)
        assert function.base == 0.5
        assert saved[key] == wanted


def test_a_callable_without_attributes_can_be_saved() -> None:
    """torch: AttributeError."""
    opt = optimizer(OURS)
    assert OURS.LambdaLR(opt, abs).state_dict()["lr_lambdas"] == [None, None]
    saved = OURS.CyclicLR(opt, 0.1, 1.0, scale_fn=abs).state_dict()
    assert saved["_scale_fn_custom"] is None


def test_torchs_tensors_become_arrays() -> None:
    import jax

    lib = torchs()
    import torch

    reference = lib.optimizers.SGD([torch.ones(2)], lr=torch.tensor(0.5))
    theirs = lib.StepLR(reference, 3)
    opt = OURS.optimizers.SGD([OURS.parameter()], lr=0.5)
    ours = OURS.StepLR(opt, 3)
    ours.load_state_dict(theirs.state_dict())
    assert isinstance(ours.base_lrs[0], jax.Array)
    assert float(ours.get_last_lr()[0]) == 0.5


DUPLICATES = {"deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}


@over(ALL)
@pytest.mark.parametrize("duplicate", DUPLICATES.values(), ids=list(DUPLICATES))
def test_duplicates_go_on_alike_and_apart(build: Build, duplicate: Any) -> None:
    opt, scheduler = stepped(build, 3)
    twin_opt, twin = duplicate((opt, scheduler))
    assert twin.optimizer is twin_opt
    before = exactly(scheduler.state_dict()), seen(opt)
    for _ in range(3):
        advance(twin_opt, twin)
    assert (exactly(scheduler.state_dict()), seen(opt)) == before
    for _ in range(3):
        advance(opt, scheduler)
    assert_they_go_on_alike((opt, scheduler), (twin_opt, twin))


def test_a_duplicates_order_of_calls_is_watched_as_well() -> None:
    """torch: it warns that the optimizer's step was overridden."""
    opt, scheduler = stepped(ALL["Step"], 0)
    twin = copy.deepcopy(scheduler)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        twin.step()
    assert [str(w.message)[:16] for w in caught] == ["Detected call of"]
    advance(opt, scheduler)


def test_a_scheduler_does_not_keep_an_optimizer_alive() -> None:
    """No cycle: the arrays are freed without the garbage collector."""
    import gc
    import weakref

    opt = optimizer(OURS)
    scheduler = OURS.StepLR(opt, 3)
    reference = weakref.ref(opt)
    gc.disable()
    try:
        step = opt.step
        del opt, scheduler
        assert reference() is None
    finally:
        gc.enable()
    with pytest.raises(ReferenceError):
        step()
