"""Walking trees, and adding updates to parameters."""

from __future__ import annotations

from typing import Any, NamedTuple

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import sparse

import functorch_optim as fo
from functorch_optim.core import trees, updating
from functorch_optim.core.dtypes import from_real, real_dtype, to_real


class Pair(NamedTuple):
    first: Any
    second: Any


def any_tree(leaf: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaf,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.tuples(inner, inner)
            | st.builds(Pair, inner, inner)
            | st.dictionaries(st.text(max_size=2), inner, max_size=3)
        ),
        max_leaves=8,
    )


NUMBERS = st.integers(-100, 100)


@hypothesis.given(any_tree(NUMBERS), st.randoms(use_true_random=False))
def test_updates_reach_their_parameters_and_none_leaves_them(tree: Any, random: Any) -> None:
    """In any tree, with holes anywhere; structure and container types are kept."""
    params = jax.tree.map(lambda n: np.float32([n, 0.5]), tree)
    updates = jax.tree.map(lambda n: None if random.random() < 0.4 else np.float32([1, n]), tree)
    new = fo.apply_updates(params, updates)
    assert jax.tree.structure(new) == jax.tree.structure(params)
    before, holes = jax.tree.leaves(params), trees.flatten(updates)[0]
    for p, u, q in zip(before, holes, jax.tree.leaves(new), strict=True):
        if u is None:
            assert q is p
        else:
            np.testing.assert_array_equal(q, p + u)


@hypothesis.given(any_tree(NUMBERS | st.none()))
def test_flatten_counts_none_as_a_leaf_and_unflattens(tree: Any) -> None:
    flat, treedef = trees.flatten(tree)
    assert jax.tree.unflatten(treedef, flat) == tree
    assert len([x for x in flat if x is not None]) == len(jax.tree.leaves(tree))
    assert trees.flatten_like(tree, treedef, "tree") == flat


@hypothesis.given(any_tree(NUMBERS), any_tree(NUMBERS))
def test_trees_of_different_structure_are_refused(one: Any, other: Any) -> None:
    hypothesis.assume(jax.tree.structure(one) != jax.tree.structure(other))
    to_array = np.float32
    with pytest.raises(TypeError, match="updates and params differ in structure"):
        fo.apply_updates(jax.tree.map(to_array, one), jax.tree.map(to_array, other))


@pytest.mark.parametrize(
    ("param", "update", "sum_"),
    [
        ("bfloat16", "float32", "float32"),
        ("float32", "bfloat16", "float32"),
        ("float16", "bfloat16", "float32"),
        ("complex64", "float32", "complex64"),
        ("complex64", "bfloat16", "complex64"),
    ],
)
def test_mixed_dtypes_are_added_in_the_wider_one_and_rounded_once(
    param: str, update: str, sum_: str
) -> None:
    random = np.random.RandomState(0)
    p = jnp.asarray(random.standard_normal(1000)).astype(param)
    u = jnp.asarray(random.standard_normal(1000) * 1e-2).astype(update)
    new = fo.apply_updates(p, u)
    assert new.dtype == p.dtype
    np.testing.assert_array_equal(new, (p.astype(sum_) + u.astype(sum_)).astype(param))


def test_a_float64_update_of_a_float32_parameter_is_rounded_once(x64: None) -> None:
    p, u = jnp.float32(1), jnp.float64(2**-24 + 2**-50)
    new = fo.apply_updates(p, u)
    assert new.dtype == np.float32
    assert new == np.float32(1 + 2**-23)  # u rounded to float32 first would have tied down to 1


def test_integers_with_float0_updates_stay() -> None:
    params = {"i": jnp.arange(3)}
    float0 = np.zeros(3, jax.dtypes.float0)
    assert fo.apply_updates(params, {"i": float0})["i"] is params["i"]


def test_updates_are_added_inside_jit_grad_and_vmap() -> None:
    params = {"w": jnp.arange(3.0)}
    total = jax.jit(jax.grad(lambda u: jnp.sum(fo.apply_updates(params, u)["w"] ** 2)))
    np.testing.assert_array_equal(total(params)["w"], 4 * params["w"])
    batch = {"w": jnp.ones((2, 3))}
    moved = jax.vmap(fo.apply_updates, in_axes=(None, 0))(params, batch)
    np.testing.assert_array_equal(moved["w"], jnp.stack([params["w"] + 1] * 2))


def test_map_updates_skips_what_is_not_floating_point() -> None:
    float0 = np.zeros(2, jax.dtypes.float0)
    tree = {"a": jnp.ones(2), "b": None, "c": float0, "d": jnp.arange(2), "e": np.ones(2)}
    mapped = trees.map_updates(lambda x: x * 2, tree)
    assert [k for k, x in mapped.items() if x is None] == ["b", "c", "d"]
    np.testing.assert_array_equal(mapped["a"], [2, 2])
    np.testing.assert_array_equal(mapped["e"], [2, 2])


@pytest.mark.parametrize("dtype", ["complex64", "float32", "bfloat16"])
def test_real_form_and_back_is_the_identity(dtype: str) -> None:
    random = np.random.RandomState(1)
    x = jnp.asarray(random.standard_normal((2, 3)) + 1j * random.standard_normal((2, 3)))
    x = x.astype(dtype) if dtype == "complex64" else jnp.real(x).astype(dtype)
    real = to_real(x, real_dtype(x.dtype))
    assert real.dtype == np.float32
    assert real.shape == ((2, 3, 2) if dtype == "complex64" else (2, 3))
    back = from_real(real, x.dtype)
    assert back.dtype == x.dtype
    np.testing.assert_array_equal(back, x)


def test_half_precision_is_scaled_in_float32() -> None:
    x = jnp.asarray([3.0, 1 / 3], jnp.bfloat16)
    factor = 1 / 3  # in bfloat16 it would be 0.33398
    scaled = updating.scale(x, factor)
    assert scaled.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float32) * np.float32(factor)
    np.testing.assert_array_equal(scaled, exact.astype(jnp.bfloat16))


def test_a_sparse_array_is_one_leaf() -> None:
    matrix = sparse.BCOO.fromdense(jnp.eye(3))
    flat, _ = trees.flatten({"a": matrix, "b": jnp.ones(2)})
    assert flat[0] is matrix
    assert len(flat) == 2
    assert trees.is_sparse(matrix)
    assert not trees.is_sparse(jnp.eye(3))
