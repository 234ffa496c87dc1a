"""What every transform and wrapper promises, run over their table."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim as fo
from tests.support.problems import STEPS, Tree, assert_trees_close, at, problem, types
from tests.tables.algorithm import Algorithm
from tests.tables.algorithms import TABLE as ALGORITHMS
from tests.tables.transforms import TABLE, Transform, over_transforms

FLOAT0 = np.zeros((2, 3), jax.dtypes.float0)
KINDS = ("bfloat16", "float16", "float32", "float64", "complex64", "complex128")


def every_combination() -> Iterator[Any]:
    """Each transform with each algorithm; a tenth of them, evenly spread, unless slow tests run."""
    for i, row in enumerate(TABLE):
        for j, algorithm in enumerate(ALGORITHMS):
            marks = () if (i + j) % 10 == 0 else pytest.mark.slow
            yield pytest.param(row, algorithm, marks=marks, id=f"{row.name}-{algorithm.name}")


def one_step(
    tx: fo.GradientTransformation, row: Transform, params: Tree, state: Tree, grads: Tree
) -> tuple[Tree, Tree]:
    updates, state = tx.update(grads, state, params, **row.extra)
    return fo.apply_updates(params, updates), state


def loop(tx: fo.GradientTransformation, row: Transform, params: Tree, grads: Tree) -> Tree:
    state = tx.init(params)
    for i in range(STEPS):
        params, state = one_step(tx, row, params, state, at(grads, i))
    return params, state


def scan(tx: fo.GradientTransformation, row: Transform, params: Tree, grads: Tree) -> Tree:
    def body(carry: Tree, grads: Tree) -> tuple[Tree, None]:
        return one_step(tx, row, *carry, grads), None

    return jax.lax.scan(body, (params, tx.init(params)), grads)[0]


@over_transforms
def test_equal_arguments_give_the_same_pair(row: Transform) -> None:
    assert (row.pair() is row.pair()) is row.equal_is_same


@over_transforms
def test_it_takes_extra_arguments_that_it_does_not_know(row: Transform) -> None:
    params, grads = problem()
    tx, g = row.pair(), at(grads, 0)
    actual = tx.update(g, tx.init(params), params, **{"value": 1.0, **row.extra}, other="x")
    assert_trees_close(actual, tx.update(g, tx.init(params), params, **row.extra), 0.0)


@over_transforms
def test_params_may_be_left_out_where_nobody_reads_them(row: Transform) -> None:
    params, grads = problem()
    tx, g = row.pair(), at(grads, 0)
    state = tx.init(params)
    if row.needs_params:
        with pytest.raises(ValueError, match=r"the argument `params` of update is missing"):
            tx.update(g, state, **row.extra)
    else:
        actual = tx.update(g, state, **row.extra)
        assert_trees_close(actual, tx.update(g, state, params, **row.extra), row.rtol)


@over_transforms
def test_jit_compiles_once_donates_and_equals_eager_and_scan(row: Transform) -> None:
    """No two buffers of a fresh state are one. (Warnings are errors here.)"""
    params, grads = problem()
    tx = row.pair()
    wanted = loop(tx, row, params, grads)
    assert_trees_close(jax.jit(functools.partial(scan, tx, row))(params, grads), wanted, row.rtol)
    traces = []

    def traced(params: Tree, state: Tree, grads: Tree) -> tuple[Tree, Tree]:
        traces.append(1)
        return one_step(tx, row, params, state, grads)

    step = jax.jit(traced, donate_argnums=(0, 1))
    state = tx.init(params)
    for i in range(STEPS):
        params, state = step(params, state, at(grads, i))
    assert len(traces) == 1
    assert_trees_close((params, state), wanted, row.rtol)


@over_transforms
def test_the_state_keeps_its_types(row: Transform) -> None:
    params, _ = problem()
    tx = row.pair()
    shapes = jax.eval_shape(lambda: params)
    state = jax.eval_shape(tx.init, shapes)
    assert types(state) == types(tx.init(params))
    after = jax.eval_shape(functools.partial(one_step, tx, row), shapes, state, shapes)
    assert jax.tree.structure(after) == jax.tree.structure((shapes, state))
    assert types(after) == types((shapes, state))


@over_transforms
def test_vmap_over_gradients_equals_a_loop(row: Transform) -> None:
    params, grads = problem()
    tx = row.pair()
    _, state = loop(tx, row, params, grads)

    def updates(grads: Tree) -> Tree:
        return tx.update(grads, state, params, **row.extra)

    actual = jax.jit(jax.vmap(updates))(grads)
    wanted = jax.tree.map(lambda *xs: np.stack(xs), *(updates(at(grads, i)) for i in range(STEPS)))
    assert_trees_close(actual, wanted, row.rtol)


@pytest.mark.slow
@over_transforms
def test_derivatives_through_several_steps(row: Transform, x64: None) -> None:
    """They are finite where gradients are 0, and equal finite differences where it is smooth."""
    params, grads = problem("float64")
    tx, random = row.pair(fo.sgd(0.1, momentum=0.9)), np.random.RandomState(6)
    weights = random.uniform(0.5, 1.5, 100)

    @jax.jit
    @jax.value_and_grad
    def value(inputs: Tree) -> jax.Array:
        results = [
            jnp.ravel(x)
            for x in jax.tree.leaves(scan(tx, row, *inputs))
            if jnp.issubdtype(x.dtype, jnp.floating)
        ]
        flat = jnp.concatenate([x.astype(jnp.float64) for x in results])
        return flat @ weights[: flat.size]

    inputs = params, grads
    if row.smooth:
        direction = jax.tree.map(lambda x: random.uniform(0.5, 1.5, x.shape), inputs)
        ahead, behind = (
            value(jax.tree.map(lambda x, d, h=h: x + h * d, inputs, direction))[0]
            for h in (1e-6, -1e-6)
        )
        slope = sum(
            np.sum(g * d)
            for g, d in zip(
                jax.tree.leaves(value(inputs)[1]), jax.tree.leaves(direction), strict=True
            )
        )
        wanted = float(ahead - behind) / 2e-6
        assert float(slope) == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    grads = jax.tree.map(lambda g: g.at[0].set(0).at[:, 0].set(0), grads)
    params = jax.tree.map(lambda p: p.at[0].set(0), params)
    for holes in ((params, grads), (params, jax.tree.map(jnp.zeros_like, grads))):
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(value(holes)[1]))


@pytest.mark.parametrize("wide", [False, True], ids=["", "x64"])
@over_transforms
def test_dtypes_are_kept(row: Transform, wide: bool) -> None:
    with jax.enable_x64(wide):
        kinds = [k for k in KINDS if row.complex or "complex" not in k]
        kinds = [k for k in kinds if wide or k not in ("float64", "complex128")]
        params = {kind: jax.ShapeDtypeStruct((2, 3), kind) for kind in kinds}
        tx = row.pair(fo.sgd(0.1, momentum=0.9))
        state = jax.eval_shape(tx.init, params)
        updates, after = jax.eval_shape(
            lambda g, s, p: tx.update(g, s, p, **row.extra), params, state, params
        )
        expected = {k: np.dtype(row.update_dtype(k)) for k in kinds}
        assert {k: u.dtype for k, u in updates.items()} == expected
        new = jax.eval_shape(fo.apply_updates, params, updates)
        assert {k: p.dtype.name for k, p in new.items()} == {k: k for k in kinds}
        assert types(after) == types(state)


@over_transforms
def test_leaves_without_an_update_are_skipped(row: Transform) -> None:
    """None and float0 in, None out; the others get what they get alone."""
    params, grads = problem()
    a, g = params["kernel"], grads["kernel"]
    tree = {"a": a, "b": params["rest"][0], "c": jnp.arange(6).reshape(2, 3), "d": None}
    holes = [{"a": g[i], "b": None, "c": FLOAT0, "d": None} for i in range(2)]
    tx = row.pair()
    state, alone = tx.init(tree), tx.init({"a": a})
    for hole in holes:
        updates, after = tx.update(hole, state, tree, **row.extra)
        wanted, alone = tx.update({"a": hole["a"]}, alone, {"a": a}, **row.extra)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        assert all(updates[name] is None for name in "bcd")
        assert_trees_close(updates["a"], wanted["a"], row.rtol)
        state = after
    new = fo.apply_updates(tree, updates)
    assert new["b"] is tree["b"]
    assert new["c"] is tree["c"]


@pytest.mark.parametrize("empty", [(), {"layer": []}], ids=str)
@over_transforms
def test_an_empty_tree_is_no_error(row: Transform, empty: Tree) -> None:
    tx = row.pair()
    updates, _ = tx.update(empty, tx.init(empty), empty, **row.extra)
    assert updates == empty


@pytest.mark.slow
@over_transforms
def test_a_step_is_lowered_for_every_platform(row: Transform) -> None:
    params, grads = problem()
    tx, g = row.pair(), at(grads, 0)
    state = tx.init(params)
    step = jax.jit(functools.partial(one_step, tx, row))
    exported = jax.export.export(step, platforms=["cpu", "cuda", "tpu"])(params, state, g)
    assert_trees_close(
        exported.call(params, state, g), one_step(tx, row, params, state, g), row.rtol
    )


@pytest.mark.parametrize(("row", "algorithm"), list(every_combination()))
def test_it_works_in_a_chain_with_every_algorithm(row: Transform, algorithm: Algorithm) -> None:
    """The chain computes what its two halves compute by hand, over two steps."""
    params, grads = problem()
    inner = algorithm.pair()
    tx = row.around(inner)
    halves = [fo.clip_by_global_norm(10.0), row.pair(inner)]
    if not row.wraps:
        halves = [inner, row.pair()] if row.behind else [row.pair(), inner]

    @jax.jit
    def both(params: Tree, grads: Tree) -> tuple[Tree, Tree]:
        state, states = tx.init(params), [half.init(params) for half in halves]
        chained = by_hand = params
        for i in range(2):
            g = u = jax.tree.map(lambda g, i=i: g[i], grads)
            chained, state = one_step(tx, row, chained, state, g)
            for j, half in enumerate(halves):
                u, states[j] = half.update(u, states[j], by_hand, **row.extra)
            by_hand = fo.apply_updates(by_hand, u)
        return chained, by_hand

    chained, by_hand = both(params, grads)
    assert types(chained) == types(params)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(chained))
    assert_trees_close(chained, by_hand, max(row.rtol, algorithm.rtol_jit))
