"""The schedulers: torch's numbers, warnings, state and ways to resume."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim.stateful as optim
from functorch_optim.stateful import lr_scheduler
from tests.support.stateful import exactly

Build = Callable[[Any, Any], Any]  # (the module of schedulers, an optimizer) -> a scheduler

SCHEDULERS: dict[str, Build] = {
    "StepLR": lambda lib, opt: lib.StepLR(opt, 3),
    "StepLR gamma": lambda lib, opt: lib.StepLR(opt, 7, gamma=0.75),
    "StepLR positional": lambda lib, opt: lib.StepLR(opt, 1, 1.02, -1),
    "Cosine": lambda lib, opt: lib.CosineAnnealingLR(opt, 4),
    "Cosine eta_min": lambda lib, opt: lib.CosineAnnealingLR(opt, T_max=30, eta_min=0.01),
    "Cosine positional": lambda lib, opt: lib.CosineAnnealingLR(opt, 7, 0.05, -1),
    "Cosine T_max=1": lambda lib, opt: lib.CosineAnnealingLR(opt, 1),
}
over_schedulers = pytest.mark.parametrize("build", SCHEDULERS.values(), ids=SCHEDULERS)
BOTH = (SCHEDULERS["StepLR"], SCHEDULERS["Cosine"])
over_both = pytest.mark.parametrize("build", BOTH, ids=["StepLR", "Cosine"])

TOO_EARLY = (
    "Detected call of `lr_scheduler.step()` before `optimizer.step()`. In PyTorch 1.1.0 and later, "
    "you should call them in the opposite order: `optimizer.step()` before `lr_scheduler.step()`.  "
    "Failure to do this will result in PyTorch skipping the first value of the learning rate "
    "schedule. See more details at "
    "https://pytorch.org/docs/stable/optim.html#how-to-adjust-learning-rate"
)
OVERRIDDEN = (
    "Seems like `optimizer.step()` has been overridden after learning rate scheduler "
    "initialization. Please, make sure to call `optimizer.step()` before `lr_scheduler.step()`. "
    "See more details at https://pytorch.org/docs/stable/optim.html#how-to-adjust-learning-rate"
)
EPOCH = (
    "The epoch parameter in `scheduler.step()` was not necessary and is being deprecated where "
    "possible. Please use `scheduler.step()` to step the scheduler. During the deprecation, if "
    "epoch is different from None, the closed form is used instead of the new chainable form, "
    "where available. Please open an issue if you are unable to replicate your use case: "
    "https://github.com/pytorch/pytorch/issues/new/choose."
)
ASK_LAST = "To get the last learning rate computed by the scheduler, please use `get_last_lr()`."


def optimizer(lr: Any = 0.1) -> optim.Optimizer:
    p, q = (optim.Parameter(np.ones(2, np.float32)) for _ in range(2))
    return optim.SGD([{"params": p}, {"params": q, "lr": 0.03}], lr=lr)


def torchs() -> tuple[Any, Any]:
    """torch's module of schedulers, and an optimizer like ours."""
    torch = pytest.importorskip("torch", reason="compares with torch's schedulers")
    groups = [{"params": torch.ones(2)}, {"params": torch.ones(2), "lr": 0.03}]
    return torch.optim.lr_scheduler, torch.optim.SGD(groups, lr=0.1)


def rates(opt: Any) -> list[float]:
    return [group["lr"] for group in opt.param_groups]


def advance(opt: Any, *schedulers: Any) -> list[float]:
    opt.step()
    for scheduler in schedulers:
        scheduler.step()
    return rates(opt)


def assert_same(ours: Any, theirs: Any) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-15)


@over_schedulers
def test_200_epochs_are_torchs(build: Build) -> None:
    opt = optimizer()
    lib, reference = torchs()
    scheduler, other = build(lr_scheduler, opt), build(lib, reference)
    assert_same(rates(opt), rates(reference))
    for _ in range(200):
        assert_same(advance(opt, scheduler), advance(reference, other))
        assert scheduler.get_last_lr() == rates(opt)
        assert scheduler.last_epoch == other.last_epoch


GOLDEN = (
    (SCHEDULERS["StepLR"], (0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.001)),
    (
        SCHEDULERS["Cosine"],
        (0.1, 0.0853553391, 0.05, 0.0146446609, 0.0, 0.0146446609, 0.05, 0.0853553391, 0.1),
    ),
    (SCHEDULERS["Cosine T_max=1"], (0.1, 0.0, 0.1, 0.0)),
)


@pytest.mark.parametrize(("build", "wanted"), GOLDEN, ids=["StepLR", "Cosine", "Cosine T_max=1"])
def test_recorded_sequences(build: Build, wanted: tuple[float, ...]) -> None:
    """At construction, then after each step; recorded from torch 2.13.0."""
    opt = optimizer()
    scheduler = build(lr_scheduler, opt)
    sequence = [rates(opt)] + [advance(opt, scheduler) for _ in wanted[1:]]
    np.testing.assert_allclose([lr for lr, _ in sequence], wanted, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose([lr for _, lr in sequence], 0.3 * np.array(wanted), 1e-8, 1e-12)


def test_the_learning_rate_is_used() -> None:
    p = optim.Parameter(np.ones(2, np.float32))
    opt = optim.SGD([p], lr=1.0)
    scheduler = lr_scheduler.StepLR(opt, 1, gamma=0.5)
    p.grad = np.ones(2, np.float32)
    values = []
    for _ in range(3):
        advance(opt, scheduler)
        values.append(float(p.data[0]))
    assert values == [0.0, -0.5, -0.75]


def test_two_schedulers_on_one_optimizer_multiply() -> None:
    opt = optimizer()
    lib, reference = torchs()
    ours, theirs = (
        [lib.StepLR(opt, 5, 0.5), lib.CosineAnnealingLR(opt, 12), lib.StepLR(opt, 2, 0.9)]
        for lib, opt in ((lr_scheduler, opt), (lib, reference))
    )
    for _ in range(40):
        assert_same(advance(opt, *ours), advance(reference, *theirs))
        for a, b in zip(ours, theirs, strict=True):
            assert_same(a.get_last_lr(), b.get_last_lr())


def test_two_schedulers_one_after_the_other() -> None:
    """The second starts from the current rate; its base is the first's `initial_lr`."""
    opt = optimizer()
    lib, reference = torchs()
    for build in BOTH:
        ours, theirs = build(lr_scheduler, opt), build(lib, reference)
        assert_same(ours.base_lrs, theirs.base_lrs)
        for _ in range(9):
            assert_same(advance(opt, ours), advance(reference, theirs))


def test_two_schedulers_recorded() -> None:
    """Recorded from torch 2.13.0. Where the cosine rises again it adds to what is left."""
    opt = optimizer()
    pair = lr_scheduler.StepLR(opt, 1, 0.5), lr_scheduler.CosineAnnealingLR(opt, 5)
    sequence = [advance(opt, *pair)[0] for _ in range(6)]
    wanted = [
        0.04522542485937369,
        0.016362712429686843,
        0.004318643785156579,
        0.0005968218925782896,
        0.0,
        0.009549150281252628,
    ]
    np.testing.assert_allclose(sequence, wanted, rtol=1e-12, atol=1e-16)


@over_both
def test_initial_lr_is_stored_once(build: Build) -> None:
    opt = optimizer()
    scheduler = build(lr_scheduler, opt)
    assert [group["initial_lr"] for group in opt.param_groups] == [0.1, 0.03]
    assert scheduler.base_lrs == [0.1, 0.03]
    assert list(opt.param_groups[0])[-1] == "initial_lr"
    for group in opt.param_groups:
        group["lr"] = 7.0
    again = build(lr_scheduler, opt)
    assert again.base_lrs == [0.1, 0.03]
    assert rates(opt) == [7.0, 7.0]


def test_initial_lr_travels_with_the_state_dict() -> None:
    opt, other = optimizer(), optimizer()
    lr_scheduler.StepLR(opt, 3)
    other.load_state_dict(opt.state_dict())
    assert other.param_groups[1]["initial_lr"] == 0.03


@over_both
def test_a_group_added_later_is_stepped_like_torchs(build: Build) -> None:
    opt = optimizer()
    lib, reference = torchs()
    ours, theirs = build(lr_scheduler, opt), build(lib, reference)
    opt.add_param_group({"params": optim.Parameter(np.ones(2))})
    import torch

    reference.add_param_group({"params": torch.ones(2)})
    for _ in range(4):
        assert_same(advance(opt, ours), advance(reference, theirs))
    words = re.escape("zip() argument 2 is shorter than argument 1")
    for scheduler in ours, theirs:
        with pytest.warns(UserWarning), pytest.raises(ValueError, match=words):
            scheduler.step(2)


@over_both
def test_state_dict_is_torchs(build: Build) -> None:
    opt = optimizer()
    lib, reference = torchs()
    ours, theirs = build(lr_scheduler, opt), build(lib, reference)
    for _ in range(5):
        advance(opt, ours)
        advance(reference, theirs)
    saved, wanted = ours.state_dict(), theirs.state_dict()
    assert list(saved) == list(wanted)
    for key in wanted:
        if key == "_last_lr":
            assert_same(saved[key], wanted[key])
        else:
            assert saved[key] == wanted[key]


def test_state_dict_without_torch() -> None:
    opt = optimizer()
    scheduler = lr_scheduler.StepLR(opt, 3)
    advance(opt, scheduler)
    assert list(scheduler.state_dict().items()) == [
        ("step_size", 3),
        ("gamma", 0.1),
        ("base_lrs", [0.1, 0.03]),
        ("last_epoch", 1),
        ("_step_count", 2),
        ("_is_initial", False),
        ("_get_lr_called_within_step", False),
        ("_last_lr", [0.1, 0.03]),
    ]


@over_both
@pytest.mark.parametrize("epochs", range(7))
def test_loading_both_state_dicts_resumes(build: Build, epochs: int) -> None:
    opt, other = optimizer(), optimizer(lr=5.0)
    scheduler = build(lr_scheduler, opt)
    for _ in range(epochs):
        advance(opt, scheduler)
    resumed = lr_scheduler.StepLR(other, 99) if build is BOTH[0] else build(lr_scheduler, other)
    resumed.load_state_dict(scheduler.state_dict())
    other.load_state_dict(opt.state_dict())
    assert resumed.get_last_lr() == rates(other) == rates(opt)
    for _ in range(7):
        assert exactly(advance(other, resumed)) == exactly(advance(opt, scheduler))
    assert exactly(resumed.state_dict()) == exactly(scheduler.state_dict())


@over_both
def test_torchs_state_dicts_resume(build: Build) -> None:
    lib, reference = torchs()
    theirs = build(lib, reference)
    for _ in range(5):
        advance(reference, theirs)
    opt = optimizer(lr=5.0)
    ours = build(lr_scheduler, opt)
    ours.load_state_dict(theirs.state_dict())
    opt.load_state_dict(reference.state_dict())
    for _ in range(9):
        assert_same(advance(opt, ours), advance(reference, theirs))


@over_both
@pytest.mark.parametrize("epochs", range(1, 10))
def test_last_epoch_resumes(build: Build, epochs: int) -> None:
    """A new scheduler on an optimizer whose loaded rates are already those of the epoch.

    At a boundary of StepLR torch multiplies by gamma once more; here the rate is kept.
    """
    opt, other = optimizer(), optimizer(lr=5.0)
    scheduler = build(lr_scheduler, opt)
    for _ in range(epochs):
        advance(opt, scheduler)
    other.load_state_dict(opt.state_dict())
    if build is BOTH[0]:
        resumed = lr_scheduler.StepLR(other, 3, last_epoch=epochs - 1)
    else:
        resumed = lr_scheduler.CosineAnnealingLR(other, 4, last_epoch=epochs - 1)
    assert resumed.last_epoch == epochs
    assert rates(other) == rates(opt)
    for _ in range(9):
        assert_same(advance(other, resumed), advance(opt, scheduler))


@over_both
def test_resuming_needs_initial_lr(build: Build) -> None:
    kind = lr_scheduler.StepLR if build is BOTH[0] else lr_scheduler.CosineAnnealingLR
    opt = optimizer()
    opt.param_groups[0]["initial_lr"] = 0.1
    words = (
        "param 'initial_lr' is not specified in param_groups[1] when resuming scheduler with "
        "last_epoch >= 0."
    )
    with pytest.raises(KeyError, match=re.escape(words)):
        kind(opt, 4, last_epoch=2)
    lib, reference = torchs()
    reference.param_groups[0]["initial_lr"] = 0.1
    with pytest.raises(KeyError, match=re.escape(words)):
        getattr(lib, kind.__name__)(reference, 4, last_epoch=2)


@pytest.mark.parametrize("given", [None, "SGD", [0.1]])
def test_only_an_optimizer_is_scheduled(given: Any) -> None:
    words = f"{type(given).__name__} is not an Optimizer"
    with pytest.raises(TypeError, match=words):
        lr_scheduler.StepLR(given, 3)
    lib, _ = torchs()
    with pytest.raises(TypeError, match=words):
        lib.StepLR(given, 3)


@over_both
def test_step_to_an_epoch_uses_the_closed_form(build: Build) -> None:
    opt = optimizer()
    lib, reference = torchs()
    ours, theirs = build(lr_scheduler, opt), build(lib, reference)
    advance(opt, ours)
    advance(reference, theirs)
    for epoch in (5, None, 2, 3.5, None, 0, None):
        for scheduler in ours, theirs:
            if epoch is None:
                scheduler.step()
            else:
                with pytest.warns(UserWarning, match=f"^{re.escape(EPOCH)}$"):
                    scheduler.step(epoch)
        assert_same(rates(opt), rates(reference))
        assert ours.last_epoch == theirs.last_epoch


def test_step_to_an_epoch_without_torch() -> None:
    opt = optimizer()
    scheduler = lr_scheduler.CosineAnnealingLR(opt, 10, eta_min=0.01)
    opt.step()
    with pytest.warns(UserWarning) as caught:
        scheduler.step(5)
    assert [str(w.message) for w in caught] == [EPOCH]
    assert caught[0].filename == __file__
    assert rates(opt)[0] == pytest.approx(0.01 + 0.09 * (1 + math.cos(math.pi / 2)) / 2, rel=1e-14)
    assert scheduler.get_last_lr() == rates(opt)


def warned(*calls: Callable[[], Any]) -> list[list[str]]:
    """The words of the warnings of each call."""
    words = []
    for call in calls:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
        words.append([str(w.message) for w in caught])
        assert all(w.category is UserWarning for w in caught)
    return words


def orders(lib: Any, build_optimizer: Callable[[], Any]) -> dict[str, list[list[str]]]:
    """What is warned of, for several orders of calls."""
    found = {}
    opt = build_optimizer()
    s = lib.StepLR(opt, 3)
    found["in order"] = warned(opt.step, s.step, s.step, opt.step)
    opt = build_optimizer()
    s = lib.StepLR(opt, 3)
    found["scheduler first"] = warned(s.step, s.step, opt.step, s.step)
    opt = build_optimizer()
    step = opt.step
    s = lib.StepLR(opt, 3)
    opt.step = step
    found["overridden"] = warned(opt.step, s.step, s.step)
    opt = build_optimizer()
    opt.step()
    s = lib.StepLR(opt, 3)
    found["stepped before construction"] = warned(s.step, s.step)
    opt = build_optimizer()
    s = lib.StepLR(opt, 3)
    opt.step()
    t = lib.CosineAnnealingLR(opt, 3)
    found["two schedulers"] = warned(s.step, t.step, s.step, t.step)
    opt = build_optimizer()
    s = lib.StepLR(opt, 3)
    s.load_state_dict(s.state_dict())
    found["loaded"] = warned(s.step)
    opt = build_optimizer()
    s = lib.StepLR(opt, 3)
    found["get_lr"] = warned(s.get_lr, s.get_last_lr)
    found["to an epoch, too early"] = warned(lambda: s.step(2), lambda: s.step(3))
    return found


def test_warnings_come_when_they_should() -> None:
    assert orders(lr_scheduler, optimizer) == {
        "in order": [[], [], [], []],
        "scheduler first": [[TOO_EARLY], [], [], []],
        "overridden": [[], [OVERRIDDEN], []],
        "stepped before construction": [[TOO_EARLY], []],
        "two schedulers": [[], [], [], []],
        "loaded": [[TOO_EARLY]],
        "get_lr": [[ASK_LAST], []],
        "to an epoch, too early": [[TOO_EARLY, EPOCH], [EPOCH]],
    }


def test_warnings_are_torchs() -> None:
    lib, _ = torchs()
    assert orders(lr_scheduler, optimizer) == orders(lib, lambda: torchs()[1])


@pytest.mark.parametrize("call", ["step", "get_lr"])
def test_a_warning_points_at_the_callers_line(call: str) -> None:
    scheduler = lr_scheduler.StepLR(optimizer(), 3)
    with pytest.warns(UserWarning) as caught:
        getattr(scheduler, call)()
    assert caught[0].filename == __file__


@over_both
def test_get_lr_within_step_does_not_warn_and_outside_changes_nothing(build: Build) -> None:
    opt = optimizer()
    scheduler = build(lr_scheduler, opt)
    advance(opt, scheduler)
    before = rates(opt), scheduler.last_epoch
    with pytest.warns(UserWarning, match=re.escape(ASK_LAST)):
        scheduler.get_lr()
    assert (rates(opt), scheduler.last_epoch) == before


def test_a_step_still_returns_its_result_and_takes_its_arguments() -> None:
    """The scheduler wraps the optimizer's step."""
    opt = optimizer()
    lr_scheduler.StepLR(opt, 3)
    assert opt.step(lambda: 5.0) == 5.0
    assert opt.step(closure=lambda: 6.0) == 6.0
    assert opt.step.__name__ == "step"


@over_both
def test_an_array_stays_an_array_of_its_dtype(build: Build) -> None:
    lr = jnp.float32(0.1)
    opt = optimizer(lr=lr)
    scheduler = build(lr_scheduler, opt)
    for _ in range(4):
        advance(opt, scheduler)
    assert isinstance(opt.param_groups[0]["lr"], jax.Array)
    assert opt.param_groups[0]["lr"].dtype == jnp.float32
    assert opt.param_groups[0]["lr"].shape == ()
    number = optimizer()
    same = build(lr_scheduler, number)
    for _ in range(4):
        advance(number, same)
    np.testing.assert_allclose(rates(opt), rates(number), rtol=1e-5, atol=1e-8)
    assert float(lr) == np.float32(0.1)
    assert float(opt.param_groups[0]["initial_lr"]) == np.float32(0.1)


def test_periods_of_zero_are_refused_where_torch_fails_at_the_first_step() -> None:
    for build in (
        lambda lib, opt: lib.CosineAnnealingLR(opt, 0),
        lambda lib, opt: lib.StepLR(opt, 0),
    ):
        with pytest.raises(ValueError, match="should be above 0, but is 0"):
            build(lr_scheduler, optimizer())
        lib, opt = torchs()
        scheduler = build(lib, opt)
        opt.step()
        with pytest.raises(ZeroDivisionError):
            scheduler.step()


def test_a_scheduler_of_ones_own_needs_get_lr_only() -> None:
    class Halving(lr_scheduler.LRScheduler):
        def get_lr(self) -> list[Any]:
            return [base / 2**self.last_epoch for base in self.base_lrs]

    opt = optimizer()
    scheduler = Halving(opt)
    assert rates(opt) == [0.1, 0.03]
    assert advance(opt, scheduler) == [0.05, 0.015]
    with pytest.warns(UserWarning, match="epoch parameter"):
        scheduler.step(3)  # no closed form: get_lr
    assert rates(opt) == [0.0125, 0.00375]
    with pytest.raises(NotImplementedError):
        lr_scheduler.LRScheduler(optimizer())
