"""Composition of pairs: one for some leaves, another for the rest.

A pair that is not to see a leaf finds `None` there, which both this library and optax skip. So its
state has nothing for that leaf, and any pair can be a member.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from functorch_optim.compose.leaf_labels import PerLeaf, check_labels, check_mask, chosen, said_of
from functorch_optim.core import checks, trees, updating
from functorch_optim.core.abstract import abstract_aware, is_placeholder
from functorch_optim.core.equal_pairs import recorded, value_equal
from functorch_optim.core.pair import (
    GradientTransformation,
    Pair,
    Params,
    State,
    Updates,
    member,
    stateless,
)


@recorded
def partition(transforms: Mapping[Any, Pair], labels: PerLeaf) -> GradientTransformation:
    """One transform for the leaves with one label, another for those with another.

    Args:
      transforms: the pairs by label.
      labels: the leaves' labels: a tree of the params' structure, or of its top (a label then
        speaks for all leaves below it), or a function of params that returns one, `by_path(...)`
        for instance.

    Returns:
      A pair whose state is a dict of the members' states, by label (as a string). Each member sees
      `None` for the leaves of others. Extra arguments reach every member that takes them.

    Raises:
      TypeError: a member is not a pair; a label cannot be a key; the labels' structure is not that
        of params.
      ValueError: a label that `transforms` lacks; it is named with its path.
    """
    if not isinstance(transforms, Mapping):
        raise TypeError(f"transforms should be pairs by label, a dict, but are {transforms!r}")
    members = {label: member(tx, f"transforms[{label!r}]") for label, tx in transforms.items()}
    # The state's keys are strings, since jax sorts keys and cannot sort None and strings.
    keys = {label: str(label) for label in members}
    if len(set(keys.values())) < len(keys):
        raise ValueError(f"partition: two labels have the same name: {[*keys]}")
    check_labels(labels)

    def labelled(tree: Any) -> tuple[list[Any], trees.Leaves, Any]:
        said, below, treedef = said_of(labels, tree, "labels")
        for index, (label, leaf) in enumerate(zip(said, below, strict=True)):
            if label not in members and leaf is not None:
                raise ValueError(
                    f"partition: the label {label!r} of {trees.path_of(treedef, index)} is not "
                    f"one of {[*members]}"
                )
        return said, below, treedef

    @abstract_aware
    def init(params: Params) -> State:
        if is_placeholder(params):
            return {keys[label]: tx.init(params) for label, tx in members.items()}
        said, ps, treedef = labelled(params)
        return {
            keys[label]: tx.init(_only(ps, treedef, [other == label for other in said]))
            for label, tx in members.items()
        }

    def update(
        grads: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        if not isinstance(state, Mapping) or set(state) != set(keys.values()):
            raise ValueError(
                f"partition: state should be a dict with the keys {[*keys.values()]}, but is "
                f"{type(state).__name__} {[*state] if isinstance(state, Mapping) else ''}. "
                f"{checks.ORDER}"
            )
        said, references, treedef = labelled(grads if params is None else params)
        gs = trees.flatten_like(grads, treedef, "grads")
        updates: list[Any] = [None] * len(gs)
        states = {}
        for label, tx in members.items():
            mine = [other == label for other in said]
            seen = None if params is None else _only(references, treedef, mine)
            key = keys[label]
            new, states[key] = tx.update(_only(gs, treedef, mine), state[key], seen, **extra)
            for index, update in enumerate(trees.flatten_like(new, treedef, "updates")):
                if mine[index]:
                    updates[index] = update
        return treedef.unflatten(updates), states

    return GradientTransformation(init, update)


@value_equal
def masked(tx: Pair, mask: PerLeaf, pass_through: bool = False) -> GradientTransformation:
    """A transform for some of the leaves.

    The state is that of `tx` itself, `state.exp_avg` of `masked(adam(), ...)`, with `None` in the
    places of the leaves that are left out. (optax has a `MaskedState` around it.)

    The leaves that the mask leaves out get an update of ZERO: their parameters stay. (optax hands
    on their raw gradients, which then are added to the parameters.)

    Args:
      tx: the pair. It sees `None` for the leaves that are left out, and its state, which is the
        state of the whole, has nothing for them.
      mask: True where it applies: a tree of the params' structure, or of its top, or a function of
        params that returns one, `by_path(...)` for instance.
      pass_through: hand on the updates of the leaves that are left out, as a member of a chain
        does that minds its own leaves only.

    Raises:
      TypeError: tx is not a pair, pass_through no bool; the mask's structure is not that of
        params, or it holds something else than True and False.
    """
    inner = member(tx, "the transform of masked")
    check_mask(mask)
    checks.flag("pass_through", pass_through)

    @abstract_aware
    def init(params: Params) -> State:
        if is_placeholder(params):
            return inner.init(params)
        on, ps, treedef = chosen(mask, params)
        return inner.init(_only(ps, treedef, on))

    def update(
        grads: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        on, references, treedef = chosen(mask, grads if params is None else params)
        gs = trees.flatten_like(grads, treedef, "grads")
        seen = None if params is None else _only(references, treedef, on)
        new, state = inner.update(_only(gs, treedef, on), state, seen, **extra)
        updates = [
            update if kept else (passed(g) if pass_through else updating.zeros_like(g))
            for update, g, kept in zip(
                trees.flatten_like(new, treedef, "updates"), gs, on, strict=True
            )
        ]
        return treedef.unflatten(updates), state

    return GradientTransformation(init, update)


@value_equal
def freeze(mask: PerLeaf = True) -> GradientTransformation:
    """Updates of zero: the parameters stay. The last member of a chain, or one of a partition.

    Args:
      mask: which leaves, as in `masked`; all by default. The others' updates pass through.

    Returns:
      A pair whose state is `EmptyState`: it remembers nothing, whatever the mask says.

    Raises:
      TypeError: the mask's structure is not that of params, or it holds something else than True
        and False.
    """
    check_mask(mask)

    def frozen(updates: Updates, params: Params | None) -> Updates:
        on, _, treedef = chosen(mask, updates if params is None else params)
        us = trees.flatten_like(updates, treedef, "updates")
        new = [
            updating.zeros_like(u) if kept else passed(u) for u, kept in zip(us, on, strict=True)
        ]
        return treedef.unflatten(new)

    return stateless(frozen)


def passed(g: Any) -> Any:
    """A gradient as an update: `None` where there is no update."""
    return None if trees.has_no_update(g) else g


def _only(values: trees.Leaves, treedef: Any, on: Sequence[bool]) -> Any:
    """The tree with `None` where a leaf is left out."""
    kept = [value if here else None for value, here in zip(values, on, strict=True)]
    return treedef.unflatten(kept)
