"""torch-style classes from pair factories."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar, cast

from functorch_optim.core import slips
from functorch_optim.core.pair import Pair
from functorch_optim.rules.docstrings import completed_class, of_class
from functorch_optim.rules.pair import Factory
from functorch_optim.stateful.groups import required
from functorch_optim.stateful.memory.by_group import GroupMemory
from functorch_optim.stateful.optimizer import Optimizer

Class = TypeVar("Class", bound=Optimizer)

# torch's execution flags. They are kept in `param_groups` so that checkpoints travel; XLA always
# fuses and every pair is differentiable, so they select nothing.
FLAGS: Mapping[str, Any] = {
    "foreach": None,
    "capturable": False,
    "differentiable": False,
    "fused": None,
}

_PARAMS = """\
  params: what it optimizes: Parameters, `(name, Parameter)` tuples or dicts of groups in a list, or
    any tree of Parameters or of arrays."""


def torch_class(
    factory: Factory[Any], keys: str | None = None
) -> Callable[[type[Class]], type[Class]]:
    """Makes the torch.optim class of an algorithm from a class that says what its arguments are.

    The decorated class has torch's signature in an `__init__` without a body, which is made here,
    and a docstring that describes every argument: editors show both. `help()` shows the math too.

    Args:
      factory: the algorithm. Arguments that it lacks are torch's execution flags.
      keys: the order of the hyperparameters in `param_groups`; that of the arguments if not given.

    The class checks its arguments as the factory does; per-group values and later changes are not
    checked, as in torch.

    Raises:
      TypeError: the class and the factory have different arguments, or different defaults.
    """

    def decorate(cls: type[Class]) -> type[Class]:
        signature = inspect.signature(cls.__init__)
        _check_defaults(cls.__name__, factory, signature)
        made = _constructor(cls.__name__, factory, signature, keys.split() if keys else None)
        cls.__init__ = made  # type: ignore[method-assign]  # the body that it lacks
        cls._factory = staticmethod(factory)
        cls.__doc__ = completed_class(cls.__doc__, factory)
        cls.__module__ = "functorch_optim.stateful"
        return cls

    return decorate


def _check_defaults(name: str, factory: Factory[Any], signature: inspect.Signature) -> None:
    _, _, *arguments = signature.parameters.values()
    given = {argument.name: argument.default for argument in arguments}
    chosen = {key: value for key, value in factory.defaults.items() if key not in factory.fixed}
    flags = {key: value for key, value in FLAGS.items() if key in given}
    if given != {**chosen, **flags}:
        raise TypeError(
            f"{name}: its arguments and their defaults should be those of {factory.__name__} and "
            f"some of torch's flags, {chosen} and {FLAGS}, but they are {given}"
        )


def _constructor(
    name: str,
    factory: Factory[Any],
    signature: inspect.Signature,
    keys: Sequence[str] | None = None,
) -> Callable[..., None]:
    _, _, *hyperparameters = signature.parameters
    ordered = hyperparameters if keys is None else keys

    def __init__(self: Optimizer, params: Any, *args: Any, **kwargs: Any) -> None:
        given = self, params, *args
        bound = slips.bound_arguments(f"{name}.__init__", signature, given, kwargs)
        slips.check_coefficients(f"{name}.__init__", signature, given)
        bound.apply_defaults()
        chosen = {**bound.arguments, **factory.fixed}
        factory(**{k: chosen[k] for k in inspect.signature(factory).parameters})
        defaults = {key: chosen[key] for key in ordered}
        defaults = {k: tuple(v) if isinstance(v, list) else v for k, v in defaults.items()}
        Optimizer.__init__(self, params, defaults)
        if defaults.get("fused"):
            if defaults["differentiable"]:
                raise RuntimeError("`fused` does not support `differentiable`")
            if defaults["foreach"]:
                raise RuntimeError("`fused` and `foreach` cannot be `True` together.")

    __init__.__qualname__ = f"{name}.__init__"
    __init__.__signature__ = signature  # type: ignore[attr-defined]  # what help() shows
    return __init__


class TransformationOptimizer(Optimizer):
    """What `from_transformation` makes: behind `params` stand the arguments of the factory."""

    def __init__(self, params: Any, *args: Any, **kwargs: Any): ...


def from_transformation(
    factory: Callable[..., Pair],
    name: str | None = None,
    static_args: Collection[str] = (),
) -> type[TransformationOptimizer]:
    """A torch-style class from any factory of pairs: this library's, optax's, or your own.

    `Lamb = optim.from_transformation(optax.lamb)` gives `Lamb(params, learning_rate=1e-3)`, with
    groups, hooks, `state_dict` and live hyperparameters. Its state is kept for a group as a whole,
    so all parameters of a group need a gradient at each step. Its numbers are computed in float32
    (a class of this library computes them in double).

    Args:
      factory: builds the pair from hyperparameters. Those that are floats, arrays, or integers
        where the default is a float, are live: they may change without a recompile.
      name: of the class; the factory's by default.
      static_args: hyperparameters that are floats and yet select code in the factory.

    Returns:
      The class. To pickle its instances, assign it to its name in a module.
    """
    called = str(name or getattr(factory, "__name__", type(factory).__name__))
    signature = inspect.signature(factory)
    rule = getattr(factory, "rule", None)
    # What depends on the whole tree belongs to a group, not to a parameter.
    if rule is not None and rule.whole_tree is None and not static_args:
        members = _of_rule(called, cast(Factory[Any], factory), signature)
    else:
        members = _of_pair(called, factory, signature, static_args)
    members["__doc__"] = _documentation(called, factory)
    members["__module__"] = sys._getframe(1).f_globals.get("__name__", __name__)
    return type(called, (TransformationOptimizer,), members)


def _of_rule(name: str, factory: Factory[Any], signature: inspect.Signature) -> dict[str, Any]:
    """The members of a class that keeps its state for each parameter."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    own = [inspect.Parameter("self", kind), inspect.Parameter("params", kind)]
    whole = inspect.Signature([*own, *signature.parameters.values()])
    return {"__init__": _constructor(name, factory, whole), "_factory": staticmethod(factory)}


def _of_pair(
    name: str,
    factory: Callable[..., Any],
    signature: inspect.Signature,
    static_args: Collection[str],
) -> dict[str, Any]:
    """The members of a class that keeps its state for each group."""
    arguments = {
        n: required if p.default is p.empty else p.default for n, p in signature.parameters.items()
    }

    def __init__(self: Optimizer, params: Any, *args: Any, **kwargs: Any) -> None:
        try:
            given = signature.bind_partial(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{name}.__init__() {error}") from None
        if not any(value is required for value in {**arguments, **given}.values()):
            factory(**{**arguments, **given})  # raises what it raises for bad values
        Optimizer.__init__(self, params, {**arguments, **given})

    def _new_memory(self: Optimizer) -> GroupMemory:
        return GroupMemory(factory, arguments, static_args)

    __init__.__qualname__ = f"{name}.__init__"
    return {"__init__": __init__, "_new_memory": _new_memory}


def _documentation(title: str, factory: Callable[..., Any]) -> str | None:
    if __doc__ is None:  # python -OO
        return None
    while isinstance(factory, functools.partial):
        factory = factory.func  # a partial's own docstring is about partials
    return of_class(f"{title}: the stateful face of `{_public_name(factory)}`.", factory, _PARAMS)


def _public_name(factory: Callable[..., Any]) -> str:
    name = getattr(factory, "__name__", type(factory).__name__)
    room = getattr(factory, "__module__", None) or "__main__"
    if room.startswith("functorch_optim."):
        return f"functorch_optim.{name}"
    room = room.partition("._")[0]  # optax._src.alias.lamb is optax.lamb to its users
    return name if room == "__main__" else f"{room}.{name}"
