"""The numbers of one step: hyperparameters at a count, and what an algorithm makes of them.

They reach the leaf as arguments, never as constants, so that the leaf function of an algorithm is
traced once per shape for every configuration, and so that the stateful layer can compute them on
the host in double and change them without recompiling.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, Protocol

import jax
import numpy as np

from functorch_optim.core import checks
from functorch_optim.core.arithmetic import as_float, is_number, is_whole


class Decay(enum.Enum):
    """Who applies weight decay, unless `h.decoupled_weight_decay` says otherwise."""

    COUPLED = "weight_decay * p is added to the gradient"
    DECOUPLED = "the parameter loses lr * weight_decay * p"
    BY_LEAF = "the leaf function itself, where s.decay is not None"


@jax.tree_util.register_pytree_node_class
class StepNumbers:
    """The numbers of one step, by name.

    A pytree whose leaves are the numbers. A number that is `None` is absent, and `flags` are part
    of the structure: both select code when a leaf is traced.
    """

    def __init__(self, flags: Mapping[str, Any] | None = None, **numbers: Any):
        self._flags = dict(flags or {})
        self._numbers = numbers
        self.__dict__.update(self._flags, **numbers)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"no number is called {name!r}; there are {[*self._numbers]}")

    def with_(self, flags: Mapping[str, Any] | None = None, **numbers: Any) -> StepNumbers:
        """The same numbers with others, or other values, beside them."""
        return StepNumbers({**self._flags, **(flags or {})}, **{**self._numbers, **numbers})

    def tree_flatten(self) -> tuple[tuple[Any, ...], Any]:
        """For JAX."""
        return tuple(self._numbers.values()), (
            tuple(self._numbers),
            tuple(self._flags.items()),
        )

    @classmethod
    def tree_unflatten(cls, aux: Any, numbers: tuple[Any, ...]) -> StepNumbers:
        """For JAX."""
        names, flags = aux
        return cls(dict(flags), **dict(zip(names, numbers, strict=True)))


def hyperparameters_at(values: Mapping[str, Any], count: Any) -> SimpleNamespace:
    """The hyperparameters of the update that follows `count` updates: schedules are called.

    Raises:
      TypeError, ValueError: a schedule returns something else than one number.
    """

    def at(name: str, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(at(f"{name}[{i}]", v) for i, v in enumerate(value))
        if callable(value):
            value = value(count)
            checks.number_from_schedule(name, value)
        if isinstance(value, np.ndarray | np.generic):
            return value.item()
        if isinstance(value, jax.Array):
            return as_float(value.reshape(()))
        return value

    return SimpleNamespace(**{name: at(name, value) for name, value in values.items()})


def has_decay(h: SimpleNamespace) -> bool:
    """Whether there is weight decay: the number 0 is none, an array may always be some."""
    weight_decay = getattr(h, "weight_decay", None)
    return weight_decay is not None and not (is_number(weight_decay) and weight_decay == 0)


class HasNumbers(Protocol):
    """What of a `Rule` makes its numbers."""

    @property
    def scalars(self) -> Callable[..., StepNumbers]:
        """The rule's own."""

    @property
    def decay(self) -> Decay:
        """Who applies weight decay."""


def step_numbers(rule: HasNumbers, h: SimpleNamespace, t: Any, carried: Any = ()) -> StepNumbers:
    """The rule's numbers, and those of the prologue that all algorithms share.

    `l2` and `decay` are coupled and decoupled weight decay, `None` where there is none.
    """
    weight_decay = h.weight_decay if has_decay(h) else None
    decoupled = getattr(h, "decoupled_weight_decay", rule.decay is not Decay.COUPLED)
    own = [x if x is None or is_whole(x) else as_float(x) for x in carried]
    return rule.scalars(t, h, *own).with_(
        {
            "maximize": bool(getattr(h, "maximize", False)),
            "leaf_decays": rule.decay is Decay.BY_LEAF,
        },
        l2=None if decoupled else weight_decay,
        decay=h.lr * weight_decay if decoupled and weight_decay is not None else None,
    )
