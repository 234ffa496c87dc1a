"""An optimizer's parameters and state as a pure pair's, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from functorch_optim import leaves
from functorch_optim.base import GradientTransformation
from functorch_optim.stateful.leaf_memory import LeafMemory, Part
from functorch_optim.stateful.parameter import Parameter

# Parameters that share hyperparameters and step: their positions in the tree.
Cohort = tuple[Mapping[str, Any], tuple[int, ...]]


def lent(memory: LeafMemory, parts: Sequence[Part], tree: Any) -> tuple[Any, Any, Any]:
    """`(pair, params, state)`: one pair and one state per cohort, over the optimizer's tree."""
    cells, treedef = leaves.flatten(tree)
    cohorts = memory.cohorts(parts, cells)
    pairs = [memory.factory(**values) for values, _ in cohorts]
    positions = [where for _, where in cohorts]

    def init(params: Any) -> Any:
        ps, _ = leaves.flatten(params)
        return tuple(
            tx.init([ps[i] for i in where]) for tx, where in zip(pairs, positions, strict=True)
        )

    def update(grads: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        gs = leaves.flatten_like(grads, treedef, "grads")
        ps = None if params is None else leaves.flatten_like(params, treedef, "params")
        updates: list[Any] = [None] * len(gs)
        new_state = []
        for tx, where, old in zip(pairs, positions, state, strict=True):
            chosen = None if ps is None else [ps[i] for i in where]
            us, new = tx.update([gs[i] for i in where], old, chosen, **extra)
            new_state.append(new)
            for i, u in zip(where, us, strict=True):
                updates[i] = u
        return treedef.unflatten(updates), tuple(new_state)

    params = treedef.unflatten([p.data for p in cells])
    state = tuple(memory.pair_state([cells[i] for i in where]) for where in positions)
    return GradientTransformation(init, update), params, state


def take_back(
    memory: LeafMemory, parts: Sequence[Part], tree: Any, params: Any, state: Any
) -> None:
    """Puts values and state of the pair of `lent` into the Parameters and the memory."""
    cells, treedef = leaves.flatten(tree)
    given = leaves.flatten_like(params, treedef, "params", "the optimizer's parameters")
    cohorts = memory.cohorts(parts, cells)
    if len(state) != len(cohorts):
        raise ValueError(f"state should have {len(cohorts)} parts, but has {len(state)}")
    held: list[tuple[Parameter, Any]] = [
        (p, jnp.asarray(value)) for p, value in zip(cells, given, strict=True)
    ]
    for p, value in held:
        p.check_like("value", value)
    records = memory.records_of(
        [([cells[i] for i in where], part) for (_, where), part in zip(cohorts, state, strict=True)]
    )
    for p, value in held:
        p.data = value
    memory.records.update(records)
