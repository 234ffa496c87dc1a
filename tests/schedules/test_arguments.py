"""Every argument of every schedule is checked when it is given, and named if it is refused."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim as fo
from tests.support.lr_scheduler import OURS, optimizer
from tests.tables.schedules import Row, over_rows

NO_NUMBERS = ["0.1", 1j, {}, [0.1, 0.2], np.array(["a"]), np.array([1j]), object(), jnp.ones(2) > 0]


@over_rows
def test_what_is_no_number_is_named(row: Row) -> None:
    names = [k for k, v in row.arguments.items() if type(v) in (int, float)]
    for name in names:
        for value in (*NO_NUMBERS, float("nan")):
            with pytest.raises((TypeError, ValueError), match=name):
                row.build(**{**row.arguments, name: value})


@over_rows
def test_what_is_no_function_word_or_flag_is_named(row: Row) -> None:
    others = {k: v for k, v in row.arguments.items() if type(v) not in (int, float)}
    for name in others:
        for value in (3, "x", None, [None]):
            with pytest.raises((TypeError, ValueError), match=name):
                row.build(**{**row.arguments, name: value})


def test_arguments_that_are_seldom_given() -> None:
    for build, kwargs, name in (
        (fo.cyclic_lr, {"scale_fn": 3}, "scale_fn"),
        (fo.cyclic_lr, {"scale_mode": "cycles"}, "scale_mode"),
        (fo.cyclic_lr, {"gamma": "1"}, "gamma"),
        (fo.cyclic_lr, {"mode": ["triangular"]}, "mode"),
        (fo.cyclic_lr, {"step_size_down": float("inf")}, "step_size_down"),
        (fo.one_cycle_lr, {"total_steps": 9, "three_phase": "no"}, "three_phase"),
        (fo.one_cycle_lr, {"total_steps": 9, "anneal_strategy": []}, "anneal_strategy"),
        (fo.swa_lr, {"swa_lr": 0.1, "anneal_strategy": None}, "anneal_strategy"),
    ):
        first = (0.1, 0.2) if build is fo.cyclic_lr else (0.1,)
        with pytest.raises((TypeError, ValueError), match=name):
            build(*first, **kwargs)


def nothing(count: Any) -> Any:
    return None


@pytest.mark.parametrize(
    ("schedule", "name"),
    [
        (fo.lambda_lr(0.1, nothing), "lr_lambda"),
        (fo.multiplicative_lr(0.1, nothing), "lr_lambda"),
        (fo.cyclic_lr(0.1, 0.2, scale_fn=nothing), "scale_fn"),
        (fo.chained([fo.step_lr(0.1, 3), nothing]), r"schedules\[1\]"),
        (fo.sequential_lr([nothing, nothing], [9]), r"schedules\[0\]"),
        (fo.per_epoch(nothing, 3), "schedule"),
        (fo.warmup(nothing, 3), "schedule"),
    ],
)
def test_a_function_that_returns_nothing_is_named_when_it_is_called(
    schedule: Any, name: str
) -> None:
    for count in (1, jnp.int32(1)):
        with pytest.raises(TypeError, match=f"^{name} should return a number or an array"):
            schedule(count)


@over_rows
def test_a_count_is_a_number(row: Row) -> None:
    for count in (None, "3", 1j):
        with pytest.raises(TypeError, match="count should be a number or an array"):
            row.schedule(count)


PLATEAU = {
    **{"factor": NO_NUMBERS, "patience": [*NO_NUMBERS, -1], "threshold": NO_NUMBERS},
    **{"cooldown": [*NO_NUMBERS, -1], "eps": NO_NUMBERS, "mode": [3, None, []]},
    **{"threshold_mode": [3, None, []]},
}


@pytest.mark.parametrize("name", PLATEAU)
def test_the_limits_of_a_plateau_are_checked_everywhere(name: str) -> None:
    for value in PLATEAU[name]:
        words = name.replace("_", ".")
        with pytest.raises((TypeError, ValueError), match=words):
            fo.reduce_lr_on_plateau(0.1, **{name: value})
        with pytest.raises((TypeError, ValueError), match=words):
            fo.scale_by_plateau(**{name: value})
        with pytest.raises((TypeError, ValueError), match=words):
            OURS.ReduceLROnPlateau(optimizer(OURS), **{name: value})


def test_the_first_and_the_lowest_value_of_a_plateau_are_numbers() -> None:
    for value in NO_NUMBERS:
        with pytest.raises(TypeError, match=r"^lr should"):
            fo.reduce_lr_on_plateau(value)
        with pytest.raises(TypeError, match=r"^min_lr should"):
            fo.reduce_lr_on_plateau(0.1, min_lr=value)


def test_limits_beyond_every_count() -> None:
    tx = fo.reduce_lr_on_plateau(0.1, patience=10**10, cooldown=10**10)
    state = tx.init()
    for metric in (1.0, 2.0, 3.0):
        lr, state = tx.update(metric, state)
    assert float(lr) == np.float32(0.1)
    assert int(state.num_bad_epochs) == 2
    tx = fo.reduce_lr_on_plateau(0.1, patience=0, cooldown=10**10)
    state = tx.update(2.0, tx.update(1.0, tx.init())[1])[1]
    assert int(state.cooldown_counter) == 2**31 - 1


def test_a_metric_is_one_number_in_any_shape() -> None:
    import functorch_optim.stateful as optim

    tx, scale = fo.reduce_lr_on_plateau(0.1), fo.scale_by_plateau()
    parameter = optim.Parameter(np.full((1, 1), 2.0, np.float32))
    for metric in (2, np.full((1, 1), 2.0), jnp.full((1,), 2.0, jnp.bfloat16), parameter):
        assert float(tx.update(metric, tx.init())[1].best) == 2.0
        _, state = scale.update(jnp.ones(2), scale.init(jnp.ones(2)), value=metric)
        assert float(state.plateau.best) == 2.0
    for wrong in (np.ones(2), "2", None, 1j):
        with pytest.raises((TypeError, ValueError), match=r"^metric should be"):
            tx.update(wrong, tx.init())
