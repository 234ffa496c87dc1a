"""Composition of pairs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from functorch_optim.base import GradientTransformation, Params, State, Updates, value_equal


@value_equal
def chain(*transforms: GradientTransformation) -> GradientTransformation:
    """Applies transforms one after the other, each to the updates of the one before.

    Args:
      *transforms: pairs of this library or of any other with optax's protocol.

    Returns:
      A pair whose state is the tuple of the members' states. Extra arguments of its `update` reach
      every member that takes them.

    Raises:
      TypeError: a member is not a pair (an uncalled factory, say).
    """
    for position, transform in enumerate(transforms):
        if not (hasattr(transform, "init") and hasattr(transform, "update")):
            raise TypeError(
                f"chain takes (init, update) pairs, but argument {position} is {transform!r}"
                + (". Call the factory first" if callable(transform) else "")
            )
    updates_of = [accepting_extra(transform.update) for transform in transforms]

    def init(params: Params) -> State:
        return tuple(transform.init(params) for transform in transforms)

    def update(
        grads: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        if len(state) != len(transforms):
            raise ValueError(
                f"this chain has {len(transforms)} members, but the state given has {len(state)}"
            )
        new_state = []
        for member_update, member_state in zip(updates_of, state, strict=True):
            grads, member_state = member_update(grads, member_state, params, **extra)
            new_state.append(member_state)
        return grads, tuple(new_state)

    return GradientTransformation(init, update)


def accepting_extra(update: Callable[..., Any]) -> Callable[..., Any]:
    """An update function that takes any extra argument and hands on those that `update` takes."""
    parameters = inspect.signature(update).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return update
    names = {p.name for p in parameters if p.kind is not inspect.Parameter.POSITIONAL_ONLY}

    def filtered(grads: Updates, state: State, params: Params | None = None, **extra: Any) -> Any:
        known = {name: value for name, value in extra.items() if name in names}
        return update(grads, state, params, **known)

    return filtered
