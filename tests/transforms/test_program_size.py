"""A program grows with the number of leaves, and not with its square."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import functorch_optim as fo
from tests.tables.transforms import TABLE, Transform

# Prodigy's sums over the tree are those of its rule.
ROWS = [row for row in TABLE if row.name != "prodigy"]
GUARDS = ("accumulate", "skip_nonfinite", "dynamic_loss_scale")


def compiled_length(tx: Any, row: Transform, leaves: int) -> int:
    params = {f"p{i}": jax.ShapeDtypeStruct((3,), jnp.float32) for i in range(leaves)}
    state = jax.eval_shape(tx.init, params)
    update = jax.jit(lambda g, s, p: tx.update(g, s, p, **row.extra))
    return len(update.lower(params, state, params).compile().as_text())


def assert_linear(row: Transform, sizes: tuple[int, ...]) -> None:
    """Each size is twice the one before; four times the text would be a square."""
    tx = row.pair(fo.sgd(0.1, momentum=0.9))
    lengths = [compiled_length(tx, row, leaves) for leaves in sizes]
    for small, large in itertools.pairwise(lengths):
        assert large / small < 2.5, lengths


def test_an_unscaled_step_grows_with_its_leaves() -> None:
    (row,) = (row for row in TABLE if row.name == "dynamic_loss_scale")
    assert_linear(row, (40, 80))


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_step_grows_with_its_leaves(row: Transform) -> None:
    sizes = (40, 80, 160, 320) if row.name in GUARDS else (20, 40)
    assert_linear(row, sizes)
