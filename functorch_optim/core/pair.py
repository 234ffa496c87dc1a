"""The vocabulary of the library: the pair, in optax's protocol, and its types."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import jax

from functorch_optim.core.recipe import Recorded

# JAX has no type for a pytree. `Any` lets a checker read the fields of a state: `state.step`.
Params: TypeAlias = Any
Updates: TypeAlias = Any
State: TypeAlias = Any
PerParam: TypeAlias = Any
Scalar = jax.Array
Schedule = Callable[[Any], Any]
Number = float | jax.Array
Hyperparameter = float | jax.Array | Schedule


if TYPE_CHECKING:
    # What asks for a pair of optax's takes one of ours (see `__class__` below). A type checker is
    # told so by a base class, which to one that does not find optax may be anything.
    from optax import GradientTransformationExtraArgs as OfOptax
else:
    OfOptax = object


class Pair(Protocol):
    """What a parameter takes: a pair of this library or of any other with optax's protocol.

    Of its functions no more is asked than that they are there: type checkers do not agree on
    whether a function that is a field of a tuple takes `self`.
    """

    @property
    def init(self) -> Any:
        """`init(params) -> state`."""

    @property
    def update(self) -> Any:
        """`update(grads, state, params=None, **extra) -> (updates, state)`."""


class _Fields(NamedTuple):
    """What a pair consists of. Apart, since a NamedTuple's own body cannot say `__class__`."""

    init: Callable[[Params], State]
    update: Callable[..., tuple[Updates, State]]


# What is called on torch's optimizers.
_STATEFUL = (
    *("step", "zero_grad", "state", "state_dict", "load_state_dict", "defaults", "param_groups"),
    *("add_param_group", "register_step_pre_hook", "register_step_post_hook", "make_step"),
)


class GradientTransformation(Recorded, _Fields, OfOptax):  # type: ignore[misc]  # Any: optax has no types
    """A pure `(init, update)` pair, in optax's protocol.

    Attributes:
      init: `init(params) -> state`.
      update: `update(grads, state, params=None, **extra) -> (updates, state)`. Updates are ADDED
        to the parameters: the sign and the learning rate are already in them. Extra keyword
        arguments that the pair does not know are ignored.

    Where optax is imported, before or after the pair was made, `isinstance(tx,
    optax.GradientTransformation)` holds, and so does `isinstance(tx,
    optax.GradientTransformationExtraArgs)` if `update` takes any keyword argument, as that of every
    pair of this library does. So what was written for optax's pairs takes these.

    A pair of a factory shows the call that made it, and is pickled as that call: unpickled it is
    the same pair, if the arguments are numbers.
    """

    @property  # type: ignore[misc]  # read-only: nobody sets it
    def __class__(self) -> type[Any]:
        """optax's class where optax is imported, else the pair's own.

        isinstance() looks at type(x) first and then asks x.__class__, which may be a property, as
        it is in mocks and proxies: so nothing of optax is needed before somebody compares. Other
        ways that were tried: a base class put in when optax is imported (`__bases__ assignment:
        object layout differs`, and a hook in everybody's imports); a class of both as the answer
        (refused for a subclass with attributes, such as NamedChain: `instance lay-out conflict`);
        the class chosen as each pair is made (misses those made before optax was imported).
        """
        name = "GradientTransformation" + ("ExtraArgs" if _takes_any_extra(self.update) else "")
        theirs = getattr(sys.modules.get("optax"), name, None)  # None while it is being imported
        return theirs if isinstance(theirs, type) else type(self)

    # What else asks for x.__class__: the repr of a NamedTuple, for its name, and pickle, which
    # refuses an object of another class than type(x). Recorded has both. (functools.singledispatch
    # asks for it as well, and takes a pair for optax's.)

    if not TYPE_CHECKING:  # to a type checker it would mean that there is any attribute

        def __getattr__(self, name: str) -> Any:
            text = f"{type(self).__name__!r} object has no attribute {name!r}"
            if name in _STATEFUL:
                text += (
                    ": a pair is pure. Write updates, state = tx.update(grads, state, params); "
                    "params = apply_updates(params, updates). torch's optimizers, which have "
                    f"{name}, are in functorch_optim.stateful"
                )
            raise AttributeError(text)


def explained(tx: GradientTransformation, name: str) -> GradientTransformation:
    """The pair, whose functions say how they are called when they are called wrongly."""
    init = _explained(tx.init, f"{name}: init", "state = tx.init(params)")
    call = "updates, state = tx.update(grads, state, params)"
    new = type(tx)(init, _explained(tx.update, f"{name}: update", call))
    vars(new).update(vars(tx))
    return new


def _explained(function: Callable[..., Any], name: str, call: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except TypeError:
            problem = _problem(function, args, kwargs)
            if problem is None:
                raise
        raise TypeError(f"{name}() {problem}. Write {call}")

    return called


def _problem(function: Callable[..., Any], args: Any, kwargs: Any) -> str | None:
    """What is wrong with the arguments; `None` if an error came from inside of the function."""
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError as error:
        return str(error)
    return None


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
                f"is a {type(state).__name__}. Call update(grads, state, params), in this order"
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
    if _takes_any_extra(update):
        return update
    parameters = inspect.signature(update).parameters.values()
    names = {p.name for p in parameters if p.kind is not inspect.Parameter.POSITIONAL_ONLY}

    def filtered(grads: Updates, state: State, params: Params | None = None, **extra: Any) -> Any:
        known = {name: value for name, value in extra.items() if name in names}
        return update(grads, state, params, **known)

    return filtered


def _takes_any_extra(update: Any) -> bool:
    """Whether a function has `**extra`. What says nothing of its arguments has none."""
    try:
        parameters = inspect.signature(update).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
