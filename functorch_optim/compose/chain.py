"""Composition of pairs: one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from functorch_optim.core import checks
from functorch_optim.core.abstract import abstract_aware
from functorch_optim.core.equal_pairs import value_equal
from functorch_optim.core.pair import GradientTransformation, Pair, Params, State, Updates, member


@value_equal
def chain(*transforms: Pair) -> GradientTransformation:
    """Applies transforms one after the other, each to the updates of the one before.

    Args:
      *transforms: pairs of this library or of any other with optax's protocol.

    Returns:
      A pair whose state is the tuple of the members' states. Extra arguments of its `update` reach
      every member that takes them.

    Raises:
      TypeError: a member is not a pair (an uncalled factory, say).
    """
    members = [member(tx, f"argument {i} of chain") for i, tx in enumerate(transforms)]

    @abstract_aware
    def init(params: Params) -> State:
        return tuple(tx.init(params) for tx in members)

    def update(
        grads: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        if not isinstance(state, tuple | list):
            raise TypeError(
                f"chain: state should be a tuple of the states of {len(members)} members, but is a "
                f"{type(state).__name__}. {checks.ORDER}"
            )
        if hasattr(state, "_fields") or len(state) != len(members):
            what = type(state).__name__ if hasattr(state, "_fields") else len(state)
            raise ValueError(
                f"this chain has {len(members)} members, but the state given has {what}. "
                f"{checks.ORDER}"
            )
        new_state = []
        for tx, member_state in zip(members, state, strict=True):
            grads, member_state = tx.update(grads, member_state, params, **extra)
            new_state.append(member_state)
        return grads, tuple(new_state)

    return GradientTransformation(init, update)


class NamedChain(GradientTransformation):
    """A pair made of named ones.

    Attributes:
      parts: the members by name, in the order in which they are applied.
    """

    parts: Mapping[str, Pair]


@value_equal
def named_chain(*transforms: tuple[str, Pair]) -> NamedChain:
    """`chain` with names: `named_chain(("clip", clip_by_global_norm(1.0)), ("adam", adam()))`.

    Args:
      *transforms: `(name, pair)` tuples, in the order in which they are applied.

    Returns:
      A pair whose state is a dict of the members' states, `state["adam"]`, and whose members are
      `parts["adam"]`. A state saved under names can be restored after a member was added, removed
      or moved.

    Raises:
      TypeError: an argument is not such a tuple. ValueError: two have the same name.
    """
    for i, item in enumerate(transforms):
        if not (isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)):
            raise TypeError(
                f"argument {i} of named_chain should be a (name, pair) tuple, but is {item!r}"
            )
    names = [name for name, _ in transforms]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"named_chain: two transforms are called {name!r}")
    inner = chain(*(member(tx, f"{name!r} in named_chain") for name, tx in transforms))

    @abstract_aware
    def init(params: Params) -> State:
        return dict(zip(names, inner.init(params), strict=True))

    def update(
        grads: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        if not isinstance(state, Mapping) or set(state) != set(names):
            found = sorted(state) if isinstance(state, Mapping) else type(state).__name__
            raise ValueError(
                f"this chain has members called {names}, but the state given has {found}. "
                f"{checks.ORDER}"
            )
        states = tuple(state[name] for name in names)
        grads, states = inner.update(grads, states, params, **extra)
        return grads, dict(zip(names, states, strict=True))

    pair = NamedChain(init, update)
    pair.parts = dict(transforms)
    return pair
