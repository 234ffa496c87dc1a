"""A scheduler of a pure schedule: each group follows its own, and all else is as in the classes."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim as fo
from functorch_optim.stateful.lr_scheduler import from_schedule
from tests.support.lr_scheduler import OURS, advance, optimizer
from tests.support.stateful import exactly


def warmed(lr: Any) -> fo.Schedule:
    return fo.warmup(fo.step_lr(lr, 3), 2)


def halving(count: Any) -> Any:
    return 0.5**count


# What is given after the optimizer, and the schedule of a group that starts at lr.
GIVEN: dict[str, Any] = {
    "factory": (
        (fo.cosine_annealing_lr, (), {"T_max": 5}),
        lambda lr: fo.cosine_annealing_lr(lr, 5),
    ),
    "arguments in order": ((fo.step_lr, (2, 0.5), {}), lambda lr: fo.step_lr(lr, 2, 0.5)),
    "defaults": ((fo.polynomial_lr, (), {}), fo.polynomial_lr),
    "a factory of one's own": ((warmed, (), {}), warmed),
    "built": ((fo.exponential_lr(0.7, 0.9), (), {}), lambda lr: fo.exponential_lr(0.7, 0.9)),
    "a function": ((halving, (), {}), lambda lr: halving),
}
over_given = pytest.mark.parametrize(("given", "wanted"), GIVEN.values(), ids=GIVEN)


def rates(opt: Any) -> list[Any]:
    return [group["lr"] for group in opt.param_groups]


def built(opt: Any, given: Any, **options: Any) -> Any:
    schedule, args, kwargs = given
    return from_schedule(opt, schedule, *args, **kwargs, **options)


@over_given
def test_each_group_follows_its_schedule(given: Any, wanted: Any) -> None:
    opt = optimizer(OURS)
    schedules = [wanted(lr) for lr in rates(opt)]
    scheduler = built(opt, given)
    for epoch in range(12):
        assert rates(opt) == scheduler.get_last_lr() == [schedule(epoch) for schedule in schedules]
        assert scheduler.last_epoch == epoch
        advance(opt, scheduler)


@over_given
def test_saved_copied_pickled_and_resumed_it_goes_on_alike(given: Any, wanted: Any) -> None:
    opt = optimizer(OURS)
    scheduler = built(opt, given)
    for _ in range(4):
        advance(opt, scheduler)
    other = optimizer(OURS, lr=0.9)
    loaded = built(other, given)
    saved = pickle.loads(pickle.dumps((opt.state_dict(), scheduler.state_dict())))
    other.load_state_dict(saved[0])
    loaded.load_state_dict(saved[1])
    resumed_opt = optimizer(OURS)
    resumed_opt.load_state_dict(saved[0])
    twins = [
        copy.deepcopy((opt, scheduler)),
        pickle.loads(pickle.dumps((opt, scheduler))),
        (other, loaded),
        (resumed_opt, built(resumed_opt, given, last_epoch=3)),
    ]
    for _ in range(8):
        numbers = exactly(advance(opt, scheduler))
        for twin in twins:
            assert exactly(advance(*twin)) == numbers


def test_state_holds_numbers_only() -> None:
    scheduler = from_schedule(optimizer(OURS), fo.step_lr, 3)
    assert list(scheduler.state_dict()) == [
        *("base_lrs", "last_epoch", "_step_count", "_is_initial"),
        *("_get_lr_called_within_step", "_last_lr"),
    ]


def test_a_member_of_a_sequence_and_of_a_product() -> None:
    opt = optimizer(OURS, lr=0.03)
    main = from_schedule(opt, fo.cosine_annealing_lr, T_max=6)
    sequence = OURS.SequentialLR(opt, [OURS.LinearLR(opt, 0.5, 1.0, 3), main], [4])
    wanted = fo.sequential_lr(
        [fo.linear_lr(0.03, 0.5, 1.0, 3), fo.cosine_annealing_lr(0.03, 6)], [4]
    )
    for epoch in range(14):
        assert rates(opt) == pytest.approx([wanted(epoch)] * 2, rel=1e-12)
        advance(opt, sequence)
    opt = optimizer(OURS, lr=0.03)
    parts = [from_schedule(opt, fo.step_lr, 4), OURS.MultiplicativeLR(opt, lambda epoch: 0.5)]
    product = OURS.ChainedScheduler(parts)
    for epoch in range(9):
        factor = 0.5 if epoch else 1.0
        assert rates(opt) == [fo.step_lr(0.03, 4)(epoch) * factor] * 2
        advance(opt, product)


def test_a_group_that_is_added_later_joins_at_the_epoch_of_the_others() -> None:
    opt = optimizer(OURS)
    scheduler = from_schedule(opt, fo.exponential_lr, gamma=0.5)
    advance(opt, scheduler)
    opt.add_param_group({"params": [OURS.parameter()], "lr": 8.0})
    advance(opt, scheduler)
    assert rates(opt) == [0.1 / 4, 0.03 / 4, 2.0]
    twin_opt, twin = pickle.loads(pickle.dumps((opt, scheduler)))
    advance(twin_opt, twin)
    assert rates(twin_opt)[2] == 1.0
    few = from_schedule(optimizer(OURS), fo.exponential_lr, gamma=0.5)
    with pytest.raises(ValueError, match="has 3 base_lrs, but the optimizer has 2 param_groups"):
        few.load_state_dict(scheduler.state_dict())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_array_stays_an_array(dtype: str) -> None:
    opt = optimizer(OURS, lr=jnp.asarray(0.5, dtype))
    scheduler = from_schedule(opt, fo.step_lr, 1, gamma=0.5)
    for epoch in range(3):
        lr = rates(opt)[0]
        assert isinstance(lr, jax.Array)
        assert (lr.dtype, lr.shape) == (dtype, ())
        np.testing.assert_array_equal(lr.astype(jnp.float32), 0.5**epoch * 0.5)
        advance(opt, scheduler)


def test_an_epoch_may_be_given() -> None:
    opt = optimizer(OURS)
    scheduler = from_schedule(opt, fo.step_lr, 3)
    opt.step()
    with pytest.warns(UserWarning, match="epoch parameter"):
        scheduler.step(7)
    assert rates(opt) == [fo.step_lr(lr, 3)(7) for lr in (0.1, 0.03)]


REFUSED: list[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
    ((0.1,), {}, TypeError, "schedule should be a function"),
    ((fo.step_lr,), {}, TypeError, "missing a required argument: 'step_size'"),
    ((fo.step_lr, 0), {}, ValueError, "positive integer step_size"),
    ((fo.step_lr, 3), {"gama": 0.5}, TypeError, "gama"),
    ((lambda count: None,), {}, TypeError, "schedule should return a number"),
    ((lambda lr, n: lr * n, 3), {}, TypeError, "what the schedule factory returns"),
    ((fo.step_lr, 3), {"last_epoch": -2}, ValueError, "last_epoch"),
    ((fo.step_lr, 3), {"last_epoch": 4}, KeyError, "initial_lr"),
]


@pytest.mark.parametrize(("args", "kwargs", "kind", "words"), REFUSED)
def test_refused_before_anything_changes(
    args: Any, kwargs: Any, kind: type[Exception], words: str
) -> None:
    opt = optimizer(OURS)
    before = exactly(opt.param_groups)
    with pytest.raises(kind, match=words):
        from_schedule(opt, *args, **kwargs)
    assert exactly(opt.param_groups) == before


def test_a_step_too_many_changes_nothing() -> None:
    opt = optimizer(OURS)
    scheduler = from_schedule(opt, fo.one_cycle_lr, 2)
    advance(opt, scheduler)
    advance(opt, scheduler)
    before = exactly(opt.param_groups), exactly(scheduler.state_dict())
    with pytest.raises(ValueError, match="Tried to step 3 times"):
        scheduler.step()
    assert (exactly(opt.param_groups), exactly(scheduler.state_dict())) == before
