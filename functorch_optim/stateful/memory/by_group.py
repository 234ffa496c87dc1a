"""The memory of an optimizer made of any pair: one state for each group.

The pair is built anew inside the compiled step, from the group's hyperparameters: its numbers are
inputs of the program, and stay live.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from functorch_optim.core import trees, updating
from functorch_optim.core.arithmetic import float_dtype, is_number
from functorch_optim.core.pair import GradientTransformation
from functorch_optim.stateful.memory.members import Members
from functorch_optim.stateful.parameter import Parameter
from functorch_optim.stateful.step import hyperparameters
from functorch_optim.stateful.step.program import Grouped, Part, Prepared

Numbers = dict[str, Any]


class PairPlan(NamedTuple):
    """Selects the program of a pair's update.

    Attributes:
      factory: builds the pair.
      static: for each group, the hyperparameters that are no numbers.
    """

    factory: Callable[..., GradientTransformation]
    static: tuple[tuple[tuple[str, Any], ...], ...]

    def update(
        self, data: Grouped, states: Sequence[Any], grads: Grouped, numbers: Sequence[Numbers]
    ) -> tuple[list[list[jax.Array]], list[Any]]:
        """New values and state, group by group. To be traced."""
        new_data, new_states = [], []
        for static, *columns, live in zip(self.static, data, states, grads, numbers, strict=True):
            values, state, group_grads = columns
            tx = self.factory(**dict(static), **live)
            updates, state = tx.update(Members(group_grads), state, Members(values))
            new_data.append(list(updating.apply_updates(Members(values), updates)))
            new_states.append(state)
        return new_data, new_states


class PairMemory:
    """What an optimizer remembers, group by group."""

    fixed: Mapping[str, Any] = {}

    def __init__(
        self,
        factory: Callable[..., GradientTransformation],
        defaults: Mapping[str, Any],
        static: Collection[str],
    ):
        self.factory = factory
        self._defaults = defaults
        self._static = static
        self._states: dict[int, tuple[tuple[Parameter, ...], Any]] = {}
        self._read = False

    @property
    def arguments(self) -> Collection[str]:
        """The names of the pair's hyperparameters."""
        return self._defaults

    def begin(self, parameters: Collection[Parameter], parts: Sequence[Part]) -> None:
        """Nothing: state is created at the first step."""

    def gradients(self, parts: Sequence[Part], grads: Mapping[Parameter, Any]) -> Grouped:
        """The gradients as they are: the pair says what it takes."""
        return [[grads[p] for p in parameters] for _, _, parameters in parts]

    def prepare(self, parts: Sequence[Part]) -> Prepared:
        """The next step of these groups.

        Raises:
          TypeError, ValueError: an unusable hyperparameter; a group of which only some parameters
            have a gradient.
        """
        statics, numbers, states = [], [], []
        for index, group, parameters in parts:
            members = tuple(dict.fromkeys(group["params"]))
            if len(parameters) != len(members):
                missing = [p for p in members if p not in parameters]
                raise ValueError(
                    f"{missing[0]!r} of group {index} has no gradient, but others have: a class "
                    "made by from_transformation updates a group as a whole. Give the parameters "
                    "without gradients a group of their own."
                )
            static, live = self._split(index, group)
            statics.append(tuple(static.items()))
            numbers.append(live)
            states.append(self._state(index, members, {**static, **live}))
        if self._read:
            states = jax.tree.map(jnp.copy, states)

        def commit(new: Sequence[Any]) -> None:
            for (index, _, parameters), state in zip(parts, new, strict=True):
                self._states[index] = tuple(parameters), state
            self._read = False

        return Prepared(PairPlan(self.factory, tuple(statics)), states, numbers, commit)

    def held(self, parts: Sequence[Part]) -> list[jax.Array]:
        """The arrays of these groups' states."""
        return jax.tree.leaves([self._states[i] for i, _, _ in parts if i in self._states])

    def _split(self, index: int, group: Mapping[str, Any]) -> tuple[dict[str, Any], Numbers]:
        """A group's hyperparameters: those that select a program, and the numbers."""
        static, live = {}, {}
        for name, value in hyperparameters.checked(self._defaults, group, index).items():
            if name not in self._static and _is_live(value, self._defaults[name]):
                live[name] = jax.tree.map(_as_input, value)
            else:
                static[name] = value
        return static, live

    def _state(self, index: int, members: tuple[Parameter, ...], values: Mapping[str, Any]) -> Any:
        known, state = self._states.get(index, ((), None))
        if known == members:
            return state
        if known:
            raise ValueError(
                f"the parameters of group {index} changed after its first step; a class made by "
                "from_transformation keeps one state for a group as a whole"
            )
        # Copied: a state may hold one array twice, or the parameters themselves.
        state = self.factory(**values).init(Members(p._data for p in members))
        return jax.tree.map(jnp.array, state)

    def view(self) -> dict[Parameter, dict[str, Any]]:
        """torch's per-parameter dicts: what the state holds for a parameter, and what for all."""
        self._read = True
        found: dict[Parameter, dict[str, Any]] = {}
        for members, state in self._states.values():
            for position, p in enumerate(members):
                found[p] = {
                    name: value[position] if isinstance(value, Members) else value
                    for name, value in _named(state)[0]
                }
        return found

    def loaded(
        self, entries: Mapping[Parameter, tuple[Any, Any]], parts: Sequence[Part]
    ) -> PairMemory:
        """A new memory from per-parameter dicts.

        Raises:
          TypeError, ValueError: entries that cannot be these groups'.
        """
        memory = PairMemory(self.factory, self._defaults, self._static)
        memory._read = True
        for index, group, parameters in parts:
            given = [entries[p] for p in parameters if p in entries]
            if not given:
                continue
            if len(given) != len(parameters):
                raise ValueError(f"loaded state dict has state for a part of group {index} only")
            static, live = self._split(index, group)
            tx = self.factory(**static, **live)
            like = jax.eval_shape(tx.init, Members(p._data for p in parameters))
            named, treedef = _named(like)
            values = []
            for name, wanted in named:
                rows = [_entry(entry, name, key) for key, entry in given]
                if isinstance(wanted, Members):
                    fitted = zip(rows, wanted, given, strict=True)
                    values.append(Members(_fitting(*row[:2], name, row[2][0]) for row in fitted))
                else:
                    values.append(_fitting(rows[0], wanted, name, given[0][0]))
            memory._states[index] = tuple(parameters), treedef.unflatten(values)
        return memory

    def cohorts(
        self, parts: Sequence[Part], cells: Sequence[Parameter]
    ) -> list[tuple[dict[str, Any], tuple[int, ...]]]:
        """The groups, as positions among the cells."""
        position = {p: i for i, p in enumerate(cells)}
        found = []
        for index, group, parameters in parts:
            values = hyperparameters.checked(self._defaults, group, index)
            state = self._state(index, tuple(parameters), values)
            self._states[index] = tuple(parameters), state
            found.append((values, tuple(position[p] for p in parameters)))
        return found

    def pair_state(self, members: Sequence[Parameter]) -> Any:
        """The state of the group with these parameters."""
        self._read = True
        return next(state for known, state in self._states.values() if known == tuple(members))

    def adoption(self, cohorts: Sequence[tuple[Sequence[Parameter], Any]]) -> Callable[[], None]:
        """What takes over the states of groups, which are checked now."""
        found = {}
        for members, state in cohorts:
            index, old = next(
                (i, old) for i, (known, old) in self._states.items() if known == tuple(members)
            )
            before: Any = jax.tree.structure(old)
            if jax.tree.structure(state) != before:
                raise TypeError(f"the state of group {index} has another structure than before")
            found[index] = tuple(members), state

        def adopt() -> None:
            self._states.update(found)
            self._read = True

        return adopt


def _is_live(value: Any, default: Any) -> bool:
    items = value if isinstance(value, tuple) else (value,)
    examples = default if isinstance(default, tuple) else (default,) * len(items)
    return all(
        isinstance(x, jax.Array | np.ndarray | float)
        or (isinstance(x, int) and not isinstance(x, bool) and isinstance(example, float))
        for x, example in zip(items, examples, strict=False)
    )


def _as_input(x: Any) -> Any:
    return np.asarray(x, float_dtype()) if is_number(x) else x


def _named(state: Any) -> tuple[list[tuple[str, Any]], jax.tree_util.PyTreeDef]:
    """A state's entries by name, those per parameter as `Members`."""
    flat, treedef = jax.tree_util.tree_flatten_with_path(
        state, is_leaf=lambda x: isinstance(x, Members)
    )
    return [(trees.dotted(path), value) for path, value in flat], treedef


def _entry(entry: Any, name: str, key: Any) -> Any:
    if name not in entry:
        raise ValueError(f"state of parameter {key} lacks {name!r}; it has {[*entry]}")
    return entry[name]


def _fitting(value: Any, wanted: Any, name: str, key: Any) -> Any:
    """A loaded value in the dtype that the transform gives it."""
    if wanted is None or value is None:
        return wanted
    array = np.asarray(value)
    if array.shape != wanted.shape:
        raise ValueError(
            f"state of parameter {key}: {name} has shape {array.shape}, but should have shape "
            f"{wanted.shape}"
        )
    if array.dtype.kind == "c" and wanted.dtype.kind != "c":
        raise TypeError(
            f"state of parameter {key}: {name} has dtype {array.dtype}, but should have dtype "
            f"{wanted.dtype}"
        )
    return jnp.array(array, wanted.dtype)
