"""torch-style classes from pair factories."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from functorch_optim.per_leaf import Factory
from functorch_optim.stateful.optimizer import Optimizer

# torch's execution flags. They are kept in `param_groups` so that checkpoints travel; XLA always
# fuses and every pair is differentiable, so they select nothing.
FLAGS: Mapping[str, Any] = {
    "foreach": None,
    "capturable": False,
    "differentiable": False,
    "fused": None,
}


def torch_class(
    name: str, factory: Factory[Any], arguments: str, keys: str | None = None
) -> type[Optimizer]:
    """The torch.optim class of an algorithm.

    Args:
      name: the class.
      factory: the algorithm.
      arguments: the constructor's arguments after `params`, in order, `*` where they become
        keyword-only. Those that the factory lacks are torch's execution flags.
      keys: the order of the hyperparameters in `param_groups`; that of the arguments if not given.

    The class checks its arguments as the factory does; per-group values and later changes are not
    checked, as in torch.
    """
    signature = _constructor_signature(factory, arguments)
    ordered = [key for key in (keys or arguments).split() if key != "*"]

    def __init__(self: Optimizer, params: Any, *args: Any, **kwargs: Any) -> None:
        try:
            bound = signature.bind(self, params, *args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{name}.__init__() {error}") from None
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
            "__doc__": _documentation(name, factory),
            "__module__": "functorch_optim.stateful",
            "_factory": staticmethod(factory),
        },
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


def _documentation(name: str, factory: Factory[Any]) -> str:
    return (
        f"torch.optim.{name}: the stateful face of "
        f"`functorch_optim.{factory.__name__}`, whose arguments it takes behind `params`.\n\n"
        f"{inspect.cleandoc(factory.__doc__ or '')}"
    )
