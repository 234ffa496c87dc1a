"""Hyperparameters in the state: read there, overwritten there, saved with it.

The one rule: `state.hyperparams[name]` is the value that the next update uses.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from functorch_optim.core import checks
from functorch_optim.core.abstract import abstract_aware
from functorch_optim.core.arguments import selects_code
from functorch_optim.core.arithmetic import float_dtype, is_number
from functorch_optim.core.counting import increment
from functorch_optim.core.equal_pairs import value_equal
from functorch_optim.core.pair import (
    GradientTransformation,
    Pair,
    Params,
    Scalar,
    State,
    Updates,
    member,
)
from functorch_optim.transforms.support.wrapping import with_dtypes_of

_SUFFIX = "_is_scheduled"


class _Fields(NamedTuple):
    step: Scalar
    hyperparams: dict[str, Any]
    flags: dict[str, Any]
    inner_state: State


@jax.tree_util.register_pytree_with_keys_class
class InjectState(_Fields):
    """Hyperparameters by name, each the next update's, beside the state that they work on.

    A Python number that is written into `hyperparams` counts as an array of its dtype wherever the
    state is a pytree, so that it does not compile again.

    Attributes:
      step: updates so far (int32, saturates at 2**31 - 1).
      hyperparams: 0-d arrays, float32 (float64 with x64 enabled); tuples of them for tuples.
      flags: for those that have a schedule, whether it is followed (bool arrays), by names that are
        no other's: "lr_is_scheduled".
      inner_state: the state of the factory's pair.
    """

    __slots__ = ()

    @property
    def scheduled(self) -> MutableMapping[str, Any]:
        """The flags by the names of the hyperparameters, to be read and set."""
        return _Flags(self.flags)

    def _replace(self, **fields: Any) -> InjectState:
        """A state with other fields; `scheduled` may be one of them."""
        if "scheduled" in fields:
            fields["flags"] = _flags(fields.pop("scheduled"))
        return super()._replace(**fields)

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, Any], ...], None]:
        """For JAX."""
        children = self[0], _numbers_as_arrays(self.hyperparams), *self[2:]
        keys = map(jax.tree_util.GetAttrKey, self._fields)
        return tuple(zip(keys, children, strict=True)), None

    @classmethod
    def tree_unflatten(cls, aux: None, children: Iterable[Any]) -> InjectState:
        """For JAX."""
        return cls(*children)


class _Flags(MutableMapping[str, Any]):
    """A dict under shorter names."""

    def __init__(self, flags: dict[str, Any]):
        self._flags = flags

    def __getitem__(self, name: str) -> Any:
        return self._flags[name + _SUFFIX]

    def __setitem__(self, name: str, value: Any) -> None:
        self._flags[name + _SUFFIX] = value

    def __delitem__(self, name: str) -> None:
        del self._flags[name + _SUFFIX]

    def __iter__(self) -> Iterator[str]:
        return (name.removesuffix(_SUFFIX) for name in self._flags)

    def __len__(self) -> int:
        return len(self._flags)

    def __repr__(self) -> str:
        return repr(dict(self))


def _flags(scheduled: Mapping[str, Any]) -> dict[str, Any]:
    return {name + _SUFFIX: flag for name, flag in scheduled.items()}


def _numbers_as_arrays(hyperparams: Any) -> Any:
    """Numbers and weakly typed arrays in the dtype that hyperparameters are kept in."""
    if not isinstance(hyperparams, dict):
        return hyperparams
    return {name: _as_arrays(value) for name, value in hyperparams.items()}


def _as_arrays(value: Any) -> Any:
    if type(value) in (tuple, list):
        return tuple(map(_as_arrays, value))
    if isinstance(value, bool | np.bool_):
        return value
    if isinstance(value, int | float | np.floating | np.integer):
        return np.asarray(value, float_dtype())
    if isinstance(value, jax.Array) and value.weak_type:
        return jax.lax.convert_element_type(value, float_dtype())
    return value


def _check_static_args(static_args: Any) -> None:
    names = (static_args,) if isinstance(static_args, str) else static_args
    if not (isinstance(names, tuple | list | set | frozenset) and _all_strings(names)):
        raise TypeError(
            f"static_args should be the name of an argument, or several, but are {static_args!r}"
        )


def _all_strings(names: Iterable[Any]) -> bool:
    return all(isinstance(name, str) for name in names)


@value_equal
def inject_hyperparams(
    factory: Callable[..., Pair], static_args: str | tuple[str, ...] = ()
) -> Callable[..., GradientTransformation]:
    """Puts the numeric arguments of a factory's pair into its state.

    `inject_hyperparams(adam)(lr=1e-3)` has the state `InjectState`, and
    `state.hyperparams["lr"]` is the value that the NEXT update uses. They are inputs of the
    compiled program: overwriting one with an array of its dtype does not compile again.

    - A plain one, once overwritten, holds until it is overwritten again.
    - A scheduled one (a function of the number of updates was given) is set by its schedule after
      each update, for the next one. Overwritten, it holds for one update. To take it over for good,
      set `state.scheduled[name]` to false as well; set to true again, the schedule goes on at the
      true count, after the update that follows.

    `set_hyperparams(state, lr=1e-4)` does both, wherever the state is. (optax's function of this
    name ignores what is written to a scheduled one, and shows the value that the last update used.)

    What stays a constant of the program: flags, strings, `None`, dtypes, pairs, a `mask`,
    `static_args`, and what selects code in a factory of this library (`ns_steps` of muon,
    `sync_period` of lookahead; a `momentum` or `dampening` of 0). Every other number is an input,
    `weight_decay=0` too, so that it can be switched on later: update then needs params. A tuple is
    taken apart. A function is a schedule unless it is among the `static_args`. An integer that
    selects code in a factory of your own or of optax belongs there too.

    Args:
      factory: a function that returns a pair: of this library, of optax, or your own. It is called
        again at every update, with the arrays in place of the numbers.
      static_args: the name of an argument, or several, that stay as they are.

    Returns:
      A factory with the same signature. It checks its arguments as `factory` does.

    Raises:
      TypeError: factory is not a function, static_args neither a name nor several. ValueError: the
        factory has no argument of a name in static_args.
    """
    if not callable(factory):
        raise TypeError(f"factory should be a function that returns a pair, but is {factory!r}")
    _check_static_args(static_args)
    signature = inspect.signature(factory)
    named = {static_args} if isinstance(static_args, str) else set(static_args)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    unknown = sorted(named - set(signature.parameters))
    if unknown and not takes_any:
        raise ValueError(
            f"static_args: the factory has no argument {unknown[0]!r}; "
            f"it has {[*signature.parameters]}"
        )

    @value_equal
    @functools.wraps(factory, updated=())  # it is not a `Factory` itself
    def build(*args: Any, **kwargs: Any) -> GradientTransformation:
        return _injected(factory, signature, named, args, kwargs)

    return build


def _injected(
    factory: Callable[..., Pair],
    signature: inspect.Signature,
    static_args: set[str],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> GradientTransformation:
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    static = static_args | _selects_code(factory, bound)
    dynamic = {
        name: value
        for name, value in _by_name(bound).items()
        if name not in static and _is_dynamic(value)
    }
    schedules = {name: value for name, value in dynamic.items() if _has_schedule(value)}

    def pair(values: Mapping[str, Any]) -> GradientTransformation:
        call = _with_values(bound, values)
        return member(factory(*call.args, **call.kwargs), "what the factory returns")

    pair(_at(dynamic, np.int32(0)))  # the factory's own checks, at construction

    @abstract_aware
    def init(params: Params) -> InjectState:
        start = jnp.zeros((), jnp.int32)
        # Copies: the caller's arrays, and an array given twice, are not to be donated with it.
        values = jax.tree.map(lambda x: jnp.array(x, float_dtype()), _at(dynamic, start))
        on = {name: jnp.ones((), bool) for name in schedules}
        return InjectState(start, values, _flags(on), pair(_as_numbers(values)).init(params))

    def update(
        grads: Updates, state: InjectState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, InjectState]:
        checks.state("inject_hyperparams", InjectState, state)
        checks.scalars("inject_hyperparams", state, "step")
        _check_names(state, dynamic, schedules)
        values = jax.tree.map(lambda x: jnp.asarray(x, float_dtype()), dict(state.hyperparams))
        updates, inner_state = pair(_as_numbers(values)).update(
            grads, state.inner_state, params, **extra
        )
        inner_state = with_dtypes_of(state.inner_state, inner_state)
        step = increment(state.step)
        scheduled = {name: jnp.asarray(on, bool) for name, on in state.scheduled.items()}
        for name, value in schedules.items():
            values[name] = _following(value, values[name], scheduled[name], step)
        return updates, InjectState(step, values, _flags(scheduled), inner_state)

    return GradientTransformation(init, update)


def _check_names(state: InjectState, dynamic: Mapping[str, Any], scheduled: Any) -> None:
    """Raises if the state has other hyperparameters than the pair, or of other shapes."""
    for field, wanted in (("hyperparams", dynamic), ("scheduled", scheduled)):
        found = getattr(state, field)
        if not isinstance(found, Mapping) or set(found) != set(wanted):
            names = sorted(found) if isinstance(found, Mapping) else type(found).__name__
            raise ValueError(
                f"inject_hyperparams: state.{field} should have the names {sorted(wanted)}, "
                f"but has {names}"
            )
    for name, value in dynamic.items():
        now, many = state.hyperparams[name], isinstance(value, tuple | list)
        if many != isinstance(now, tuple | list) or (many and len(now) != len(value)):
            kind = f"a tuple of {len(value)}" if many else "one value"
            raise ValueError(
                f"inject_hyperparams: state.hyperparams[{name!r}] should be {kind}, but is {now!r}"
            )


def set_hyperparams(state: State, **values: Any) -> State:
    """A state with other hyperparameters, for good: their schedules are switched off.

    `state = set_hyperparams(state, lr=1e-4)`. A schedule is switched on again by setting
    `scheduled[name]` of the `InjectState` to true.

    Args:
      state: the state of an injected pair, or one that has it somewhere inside: of a chain, say.
      **values: numbers or arrays by name; a tuple for a tuple.

    Returns:
      The new state. The one given stays as it is.

    Raises:
      KeyError: no hyperparameter has this name. ValueError: several states in it have one, or the
        value has another shape.
    """
    names = [set(node.hyperparams) for node in _inject_states(state)]
    for name in values:
        count = sum(name in known for known in names)
        if count == 0:
            raise KeyError(
                f"no hyperparameter is called {name!r}; there are {sorted(set().union(*names))}"
            )
        if count > 1:
            raise ValueError(
                f"{count} parts of the state have a hyperparameter {name!r}: set it in one of them"
            )
    return _replaced(state, values)


def _is_inject_state(x: Any) -> bool:
    return isinstance(x, InjectState)


def _inject_states(state: State) -> list[InjectState]:
    nodes = [x for x in jax.tree.leaves(state, is_leaf=_is_inject_state) if _is_inject_state(x)]
    return nodes + [inner for node in nodes for inner in _inject_states(node.inner_state)]


def _replaced(state: State, values: Mapping[str, Any]) -> State:
    def visit(node: Any) -> Any:
        if not _is_inject_state(node):
            return node
        mine = {name: value for name, value in values.items() if name in node.hyperparams}
        hyperparams, scheduled = dict(node.hyperparams), dict(node.scheduled)
        for name, value in mine.items():
            hyperparams[name] = _like(hyperparams[name], value, name)
            if name in scheduled:
                scheduled[name] = jnp.zeros_like(scheduled[name])
        return node._replace(
            hyperparams=hyperparams,
            scheduled=scheduled,
            inner_state=_replaced(node.inner_state, values),
        )

    return jax.tree.map(visit, state, is_leaf=_is_inject_state)


def _like(old: Any, value: Any, name: str) -> Any:
    """A value as arrays of the old one's structure, shapes and dtypes, which nobody else holds."""
    if isinstance(old, tuple):
        if not isinstance(value, Sequence) or len(value) != len(old):
            raise ValueError(f"{name} should be a tuple of {len(old)}, but got {value!r}")
        return tuple(_like(o, v, name) for o, v in zip(old, value, strict=True))
    if old is None or value is None:
        if old is not value:
            raise ValueError(f"{name}: None stays None, and a number a number")
        return None
    new = jnp.array(value, jnp.result_type(old))
    if new.size == 1:
        new = new.reshape(())
    elif new.shape != jnp.shape(old):
        raise ValueError(f"{name} has shape {jnp.shape(old)}, but got {new.shape}")
    return jnp.broadcast_to(new, jnp.shape(old))


def _selects_code(factory: Any, bound: inspect.BoundArguments) -> frozenset[str]:
    """The names of flags, of random keys, and of numbers that select code in our algorithms."""
    # Momentum of 0 means no buffer, and nesterov wants no dampening.
    absent = {
        name
        for name in ("momentum", "dampening")
        if is_number(bound.arguments.get(name)) and bound.arguments[name] == 0
    }
    ours = hasattr(factory, "selects_code")
    return selects_code(factory) | {"key"} | (absent if ours else frozenset())


def _by_name(bound: inspect.BoundArguments) -> dict[str, Any]:
    """The arguments by name, those that `**kwargs` took among them."""
    given = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            given.update(value)
        elif kind is not inspect.Parameter.VAR_POSITIONAL:
            given[name] = value
    return given


def _with_values(
    bound: inspect.BoundArguments, values: Mapping[str, Any]
) -> inspect.BoundArguments:
    """The arguments with other values for some names."""
    arguments = {}
    for name, value in bound.arguments.items():
        if bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            arguments[name] = {key: values.get(key, x) for key, x in value.items()}
        else:
            arguments[name] = values.get(name, value)
    return inspect.BoundArguments(bound.signature, arguments)


def _is_dynamic(value: Any) -> bool:
    """Whether an argument is a real number, an array, a schedule, or a tuple of such (or None)."""
    if type(value) in (tuple, list):  # a pair is a named tuple
        known = [x for x in value if x is not None]
        return bool(known) and all(_is_dynamic(x) and type(x) not in (tuple, list) for x in known)
    if isinstance(value, bool | type) or value is None:
        return False
    if isinstance(value, jax.Array | np.ndarray) or is_number(value):
        dtype = jnp.result_type(value)
        return jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    return callable(value)


def _has_schedule(value: Any) -> bool:
    return any(map(_has_schedule, value)) if isinstance(value, tuple | list) else callable(value)


def _at(values: Mapping[str, Any], count: Any) -> dict[str, Any]:
    """The values with every schedule called; lists become tuples."""

    def at(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return tuple(map(at, value))
        value = value(count) if callable(value) else value
        return value.item() if isinstance(value, np.generic) else value

    return {name: at(value) for name, value in values.items()}


def _following(given: Any, now: Any, on: jax.Array, count: Any) -> Any:
    """A hyperparameter's next value: the schedule's where it is followed."""
    if isinstance(given, tuple | list):
        return tuple(_following(g, n, on, count) for g, n in zip(given, now, strict=True))
    return jnp.where(on, jnp.asarray(given(count), now.dtype), now) if callable(given) else now


def _as_numbers(values: Mapping[str, Any]) -> Any:
    """StepNumbers that count as Python numbers where dtypes are promoted.

    So a pair of another library keeps the dtypes that it has with numbers: those of the parameters.
    """
    return jax.tree.map(lambda x: jnp.full_like(0.0, x) if x.ndim == 0 else x, values)
