"""The memory of an optimizer whose algorithm works leaf by leaf: a record for each parameter."""

from __future__ import annotations

import functools
from collections.abc import Collection, Hashable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from functorch_optim.core import trees, updating
from functorch_optim.core.arithmetic import is_number
from functorch_optim.core.pair import GradientTransformation, State
from functorch_optim.rules.leaf import step_entries, step_leaf
from functorch_optim.rules.numbers import has_decay, hyperparameters_at
from functorch_optim.rules.pair import Factory, pair_state
from functorch_optim.rules.rule import Buffers, Rule
from functorch_optim.stateful.memory import hyperparameters
from functorch_optim.stateful.memory.cell import (
    NOBODY,
    OUTSIDE,
    READERS,
    Cell,
    Changes,
    at_one_moment,
)
from functorch_optim.stateful.memory.cohorts import Cohort, Members, pair_of, states_of
from functorch_optim.stateful.memory.numbers import At, PackedNumbers, RowFormat, packed, unpacked
from functorch_optim.stateful.memory.protocol import ActiveGroup, Evaluate, Grouped, NextStep
from functorch_optim.stateful.memory.record import (
    Record,
    from_torch,
    needs_of,
    ready_record,
    scalar_array,
)
from functorch_optim.stateful.memory.view import StateView
from functorch_optim.stateful.parameter import Parameter

Records = dict[Parameter, Record]


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
        rows = [(at, of_group) for (at, _), of_group in zip(ready, records, strict=True)]
        formats, numbers, carried = packed(self.factory, rows)
        begun = {
            p: record
            for _, of_group in ready
            for p, record in of_group.items()
            if self.records.get(p) is not record
        }
        fresh = set(map(id, begun.values()))
        flat = [record for of_group in records for record in of_group]
        steps = [record.step + 1 for record in flat]
        following = [numbers_of_one for of_group in carried for numbers_of_one in of_group]

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

        def commit(changes: Changes, new: Grouped) -> None:
            changes.put(
                [cell for record in flat for cell in record.in_use if cell is not None],
                [x for of_group in new for leaf in of_group for x in leaf if x is not None],
            )
            changes.set(flat, "step", steps)
            if self.rule.carried.names:
                changes.set(flat, "carried", following)
            if begun:  # listed in the order in which state came
                known = {p: record for p, record in self.records.items() if p not in begun}
                changes.update(self.__dict__, {"records": known | begun})

        return NextStep(LeafPlan(self.rule, formats), numbers, release, commit)

    def arrays(self, groups: Sequence[ActiveGroup]) -> list[jax.Array]:
        """The buffers of these groups' parameters."""
        members = [p for group in groups for p in group.parameters if p in self.records]
        return [cell.array for p in members for cell in self.records[p].buffers.values()]

    def _ready(self, groups: Sequence[ActiveGroup]) -> list[tuple[At, Records]]:
        """For each group its hyperparameters by count, and records with the buffers they need."""
        ready: list[tuple[At, Records]] = []
        for group in groups:
            values = hyperparameters.checked(self.factory, group)
            at = functools.cache(functools.partial(hyperparameters_at, values))
            flags = _flags(self.factory.selects_code, values)
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

    def view(self) -> StateView:
        """torch's per-parameter state, to read."""
        return StateView(self)

    def loaded(
        self, entries: Mapping[Parameter, tuple[Any, Any]], groups: Sequence[ActiveGroup]
    ) -> LeafMemory:
        """A new memory from torch's per-parameter dicts, each with its key for messages.

        Raises:
          TypeError, ValueError: an entry that cannot be this parameter's.
        """
        needs = {}
        for group in groups:
            values = hyperparameters.checked(self.factory, group)
            of_group = needs_of(self.rule, hyperparameters_at(values, 0))
            needs.update(dict.fromkeys(group.parameters, of_group))
        records = {
            p: from_torch(entry, p, self.rule, needs[p], key) for p, (key, entry) in entries.items()
        }
        return LeafMemory(self.factory, records)

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
            found = _adopted(self.rule, own, members, records)
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
            own = {k: v for k, v in values.items() if k not in self.factory.fixed}
            by_step: dict[Any, Records] = {}
            for p, record in records.items():
                by_step.setdefault((record.step, record.carried), {})[p] = record
            for members in by_step.values():
                places = tuple(position[p] for p in members)
                state = _state_of(self.rule, list(members.values()))
                cohort = Cohort(self.factory(**own), places, state)
                found.append((cohort, list(members.values())))
        return found


@at_one_moment
def _state_of(rule: Rule, records: Sequence[Record]) -> State:
    """The state of the algorithm's pair over the parameters of one cohort."""
    buffers = [
        tuple(None if cell is None else cell.read() for cell in record.in_use) for record in records
    ]
    carried = [scalar_array(x) for x in records[0].carried]
    _, treedef = trees.flatten(Members([0] * len(records)))
    step = jnp.asarray(records[0].step, jnp.int32)
    return pair_state(rule, step, carried, buffers, treedef)


def _adopted(
    rule: Rule, state: Any, members: Sequence[Parameter], records: Sequence[Record]
) -> Records:
    """Records with the state of a cohort's pair.

    Raises:
      TypeError, ValueError: it does not fit.
    """
    if not isinstance(state, rule.state):
        raise TypeError(f"state should hold {rule.state.__name__}, but has {state!r}")
    _, treedef = trees.flatten(Members([0] * len(members)))
    columns = [
        [None] * len(members)
        if getattr(state, name) is None
        else trees.flatten_like(getattr(state, name), treedef, "state", "its parameters")
        for name in rule.buffers
    ]
    carried = tuple(float(getattr(state, name)) for name in rule.carried.names)
    found = {}
    for p, record, *row in zip(members, records, *columns, strict=True):
        named = zip(rule.buffers, row, strict=True)
        present = {name: buffer for name, buffer in named if buffer is not None}
        _check_like(present, record, p)
        cells = {name: Cell(buffer, OUTSIDE) for name, buffer in present.items()}
        found[p] = Record(int(state.step), carried, cells)
    return found


def _check_like(buffers: Mapping[str, Any], record: Record, p: Parameter) -> None:
    """Raises unless these are buffers like the record's: the same names, shapes and dtypes."""
    wanted = {name for name, cell in record.buffers.items() if cell in record.in_use}
    if buffers.keys() != wanted:
        raise ValueError(f"the state of {p!r} should hold {sorted(wanted)}, but has {[*buffers]}")
    for name in wanted:
        new, old = buffers[name], record.buffers[name].array
        if new.shape != old.shape:
            raise ValueError(f"{name} of {p!r} has shape {new.shape}, but should have {old.shape}")
        if new.dtype != old.dtype:
            raise TypeError(f"{name} of {p!r} has dtype {new.dtype}, but should have {old.dtype}")


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
