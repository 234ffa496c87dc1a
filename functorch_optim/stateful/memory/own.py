"""The memory of an optimizer with a step of its own: torch's dicts, which the step fills.

Nothing is known of what is in them: any values under any names.
"""

from __future__ import annotations

import collections
import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from functorch_optim.core.pair import GradientTransformation, State
from functorch_optim.stateful.memory.cell import Changes, at_one_moment
from functorch_optim.stateful.memory.protocol import ActiveGroup, Grouped, NextStep
from functorch_optim.stateful.parameter import Parameter

States = collections.defaultdict[Any, Any]


class OwnMemory:
    """What the step of a user's class remembers.

    Attributes:
      states: torch's `state`: a dict for each parameter. Other keys may be there too.
    """

    arguments: Collection[str] = ()
    fixed: Mapping[str, Any] = {}
    steps_as_one = False

    def __init__(self, states: Mapping[Any, Any] | None = None):
        self.states: States = collections.defaultdict(dict, states or {})

    def begin(self, groups: Sequence[ActiveGroup]) -> None:
        """Nothing: the step creates what it needs."""

    def gradients(self, groups: Sequence[ActiveGroup], grads: Mapping[Parameter, Any]) -> Grouped:
        """Raises NotImplementedError: there is no step but the class's own."""
        unknown("step")

    def prepare(self, groups: Sequence[ActiveGroup]) -> NextStep:
        """Raises NotImplementedError: there is no step but the class's own."""
        unknown("step")

    def arrays(self, groups: Sequence[ActiveGroup]) -> list[jax.Array]:
        """None: no compiled step reuses any."""
        return []

    def view(self) -> dict[Any, Any]:
        """The dicts as they are now: copies, but for arrays of JAX, which never change."""
        return {p: copied(entry) for p, entry in list(self.states.items())}

    def write(
        self,
        changes: Changes,
        entries: Mapping[Parameter, Mapping[str, Any] | None],
        groups: Sequence[ActiveGroup],
    ) -> None:
        """Adds to the changes that these dicts take the places of what is there."""
        kept = {p: entry for p, entry in self.states.items() if p not in entries}
        new = {p: entry for p, entry in entries.items() if entry is not None}
        changes.update(self.__dict__, {"states": collections.defaultdict(dict, kept | new)})

    def with_others(
        self, entries: Mapping[Parameter, tuple[Any, Any]], others: Mapping[Any, Any]
    ) -> dict[Any, tuple[Any, Any]]:
        """Entries to load, with those of no parameter: they are kept under their keys."""
        return {**entries, **{key: (key, entry) for key, entry in others.items()}}

    def loaded(
        self,
        entries: Mapping[Any, tuple[Any, Any]],
        groups: Sequence[ActiveGroup],
        strict: bool = True,
    ) -> OwnMemory:
        """A new memory with copies of these dicts.

        Arrays of a floating-point parameter's shape are cast to its dtype, as in torch.

        Raises:
          TypeError: a complex array for a parameter that is not.
        """
        return OwnMemory({p: _fitted(entry, p, key) for p, (key, entry) in entries.items()})

    @at_one_moment
    def snapshot(self) -> OwnMemory:
        """A copy that later steps of this one do not change."""
        return OwnMemory(self.view())

    def lend(
        self, groups: Sequence[ActiveGroup], tree: Any
    ) -> tuple[GradientTransformation, State]:
        """Raises NotImplementedError: a step of one's own is no pair."""
        unknown("to_functional")

    def taken_back(self, groups: Sequence[ActiveGroup], tree: Any, state: State) -> OwnMemory:
        """Raises NotImplementedError: nothing was lent."""
        unknown("from_functional")


def unknown(method: str) -> NoReturn:
    """Raises NotImplementedError: a method needs to know the algorithm."""
    raise NotImplementedError(
        f"{method} needs an algorithm that can be compiled, and this class has none: its step is "
        "its own. Write the algorithm as a functorch_optim.rules.Rule, or as an (init, update) "
        "pair, and make the class with optim.from_transformation"
    )


def copied(value: Any, array: Callable[[Any], Any] = lambda x: x) -> Any:
    """A value with new containers, and `array(x)` for each array; of NumPy's, a copy."""
    if isinstance(value, jax.Array):
        return array(value)
    if isinstance(value, np.ndarray):
        return array(value.copy())
    if isinstance(value, dict):
        items = [(key, copied(item, array)) for key, item in list(value.items())]
        new = copy.copy(value)
        new.clear()
        new.update(items)
        return new
    if isinstance(value, list | tuple):
        new_items = [copied(item, array) for item in list(value)]
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*new_items)
        return type(value)(new_items)
    return copy.deepcopy(value)


def _fitted(entry: Any, p: Any, key: Any) -> Any:
    """A saved dict, as torch casts it to a parameter."""
    if not isinstance(p, Parameter):
        return copied(entry)

    def fitted(x: Any) -> Any:
        if x.shape != p.shape:
            return x
        if jnp.iscomplexobj(x) and not jnp.issubdtype(p.dtype, jnp.complexfloating):
            raise TypeError(
                f"state of parameter {key}: a buffer has dtype {x.dtype}, but its parameter has "
                f"dtype {p.dtype}"
            )
        casts = jnp.issubdtype(p.dtype, jnp.floating)
        return p.placed(jnp.asarray(x, p.dtype if casts else x.dtype))

    if not isinstance(entry, Mapping):
        return copied(entry, fitted)
    # torch leaves the count of updates as it is, whatever its shape.
    return {
        name: copied(value, (lambda x: x) if name == "step" else fitted)
        for name, value in entry.items()
    }
