"""The memory of an optimizer whose algorithm works leaf by leaf: a record for each parameter."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from functorch_optim.core import trees, updating
from functorch_optim.core.arithmetic import float_dtype, is_number
from functorch_optim.core.pair import GradientTransformation, State
from functorch_optim.rules.leaf import step_entries, step_leaf
from functorch_optim.rules.numbers import StepNumbers, has_decay, hyperparameters_at, step_numbers
from functorch_optim.rules.pair import Factory
from functorch_optim.rules.rule import Buffers, Rule
from functorch_optim.stateful.memory import hyperparameters
from functorch_optim.stateful.memory.cell import (
    NOBODY,
    READERS,
    Cell,
    Changes,
    at_one_moment,
)
from functorch_optim.stateful.memory.cohorts import Cohort, pair_of, states_of
from functorch_optim.stateful.memory.leaf_cohorts import adopted, state_of
from functorch_optim.stateful.memory.numbers import PackedNumbers, RowFormat, on_device, unpacked
from functorch_optim.stateful.memory.protocol import ActiveGroup, Evaluate, Grouped, NextStep
from functorch_optim.stateful.memory.record import (
    LeafView,
    Needs,
    Record,
    entry_name,
    from_torch,
    needs_of,
    ready_record,
    written,
)
from functorch_optim.stateful.parameter import Parameter

Records = dict[Parameter, Record]
At = Callable[[int], SimpleNamespace]


class LeafPlan(NamedTuple):
    """Selects the program of a leaf-by-leaf update."""

    rule: Rule
    formats: tuple[RowFormat, ...]

    def train(
        self, evaluate: Evaluate, values: Grouped, buffers: Grouped, numbers: PackedNumbers
    ) -> tuple[Any, list[list[jax.Array]], list[list[Buffers]]]:
        """One evaluation; then new values and buffers, parameter by parameter. To be traced."""
        result, grads = evaluate(values)
        new_values: list[list[jax.Array]] = []
        new_buffers: list[list[Buffers]] = []
        rows = unpacked(self.formats, [len(group) for group in values], numbers)
        for columns in zip(values, buffers, grads, rows, strict=True):
            new_values.append([])
            new_buffers.append([])
            for p, old, g, s in zip(*columns, strict=True):
                if trees.is_sparse(g):
                    update, new = step_entries(self.rule.leaf, g, p, old, s)
                else:
                    self.rule.check_dense()
                    update, new = step_leaf(self.rule.leaf, g, p, old, s)
                new_values[-1].append(updating.add(p, update))
                new_buffers[-1].append(new)
        return result, new_values, new_buffers


class LeafMemory:
    """What an optimizer remembers, parameter by parameter."""

    steps_as_one = False

    def __init__(self, factory: Factory[Any], records: Records | None = None):
        self.factory = factory
        self.records: Records = {} if records is None else records
        self._checked: dict[int, tuple[dict[str, Any], Hashable]] = {}

    @property
    def rule(self) -> Rule:
        """The algorithm's."""
        return self.factory.rule

    @property
    def arguments(self) -> Collection[str]:
        """The names of the algorithm's hyperparameters."""
        return self.factory.defaults

    @property
    def fixed(self) -> Mapping[str, Any]:
        """Hyperparameters that no checkpoint may change."""
        return self.factory.fixed

    def begin(self, groups: Sequence[ActiveGroup]) -> None:
        """Refuses what the algorithm cannot train; creates the state that torch has at once."""
        if self.rule.torch.lists_complex:
            _refuse_complex(self.rule, groups)
        for group in groups:
            for p in group.parameters:
                self.rule.accepts(p._data)
        if self.rule.torch.eager:
            self.records = {p: r for _, records in self._ready(groups) for p, r in records.items()}

    def gradients(self, groups: Sequence[ActiveGroup], grads: Mapping[Parameter, Any]) -> Grouped:
        """Each group's gradients as the algorithm takes them.

        Raises:
          RuntimeError: torch's, for a gradient that is refused.
        """
        takes_dense = self.rule.sparse.dense_error is None

        def taken(g: Any, options: Mapping[str, Any]) -> Any:
            if takes_dense and isinstance(g, jax.Array):
                return g
            h = SimpleNamespace(**options)
            return self.rule.gradient(g, h, has_decay(h))

        return [[taken(grads[p], group.options) for p in group.parameters] for group in groups]

    def prepare(self, groups: Sequence[ActiveGroup]) -> NextStep:
        """The next step of these groups.

        Raises:
          TypeError, ValueError: an unusable hyperparameter.
          KeyError: a flag was set that needs a buffer from the first step on.
        """
        ready = self._ready(groups)
        records = [list(of_group.values()) for _, of_group in ready]
        formats, numbers, following = _packed(self.factory, ready)
        begun = {
            p: record
            for _, of_group in ready
            for p, record in of_group.items()
            if self.records.get(p) is not record
        }
        fresh = set(map(id, begun.values()))
        flat = [record for of_group in records for record in of_group]
        steps = [record.step + 1 for record in flat]

        def release(copies: bool) -> Grouped:
            free = not copies and not READERS

            def released(cell: Cell | None, copies: bool) -> Any:
                return None if cell is None else cell.release(copies)

            return [
                [
                    tuple(
                        [
                            cell.array
                            if free and cell is not None and cell.held == NOBODY
                            else released(cell, copies and id(record) not in fresh)
                            for cell in record.in_use
                        ]
                    )
                    for record in of_group
                ]
                for of_group in records
            ]

        def put_back(changes: Changes, new: Grouped) -> None:
            changes.put(
                [cell for record in flat for cell in record.in_use if cell is not None],
                [x for of_group in new for leaf in of_group for x in leaf if x is not None],
            )

        def commit(changes: Changes, new: Grouped) -> None:
            put_back(changes, new)
            changes.set(flat, "step", steps)
            if self.rule.carried.names:
                changes.set(flat, "carried", following)
            if begun:  # listed in the order in which state came
                known = {p: record for p, record in self.records.items() if p not in begun}
                changes.update(self.__dict__, {"records": known | begun})

        return NextStep(LeafPlan(self.rule, formats), numbers, release, commit, put_back)

    def arrays(self, groups: Sequence[ActiveGroup]) -> list[jax.Array]:
        """The buffers of these groups' parameters."""
        members = [p for group in groups for p in group.parameters if p in self.records]
        return [cell.array for p in members for cell in self.records[p].buffers.values()]

    def _values(self, group: ActiveGroup) -> tuple[dict[str, Any], Hashable]:
        """A group's hyperparameters, and what of them decides which buffers there are.

        They are looked at again only if one of them is another object than at the step before.
        """
        values, flags = self._checked.get(group.number, ({}, None))
        given, defaults = group.options, self.factory.defaults
        if values and all([given.get(n, defaults[n]) is value for n, value in values.items()]):
            return values, flags
        values = hyperparameters.checked(self.factory, group)
        flags = _flags(self.factory.selects_code, values)
        self._checked[group.number] = values, flags
        return values, flags

    def _ready(self, groups: Sequence[ActiveGroup]) -> list[tuple[At, Records]]:
        """For each group its hyperparameters by count, and records with the buffers they need."""
        ready: list[tuple[At, Records]] = []
        for group in groups:
            values, flags = self._values(group)
            at = functools.cache(functools.partial(hyperparameters_at, values))
            known = {p: self.records.get(p) for p in group.parameters}
            records = {p: r for p, r in known.items() if r is not None and r.flags is flags}
            if len(records) < len(known):
                h = at(0)
                needs = needs_of(self.rule, h)
                records = {
                    p: records[p]
                    if p in records
                    else ready_record(r, self.rule, p, h, needs, flags)
                    for p, r in known.items()
                }
            ready.append((at, records))
        return ready

    def view(self) -> LeafView:
        """torch's per-parameter state, to read."""
        return LeafView(self.rule, self.records)

    def write(
        self,
        changes: Changes,
        entries: Mapping[Parameter, Mapping[str, Any] | None],
        groups: Sequence[ActiveGroup],
    ) -> None:
        """Adds to the changes that these dicts take the places of what the parameters have.

        Numbers and buffers may be missing, as in torch: a step that needs them says so.

        Raises:
          TypeError, ValueError: an entry that cannot be this parameter's.
        """
        kept = {p: e for p, e in entries.items() if any(x is not None for x in (e or {}).values())}
        needs = self._needs(groups, kept)
        records = {p: r for p, r in self.records.items() if p not in entries or p in kept}
        for p, entry in kept.items():
            if p not in needs:
                raise ValueError(f"state of {p!r}: no group of this optimizer holds it")
            known = records.get(p)
            records[p] = written(known, entry, p, self.rule, needs[p], f"state of {p!r}")
        changes.update(self.__dict__, {"records": records})

    def loaded(
        self,
        entries: Mapping[Parameter, tuple[Any, Any]],
        groups: Sequence[ActiveGroup],
        strict: bool = True,
    ) -> LeafMemory:
        """A new memory from torch's per-parameter dicts, each with its key for messages.

        Raises:
          TypeError, ValueError: an entry that cannot be this parameter's.
        """
        needs = self._needs(groups, entries)
        records = {
            p: from_torch(entry, p, self.rule, needs[p], entry_name(key, p))
            for p, (key, entry) in entries.items()
        }
        return LeafMemory(self.factory, records)

    def _needs(
        self, groups: Sequence[ActiveGroup], members: Collection[Parameter]
    ) -> dict[Parameter, Needs]:
        """What says which buffers these parameters need, if they are in a group."""
        found: dict[Parameter, Needs] = {}
        for group in groups:
            chosen = [p for p in group.parameters if p in members]
            if chosen:
                values = hyperparameters.checked(self.factory, group)
                of_group = needs_of(self.rule, hyperparameters_at(values, 0))
                found.update(dict.fromkeys(chosen, of_group))
        return found

    @at_one_moment
    def snapshot(self) -> LeafMemory:
        """A copy that later steps of this one do not change."""
        records = {p: record.snapshot() for p, record in self.records.items()}
        return LeafMemory(self.factory, records)

    def lend(
        self, groups: Sequence[ActiveGroup], tree: Any
    ) -> tuple[GradientTransformation, State]:
        """A pair over the tree of Parameters, and its state: what it goes on from."""
        cells, treedef = trees.flatten(tree)
        return pair_of([cohort for cohort, _ in self._cohorts(groups, cells)], treedef)

    def taken_back(self, groups: Sequence[ActiveGroup], tree: Any, state: State) -> LeafMemory:
        """A new memory that goes on from a state of the pair of `lend`.

        Raises:
          TypeError, ValueError: the state does not fit.
        """
        cells, _ = trees.flatten(tree)
        cohorts = self._cohorts(groups, cells)
        new = dict(self.records)
        states = states_of(state, [cohort for cohort, _ in cohorts])
        for (cohort, records), own in zip(cohorts, states, strict=True):
            members = [cells[i] for i in cohort.places]
            found = adopted(self.rule, own, members, records)
            # Parameters that never made a step have no state.
            new |= {p: r for p, r in found.items() if r.step > 0 or p in self.records}
        return LeafMemory(self.factory, new)

    def _cohorts(
        self, groups: Sequence[ActiveGroup], cells: Sequence[Parameter]
    ) -> list[tuple[Cohort, list[Record]]]:
        """Parameters with the same hyperparameters and step, and their records."""
        position = {p: i for i, p in enumerate(cells)}
        found = []
        for group, (_, records) in zip(groups, self._ready(groups), strict=True):
            values = hyperparameters.checked(self.factory, group)
            for name, fixed in self.factory.fixed.items():
                if values[name] != fixed:
                    raise ValueError(
                        f"param_groups[{group.number}][{name!r}] is {values[name]!r}, but that of "
                        f"{self.factory.__name__} is always {fixed!r}"
                    )
            own = {k: v for k, v in values.items() if k not in self.factory.fixed}
            by_step: dict[Any, Records] = {}
            for p, record in records.items():
                by_step.setdefault((record.step, record.carried), {})[p] = record
            for members in by_step.values():
                places = tuple(position[p] for p in members)
                state = state_of(self.rule, list(members.values()))
                cohort = Cohort(self.factory(**own), places, state)
                found.append((cohort, list(members.values())))
        return found


def _refuse_complex(rule: Rule, groups: Sequence[ActiveGroup]) -> None:
    """Raises torch's ValueError if there is a complex parameter."""
    found = [
        [group.number, position]
        for group in groups
        for position, p in enumerate(group.options["params"])
        if jnp.issubdtype(p.dtype, jnp.complexfloating)
    ]
    if found:
        raise ValueError(
            f"Complex params at indices {found}: {rule.name} does not support complex parameters"
        )


def _flags(selects_code: Collection[str], values: Mapping[str, Any]) -> Hashable:
    """What of the hyperparameters decides which buffers there are: all but the size of numbers.

    The same object for equal flags, so that a comparison is `is`.
    """
    flags = tuple(
        value if name in selects_code else (type(value), is_number(value) and value == 0)
        for name, value in values.items()
    )
    return _unique.setdefault(flags, flags)


_unique: dict[Hashable, Hashable] = {}


def _packed(
    factory: Factory[Any], groups: Sequence[tuple[At, Records]]
) -> tuple[tuple[RowFormat, ...], PackedNumbers, list[tuple[Any, ...]]]:
    """The numbers of the next update of each group's records.

    Args:
      factory: the algorithm.
      groups: for each group its hyperparameters by the count of updates, and its records.

    Returns:
      The format of each group's rows, all numbers, and each record's next carried numbers.
    """
    formats: list[RowFormat] = []
    vector: list[float] = []
    device: list[tuple[StepNumbers, ...]] = []
    following: list[tuple[Any, ...]] = []
    for at, of_group in groups:
        records = list(of_group.values())
        keys = [record.step if not record.carried else _key(record) for record in records]
        first = dict(zip(reversed(keys), reversed(records), strict=True))
        hs = {key: at(record.step) for key, record in first.items()}
        values = [*map(vars, hs.values()), *(record.carried for record in first.values())]
        on_host = not any(isinstance(x, jax.Array) for x in jax.tree.leaves(values))
        rows = {
            key: step_numbers(factory.rule, h, first[key].step + 1, first[key].carried)
            if on_host
            else on_device(factory, h, first[key].step, first[key].carried)
            for key, h in hs.items()
        }
        if factory.rule.carried.names:
            new = {key: _following(factory.rule, s) for key, s in rows.items()}
            following += [new[key] for key in keys]
        chosen = list(rows.values()) if len(rows) == 1 else [rows[key] for key in keys]
        formats.append(RowFormat(jax.tree.structure(chosen[0]), len(rows) > 1, not on_host))
        if on_host:
            vector += jax.tree.leaves(chosen)
        else:
            device.append(tuple(chosen))
    host = np.asarray(vector, float_dtype())
    return tuple(formats), PackedNumbers(host, tuple(device)), following


def _key(record: Record) -> Any:
    """Equal for records that need the same numbers."""
    return record.step, *(x if is_number(x) else id(x) for x in record.carried)


def _following(rule: Rule, s: StepNumbers) -> tuple[Any, ...]:
    """The carried numbers after the step: rounded to float32, in kind."""
    new = (getattr(s, name) for name in rule.carried.names)
    return tuple(
        x.astype(jnp.float32) if isinstance(x, jax.Array) else float(np.float32(x)) for x in new
    )
