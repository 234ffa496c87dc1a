"""The schedulers beside torch's, epoch by epoch: alone, back to back, in sequence, nested."""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np
import pytest

from tests.support.lr_scheduler import (
    ALL,
    COMPOSITES,
    CYCLES,
    OURS,
    PLAIN,
    Build,
    advance,
    assert_same,
    assert_same_state,
    optimizer,
    over,
    pair,
    seen,
    torchs,
)

EPOCHS = 200
NAMES = [*PLAIN, *CYCLES]
# LinearLR of no epochs has no closed form: as in torch it cannot start at a milestone.
MEMBERS = [name for name in NAMES if name != "Linear at once"]


@over(ALL)
@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_alone(build: Build, kind: str) -> None:
    (opt, ours), (reference, theirs) = pair(build, kind)
    assert_same(seen(opt, [ours]), seen(reference, [theirs]))
    for epoch in range(EPOCHS):
        assert_same(advance(opt, ours), advance(reference, theirs))
        assert getattr(ours, "last_epoch", epoch) == getattr(theirs, "last_epoch", epoch)


@over(ALL)
def test_groups_and_state_have_torchs_keys_in_torchs_order(build: Build) -> None:
    (opt, ours), (reference, theirs) = pair(build, momentum=0.5)
    for _ in range(7):
        for mine, others in zip(opt.param_groups, reference.param_groups, strict=True):
            assert_same_state(
                {k: v for k, v in mine.items() if k != "params"},
                {k: v for k, v in others.items() if k != "params"},
            )
        assert_same_state(ours.state_dict(), theirs.state_dict())
        advance(opt, ours)
        advance(reference, theirs)


@pytest.mark.parametrize("seed", range(25))
def test_back_to_back(seed: int) -> None:
    """Several schedulers on one optimizer, stepped one after the other."""
    chosen = random.Random(seed).choices(NAMES, k=3)
    opt, reference = optimizer(OURS), optimizer(torchs())
    ours, theirs = [], []
    for name in chosen:
        ours.append(ALL[name](OURS, opt))
        # torch's CyclicLR starts from the initial_lr of an earlier scheduler
        theirs.append(ALL[name](torchs(), reference))
        if name in CYCLES and "Cyclic" in name:
            for mine, other in zip(opt.param_groups, reference.param_groups, strict=True):
                other["lr"] = mine["lr"]
    for _ in range(60):
        advance(opt, *ours)
        advance(reference, *theirs)
        assert_same(seen(opt), seen(reference))
        assert_same(ours[-1].get_last_lr(), theirs[-1].get_last_lr())


def sequence(lib: Any, opt: Any, names: list[str], milestones: list[int]) -> Any:
    return lib.SequentialLR(opt, [ALL[name](lib, opt) for name in names], milestones)


def drawn(seed: int) -> tuple[list[str], list[int]]:
    choice = random.Random(seed)
    names = choice.choices(MEMBERS, k=choice.randint(1, 4))
    return names, sorted(choice.choices(range(40), k=len(names) - 1))


@pytest.mark.parametrize("seed", range(40))
def test_in_sequence(seed: int) -> None:
    names, milestones = drawn(seed)
    opt, reference = optimizer(OURS), optimizer(torchs())
    ours = sequence(OURS, opt, names, milestones)
    theirs = sequence(torchs(), reference, names, milestones)
    assert_same(seen(opt, [ours]), seen(reference, [theirs]))
    for _ in range(60):
        assert_same(advance(opt, ours), advance(reference, theirs))
    assert_same_state(ours.state_dict(), theirs.state_dict())


def nested(lib: Any, opt: Any, names: list[str], milestones: list[int], cut: int, end: int) -> Any:
    """The sequence with its members from `cut` to `end` as one SequentialLR."""
    members = [ALL[name](lib, opt) for name in names]
    start = milestones[cut - 1] if cut else 0
    inner = lib.SequentialLR(opt, members[cut:end], [m - start for m in milestones[cut : end - 1]])
    outside = milestones[:cut] + milestones[end - 1 :]
    return lib.SequentialLR(opt, [*members[:cut], inner, *members[end:]], outside)


@pytest.mark.parametrize("seed", range(30))
def test_a_sequence_within_a_sequence_is_torchs_without_the_nesting(seed: int) -> None:
    choice = random.Random(seed)
    names = choice.choices([n for n in MEMBERS if "OneCycle" not in n], k=4)
    milestones = sorted(choice.sample(range(1, 40), k=3))
    cut = seed % 3
    end = choice.randint(cut + 1, 4)
    opt, reference = optimizer(OURS), optimizer(torchs())
    ours = nested(OURS, opt, names, milestones, cut, end)
    theirs = sequence(torchs(), reference, names, milestones)
    assert_same(seen(opt, [ours]), seen(reference, [theirs]))
    for _ in range(60):
        assert_same(advance(opt, ours), advance(reference, theirs))


@over({name: ALL[name] for name in MEMBERS})
def test_to_an_epoch(build: Build) -> None:
    (opt, ours), (reference, theirs) = pair(build)
    advance(opt, ours)
    advance(reference, theirs)
    for epoch in (5, None, 2, 40, None, 0, None, 13):
        for scheduler in ours, theirs:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                scheduler.step(epoch)
        assert_same(seen(opt, [ours]), seen(reference, [theirs]))
        assert ours.last_epoch == theirs.last_epoch


@pytest.mark.parametrize("T_mult", [1, 2, 3])
def test_restarts_at_epochs_with_fractions(T_mult: int) -> None:
    (opt, ours), (reference, theirs) = pair(
        lambda lib, opt: lib.CosineAnnealingWarmRestarts(opt, 5, T_mult, 0.01)
    )
    for epoch in (*np.arange(0, 40, 0.3).tolist(), 2.5, None, None, None, 7, None):
        ours.step(epoch)
        theirs.step(epoch)
        assert_same(seen(opt, [ours]), seen(reference, [theirs]))
        assert (ours.last_epoch, ours.T_i) == (theirs.last_epoch, theirs.T_i)
        assert_same(ours.T_cur, theirs.T_cur)


PLATEAUS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "patience": {"patience": 1, "factor": 0.5},
    "max": {"mode": "max", "patience": 0, "factor": 0.7, "threshold": 0.2},
    "abs": {"threshold_mode": "abs", "threshold": 0.1, "patience": 2, "cooldown": 3},
    "max abs": {"mode": "max", "threshold_mode": "abs", "threshold": 0.3, "patience": 0},
    "min_lr": {"patience": 0, "factor": 0.5, "min_lr": 0.004},
    "min_lrs": {"patience": 0, "factor": 0.5, "min_lr": (0.05, 0.001), "eps": 1e-3},
}


@pytest.mark.parametrize("options", PLATEAUS.values(), ids=list(PLATEAUS))
def test_plateau(options: dict[str, Any]) -> None:
    (opt, ours), (reference, theirs) = pair(lambda lib, opt: lib.ReduceLROnPlateau(opt, **options))
    metrics = np.random.RandomState(0).normal(size=EPOCHS)
    metrics[[0, 30, 31, 90]] = np.nan, np.inf, -np.inf, np.nan
    metrics[1:30] = np.linspace(3, 1, 29)
    for metric in metrics:
        for scheduler in ours, theirs:
            scheduler.step(metric)
        assert_same(seen(opt, [ours]), seen(reference, [theirs]))
        assert_same_state(ours.state_dict(), theirs.state_dict())
        assert ours.in_cooldown == theirs.in_cooldown


@over({name: build for name, build in ALL.items() if name not in COMPOSITES})
@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_a_later_group(build: Build, momentum: float) -> None:
    """What goes on with a group more, and what raises, in the same words."""
    (opt, ours), (reference, theirs) = pair(build, momentum=momentum)
    results = []
    for lib, o, s in (OURS, opt, ours), (torchs(), reference, theirs):
        o.add_param_group({"params": [lib.parameter()], "lr": 0.4})
        results.append([])
        for _ in range(12):
            try:
                results[-1].append(advance(o, s))
            except (ValueError, KeyError) as error:
                results[-1].append((type(error), str(error)))
                break
    assert len(results[0]) == len(results[1])
    for mine, other in zip(*results, strict=True):
        if isinstance(mine, tuple):
            assert mine == other
        else:
            assert_same(mine, other)


def test_signatures_are_torchs() -> None:
    import inspect

    lib = torchs()
    for name in vars(lib):
        if name[0].isupper() or name == "_LRScheduler":
            mine, other = (inspect.signature(getattr(x, name)) for x in (OURS, lib))
            assert [(p.name, p.default) for p in mine.parameters.values()] == [
                (p.name, p.default) for p in other.parameters.values()
            ]
