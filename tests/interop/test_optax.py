"""Our pairs in optax's combinators and helpers, optax's pairs in ours, and `to_optax`."""

from __future__ import annotations

import collections.abc
import copy
import importlib
import pickle
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim as fo
from functorch_optim.core.pair import member
from tests.support.problems import assert_trees_close, at, loop, problem
from tests.tables.algorithms import TABLE as ALGORITHMS
from tests.tables.transforms import TABLE as TRANSFORMS

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


def own_init(params: Any) -> tuple[()]:
    return ()


def own_update(grads: Any, state: Any, params: Any = None, **extra: Any) -> Any:
    return grads, state


def own_update_without_extra(grads: Any, state: Any, params: Any = None) -> Any:
    return grads, state


PLAIN = fo.GradientTransformation(own_init, own_update_without_extra)
PAIRS: dict[str, Any] = {
    **{row.name: row.factory() for row in ALGORITHMS},
    **{row.name: row.pair() for row in TRANSFORMS},
    "lbfgs": fo.lbfgs(),
    "your own": fo.GradientTransformation(own_init, own_update),
    "member": member(PLAIN, "it"),
    "member of optax": member(optax.sgd(0.1), "it"),
}


@pytest.mark.parametrize("name", PAIRS)
def test_every_pair_is_of_optaxs_classes_and_of_ours(name: str) -> None:
    tx = PAIRS[name]
    assert isinstance(tx, optax.GradientTransformation)
    assert isinstance(tx, optax.GradientTransformationExtraArgs)
    assert isinstance(tx, fo.GradientTransformation)
    assert isinstance(tx, collections.abc.Sequence)
    assert not isinstance(tx, collections.abc.Mapping)
    assert optax.with_extra_args_support(tx) is tx


def test_a_pair_made_before_optax_is_imported_is_of_its_classes_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    theirs = optax.GradientTransformation, optax.GradientTransformationExtraArgs
    with monkeypatch.context() as patch:
        for absent in None, type(sys)("optax"):  # not there; there, but still being imported
            patch.setitem(sys.modules, "optax", absent)
            tx = fo.sgd(jnp.float32(0.1))  # built anew
            assert tx.__class__ is fo.GradientTransformation
            assert not isinstance(tx, theirs)
    assert all(isinstance(tx, cls) for cls in theirs)


@pytest.mark.slow
def test_optax_is_not_imported_for_those_who_do_not_use_it() -> None:
    code = """
import sys
import functorch_optim as fo
import functorch_optim.stateful
tx = fo.named_chain(("adam", fo.adam(1e-3)))
assert not isinstance(tx, dict) and "optax" not in sys.modules
import optax
assert isinstance(tx, optax.GradientTransformationExtraArgs)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("cls", [fo.GradientTransformation, fo.NamedChain])
def test_in_all_else_a_pair_is_a_named_tuple_of_its_own_class(cls: Any) -> None:
    tx = cls(own_init, own_update)
    if cls is fo.NamedChain:
        tx.parts = {"a": PLAIN}
    init, update = tx
    assert init is own_init and update is own_update
    assert tx == (own_init, own_update) and hash(tx) == hash((own_init, own_update))
    assert repr(tx) == f"{cls.__name__}(init={own_init!r}, update={own_update!r})"
    assert tx._asdict() == {"init": own_init, "update": own_update}
    leaves, treedef = jax.tree.flatten(tx)
    pickled = [pickle.loads(pickle.dumps(tx, n)) for n in range(pickle.HIGHEST_PROTOCOL + 1)]
    copies = [*pickled, copy.copy(tx), copy.deepcopy(tx)]
    for same in [*copies, tx._replace(init=own_init), treedef.unflatten(leaves)]:
        assert type(same) is cls and same == tx
    assert all(vars(same) == vars(tx) for same in copies if cls is fo.NamedChain)
    assert type(jax.tree.map(lambda leaf: None, tx)) is cls
    if sys.version_info >= (3, 13):
        assert type(copy.replace(tx, init=own_init)) is cls


@pytest.mark.parametrize(
    "update", [own_update_without_extra, None], ids=["no **extra", "no update"]
)
def test_a_pair_of_your_own_that_takes_no_extra_arguments_is_given_none(update: Any) -> None:
    tx = fo.GradientTransformation(own_init, update)
    assert isinstance(tx, optax.GradientTransformation)
    assert not isinstance(tx, optax.GradientTransformationExtraArgs)
    if update is not None:
        both = optax.chain(tx, fo.scale_by_plateau())
        both.update(jnp.ones(2), both.init(jnp.ones(2)), None, value=jnp.float32(1.0))


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


def test_tree_set_reaches_an_injected_number() -> None:
    params = {"w": jnp.ones(2)}
    for inject in fo.inject_hyperparams, optax.inject_hyperparams:
        tx = optax.chain(optax.clip(10.0), inject(fo.sgd)(lr=0.1))
        state = optax.tree_utils.tree_set(tx.init(params), lr=jnp.float32(0.5))
        updates, _ = tx.update(params, state, params)
        np.testing.assert_allclose(updates["w"], [-0.5, -0.5])


@pytest.mark.parametrize("name", PAIRS)
def test_tree_map_params_finds_the_buffers_in_a_state(name: str) -> None:
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), problem(steps=1)[0])
    state = PAIRS[name].init(params)
    marked = optax.tree_utils.tree_map_params(
        PAIRS[name], lambda leaf: "buffer", state, transform_non_params=lambda leaf: "other"
    )
    assert jax.tree.structure(marked) == jax.tree.structure(state)
    for leaf, mark in zip(jax.tree.leaves(state), jax.tree.leaves(marked), strict=True):
        if leaf.ndim == 0 or leaf.shape == (2, 3):
            assert mark == ("other" if leaf.ndim == 0 else "buffer")


COMBINATORS = {
    "chain": lambda tx: optax.chain(tx),
    "named_chain": lambda tx: optax.named_chain(("tx", tx)),
    "masked": lambda tx: optax.masked(tx, True),
    "multi_transform": lambda tx: optax.multi_transform({"x": tx}, "x"),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 1),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "with_extra_args_support": lambda tx: optax.with_extra_args_support(tx),
    "flatten": lambda tx: optax.flatten(tx),
    "inject_hyperparams": lambda tx: optax.inject_hyperparams(lambda lr: tx)(lr=0.1),
    "selective_transform": lambda tx: optax.selective_transform(
        tx, freeze_mask={"kernel": False, "rest": [False]}
    ),
    "conditionally_transform": lambda tx: optax.conditionally_transform(
        tx, lambda step, **extra: step < 9, forward_extra_args=True
    ),
    "conditionally_mask": lambda tx: optax.conditionally_mask(
        tx, lambda step, **extra: step < 9, forward_extra_args=True
    ),
}


@pytest.mark.parametrize("name", COMBINATORS)
def test_extra_arguments_reach_a_pair_inside_optax(name: str) -> None:
    params, grads = problem(steps=2)
    ours = fo.chain(fo.sgd(0.1), fo.scale_by_plateau(patience=0, factor=0.5))
    # The first value is the best so far, the second no better: the second step is half as long.
    wanted = np.asarray(params["kernel"]) - 0.1 * np.asarray(
        grads["kernel"][0] + 0.5 * grads["kernel"][1]
    )
    got, _ = optax_loop(COMBINATORS[name](ours), params, grads, value=jnp.float32(1.0))
    np.testing.assert_allclose(got["kernel"], wanted, rtol=1e-5)


def test_the_function_itself_reaches_lbfgs_inside_optax() -> None:
    tx = optax.chain(fo.lbfgs(1.0, max_iter=3), optax.scale(0.5))
    start = jnp.array([3.0, -1.0])
    updates, _ = tx.update(
        None, tx.init(start), start, value_and_grad_fn=jax.value_and_grad(lambda x: jnp.sum(x**2))
    )
    np.testing.assert_allclose(updates, -0.5 * start, rtol=1e-3)


# Powers of these are exact in float32, in which optax subtracts them from 1.
BETAS = (0.75, 0.9375)
WRAPPERS = {
    "partition": lambda adam, sgd: optax.partition({"a": adam, "b": sgd}, labels),
    "freeze": lambda adam, sgd: optax.chain(adam, optax.freeze({"kernel": True, "rest": [False]})),
    "MultiSteps that skips": lambda adam, sgd: optax.MultiSteps(
        adam, 1, should_skip_update_fn=optax.skip_not_finite
    ),
    "apply_every": lambda adam, sgd: optax.chain(sgd, optax.apply_every(2)),
    "conditionally_transform": lambda adam, sgd: optax.conditionally_transform(
        adam, lambda step, value, **extra: value > 3.0, forward_extra_args=True
    ),
    "reduce_on_plateau": lambda adam, sgd: optax.chain(
        adam, optax.contrib.reduce_on_plateau(patience=0, rtol=0.9)
    ),
    "backtracking": lambda adam, sgd: optax.chain(sgd, optax.scale_by_backtracking_linesearch(5)),
    "zoom": lambda adam, sgd: optax.chain(sgd, optax.scale_by_zoom_linesearch(5)),
    "mechanize": lambda adam, sgd: optax.contrib.mechanize(adam),
    "schedule_free": lambda adam, sgd: optax.contrib.schedule_free(sgd, 0.05),
    "sam": lambda adam, sgd: optax.with_extra_args_support(
        optax.GradientTransformation(*optax.contrib.sam(adam, sgd, sync_period=2))
    ),
    "split_real_and_imaginary": lambda adam, sgd: optax.with_extra_args_support(
        optax.contrib.split_real_and_imaginary(adam)
    ),
    "keep_params_nonnegative": lambda adam, sgd: optax.chain(adam, optax.keep_params_nonnegative()),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRAPPERS)
def test_optaxs_wrappers_treat_our_pairs_as_they_treat_optaxs(name: str) -> None:
    def loss(params: Any) -> jax.Array:
        return sum(jnp.sum((p - 0.3) ** 2) for p in jax.tree.leaves(params))

    def trained(tx: Any) -> Any:
        params = problem(steps=1)[0]
        state = tx.init(params)

        @jax.jit
        def step(params: Any, state: Any) -> Any:
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = tx.update(grads, state, params, value=value, grad=grads, value_fn=loss)
            return optax.apply_updates(params, updates), state

        for _ in range(4):
            params, state = step(params, state)
        return params

    ours = WRAPPERS[name](fo.adam(0.1, betas=BETAS), fo.sgd(0.05, momentum=0.9))
    theirs = WRAPPERS[name](
        optax.adam(0.1, b1=BETAS[0], b2=BETAS[1]), optax.sgd(0.05, momentum=0.9)
    )
    assert_trees_close(trained(ours), trained(theirs), 1e-5)


def test_optaxs_lookahead_takes_our_pair() -> None:
    params, grads = problem(steps=1)
    found = []
    for inner in fo.sgd(0.1), optax.sgd(0.1):
        tx = optax.lookahead(inner, sync_period=1, slow_step_size=0.5)
        both = optax.LookaheadParams.init_synced(params)
        updates, _ = tx.update(at(grads, 0), tx.init(both), both)
        found.append(optax.apply_updates(both, updates).slow)
    assert_trees_close(*found, 1e-6)


def test_to_optax_is_optaxs_type_and_the_same_object() -> None:
    tx = to_optax(fo.adam(0.1))
    assert type(tx) is optax.GradientTransformationExtraArgs
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
