"""What is refused: in torch's words, and before anything changes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.lr_scheduler import ALL, OURS, advance, optimizer, over, torchs
from tests.support.stateful import exactly

Attempt = Callable[[Any, Any], Any]  # (a library, an optimizer) -> what should raise
STEPS = "Expected positive integer {}, but got {}"
LENGTH = (
    "{0} must have the same length as optimizer.param_groups. {0} has {1} values, param_groups "
    "has 2."
)
STRATEGY = "anneal_strategy must be one of 'cos' or 'linear', instead got {}"
MOMENTUM = "optimizer must support momentum or beta1 with `cycle_momentum` option enabled"
METRIC = (
    "{} does not support `ReduceLROnPlateau` scheduler as it requires additional kwargs to be "
    "specified when calling `step`, but got one at index 1 in the given schedulers sequence."
)
MILESTONES = (
    "Sequential Schedulers expects number of schedulers provided to be one more than the number of "
    "milestone points, but got number of schedulers {} and the number of milestones to be equal to "
    "{}"
)
RESUMING = (
    "param 'initial_lr' is not specified in param_groups[0] when resuming scheduler with "
    "last_epoch >= 0.\nThis typically happens when:\n1. You're trying to resume training from a "
    "checkpoint but haven't properly loaded the optimizer state\n2. You're using last_epoch >= 0 "
    "for a fresh training run (not recommended)"
)


def unit(epoch: float) -> float:
    return 1.0


def one_cycle(**options: Any) -> Attempt:
    return lambda lib, opt: lib.OneCycleLR(opt, 0.1, **options)


def cyclic(base: Any = 0.1, top: Any = 0.2, **options: Any) -> Attempt:
    return lambda lib, opt: lib.CyclicLR(opt, base, top, **options)


def swa(*args: Any, **options: Any) -> Attempt:
    return lambda lib, opt: lib.SWALR(opt, *args, **options)


def restarts(*args: Any) -> Attempt:
    return lambda lib, opt: lib.CosineAnnealingWarmRestarts(opt, *args)


def plateau(**options: Any) -> Attempt:
    return lambda lib, opt: lib.ReduceLROnPlateau(opt, **options)


REFUSED: list[tuple[Attempt, type[Exception], str]] = [
    (lambda lib, opt: lib.LambdaLR(opt, [unit]), ValueError, "Expected 2 lr_lambdas, but got 1"),
    (
        lambda lib, opt: lib.MultiplicativeLR(opt, (unit,) * 3),
        ValueError,
        "Expected 2 lr_lambdas, but got 3",
    ),
    (
        lambda lib, opt: lib.MultiplicativeLR(opt, 0.5),
        TypeError,
        "lr_lambda should be a function, but got float",
    ),
    (lambda lib, opt: lib.LambdaLR(opt, 0.5), TypeError, "'float' object is not callable"),
    (lambda lib, opt: lib.LambdaLR(opt, lambda e: 1 // e), ZeroDivisionError, "by zero"),
    (
        lambda lib, opt: lib.ConstantLR(opt, 1.5),
        ValueError,
        "Constant multiplicative factor expected to be between 0 and 1.",
    ),
    (
        lambda lib, opt: lib.LinearLR(opt, 0.0),
        ValueError,
        "Starting multiplicative factor expected to be greater than 0 and less or equal to 1.",
    ),
    (
        lambda lib, opt: lib.LinearLR(opt, 0.5, 1.5),
        ValueError,
        "Ending multiplicative factor expected to be between 0 and 1.",
    ),
    (lambda lib, opt: lib.MultiStepLR(opt, 3), TypeError, "'int' object is not iterable"),
    (lambda lib, opt: lib.StepLR(opt, 3, last_epoch=4), KeyError, repr(RESUMING)),
    (lambda lib, opt: lib.OneCycleLR(opt, 1.0, 9, last_epoch=4), KeyError, repr(RESUMING)),
    (restarts(0), ValueError, "Expected positive integer T_0, but got 0"),
    (restarts(1.5), ValueError, "Expected positive integer T_0, but got 1.5"),
    (restarts(3, 0), ValueError, "Expected integer T_mult >= 1, but got 0"),
    (restarts(3, 1.5), ValueError, "Expected integer T_mult >= 1, but got 1.5"),
    (
        restarts(3, 1, None),
        ValueError,
        "Expected float or int eta_min, but got None of type <class 'NoneType'>",
    ),
    (cyclic(mode="x"), ValueError, "mode is invalid and scale_fn is None"),
    (cyclic([0.1]), ValueError, LENGTH.format("base_lr", 1)),
    (cyclic(top=(1, 2, 3)), ValueError, LENGTH.format("max_lr", 3)),
    (cyclic(base_momentum=[0.1]), ValueError, LENGTH.format("base_momentum", 1)),
    (cyclic(max_momentum=[0.1]), ValueError, LENGTH.format("max_momentum", 1)),
    (cyclic(step_size_up=0), ZeroDivisionError, "float division by zero"),
    (
        one_cycle(),
        ValueError,
        "You must define either total_steps OR (epochs AND steps_per_epoch)",
    ),
    (one_cycle(total_steps=0), ValueError, STEPS.format("total_steps", 0)),
    (one_cycle(total_steps=1.5), ValueError, STEPS.format("total_steps", 1.5)),
    (one_cycle(epochs=-1, steps_per_epoch=3), ValueError, STEPS.format("epochs", -1)),
    (one_cycle(epochs=3, steps_per_epoch="x"), ValueError, STEPS.format("steps_per_epoch", "x")),
    (
        one_cycle(total_steps=9, pct_start=1),
        ValueError,
        "Expected float between 0 and 1 pct_start, but got 1",
    ),
    (
        one_cycle(total_steps=9, pct_start=1.1),
        ValueError,
        "Expected float between 0 and 1 pct_start, but got 1.1",
    ),
    (one_cycle(total_steps=9, anneal_strategy="x"), ValueError, STRATEGY.format("x")),
    (lambda lib, opt: lib.OneCycleLR(opt, [0.1], 9), ValueError, LENGTH.format("max_lr", 1)),
    (one_cycle(total_steps=9, max_momentum=[1]), ValueError, LENGTH.format("max_momentum", 1)),
    (one_cycle(total_steps=10, pct_start=0.1), ZeroDivisionError, "float division by zero"),
    (one_cycle(total_steps=10, div_factor=0), ZeroDivisionError, "float division by zero"),
    (swa(0.1, anneal_strategy="x"), ValueError, STRATEGY.format("x")),
    (swa(0.1, -1), ValueError, "anneal_epochs must be equal or greater than 0, got -1"),
    (swa(0.1, 1.5), ValueError, "anneal_epochs must be equal or greater than 0, got 1.5"),
    (swa([0.1]), ValueError, LENGTH.format("swa_lr", 1)),
    (plateau(factor=1.0), ValueError, "Factor should be < 1.0."),
    (plateau(min_lr=[1.0]), ValueError, "expected 2 min_lrs, got 1"),
    (plateau(mode="x"), ValueError, "mode x is unknown!"),
    (plateau(threshold_mode="x"), ValueError, "threshold mode x is unknown!"),
    (
        lambda lib, opt: lib.SequentialLR(opt, [], []),
        ValueError,
        "SequentialLR expects at least one scheduler, but got no scheduler.",
    ),
    (
        lambda lib, opt: lib.ChainedScheduler([]),
        ValueError,
        "ChainedScheduler expects at least one scheduler to be chained, but got no scheduler.",
    ),
]
# Those that need a scheduler first, so that the groups have an `initial_lr` afterwards.
REFUSED_MEMBERS: list[tuple[Attempt, type[Exception], str]] = [
    (
        lambda lib, opt: lib.SequentialLR(opt, [lib.StepLR(opt, 1), 3], [1]),
        TypeError,
        "SequentialLR at index 1 should have `optimizer` as its attribute.",
    ),
    (
        lambda lib, opt: lib.ChainedScheduler([lib.StepLR(opt, 1), 3]),
        TypeError,
        "ChainedScheduler at index 1 should have `optimizer` as its attribute.",
    ),
    (
        lambda lib, opt: lib.SequentialLR(
            opt, [lib.StepLR(opt, 1), lib.ReduceLROnPlateau(opt)], [1]
        ),
        ValueError,
        METRIC.format("SequentialLR"),
    ),
    (
        lambda lib, opt: lib.ChainedScheduler([lib.StepLR(opt, 1), lib.ReduceLROnPlateau(opt)]),
        ValueError,
        METRIC.format("ChainedScheduler"),
    ),
    (
        lambda lib, opt: lib.SequentialLR(opt, [lib.StepLR(opt, 1)] * 2, []),
        ValueError,
        MILESTONES.format(2, 0),
    ),
    (
        lambda lib, opt: lib.SequentialLR(opt, [lib.StepLR(opt, 1)], [3]),
        ValueError,
        MILESTONES.format(1, 1),
    ),
    (
        lambda lib, opt: lib.SequentialLR(opt, [lib.StepLR(opt, 1)] * 2, [3]).step(3),
        TypeError,
        "SequentialLR.step() takes 1 positional argument but 2 were given",
    ),
    (
        lambda lib, opt: lib.ChainedScheduler([lib.StepLR(opt, 1)]).step(3),
        TypeError,
        "ChainedScheduler.step() takes 1 positional argument but 2 were given",
    ),
    (
        lambda lib, opt: lib.CosineAnnealingWarmRestarts(opt, 3).step(-0.5),
        ValueError,
        "Expected non-negative epoch, but got -0.5",
    ),
]


@pytest.mark.parametrize(("attempt", "kind", "words"), REFUSED)
def test_refused_before_anything_changes(
    attempt: Attempt, kind: type[Exception], words: str
) -> None:
    opt = optimizer(OURS)
    before = exactly(opt.param_groups)
    with pytest.raises(kind, match=re.escape(words)):
        attempt(OURS, opt)
    assert exactly(opt.param_groups) == before
    assert "step" not in vars(opt)


@pytest.mark.parametrize(("attempt", "kind", "words"), REFUSED_MEMBERS)
def test_refused(attempt: Attempt, kind: type[Exception], words: str) -> None:
    opt = optimizer(OURS)
    OURS.StepLR(opt, 1)
    opt.step()
    before = exactly(opt.param_groups)
    with pytest.raises(kind, match=re.escape(words)):
        attempt(OURS, opt)
    assert exactly(opt.param_groups) == before


@pytest.mark.parametrize(("attempt", "kind", "words"), REFUSED + REFUSED_MEMBERS)
def test_the_words_are_torchs(attempt: Attempt, kind: type[Exception], words: str) -> None:
    lib = torchs()
    with pytest.raises(kind, match=re.escape(words)):
        attempt(lib, optimizer(lib))


@pytest.mark.parametrize("attempt", [cyclic(), one_cycle(total_steps=9)])
def test_no_momentum_to_cycle(attempt: Attempt) -> None:
    opt = optimizer(OURS, "Adagrad")
    before = exactly(opt.param_groups)
    with pytest.raises(ValueError, match=re.escape(MOMENTUM)):
        attempt(OURS, opt)
    assert exactly(opt.param_groups) == before


def test_other_optimizers_members() -> None:
    for lib in OURS, torchs():
        opt, other = optimizer(lib), optimizer(lib)
        step, stranger = lib.StepLR(opt, 1), lib.StepLR(other, 1)
        for name, build in (
            ("SequentialLR", lambda: lib.SequentialLR(opt, [step, stranger], [1])),  # noqa: B023
            ("ChainedScheduler", lambda: lib.ChainedScheduler([step, stranger])),  # noqa: B023
        ):
            words = (
                f"{name} expects all schedulers to belong to the same optimizer, but got scheduler "
                f"StepLR at index 1 has {other}, which is different from SGD."
            )
            with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
                build()


@over(ALL)
def test_only_an_optimizer_is_scheduled(build: Any) -> None:
    with pytest.raises(TypeError, match=r"^str is not an Optimizer$"):
        build(OURS, "SGD")
    with pytest.raises(TypeError, match=r"^NoneType is not an Optimizer$"):
        OURS.ReduceLROnPlateau(None)


def test_a_plateau_with_a_list_and_a_later_group() -> None:
    opt = optimizer(OURS)
    scheduler = OURS.ReduceLROnPlateau(opt, min_lr=[0.1, 0.1], patience=0)
    opt.add_param_group({"params": [OURS.parameter()]})
    scheduler.step(1.0)
    before = scheduler.state_dict()
    words = (
        "The number of param groups in the `optimizer` (3) differs from when `ReduceLROnPlateau` "
        "was initialized (2), usually due to a new param group being added to the optimizer. "
        "Please modify the `min_lrs` field to match the length of the `optimizer` param groups."
    )
    with pytest.raises(RuntimeError, match=f"^{re.escape(words)}$"):
        scheduler.step(2.0)
    assert scheduler.state_dict() == before
    for metric in "x", None, [1.0]:
        with pytest.raises((TypeError, ValueError)):
            scheduler.step(metric)
    assert scheduler.state_dict() == before
    with pytest.warns(UserWarning, match="^The epoch parameter in"):
        scheduler.step(0.5, epoch=7)
    assert scheduler.last_epoch == 7


def test_a_step_that_fails_changes_nothing() -> None:
    opt = optimizer(OURS)

    def fails_at_3(epoch: int) -> float:
        if epoch == 3:
            raise RuntimeError("no")
        return 0.9

    chained = OURS.ChainedScheduler([OURS.ExponentialLR(opt, 0.5), OURS.LambdaLR(opt, fails_at_3)])
    outer = OURS.SequentialLR(opt, [chained, OURS.StepLR(opt, 3)], [9])
    for _ in range(2):
        advance(opt, outer)
    before = exactly(opt.param_groups), exactly(outer.state_dict())
    with pytest.raises(RuntimeError, match=r"^no$"):
        outer.step()
    assert (exactly(opt.param_groups), exactly(outer.state_dict())) == before


def test_state_of_another_shape() -> None:
    opt = optimizer(OURS)
    scheduler = OURS.LambdaLR(opt, unit)
    sequence = ALL["Sequential"](OURS, opt)
    saved = scheduler.state_dict()
    nested = sequence.state_dict()
    for broken, kind, target in (
        ({**saved, "lr_lambdas": [None]}, ValueError, scheduler),
        ({k: v for k, v in saved.items() if k != "lr_lambdas"}, KeyError, scheduler),
        ({**nested, "_schedulers": nested["_schedulers"][:2]}, ValueError, sequence),
        (
            {**nested, "last_epoch": 9, "_schedulers": [{"last_epoch": 7}, 3, {}]},
            AttributeError,
            sequence,
        ),
    ):
        before = exactly(target.state_dict())
        with pytest.raises(kind):
            target.load_state_dict(broken)
        assert exactly(target.state_dict()) == before
    assert not isinstance(scheduler, OURS._LRScheduler)
    assert issubclass(OURS._LRScheduler, OURS.LRScheduler)
