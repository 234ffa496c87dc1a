"""The vocabulary of the library: the pair, in optax's protocol, and its types."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax

# JAX has no type for a pytree. `Any` lets a checker read the fields of a state: `state.step`.
Params: TypeAlias = Any
Updates: TypeAlias = Any
State: TypeAlias = Any
PerParam: TypeAlias = Any
Scalar = jax.Array
Schedule = Callable[[Any], Any]
Number = float | jax.Array
Hyperparameter = float | jax.Array | Schedule


class GradientTransformation(NamedTuple):
    """A pure `(init, update)` pair, in optax's protocol.

    Attributes:
      init: `init(params) -> state`.
      update: `update(grads, state, params=None, **extra) -> (updates, state)`. Updates are ADDED
        to the parameters: the sign and the learning rate are already in them. Extra keyword
        arguments that the pair does not know are ignored.
    """

    init: Callable[[Params], State]
    update: Callable[..., tuple[Updates, State]]


class EmptyState(NamedTuple):
    """The state of a pair that remembers nothing."""


def stateless(changed: Callable[[Updates, Params | None], Updates]) -> GradientTransformation:
    """The pair that remembers nothing, and whose updates are `changed(updates, params)`."""

    def update(
        updates: Updates, state: EmptyState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, EmptyState]:
        if jax.tree.leaves(state):
            name = changed.__qualname__.split(".")[0]
            raise TypeError(
                f"{name} remembers nothing: state should be the EmptyState that init returned, but "
                f"is a {type(state).__name__}"
            )
        return changed(updates, params), state

    return GradientTransformation(lambda params: EmptyState(), update)


def member(tx: Any, place: str) -> GradientTransformation:
    """A pair that is to be a part of another one; its update takes any extra argument.

    Args:
      tx: a pair of this library or of any other with optax's protocol.
      place: where it stands, for the message: "argument 0 of chain".

    Returns:
      The pair, whose update drops the extra arguments that `tx` does not take.

    Raises:
      TypeError: it is not a pair (an uncalled factory, say).
    """
    if not (hasattr(tx, "init") and hasattr(tx, "update")):
        hint = ". Call the factory first" if callable(tx) else ""
        if isinstance(tx, list | tuple) and all(hasattr(x, "update") for x in tx):
            raise TypeError(f"{place} is a {type(tx).__name__} of pairs: give them one by one")
        raise TypeError(f"{place} should be an (init, update) pair, but is {tx!r}{hint}")
    return GradientTransformation(tx.init, _accepting_extra(tx.update))


def _accepting_extra(update: Callable[..., Any]) -> Callable[..., Any]:
    parameters = inspect.signature(update).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return update
    names = {p.name for p in parameters if p.kind is not inspect.Parameter.POSITIONAL_ONLY}

    def filtered(grads: Updates, state: State, params: Params | None = None, **extra: Any) -> Any:
        known = {name: value for name, value in extra.items() if name in names}
        return update(grads, state, params, **known)

    return filtered
