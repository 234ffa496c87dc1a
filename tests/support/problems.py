"""Small problems that the contract suite solves with every algorithm."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import functorch_optim as fo
from tests.support.parity import assert_close

Tree = Any
STEPS = 3


def problem(
    dtype: str = "float32", shape: tuple[int, ...] = (2, 3), steps: int = STEPS
) -> tuple[Tree, Tree]:
    """Parameters, and their gradients of all steps along a first axis.

    Both leaves have one shape, so a compilation stays cheap; two dimensions suit every algorithm.
    """
    random = np.random.RandomState(7)

    def draw(*size: int) -> jax.Array:
        x = random.standard_normal(size)
        if np.issubdtype(dtype, np.complexfloating):
            x = x + 1j * random.standard_normal(size)
        return jnp.asarray(x.astype(dtype))

    params = {"kernel": draw(*shape), "rest": [draw(*shape)]}
    grads = {"kernel": draw(steps, *shape), "rest": [draw(steps, *shape)]}
    return params, grads


def at(grads: Tree, step: int) -> Tree:
    """The gradients of one step. (Sliced by numpy, which compiles nothing.)"""
    return jax.tree.map(lambda g: jnp.asarray(np.asarray(g)[step]), grads)


def one_step(
    tx: fo.GradientTransformation, params: Tree, state: Tree, grads: Tree
) -> tuple[Tree, Tree]:
    updates, state = tx.update(grads, state, params)
    return fo.apply_updates(params, updates), state


def loop(tx: fo.GradientTransformation, params: Tree, grads: Tree) -> tuple[Tree, Tree]:
    """Parameters and state after all steps, by a Python loop."""
    state = tx.init(params)
    for i in range(len(jax.tree.leaves(grads)[0])):
        params, state = one_step(tx, params, state, at(grads, i))
    return params, state


def assert_trees_close(actual: Tree, wanted: Tree, rtol: float) -> None:
    """One structure, the same dtypes, and numbers within rtol (see `assert_close`)."""
    assert jax.tree.structure(actual) == jax.tree.structure(wanted)
    paths = jax.tree_util.tree_leaves_with_path(wanted)
    for x, (path, y) in zip(jax.tree.leaves(actual), paths, strict=True):
        where = jax.tree_util.keystr(path)
        assert x.dtype == y.dtype, where
        assert x.shape == y.shape, where
        if x.dtype == bool:
            x, y = x.astype(jnp.int8), y.astype(jnp.int8)
        if jnp.issubdtype(x.dtype, jnp.inexact) and x.dtype.itemsize < 4:
            x, y = x.astype(jnp.float32), y.astype(jnp.float32)
        assert_close(np.asarray(x), np.asarray(y), rtol, where)


def types(tree: Tree) -> Tree:
    """What a loop must not change: structure, shapes, dtypes, weak types."""
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


def draw(*shape: int, seed: int = 0, dtype: Any = "float64") -> np.ndarray:
    """Fixed normal numbers; complex ones for a complex dtype."""
    random = np.random.RandomState(seed)
    x = random.standard_normal(shape)
    if np.issubdtype(dtype, np.complexfloating):
        x = x + 1j * random.standard_normal(shape)
    return np.asarray(x).astype(dtype)
