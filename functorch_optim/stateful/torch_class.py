"""torch-style classes from pair factories."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

from functorch_optim.core import slips
from functorch_optim.core.pair import GradientTransformation
from functorch_optim.rules.docstrings import of_class
from functorch_optim.rules.pair import Factory
from functorch_optim.stateful.groups import required
from functorch_optim.stateful.memory.by_group import GroupMemory
from functorch_optim.stateful.optimizer import Optimizer

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
    name: str,
    factory: Factory[Any],
    arguments: str,
    keys: str | None = None,
    called: str = "torch.optim.{}",
) -> type[Optimizer]:
    """The torch.optim class of an algorithm.

    Args:
      name: the class.
      factory: the algorithm.
      arguments: the constructor's arguments after `params`, in order, `*` where they become
        keyword-only. Those that the factory lacks are torch's execution flags.
      keys: the order of the hyperparameters in `param_groups`; that of the arguments if not given.
      called: what its docstring calls it.

    The class checks its arguments as the factory does; per-group values and later changes are not
    checked, as in torch.
    """
    signature = _constructor_signature(factory, arguments)
    ordered = [key for key in (keys or arguments).split() if key != "*"]

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
    return type(
        name,
        (Optimizer,),
        {
            "__init__": __init__,
            "__doc__": _documentation(called.format(name), factory, signature),
            "__module__": "functorch_optim.stateful",
            "_factory": staticmethod(factory),
        },
    )


def from_transformation(
    factory: Callable[..., GradientTransformation],
    name: str | None = None,
    static_args: Collection[str] = (),
) -> type[Optimizer]:
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
        rule_factory = cast(Factory[Any], factory)
        made = torch_class(called, rule_factory, _listed(signature), called="{}")
    else:
        made = _pair_class(called, factory, signature, static_args)
    made.__module__ = sys._getframe(1).f_globals.get("__name__", __name__)
    return made


def _listed(signature: inspect.Signature) -> str:
    """A signature in the words of `torch_class`."""
    positional = [n for n, p in signature.parameters.items() if p.kind is not p.KEYWORD_ONLY]
    keyword = [n for n, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY]
    return " ".join([*positional, *(["*", *keyword] if keyword else [])])


def _pair_class(
    name: str,
    factory: Callable[..., GradientTransformation],
    signature: inspect.Signature,
    static_args: Collection[str],
) -> type[Optimizer]:
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
    doc = _documentation(name, factory, signature)
    return type(
        name, (Optimizer,), {"__init__": __init__, "__doc__": doc, "_new_memory": _new_memory}
    )


def _constructor_signature(factory: Factory[Any], arguments: str) -> inspect.Signature:
    defaults = {n: p.default for n, p in inspect.signature(factory).parameters.items()}
    kind: Any = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter("self", kind), inspect.Parameter("params", kind)]
    for argument in arguments.split():
        if argument == "*":
            kind = inspect.Parameter.KEYWORD_ONLY
            continue
        default = defaults[argument] if argument in defaults else FLAGS[argument]
        parameters.append(inspect.Parameter(argument, kind, default=default))
    return inspect.Signature(parameters)


def _documentation(
    title: str, factory: Callable[..., Any], signature: inspect.Signature
) -> str | None:
    if __doc__ is None:  # python -OO
        return None
    while isinstance(factory, functools.partial):
        factory = factory.func  # a partial's own docstring is about partials
    flags = [flag for flag in FLAGS if flag in signature.parameters]
    kept = f"""\
  {", ".join(flags)}: kept in `param_groups` so that checkpoints travel;
    they select nothing, since XLA always fuses."""
    of = f"{title}: the stateful face of `{_public_name(factory)}`."
    return of_class(of, factory, _PARAMS, kept if flags else "")


def _public_name(factory: Callable[..., Any]) -> str:
    name = getattr(factory, "__name__", type(factory).__name__)
    room = getattr(factory, "__module__", None) or "__main__"
    if room.startswith("functorch_optim."):
        return f"functorch_optim.{name}"
    room = room.partition("._")[0]  # optax._src.alias.lamb is optax.lamb to its users
    return name if room == "__main__" else f"{room}.{name}"
