"""An optimizer's state as that of a pure pair: one pair for each cohort of parameters.

A cohort is the parameters that have hyperparameters and step in common.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax

from functorch_optim.core import trees
from functorch_optim.core.pair import GradientTransformation, State


@jax.tree_util.register_pytree_node_class
class Members(tuple[Any, ...]):
    """One thing for each parameter of a cohort or group: a tuple that can be told from all others.

    Where a pair's state holds something per parameter, it holds a `Members`: this is how its state
    is taken apart into torch's per-parameter dicts.
    """

    def tree_flatten(self) -> tuple[tuple[Any, ...], None]:
        """For JAX."""
        return tuple(self), None

    @classmethod
    def tree_unflatten(cls, aux: None, children: Iterable[Any]) -> Members:
        """For JAX."""
        return cls(children)


class Cohort(NamedTuple):
    """Parameters that one pair updates.

    Attributes:
      pair: over a `Members` of them.
      places: their positions among the leaves of the optimizer's tree.
      state: the pair's.
    """

    pair: GradientTransformation
    places: tuple[int, ...]
    state: State


def pair_of(
    cohorts: Sequence[Cohort], treedef: jax.tree_util.PyTreeDef
) -> tuple[GradientTransformation, State]:
    """The pair over the whole tree, and its state: a tuple with that of each cohort."""
    pairs = [(cohort.pair, cohort.places) for cohort in cohorts]

    def init(params: Any) -> Any:
        ps = trees.flatten_like(params, treedef, "params", "the optimizer's parameters")
        return tuple(tx.init(Members(ps[i] for i in places)) for tx, places in pairs)

    def update(grads: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        gs = trees.flatten_like(grads, treedef, "grads")
        ps = None if params is None else trees.flatten_like(params, treedef, "params")
        updates: list[Any] = [None] * len(gs)
        new_state = []
        for (tx, places), old in zip(pairs, state, strict=True):
            chosen = None if ps is None else Members(ps[i] for i in places)
            us, new = tx.update(Members(gs[i] for i in places), old, chosen, **extra)
            new_state.append(new)
            for i, u in zip(places, us, strict=True):
                updates[i] = u
        return treedef.unflatten(updates), tuple(new_state)

    return GradientTransformation(init, update), tuple(cohort.state for cohort in cohorts)


def states_of(state: Any, cohorts: Sequence[Cohort]) -> Sequence[State]:
    """The state of each cohort.

    Raises:
      ValueError: there are more or fewer.
    """
    if len(state) != len(cohorts):
        raise ValueError(f"state should have {len(cohorts)} parts, but has {len(state)}")
    return state
