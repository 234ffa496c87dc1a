"""What every pair promises about leaves and trees, run over the table of algorithms."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import sparse

import functorch_optim as fo
from tests.support.problems import (
    STEPS,
    Tree,
    assert_trees_close,
    at,
    loop,
    one_step,
    problem,
    types,
)
from tests.tables.algorithm import Algorithm
from tests.tables.algorithms import TABLE, over_table

F32 = jnp.float32


def over_dtypes(dtypes: Callable[[Algorithm], tuple[str, ...]]) -> Any:
    """Parametrizes by row and the dtypes that its algorithm is capable of."""
    return pytest.mark.parametrize(
        ("row", "dtype"),
        [pytest.param(r, d, id=f"{r.name}-{d}") for r in TABLE for d in dtypes(r)],
    )


def all_dtypes(row: Algorithm) -> tuple[str, ...]:
    return ("float32", "float64", *row.halves, *(["complex64"] if row.complex else []))


def buffers(row: Algorithm, state: Any) -> dict[str, Tree]:
    """The fields of the state that hold something per parameter."""
    return {name: x for name in row.state if (x := getattr(state, name)) is not None and x.shape}


def check_dtypes(row: Algorithm, dtype: str) -> None:
    params, grads = (tree["kernel"] for tree in jax.eval_shape(lambda: problem(dtype)))
    grads = jax.ShapeDtypeStruct(params.shape, grads.dtype)
    tx = row.pair()
    state = jax.eval_shape(tx.init, params)
    assert buffers(row, state)
    for _ in range(2):
        updates, state = jax.eval_shape(tx.update, grads, state, params)
        params = jax.eval_shape(fo.apply_updates, params, updates)
        for x in (updates, params, *buffers(row, state).values()):
            assert (x.dtype, x.weak_type) == (np.dtype(dtype), False)
        assert (state.step.dtype, state.step.weak_type) == (np.int32, False)


@over_dtypes(lambda row: tuple(d for d in all_dtypes(row) if d != "float64"))
def test_the_dtype_is_kept(row: Algorithm, dtype: str) -> None:
    check_dtypes(row, dtype)


@over_dtypes(all_dtypes)
def test_the_dtype_is_kept_with_x64_enabled(row: Algorithm, dtype: str, x64: None) -> None:
    check_dtypes(row, dtype)


def spacing(x: np.ndarray) -> np.ndarray:
    """The distance from x to the next number of its dtype away from 0."""
    x = np.abs(x)
    return (np.nextafter(x, np.array(np.inf, x.dtype)) - x).astype(np.float32)


@over_dtypes(lambda row: row.halves)
def test_half_precision_is_float32_rounded_once(row: Algorithm, dtype: str) -> None:
    """Each update and each new buffer is one rounding away from the float32 computation."""
    params, grads = (tree["kernel"] for tree in problem(dtype))
    tx = row.pair()
    state = tx.init(params)
    rounded = False
    for i in range(STEPS):
        wide_state = jax.tree.map(lambda x: x.astype(F32), state)
        wide = tx.update(grads[i].astype(F32), wide_state, params.astype(F32))
        updates, state = tx.update(grads[i], state, params)
        narrow_arrays = [updates, *buffers(row, state).values()]
        wide_arrays = [wide[0], *buffers(row, wide[1]).values()]
        for narrow, exact in zip(narrow_arrays, wide_arrays, strict=True):
            narrow = np.asarray(narrow)
            error = np.abs(narrow.astype(np.float32) - np.asarray(exact))
            assert np.all(error <= 0.501 * spacing(narrow))
            rounded |= bool(np.any(error > 0))
        params = fo.apply_updates(params, updates)
    assert rounded, "nothing was ever rounded: this compared float32 with itself"


@over_dtypes(lambda row: row.halves[:1])
def test_gradients_may_have_another_precision_than_parameters(row: Algorithm, dtype: str) -> None:
    params, grads = (tree["kernel"] for tree in problem("float32"))
    tx = row.pair()
    for p, g in ((params.astype(dtype), grads[0]), (params, grads[0].astype(dtype))):
        updates, state = tx.update(g, tx.init(p), p)
        assert updates.dtype == p.dtype
        assert all(x.dtype == p.dtype for x in buffers(row, state).values())
        exact, _ = tx.update(g.astype(F32), tx.init(p.astype(F32)), p.astype(F32))
        np.testing.assert_allclose(updates.astype(F32), exact, rtol=1e-2)


@over_table
def test_a_leaf_without_gradient_is_skipped(row: Algorithm) -> None:
    params, grads = problem()
    tx = row.pair()
    state = tx.init(params)
    params, state = one_step(tx, params, state, at(grads, 0))
    alone = {"rest": params["rest"]}
    state_alone = jax.tree.map(
        lambda x: {"rest": x["rest"]} if isinstance(x, dict) else x,
        state,
        is_leaf=lambda x: isinstance(x, dict),
    )
    updates, new = tx.update({"kernel": None, "rest": at(grads, 1)["rest"]}, state, params)
    wanted, wanted_new = tx.update({"rest": at(grads, 1)["rest"]}, state_alone, alone)
    assert updates["kernel"] is None
    assert_trees_close(updates["rest"], wanted["rest"], 0.0)
    for name in row.state:
        before, after = getattr(state, name), getattr(new, name)
        if isinstance(before, dict):
            assert after["kernel"] is before["kernel"]
            assert_trees_close(after["rest"], getattr(wanted_new, name)["rest"], 0.0)
    assert new.step == state.step + 1
    assert fo.apply_updates(params, updates)["kernel"] is params["kernel"]


@over_table
def test_integer_leaves_and_their_float0_gradients_are_skipped(row: Algorithm) -> None:
    params = {"w": jnp.full((2, 3), 2.0, F32), "table": jnp.arange(4), "flag": jnp.array([True])}

    def loss(params: Tree) -> jax.Array:
        scale = params["table"].sum().astype(F32) * params["flag"][0].astype(F32)
        return jnp.sum(params["w"] ** 2) * scale

    grads = jax.grad(loss, allow_int=True)(params)
    assert grads["table"].dtype == jax.dtypes.float0
    tx = row.pair()
    state = tx.init(params)

    @jax.jit
    def step(params: Tree, state: Tree) -> tuple[Tree, Tree]:
        return one_step(tx, params, state, jax.grad(loss, allow_int=True)(params))

    new_params, new_state = step(params, state)
    updates, _ = tx.update(grads, state, params)
    assert updates["table"] is None
    assert updates["flag"] is None
    assert types(new_params) == types(params)
    assert jax.tree.structure(new_state) == jax.tree.structure(state)
    assert np.array_equal(new_params["table"], np.arange(4))
    moved, _ = step(new_params, new_state)  # the first update of some moves nothing
    assert not np.any(moved["w"] == params["w"])
    # A gradient of zeros for an integer leaf is skipped as well.
    updates, _ = tx.update({**grads, "table": jnp.zeros(4, jnp.int32)}, state, params)
    assert updates["table"] is None


@over_table
def test_parameters_and_gradients_may_be_numpy_arrays(row: Algorithm) -> None:
    params, grads = problem()
    wanted = loop(row.pair(), params, grads)
    actual = loop(row.pair(), *jax.tree.map(np.asarray, (params, grads)))
    assert_trees_close(actual, wanted, 0.0)


class Layer(NamedTuple):
    kernel: Any
    bias: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Model:
    kernel: Any
    bias: Any
    name: str = dataclasses.field(default="model", metadata={"static": True})


@jax.tree_util.register_pytree_node_class
class Registered:
    """A node without keys."""

    def __init__(self, *leaves: Any):
        self.leaves = leaves

    def tree_flatten(self) -> tuple[Any, None]:
        return self.leaves, None

    @classmethod
    def tree_unflatten(cls, aux: None, leaves: Any) -> Registered:
        return cls(*leaves)


TREES: dict[str, Callable[[Any, Any], Tree]] = {
    "dict": lambda a, b: {"a": a, "b": b},
    "tuple": lambda a, b: (a, b),
    "list": lambda a, b: [a, b],
    "namedtuple": Layer,
    "dataclass": Model,
    "registered class": Registered,
    "nested": lambda a, b: ({"x": [Layer(a, {}), None]}, (), [[b]]),
}


@pytest.mark.parametrize("kind", TREES)
@over_table
def test_any_container_holds_parameters(row: Algorithm, kind: str) -> None:
    """The numbers are those of a dict, and every tree keeps its structure."""
    build = TREES[kind]
    params, grads = problem()
    a, b = params["kernel"], params["rest"][0]
    tree, tx = build(a, b), row.pair()
    final, state = loop(tx, tree, build(grads["kernel"], grads["rest"][0]))
    updates, _ = tx.update(tree, state, tree)
    structure = jax.tree.structure(tree)
    for other in (final, updates, *(getattr(state, n) for n in row.state)):
        if other is not None and not isinstance(other, jax.Array):  # a buffer, not a number
            assert jax.tree.structure(other) == structure
    wanted, _ = loop(tx, params, grads)
    assert_trees_close(jax.tree.leaves(final), jax.tree.leaves(wanted), 0.0)


@over_table
def test_an_array_alone_is_a_tree_too(row: Algorithm) -> None:
    params, grads = (tree["kernel"] for tree in problem())
    in_a_list, _ = loop(row.pair(), [params], [grads])
    assert_trees_close([loop(row.pair(), params, grads)[0]], in_a_list, 0.0)


@pytest.mark.parametrize("empty", [{}, (), [], {"layer": {}}], ids=str)
@over_table
def test_an_empty_tree_is_no_error(row: Algorithm, empty: Tree) -> None:
    tx = row.pair()
    updates, state = tx.update(empty, tx.init(empty), empty)
    assert updates == empty
    assert fo.apply_updates(empty, updates) == empty
    assert state.step == 1


@pytest.mark.parametrize("row", [r for r in TABLE if r.sparse_error is None], ids=lambda r: r.name)
def test_a_sparse_gradient_gives_what_the_dense_one_gives(row: Algorithm) -> None:
    params = jnp.arange(6.0).reshape(3, 2) + 1
    g = jnp.zeros((3, 2)).at[1].set(2.0)
    twice = jnp.asarray([[1], [1], [3]])  # a sum, and an unused slot
    formats = (
        sparse.BCOO.fromdense(g, n_dense=1),
        sparse.BCOO.fromdense(g),
        sparse.BCOO((jnp.asarray([[1.5, 1.5], [0.5, 0.5], [7.0, 7.0]]), twice), shape=(3, 2)),
    )
    plain = {name: 0 for name in ("weight_decay", "momentum", "dampening") if name in row.typical}
    refuses_decay = not row.factory.rule.sparse.with_decay
    for tx, rows_only in ((row.pair(**plain), True), (row.pair(), False)):
        if refuses_decay and not rows_only:
            continue
        wanted, state = tx.update({"w": g}, tx.init({"w": params}), {"w": params})
        for scattered in formats:
            actual = tx.update({"w": scattered}, tx.init({"w": params}), {"w": params})
            assert isinstance(actual[0]["w"], sparse.BCOO) is rows_only
            dense = {"w": actual[0]["w"].todense()} if rows_only else actual[0]
            assert_trees_close((dense, actual[1]), (wanted, state), 0.0)
            added = fo.apply_updates({"w": params}, actual[0])
            assert_trees_close(added, fo.apply_updates({"w": params}, wanted), 0.0)


@pytest.mark.parametrize(
    "row", [r for r in TABLE if r.without_params is not None], ids=lambda r: r.name
)
def test_without_params_the_updates_are_the_same(row: Algorithm) -> None:
    params, grads = problem()
    tx = row.factory(**row.without_params)
    without = with_ = tx.init(params)
    for i in range(STEPS):
        updates, without = tx.update(at(grads, i), without)
        wanted, with_ = tx.update(at(grads, i), with_, params)
        assert_trees_close((updates, without), (wanted, with_), 0.0)


@pytest.mark.parametrize(
    "row", [r for r in TABLE if r.without_params is None], ids=lambda r: r.name
)
def test_params_are_needed_without_weight_decay_too(row: Algorithm) -> None:
    tx, p = row.pair(weight_decay=0), jnp.ones(3)
    with pytest.raises(ValueError, match=r"^\w+: the argument `params` of update is missing"):
        tx.update(p, tx.init(p))


@pytest.mark.parametrize("row", [r for r in TABLE if r.by_leaf], ids=lambda r: r.name)
def test_leaves_do_not_see_each_other(row: Algorithm) -> None:
    """Random trees with random holes: every leaf gets the update that it gets alone."""
    tx = row.pair()
    params, grads = problem()
    pool = [(params["kernel"] * k, grads["kernel"][0] / k) for k in (1.0, 2.0, 3.0)]
    wanted = [tx.update(g, tx.init(p), p)[0] for p, g in pool]
    leaf = st.tuples(st.sampled_from(range(3)), st.booleans())
    trees = st.recursive(
        leaf,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=6,
    )

    def is_leaf(x: Any) -> bool:
        return isinstance(x, tuple)

    @hypothesis.settings(max_examples=10)
    @hypothesis.given(trees)
    def check(tree: Tree) -> None:
        p = jax.tree.map(lambda x: pool[x[0]][0], tree, is_leaf=is_leaf)
        g = jax.tree.map(lambda x: pool[x[0]][1] if x[1] else None, tree, is_leaf=is_leaf)
        updates, _ = tx.update(g, tx.init(p), p)
        expected = jax.tree.map(lambda x: wanted[x[0]] if x[1] else None, tree, is_leaf=is_leaf)
        assert_trees_close(updates, expected, 0.0)

    check()
