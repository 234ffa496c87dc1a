"""What an optimizer asks of its memory, and of the plan of a step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax

from functorch_optim.core.pair import GradientTransformation, State
from functorch_optim.stateful.memory.cell import Changes
from functorch_optim.stateful.parameter import Parameter


class ActiveGroup(NamedTuple):
    """The part of a parameter group that takes part in a step.

    Attributes:
      number: the position of the group.
      options: its entries.
      parameters: those of its Parameters that take part.
    """

    number: int
    options: Mapping[str, Any]
    parameters: list[Parameter]


Grouped = Sequence[Sequence[Any]]
"""One thing for each parameter, in a list for each active group."""

Evaluate = Callable[[Grouped], tuple[Any, Grouped]]
"""`evaluate(values) -> ((loss, aux), gradients)`; a gradient is `None` where there is none."""


class Plan(Hashable, Protocol):
    """What selects a compiled program, and what the program does."""

    def train(
        self, evaluate: Evaluate, values: Grouped, buffers: Any, numbers: Any
    ) -> tuple[Any, Grouped, Any]:
        """The first result of `evaluate`, new values, new buffers. To be traced."""


class NextStep(NamedTuple):
    """A step that is ready to run. Preparing it has changed nothing.

    Attributes:
      plan: selects the program.
      numbers: all numbers of the step.
      release: `release(copies) -> buffers`, the state of the parameters that take part, for a
        program that reuses its memory; `copies` as for `Cell.release`.
      commit: `commit(changes, buffers)` adds to the changes that the memory takes the new state.
      put_back: the same for a step that the program skipped: the state as it was, in new arrays.
    """

    plan: Plan
    numbers: Any
    release: Callable[[bool], Any]
    commit: Callable[[Changes, Any], None]
    put_back: Callable[[Changes, Any], None]


class Memory(Protocol):
    """What an optimizer remembers: of each parameter, of each group, or of all together."""

    @property
    def arguments(self) -> Collection[str]:
        """The names of the hyperparameters."""

    @property
    def fixed(self) -> Mapping[str, Any]:
        """Hyperparameters that no checkpoint may change."""

    @property
    def steps_as_one(self) -> bool:
        """Whether all parameters take part in a step, with a gradient or without."""

    def begin(self, groups: Sequence[ActiveGroup]) -> None:
        """Refuses what cannot be trained; creates the state that torch creates at construction."""

    def gradients(self, groups: Sequence[ActiveGroup], grads: Mapping[Parameter, Any]) -> Grouped:
        """Each group's gradients as the algorithm takes them.

        Raises:
          RuntimeError: torch's, for a gradient that is refused.
        """

    def prepare(self, groups: Sequence[ActiveGroup]) -> NextStep:
        """The next step of these groups.

        Raises:
          TypeError, ValueError: an unusable hyperparameter.
          KeyError: a flag was set that needs a buffer from the first step on.
        """

    def arrays(self, groups: Sequence[ActiveGroup]) -> Sequence[jax.Array]:
        """The arrays that are held for these groups."""

    def view(self) -> Mapping[Parameter, Mapping[str, Any]]:
        """torch's dict of each parameter that has state."""

    def write(
        self,
        changes: Changes,
        entries: Mapping[Parameter, Mapping[str, Any] | None],
        groups: Sequence[ActiveGroup],
    ) -> None:
        """Adds to the changes that these dicts take the places of what the parameters have.

        Args:
          changes: to be made.
          entries: whole dicts; `None` or an empty one for a parameter that is forgotten.
          groups: all groups, with all their parameters.

        Raises:
          TypeError, ValueError: an entry that cannot be this parameter's.
        """

    def loaded(
        self,
        entries: Mapping[Parameter, tuple[Any, Any]],
        groups: Sequence[ActiveGroup],
        strict: bool = True,
    ) -> Memory:
        """A new memory from torch's per-parameter dicts, each with its key for messages.

        Args:
          entries: by Parameter, the key and the dict.
          groups: all groups, with all their parameters.
          strict: refuse a state that is known for some of the parameters which have it in common;
            else those without start anew.

        Raises:
          TypeError, ValueError: an entry that cannot be this parameter's.
        """

    def lend(
        self, groups: Sequence[ActiveGroup], tree: Any
    ) -> tuple[GradientTransformation, State]:
        """A pair over the tree of Parameters, and its state: what it goes on from."""

    def taken_back(self, groups: Sequence[ActiveGroup], tree: Any, state: State) -> Memory:
        """A new memory that goes on from a state of the pair of `lend`.

        Raises:
          TypeError, ValueError: the state does not fit.
        """

    def snapshot(self) -> Memory:
        """A copy that later steps of this one do not change."""
