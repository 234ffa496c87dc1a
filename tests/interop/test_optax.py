"""Pairs inside optax's combinators, optax's pairs inside ours, and `to_optax`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim as fo
from tests.support.problems import assert_trees_close, at, loop, problem

optax = pytest.importorskip("optax")
from functorch_optim.interop.optax import to_optax  # noqa: E402 (once optax is there)


@pytest.fixture(autouse=True)
def standard_promotion() -> Iterator[None]:
    """optax's own arithmetic needs it."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def optax_loop(tx: Any, params: Any, grads: Any, **extra: Any) -> tuple[Any, Any]:
    """Parameters and state after all steps, by optax's own functions, compiled."""
    state = tx.init(params)

    @jax.jit
    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    for i in range(len(jax.tree.leaves(grads)[0])):
        params, state = step(params, state, at(grads, i))
    return params, state


def labels(params: Any) -> Any:
    return {"kernel": "a", "rest": ["b"]}


# name, our pairs in optax's combinator, and the same without optax
INSIDE = {
    "chain": (
        lambda: optax.chain(optax.scale(0.5), fo.adamw(0.1)),
        lambda: fo.chain(fo.scale(0.5), fo.adamw(0.1)),
    ),
    "named_chain": (
        lambda: optax.named_chain(("half", optax.scale(0.5)), ("adamw", fo.adamw(0.1))),
        lambda: fo.chain(fo.scale(0.5), fo.adamw(0.1)),
    ),
    "multi_transform": (
        lambda: optax.multi_transform({"a": fo.adam(0.1), "b": fo.sgd(0.1, momentum=0.9)}, labels),
        lambda: fo.partition({"a": fo.adam(0.1), "b": fo.sgd(0.1, momentum=0.9)}, labels),
    ),
    "masked": (
        lambda: optax.chain(
            optax.masked(fo.adam(0.1), {"kernel": True, "rest": [False]}),
            optax.masked(optax.set_to_zero(), {"kernel": False, "rest": [True]}),
        ),
        lambda: fo.masked(fo.adam(0.1), {"kernel": True, "rest": [False]}),
    ),
    "MultiSteps": (
        lambda: optax.MultiSteps(fo.adam(0.1), 2).gradient_transformation(),
        lambda: fo.accumulate(fo.adam(0.1), 2),
    ),
    "apply_if_finite": (
        lambda: optax.apply_if_finite(fo.adam(0.1), 3),
        lambda: fo.skip_nonfinite(fo.adam(0.1)),
    ),
    "inject_hyperparams": (
        lambda: optax.inject_hyperparams(fo.adamw)(lr=fo.linear_lr(0.1, total_iters=3)),
        lambda: fo.adamw(fo.linear_lr(0.1, total_iters=3)),
    ),
    "ours around optax": (
        lambda: fo.chain(optax.clip_by_global_norm(1.0), fo.adam(0.1), optax.scale(0.5)),
        lambda: fo.chain(fo.clip_by_global_norm(1.0), fo.adam(0.1), fo.scale(0.5)),
    ),
}


@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize("wrapped", [False, True], ids=["as it is", "to_optax"])
def test_our_pairs_inside_optax_give_the_same_numbers(name: str, wrapped: bool) -> None:
    params, grads = problem()
    if name == "apply_if_finite":
        grads["kernel"] = grads["kernel"].at[1, 0, 0].set(jnp.nan)
    theirs, ours = INSIDE[name]
    tx = to_optax(theirs()) if wrapped else theirs()
    got, _ = optax_loop(tx, params, grads)
    wanted, _ = loop(ours(), params, grads)
    assert_trees_close(got, wanted, 5e-6)


def test_inject_hyperparams_keeps_a_written_rate() -> None:
    params, grads = problem(steps=1)
    tx = optax.inject_hyperparams(fo.sgd)(lr=0.1)
    state = tx.init(params)
    state.hyperparams["lr"] = jnp.float32(0.5)
    updates, _ = tx.update(at(grads, 0), state, params)
    np.testing.assert_allclose(updates["kernel"], -0.5 * np.asarray(grads["kernel"][0]), rtol=1e-6)


OPTAX_INSIDE_OURS = {
    "chain": lambda tx: fo.chain(fo.scale(2.0), tx),
    "partition": lambda tx: fo.partition({"a": tx, "b": tx}, labels),
    "masked": lambda tx: fo.masked(tx, True),
    "accumulate": lambda tx: fo.accumulate(tx, 1),
    "skip_nonfinite": lambda tx: fo.skip_nonfinite(tx),
}


@pytest.mark.parametrize("name", OPTAX_INSIDE_OURS)
def test_optax_pairs_inside_ours(name: str) -> None:
    params, grads = problem()
    tx = optax.adamw(0.1)
    got, _ = loop(OPTAX_INSIDE_OURS[name](tx), params, grads)
    # Adam's step does not change when all gradients are twice as large, but for eps.
    wanted, _ = optax_loop(tx, params, grads)
    assert_trees_close(got, wanted, 1e-5)


def test_tree_get_and_tree_set() -> None:
    params, grads = problem(steps=2)
    tx = optax.chain(optax.clip(10.0), fo.adam(0.1))
    _, state = optax_loop(tx, params, grads)
    assert optax.tree_utils.tree_get(state, "step") == 2
    assert optax.tree_utils.tree_get(state, "exp_avg")["kernel"].shape == (2, 3)
    assert optax.tree_utils.tree_get(optax.tree_utils.tree_set(state, step=7), "step") == 7


COMBINATORS = {
    "chain": lambda tx: optax.chain(tx),
    "named_chain": lambda tx: optax.named_chain(("tx", tx)),
    "masked": lambda tx: optax.masked(tx, True),
    "multi_transform": lambda tx: optax.multi_transform({"x": tx}, "x"),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 1),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
}


@pytest.mark.parametrize("name", COMBINATORS)
def test_extra_arguments_reach_a_pair_inside_optax(name: str) -> None:
    params, grads = problem(steps=2)
    ours = fo.chain(fo.sgd(0.1), fo.scale_by_plateau(patience=0, factor=0.5))
    extra = {"value": jnp.float32(1.0)}

    inner = COMBINATORS[name](ours)
    with pytest.raises(ValueError, match="the argument `value` of update is missing"):
        inner.update(at(grads, 0), inner.init(params), params, **extra)

    got, _ = optax_loop(COMBINATORS[name](to_optax(ours)), params, grads, **extra)
    # The first value is the best so far, the second no better: the second step is half as long.
    wanted = np.asarray(params["kernel"]) - 0.1 * np.asarray(
        grads["kernel"][0] + 0.5 * grads["kernel"][1]
    )
    np.testing.assert_allclose(got["kernel"], wanted, rtol=1e-5)


def test_to_optax_is_optaxs_type_and_the_same_object() -> None:
    tx = to_optax(fo.adam(0.1))
    assert isinstance(tx, optax.GradientTransformationExtraArgs)
    assert to_optax(fo.adam(0.1)) is tx
    assert to_optax(optax.sgd(0.1)).init(jnp.ones(2)) == optax.sgd(0.1).init(jnp.ones(2))


@pytest.mark.parametrize("given", [True, False], ids=["params", "no params"])
def test_skipped_leaves_stay_under_optaxs_apply_updates(given: bool) -> None:
    params = {"w": jnp.ones(2), "count": jnp.arange(3), "kept": jnp.ones(2), "none": None}
    grads = jax.grad(lambda p: jnp.sum(p["w"] ** 2), allow_int=True)(params)
    grads["kept"] = None if given else jnp.zeros(2)
    tx = to_optax(fo.sgd(0.1))
    with pytest.raises(TypeError):  # why it is needed
        optax.apply_updates(params, fo.sgd(0.1).update(grads, fo.sgd(0.1).init(params), params)[0])
    updates, _ = tx.update(grads, tx.init(params), params if given else None)
    with jax.numpy_dtype_promotion("strict" if given else "standard"):
        new = optax.apply_updates(params, updates)
    np.testing.assert_allclose(new["w"], [0.8, 0.8])
    np.testing.assert_array_equal(new["count"], [0, 1, 2])
    np.testing.assert_array_equal(new["kept"], [1, 1])
    assert new["none"] is None
    assert jax.tree.map(lambda x: x.dtype, new) == jax.tree.map(lambda x: x.dtype, params)


def test_sparse_updates_become_dense() -> None:
    from jax.experimental.sparse import BCOO

    params = {"table": jnp.ones((3, 2))}
    grad = BCOO((jnp.ones((1, 2)), jnp.array([[1]])), shape=(3, 2))
    tx = to_optax(fo.sgd(0.5))
    updates, _ = tx.update({"table": grad}, tx.init(params), params)
    new = optax.apply_updates(params, updates)
    np.testing.assert_allclose(new["table"], [[1, 1], [0.5, 0.5], [1, 1]])


def test_to_optax_refuses_what_is_no_pair() -> None:
    with pytest.raises(TypeError, match="the argument of to_optax should be an"):
        to_optax(fo.adam)


def test_without_optax_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optax", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "functorch_optim.interop.optax")
    with pytest.raises(ImportError, match=r"pip install \"functorch_optim\[optax\]\""):
        importlib.import_module("functorch_optim.interop.optax")
