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
from functorch_optim.core.arguments import selects_code
from functorch_optim.core.arithmetic import float_dtype, is_number
from functorch_optim.core.pair import GradientTransformation, State
from functorch_optim.stateful.memory import hyperparameters
from functorch_optim.stateful.memory.cell import NOBODY, OUTSIDE, CellTree, Changes, at_one_moment
from functorch_optim.stateful.memory.cohorts import Cohort, Members, pair_of, states_of
from functorch_optim.stateful.memory.protocol import ActiveGroup, Evaluate, Grouped, NextStep
from functorch_optim.stateful.memory.torch_layout import present
from functorch_optim.stateful.parameter import Parameter

# A group's parameters, and the state of its pair over a `Members` of them.
Known = tuple[tuple[Parameter, ...], CellTree]
Live = dict[str, Any]


class GroupPlan(NamedTuple):
    """Selects the program of a pair's update.

    Attributes:
      factory: builds the pair.
      static: for each group, the hyperparameters that select code.
    """

    factory: Callable[..., GradientTransformation]
    static: tuple[tuple[tuple[str, Any], ...], ...]

    def train(
        self, evaluate: Evaluate, values: Grouped, buffers: Sequence[State], numbers: Sequence[Live]
    ) -> tuple[Any, list[list[jax.Array]], list[Any]]:
        """One evaluation; then new values and state, group by group. To be traced."""
        result, grads = evaluate(values)
        new_values, new_states = [], []
        for static, *columns, live in zip(
            self.static, values, buffers, grads, numbers, strict=True
        ):
            of_group, old, group_grads = columns
            tx = self.factory(**dict(static), **live)
            updates, state = tx.update(Members(group_grads), old, Members(of_group))
            before: Any = jax.tree.structure(old)
            if jax.tree.structure(state) != before:
                raise TypeError(f"{self.factory!r}: update returns another structure than init")
            new_values.append(list(updating.apply_updates(Members(of_group), updates)))
            # As leaves: what comes out of a compiled call is put together by JAX, in Python.
            new_states.append(jax.tree.leaves(state))
        return result, new_values, new_states


class GroupArguments(NamedTuple):
    """What is known of a factory's arguments.

    Attributes:
      defaults: by name.
      selects_code: those that never are numbers.
    """

    defaults: Mapping[str, Any]
    selects_code: Collection[str]


class GroupMemory:
    """What an optimizer remembers, group by group."""

    fixed: Mapping[str, Any] = {}
    steps_as_one = False

    def __init__(
        self,
        factory: Callable[..., GradientTransformation],
        defaults: Mapping[str, Any],
        static: Collection[str],
        states: Mapping[int, Known] | None = None,
    ):
        self.factory = factory
        self._given = GroupArguments(defaults, {*static, *selects_code(factory)})
        self._static = static
        self._states = dict(states or {})

    @property
    def arguments(self) -> Collection[str]:
        """The names of the pair's hyperparameters."""
        return self._given.defaults

    def begin(self, groups: Sequence[ActiveGroup]) -> None:
        """Nothing: state is created at the first step."""

    def gradients(self, groups: Sequence[ActiveGroup], grads: Mapping[Parameter, Any]) -> Grouped:
        """The gradients as they are: the pair says what it takes."""
        return [[grads[p] for p in group.parameters] for group in groups]

    def prepare(self, groups: Sequence[ActiveGroup]) -> NextStep:
        """The next step of these groups.

        Raises:
          TypeError, ValueError: an unusable hyperparameter; a group of which only some parameters
            have a gradient.
        """
        statics, numbers, states, fresh = [], [], [], []
        for group in groups:
            members = tuple(dict.fromkeys(group.options["params"]))
            if len(group.parameters) != len(members):
                missing = [p for p in members if p not in group.parameters]
                raise ValueError(
                    f"{missing[0]!r} of group {group.number} has no gradient, but others have: a "
                    "class made by from_transformation updates a group as a whole. Give the "
                    "parameters without gradients a group of their own."
                )
            static, live = self._split(group)
            statics.append(tuple(static.items()))
            numbers.append(live)
            states.append(self._state(group, members, {**static, **live}))
            fresh.append(group.number not in self._states)

        def release(copies: bool) -> list[Any]:
            return [
                state.release(copies and not is_fresh)
                for state, is_fresh in zip(states, fresh, strict=True)
            ]

        def put_back(changes: Changes, new: Sequence[Sequence[jax.Array]]) -> None:
            for state, arrays in zip(states, new, strict=True):
                changes.put(state.cells, arrays)

        def commit(changes: Changes, new: Sequence[Sequence[jax.Array]]) -> None:
            put_back(changes, new)
            known = {
                group.number: (tuple(group.parameters), state)
                for group, state in zip(groups, states, strict=True)
            }
            changes.update(self._states, known)

        return NextStep(GroupPlan(self.factory, tuple(statics)), numbers, release, commit, put_back)

    def arrays(self, groups: Sequence[ActiveGroup]) -> list[jax.Array]:
        """The arrays of these groups' states."""
        known = [self._states[g.number][1] for g in groups if g.number in self._states]
        return [cell.array for state in known for cell in state.cells]

    def _split(self, group: ActiveGroup) -> tuple[dict[str, Any], Live]:
        """A group's hyperparameters: those that select a program, and the numbers."""
        static, live = {}, {}
        for name, value in hyperparameters.checked(self._given, group).items():
            default = self._given.defaults[name]
            if name not in self._given.selects_code and _is_live(value, default):
                live[name] = jax.tree.map(_as_input, value)
            else:
                static[name] = value
        return static, live

    def _state(
        self, group: ActiveGroup, members: tuple[Parameter, ...], values: Mapping[str, Any]
    ) -> CellTree:
        if group.number not in self._states:
            # Copied: a state may hold one array twice, or the parameters themselves.
            state = self.factory(**values).init(Members(p._data for p in members))
            return CellTree(jax.tree.map(jnp.array, state), NOBODY)
        known, cells = self._states[group.number]
        if known != members:
            raise ValueError(
                f"the parameters of group {group.number} changed after its first step; a class "
                "made by from_transformation keeps one state for a group as a whole. "
                "opt.state.clear() starts anew"
            )
        return cells

    @at_one_moment
    def view(self) -> dict[Parameter, dict[str, Any]]:
        """torch's per-parameter dicts: what the state holds for a parameter, and what for all."""
        found: dict[Parameter, dict[str, Any]] = {}
        for members, state in self._states.values():
            named, _ = _named(state.read())
            for position, p in enumerate(members):
                found[p] = {
                    name: value[position] if isinstance(value, Members) else value
                    for name, value in named
                }
        return found

    def write(
        self,
        changes: Changes,
        entries: Mapping[Parameter, Mapping[str, Any] | None],
        groups: Sequence[ActiveGroup],
    ) -> None:
        """Adds to the changes that these dicts take the places of what the parameters have.

        Raises:
          TypeError, ValueError: an entry that cannot be this parameter's; a part of a group that
            would lose its state, or be the only one to have one.
        """
        live = {group.number: tuple(group.parameters) for group in groups}
        states = dict(self._states)
        for number, (members, _) in self._states.items():
            forgotten = [p for p in members if p in entries and not entries[p]]
            if forgotten and members == live.get(number) and len(forgotten) < len(members):
                raise ValueError(
                    f"{forgotten[0]!r} has its state in common with the others of group {number}: "
                    "a class made by from_transformation keeps one state for a group as a whole. "
                    "opt.state.clear() forgets all of it"
                )
            if forgotten:
                del states[number]
        given = {p: entry for p, entry in entries.items() if entry}
        for p in given:
            if not any(p in members for members in live.values()):
                raise ValueError(f"state of {p!r}: no group of this optimizer holds it")
        before = self.view()
        for group in groups:
            chosen = {p: given[p] for p in group.parameters if p in given}
            if not chosen:
                continue
            known = group.number in states and states[group.number][0] == live[group.number]
            rest = before if known else {}
            # What all have in common is read from the first: from one that is written.
            whole = {**chosen, **{p: rest[p] for p in group.parameters if p in rest}, **chosen}
            if len(whole) < len(group.parameters):
                missing = next(p for p in group.parameters if p not in whole)
                raise ValueError(
                    f"{missing!r} of group {group.number} has no state yet: a class made by "
                    "from_transformation keeps one state for a group as a whole. Write that of "
                    "all its parameters at once: opt.state.update({p: {...}, q: {...}})"
                )
            named = {p: (repr(p), entry) for p, entry in whole.items()}
            kept = states[group.number][1].cells if known else []
            fitted = self._fitted(group, named, {id(cell.array) for cell in kept}, strict=True)
            for p, entry in chosen.items():
                unknown = sorted(map(str, entry.keys() - {name for name, _ in _named(fitted)[0]}))
                if unknown:
                    raise ValueError(f"state of {p!r}: the pair has no {unknown} in its state")
            states[group.number] = tuple(group.parameters), CellTree(fitted)
        changes.update(self.__dict__, {"_states": states})

    def loaded(
        self,
        entries: Mapping[Parameter, tuple[Any, Any]],
        groups: Sequence[ActiveGroup],
        strict: bool = True,
    ) -> GroupMemory:
        """A new memory from per-parameter dicts.

        Raises:
          TypeError, ValueError: entries that cannot be these groups'.
        """
        states = {}
        for group in groups:
            given = {p: entries[p] for p in group.parameters if p in entries}
            if given:
                state = CellTree(self._fitted(group, given, (), strict))
                states[group.number] = tuple(group.parameters), state
        return self._with(states)

    def _fitted(
        self,
        group: ActiveGroup,
        entries: Mapping[Parameter, tuple[Any, Any]],
        kept: Collection[int],
        strict: bool,
    ) -> State:
        """A group's state from the dicts of its parameters; what is in common, from the first.

        Args:
          group: with all its parameters.
          entries: by Parameter, the key for messages and the dict.
          kept: the ids of arrays that fit: they are the group's.
          strict: refuse to start anew where there is no dict.
        """
        if strict and len(entries) != len(group.parameters):
            raise ValueError(f"loaded state dict has state for a part of group {group.number} only")
        static, live = self._split(group)
        tx = self.factory(**static, **live)
        params = Members(p._data for p in group.parameters)
        whole = len(entries) == len(group.parameters)
        fresh = jax.eval_shape(tx.init, params) if whole else tx.init(params)
        first_key, first = next(iter(entries.values()))

        def fitting(key: Any, entry: Any, name: str, wanted: Any) -> Any:
            value = present(entry, name, key)
            return value if id(value) in kept else _fitting(value, wanted, name, key)

        values = []
        named, treedef = _named(fresh)
        for name, wanted in named:
            if isinstance(wanted, Members):
                rows = zip(group.parameters, wanted, strict=True)
                found = [fitting(*entries[p], name, x) if p in entries else x for p, x in rows]
                values.append(Members(found))
            else:
                values.append(fitting(first_key, first, name, wanted))
        return treedef.unflatten(values)

    @at_one_moment
    def snapshot(self) -> GroupMemory:
        """A copy that later steps of this one do not change."""
        return self._with({i: (m, CellTree(s.read())) for i, (m, s) in self._states.items()})

    def _with(self, states: Mapping[int, Known]) -> GroupMemory:
        return GroupMemory(self.factory, self._given.defaults, self._static, states)

    def lend(
        self, groups: Sequence[ActiveGroup], tree: Any
    ) -> tuple[GradientTransformation, State]:
        """A pair over the tree of Parameters, and its state: what it goes on from."""
        cells, treedef = trees.flatten(tree)
        return pair_of([cohort for cohort, _ in self._cohorts(groups, cells)], treedef)

    def taken_back(self, groups: Sequence[ActiveGroup], tree: Any, state: State) -> GroupMemory:
        """A new memory that goes on from a state of the pair of `lend`.

        Raises:
          TypeError, ValueError: the state does not fit.
        """
        cells, _ = trees.flatten(tree)
        cohorts = self._cohorts(groups, cells)
        new = dict(self._states)
        states = states_of(state, [cohort for cohort, _ in cohorts])
        for (cohort, known), group, own in zip(cohorts, groups, states, strict=True):
            if known.treedef != jax.tree.structure(own):
                raise TypeError(f"the state of group {group.number} has another structure")
            if group.number not in self._states and _equal(own, cohort.state):
                continue  # it never made a step
            new[group.number] = tuple(group.parameters), CellTree(own, OUTSIDE)
        return self._with(new)

    def _cohorts(
        self, groups: Sequence[ActiveGroup], cells: Sequence[Parameter]
    ) -> list[tuple[Cohort, CellTree]]:
        """The groups, with the state that each has or starts with."""
        position = {p: i for i, p in enumerate(cells)}
        found = []
        for group in groups:
            values = hyperparameters.checked(self._given, group)
            state = self._state(group, tuple(group.parameters), values)
            places = tuple(position[p] for p in group.parameters)
            found.append((Cohort(self.factory(**values), places, state.read()), state))
        return found


def _equal(a: State, b: State) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(
        isinstance(x, jax.Array | np.ndarray)
        and (x.shape, x.dtype) == (y.shape, y.dtype)
        and bool((x == y).all())
        for x, y in pairs
    )


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
