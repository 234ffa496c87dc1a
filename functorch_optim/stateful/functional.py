"""An optimizer's parameters and state as a pure pair's, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from functorch_optim.core import trees
from functorch_optim.core.pair import GradientTransformation
from functorch_optim.stateful.memory.members import Members


def lent(memory: Any, parts: Sequence[Any], tree: Any) -> tuple[GradientTransformation, Any, Any]:
    """`(pair, params, state)` over the optimizer's tree.

    The pair is made of one pair for each cohort: the parameters that have hyperparameters and step
    in common.
    """
    cells, treedef = trees.flatten(tree)
    cohorts = memory.cohorts(parts, cells)
    pairs = [(memory.factory(**values), where) for values, where in cohorts]

    def init(params: Any) -> Any:
        ps = trees.flatten_like(params, treedef, "params", "the optimizer's parameters")
        return tuple(tx.init(Members(ps[i] for i in where)) for tx, where in pairs)

    def update(grads: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        gs = trees.flatten_like(grads, treedef, "grads")
        ps = None if params is None else trees.flatten_like(params, treedef, "params")
        updates: list[Any] = [None] * len(gs)
        new_state = []
        for (tx, where), old in zip(pairs, state, strict=True):
            chosen = None if ps is None else Members(ps[i] for i in where)
            us, new = tx.update(Members(gs[i] for i in where), old, chosen, **extra)
            new_state.append(new)
            for i, u in zip(where, us, strict=True):
                updates[i] = u
        return treedef.unflatten(updates), tuple(new_state)

    params = treedef.unflatten([p.data for p in cells])
    state = tuple(memory.pair_state([cells[i] for i in where]) for _, where in cohorts)
    return GradientTransformation(init, update), params, state


def take_back(memory: Any, parts: Sequence[Any], tree: Any, params: Any, state: Any) -> None:
    """Puts values and state of the pair of `lent` into the Parameters and the memory."""
    cells, treedef = trees.flatten(tree)
    given = trees.flatten_like(params, treedef, "params", "the optimizer's parameters")
    arrays = [jnp.asarray(value) for value in given]
    for p, value in zip(cells, arrays, strict=True):
        p.check_like("value", value)
    cohorts = memory.cohorts(parts, cells)
    if len(state) != len(cohorts):
        raise ValueError(f"state should have {len(cohorts)} parts, but has {len(state)}")
    members = [[cells[i] for i in where] for _, where in cohorts]
    adopt = memory.adoption(list(zip(members, state, strict=True)))
    for p, value in zip(cells, arrays, strict=True):
        p.data = value
    adopt()
