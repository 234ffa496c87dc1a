"""A learning rate that follows a metric, as a pair and inside a chain: torch's rules."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim as fo


def metrics(seed: int, length: int = 60) -> list[float]:
    """A noisy descent through 0, with plateaus, NaNs and infinities."""
    random = np.random.default_rng(seed)
    values = np.linspace(1, -1, length) + 0.3 * random.standard_normal(length)
    values[random.integers(length, size=length // 3)] = 0.25
    values[random.integers(length, size=4)] = np.nan
    values[random.integers(length, size=2)] = random.choice([np.inf, -np.inf])
    return [float(x) for x in values]


CONFIGURATIONS = [
    {"mode": mode, "threshold_mode": threshold_mode, **rest}
    for mode, threshold_mode, rest in itertools.product(
        ("min", "max"),
        ("rel", "abs"),
        (
            {"patience": 2},
            {"patience": 0, "factor": 0.7, "cooldown": 3, "threshold": 0.05},
            {"patience": 1, "factor": 0.5, "min_lr": 0.05, "cooldown": 1, "threshold": 0.0},
            {"patience": 1, "factor": 0.9, "eps": 0.06},
        ),
    )
]


@pytest.mark.parametrize("kwargs", CONFIGURATIONS)
def test_torchs_rules_to_the_field(kwargs: dict[str, Any], x64: None) -> None:
    torch = pytest.importorskip("torch", reason="compares with torch's ReduceLROnPlateau")
    tx = fo.reduce_lr_on_plateau(0.3, **kwargs)
    update = jax.jit(tx.update)
    for seed in range(5):
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **kwargs)
        state = tx.init()
        for metric in metrics(seed):
            lr, state = update(metric, state)
            scheduler.step(metric)
            assert float(lr) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-14)
            assert lr is state.lr or float(lr) == float(state.lr)
            for name in ("best", "num_bad_epochs", "cooldown_counter", "last_epoch"):
                assert float(getattr(state, name)) == getattr(scheduler, name), name


def recorded() -> tuple[list[float], list[float]]:
    """What torch 2.13 sets with patience 1, factor 0.5 and cooldown 1 from 1.0."""
    nan = math.nan
    return (
        [1.0, 0.9, 0.9, nan, 0.8, 0.95, 0.9, 0.9, nan, 0.7],
        [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25],
    )


def test_recorded_values_in_float32() -> None:
    values, lrs = recorded()
    tx = fo.reduce_lr_on_plateau(1.0, factor=0.5, patience=1, cooldown=1)
    state, seen = tx.init(), []
    for value in values:
        lr, state = tx.update(value, state)
        assert lr.dtype == state.best.dtype == np.float32
        assert lr.shape == ()
        seen.append(float(lr))
    assert seen == lrs
    assert state.last_epoch == len(values)


def test_scan_equals_a_loop_and_keeps_the_kinds_of_the_state() -> None:
    tx = fo.reduce_lr_on_plateau(1.0, factor=0.5, patience=1, cooldown=1)
    values, lrs = recorded()

    def body(state: Any, metric: Any) -> Any:
        lr, state = tx.update(metric, state)
        return state, lr

    state, results = jax.lax.scan(body, tx.init(), jnp.asarray(values))
    np.testing.assert_array_equal(results, lrs)
    assert jax.tree.map(jnp.result_type, state) == jax.tree.map(jnp.result_type, tx.init())


ARGUMENTS = {
    **{"lr": [0.3, 0.1], "factor": [0.5, 0.1], "patience": [0, 2], "threshold": [0.0, 0.3]},
    **{"cooldown": [0, 3], "min_lr": [0.0, 0.1], "eps": [1e-8, 0.1]},
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_vmap_over_every_argument_equals_a_loop(name: str) -> None:
    values = jnp.asarray(metrics(1), jnp.float32)

    def run(argument: Any) -> Any:
        tx = fo.reduce_lr_on_plateau(**{"lr": 0.3, "patience": 1, "factor": 0.5, name: argument})
        return jax.lax.scan(lambda s, metric: tx.update(metric, s)[::-1], tx.init(), values)[1]

    results = jax.jit(jax.vmap(run))(jnp.asarray(ARGUMENTS[name]))
    wanted = [jax.jit(lambda a=a: run(a))() for a in ARGUMENTS[name]]
    np.testing.assert_allclose(results, wanted, rtol=1e-6)


def test_equal_pairs_are_one_pair() -> None:
    assert fo.reduce_lr_on_plateau(0.1) is fo.reduce_lr_on_plateau(lr=0.1, patience=10)
    assert fo.scale_by_plateau() is fo.scale_by_plateau(mode="min")


@pytest.mark.parametrize(
    "kwargs", [{"factor": 1.0}, {"factor": 2}, {"mode": "most"}, {"threshold_mode": "r"}]
)
def test_errors_are_torchs(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as actual:
        fo.reduce_lr_on_plateau(0.1, **kwargs)
    with pytest.raises(ValueError, match=str(actual.value)):
        fo.scale_by_plateau(**kwargs)
    torch = pytest.importorskip("torch", reason="compares with torch's own errors")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    with pytest.raises(ValueError) as wanted:
        torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **kwargs)
    assert str(actual.value) == str(wanted.value)


def test_inside_a_chain_the_updates_are_scaled() -> None:
    values, scales = recorded()
    tx = fo.chain(fo.sgd(0.1), fo.scale_by_plateau(factor=0.5, patience=1, cooldown=1))
    params = {"w": jnp.asarray([1.0, 2.0]), "frozen": None}
    state = tx.init(params)
    update = jax.jit(tx.update)
    for value, scale in zip(values, scales, strict=True):
        updates, state = update(params, state, params, value=value)
        np.testing.assert_allclose(updates["w"], -0.1 * scale * params["w"], rtol=1e-6)
        assert updates["frozen"] is None
    assert state[1].plateau.lr == scales[-1]


def test_an_epoch_of_several_updates_has_their_mean() -> None:
    values, scales = recorded()
    tx = fo.scale_by_plateau(factor=0.5, patience=1, cooldown=1, epoch_size=3)
    g = jnp.asarray(1.0, jnp.bfloat16)

    def body(state: Any, value: Any) -> Any:
        update, state = tx.update(g, state, value=value)
        return state, update

    steps = jnp.asarray([[v - 1, v + 1, v] for v in values]).reshape(-1)
    state, updates = jax.lax.scan(body, tx.init(g), steps)
    assert updates.dtype == jnp.bfloat16
    updates = updates.astype(jnp.float32).reshape(-1, 3)
    np.testing.assert_array_equal(updates[:, 2], scales)
    np.testing.assert_array_equal(updates[1:, 0], scales[:-1])
    assert (state.value_count, state.value_sum) == (0, 0.0)


def test_a_missing_metric_is_named() -> None:
    tx = fo.chain(fo.sgd(0.1), fo.scale_by_plateau())
    with pytest.raises(ValueError, match="argument `value` of update is missing"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))


@pytest.mark.parametrize("size", [0, 2.5])
def test_an_epoch_has_updates(size: Any) -> None:
    with pytest.raises(ValueError, match=f"^Expected positive integer epoch_size, but got {size}$"):
        fo.scale_by_plateau(epoch_size=size)
