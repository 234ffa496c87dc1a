"""What is given to a factory is checked there and then, and the error names it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim as fo

SGD = fo.sgd()
KEYS = jax.random.split(jax.random.key(0), 2)

NUMBERS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "scale": (lambda factor: fo.scale(factor), ("factor",)),
    "clip_by_global_norm": (fo.clip_by_global_norm, ("max_norm",)),
    "clip_by_leaf_norm": (fo.clip_by_leaf_norm, ("max_norm",)),
    "clip_by_value": (fo.clip_by_value, ("max_value",)),
    "adaptive_grad_clip": (fo.adaptive_grad_clip, ("clipping", "eps")),
    "trust_ratio": (fo.trust_ratio, ("coefficient", "eps", "min_norm")),
    "add_decayed_weights": (fo.add_decayed_weights, ("weight_decay",)),
    "add_noise": (
        lambda **k: fo.add_noise(**{"eta": 1.0, "gamma": 1.0, "key": 0, **k}),
        ("eta", "gamma"),
    ),
    "lookahead": (fo.lookahead, ("slow_step_size",)),
    "trace": (fo.trace, ("decay",)),
    "ema": (fo.ema, ("decay",)),
    "ema_average": (fo.ema_average, ("decay",)),
    "schedule_free": (
        lambda **k: fo.schedule_free(SGD, **{"lr": 0.1, **k}),
        ("lr", "beta", "weight_lr_power"),
    ),
    "dynamic_loss_scale": (
        lambda **k: fo.dynamic_loss_scale(SGD, **k),
        ("init_scale", "growth_factor", "backoff_factor", "min_scale", "max_scale"),
    ),
    "scale_by_plateau": (fo.scale_by_plateau, ("factor", "threshold", "min_scale", "eps")),
}
LENGTHS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "lookahead": (fo.lookahead, ("sync_period",)),
    "accumulate": (lambda **k: fo.accumulate(SGD, **k), ("every_k",)),
    "skip_nonfinite": (lambda **k: fo.skip_nonfinite(SGD, **k), ("max_consecutive",)),
    "dynamic_loss_scale": (lambda **k: fo.dynamic_loss_scale(SGD, **k), ("growth_interval",)),
    "scale_by_plateau": (fo.scale_by_plateau, ("epoch_size", "patience", "cooldown")),
}
FLAGS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "accumulate": (lambda **k: fo.accumulate(SGD, 2, **k), ("average",)),
    "cautious": (lambda **k: fo.cautious(SGD, **k), ("maximize",)),
    "trace": (fo.trace, ("nesterov",)),
    "ema": (fo.ema, ("debias",)),
    "ema_average": (lambda **k: fo.ema_average(0.9, **k), ("debias",)),
    "masked": (lambda **k: fo.masked(SGD, True, **k), ("pass_through",)),
    "sparse_value_and_grad": (
        lambda **k: fo.sparse_value_and_grad(lambda p: p, True, **k),
        ("has_aux",),
    ),
}


def cases(table: dict[str, Any]) -> Any:
    rows = [
        pytest.param(build, name, id=f"{pair}-{name}")
        for pair, (build, names) in table.items()
        for name in names
    ]
    return pytest.mark.parametrize(("build", "name"), rows)


@cases(NUMBERS)
def test_a_number_is_one_real_number(build: Callable[..., Any], name: str) -> None:
    for bad in ("1", 1j, None, [1.0], jnp.ones((), bool), np.complex64(1)):
        if bad is None and name == "min_scale":
            continue  # means the default
        with pytest.raises(TypeError, match=name):
            build(**{name: bad})
    for bad in (float("nan"), np.float32("nan"), jnp.ones(2)):
        with pytest.raises(ValueError, match=r"Invalid|Tensor|growth|needed"):
            build(**{name: bad})


@cases(LENGTHS)
def test_a_length_is_a_whole_number(build: Callable[..., Any], name: str) -> None:
    for bad in (-1, 2.5, 2**31, float("nan"), jnp.ones(2, jnp.int32)):
        with pytest.raises(ValueError, match=name):
            build(**{name: bad})
    for bad in (True, 1j, "2"):
        with pytest.raises((TypeError, ValueError), match=name):
            build(**{name: bad})
    assert build(**{name: np.int64(3)})


@cases(FLAGS)
def test_a_flag_is_true_or_false(build: Callable[..., Any], name: str) -> None:
    for bad in ("False", 0, 1, None, jnp.asarray(True)):
        with pytest.raises(TypeError, match=f"{name} should be True or False"):
            build(**{name: bad})


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "float32_state": fo.float32_state,
    "cautious": fo.cautious,
    "accumulate": lambda tx: fo.accumulate(tx, 2),
    "skip_nonfinite": fo.skip_nonfinite,
    "dynamic_loss_scale": fo.dynamic_loss_scale,
    "master_weights": fo.master_weights,
    "stochastic_rounding": lambda tx: fo.stochastic_rounding(tx, 0),
    "schedule_free": lambda tx: fo.schedule_free(tx, 0.1),
    "masked": lambda tx: fo.masked(tx, True),
    "chain": fo.chain,
    "named_chain": lambda tx: fo.named_chain(("tx", tx)),
    "partition": lambda tx: fo.partition({"a": tx}, "a"),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())
def test_a_factory_that_was_not_called_is_no_pair(wrap: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match="Call the factory first"):
        wrap(fo.adam)
    with pytest.raises(TypeError, match="pair"):
        wrap(None)


@pytest.mark.parametrize("mask", ["kernel", 1, 1.0, jnp.ones(2, bool)], ids=str)
def test_a_mask_says_true_or_false(mask: Any) -> None:
    for build in (
        lambda: fo.masked(SGD, mask),
        lambda: fo.freeze(mask),
        lambda: fo.add_decayed_weights(0.1, mask),
        lambda: fo.sparse_value_and_grad(lambda p: p, mask),
    ):
        with pytest.raises(TypeError, match="mask should hold True and False"):
            build()
    p = {"a": jnp.ones(2)}
    with pytest.raises(TypeError, match=r"mask should hold True and False, .* \['a'\]"):
        fo.masked(SGD, {"a": mask}).init(p)
    with pytest.raises(TypeError, match="mask should hold True and False"):
        fo.masked(SGD, None)


def test_labels_are_keys() -> None:
    with pytest.raises(TypeError, match="labels should be keys of `transforms`"):
        fo.partition({"a": SGD}, {"w": jnp.ones(2)})


def test_a_bad_rule_of_by_path_is_named() -> None:
    with pytest.raises(ValueError, match=r"'\(' of rule 1 is no regular expression"):
        fo.by_path([("a", 1), ("(", 2)])
    for bad in ([("a", 1), "b"], [("a",)], [(1, 2)], [("a", 1, 2)]):
        with pytest.raises(TypeError, match=r"rule \d should be a \(pattern, label\) pair"):
            fo.by_path(bad)
    for rules in ("ab", {"a": 1}, 5, None):
        with pytest.raises(TypeError, match="rules should be"):
            fo.by_path(rules)


@pytest.mark.parametrize(
    "build", [lambda key: fo.add_noise(1.0, 1.0, key), lambda key: fo.stochastic_rounding(SGD, key)]
)
def test_a_key_is_one_key(build: Callable[[Any], Any]) -> None:
    for bad in (1.5, True, "0", None, jnp.ones(2)):
        with pytest.raises(TypeError, match="key should be a seed or a key"):
            build(bad)
    for bad in (KEYS, jax.random.key_data(KEYS)):
        with pytest.raises(ValueError, match="key should be one key"):
            build(bad)
    for good in (KEYS[0], jax.random.PRNGKey(1), 3, np.int64(3)):
        assert build(good).init(jnp.ones(2))


def test_averages_pass_typed_keys_through() -> None:
    params = {"w": jnp.ones(2), "key": jax.random.key(1)}
    for average in (
        fo.swa_average(),
        fo.ema_average(0.9, debias=True),
        fo.float32_state(fo.swa_average()),
    ):
        state = average.init(params)
        for seed in (2, 3):
            result, state = average.update({**params, "key": jax.random.key(seed)}, state)
        assert jnp.array_equal(
            jax.random.key_data(result["key"]), jax.random.key_data(jax.random.key(3))
        )


def test_names_of_static_arguments() -> None:
    with pytest.raises(TypeError, match="static_args should be the name of an argument"):
        fo.inject_hyperparams(fo.adam, static_args=(1,))
    with pytest.raises(TypeError, match="static_args should be the name of an argument"):
        fo.inject_hyperparams(fo.adam, static_args=3)
    with pytest.raises(TypeError, match="dtype should be a real floating-point dtype"):
        fo.master_weights(SGD, None)


def test_an_array_of_one_element_is_a_number() -> None:
    p = jnp.ones((2, 3))
    one = jnp.full(1, 0.5)
    for tx in (
        fo.scale(one),
        fo.clip_by_global_norm(one),
        fo.clip_by_leaf_norm(one),
        fo.clip_by_value(one),
        fo.adaptive_grad_clip(one, one),
        fo.trust_ratio(one, one, one),
        fo.add_decayed_weights(one),
        fo.add_noise(one, one, 0),
        fo.lookahead(1, one),
        fo.trace(one),
        fo.ema(one),
        fo.schedule_free(SGD, one, one, one),
        fo.dynamic_loss_scale(SGD, one, 2 + one, one, jnp.ones(1, jnp.int32), one, one),
    ):
        updates, _ = tx.update(p, tx.init(p), p)
        assert updates.shape == p.shape
        assert np.all(np.isfinite(updates))
