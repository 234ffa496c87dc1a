"""The memory of an optimizer whose algorithm works leaf by leaf: a record for each parameter."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from functorch_optim.core import trees, updating
from functorch_optim.core.arithmetic import is_number
from functorch_optim.rules.leaf import step_entries, step_leaf
from functorch_optim.rules.numbers import hyperparameters_at
from functorch_optim.rules.pair import Factory, pair_state
from functorch_optim.rules.rule import Buffers, Rule
from functorch_optim.stateful.memory.members import Members
from functorch_optim.stateful.memory.record import (
    Record,
    StateView,
    from_torch,
    needs_of,
    prepared,
    scalar_array,
)
from functorch_optim.stateful.parameter import Parameter
from functorch_optim.stateful.step import hyperparameters
from functorch_optim.stateful.step.numbers import Layout, Numbers, numbers_of, unpacked
from functorch_optim.stateful.step.program import Grouped, Part, Prepared


class LeafPlan(NamedTuple):
    """Selects the program of a leaf-by-leaf update."""

    rule: Rule
    layouts: tuple[Layout, ...]

    def update(
        self, data: Grouped, buffers: Grouped, grads: Grouped, numbers: Numbers
    ) -> tuple[list[list[jax.Array]], list[list[Buffers]]]:
        """New values and buffers, parameter by parameter. To be traced."""
        new_data: list[list[jax.Array]] = []
        new_buffers: list[list[Buffers]] = []
        rows = unpacked(self.layouts, [len(group) for group in data], numbers)
        for columns in zip(data, buffers, grads, rows, strict=True):
            new_data.append([])
            new_buffers.append([])
            for p, old, g, s in zip(*columns, strict=True):
                if trees.is_sparse(g):
                    update, new = step_entries(self.rule.leaf, g, p, old, s)
                else:
                    self.rule.check_dense()
                    update, new = step_leaf(self.rule.leaf, g, p, old, s)
                new_data[-1].append(updating.add(p, update))
                new_buffers[-1].append(new)
        return new_data, new_buffers


class LeafMemory:
    """What an optimizer remembers, parameter by parameter."""

    def __init__(self, factory: Factory[Any], records: dict[Parameter, Record] | None = None):
        self.factory = factory
        self.records = records or {}

    @property
    def rule(self) -> Rule:
        """The algorithm's."""
        return self.factory.rule

    def begin(self, parameters: Collection[Parameter], parts: Sequence[Part]) -> None:
        """Refuses what the algorithm cannot train; creates the state that torch has at once."""
        if self.rule.torch.lists_complex:
            _refuse_complex(self.rule, parts)
        for p in parameters:
            self.rule.accepts(p._data)
        if self.rule.torch.eager:
            for _, records in self._ready(parts):
                self.records.update(records)

    @property
    def arguments(self) -> Collection[str]:
        """The names of the algorithm's hyperparameters."""
        return self.factory.defaults

    @property
    def fixed(self) -> Mapping[str, Any]:
        """Hyperparameters that no checkpoint may change."""
        return self.factory.fixed

    def gradients(self, parts: Sequence[Part], grads: Mapping[Parameter, Any]) -> Grouped:
        """Each part's gradients as the algorithm takes them.

        Raises:
          RuntimeError: torch's, for a gradient that is refused.
        """
        plain = self.rule.sparse.dense_error is None
        return [
            [
                g
                if plain and isinstance(g := grads[p], jax.Array)
                else self.rule.gradient(grads[p], SimpleNamespace(**group), _decays(group))
                for p in parameters
            ]
            for _, group, parameters in parts
        ]

    def prepare(self, parts: Sequence[Part]) -> Prepared:
        """The next step of these parts of the groups.

        Raises:
          TypeError, ValueError: an unusable hyperparameter.
          KeyError: a flag was set that needs a buffer from the first step on.
        """
        ready = self._ready(parts)
        groups = [(values, list(records.values())) for values, records in ready]
        layouts, numbers, carried = numbers_of(self.factory, groups)
        buffers = [[record.release() for record in records] for _, records in groups]
        steps = [[record.step + 1 for record in records] for _, records in groups]
        known = self.records
        begun = [
            (p, record)
            for _, records in ready
            for p, record in records.items()
            if known.get(p) is not record
        ]

        def commit(new: Grouped) -> None:
            for (_, records), *columns in zip(groups, new, steps, carried, strict=True):
                for record, values, step, numbers in zip(records, *columns, strict=True):
                    record.replace(values, step, numbers)
            for p, record in begun:
                known.pop(p, None)  # listed in the order in which state came
                known[p] = record

        return Prepared(LeafPlan(self.rule, layouts), buffers, numbers, commit)

    def held(self, parts: Sequence[Part]) -> list[jax.Array]:
        """The buffers of these parts' parameters."""
        members = [p for _, _, parameters in parts for p in parameters if p in self.records]
        return [buffer for p in members for buffer in self.records[p].buffers.values()]

    def _ready(self, parts: Sequence[Part]) -> list[tuple[dict[str, Any], dict[Parameter, Record]]]:
        """For each part its hyperparameters, and records with the buffers that they need."""
        ready = []
        for index, group, parameters in parts:
            values = hyperparameters.checked(self.factory.defaults, group, index)
            flags = _flags(self.factory.selects_code, values)
            known = {p: self.records.get(p) for p in parameters}
            records = {p: r for p, r in known.items() if r is not None and r.flags is flags}
            if len(records) < len(known):
                h = hyperparameters_at(values, 0)
                needs = needs_of(self.rule, h)
                records = {
                    p: records[p] if p in records else prepared(r, self.rule, p, h, needs, flags)
                    for p, r in known.items()
                }
            ready.append((values, records))
        return ready

    def view(self) -> StateView:
        """torch's per-parameter state, to read."""
        return StateView(self.records, self.rule)

    def loaded(
        self, entries: Mapping[Parameter, tuple[Any, Any]], parts: Sequence[Part]
    ) -> LeafMemory:
        """A new memory from torch's per-parameter dicts, each with its key for messages.

        Raises:
          TypeError, ValueError: an entry that cannot be this parameter's.
        """
        needs = {}
        for index, group, parameters in parts:
            values = hyperparameters.checked(self.factory.defaults, group, index)
            of_group = needs_of(self.rule, hyperparameters_at(values, 0))
            needs.update(dict.fromkeys(parameters, of_group))
        records = {
            p: from_torch(entry, p, self.rule, needs[p], key) for p, (key, entry) in entries.items()
        }
        return LeafMemory(self.factory, records)

    def cohorts(
        self, parts: Sequence[Part], cells: Sequence[Parameter]
    ) -> list[tuple[dict[str, Any], tuple[int, ...]]]:
        """Parameters with the same hyperparameters and step, as positions among the cells."""
        position = {p: i for i, p in enumerate(cells)}
        found = []
        for values, records in self._ready(parts):
            self.records.update(records)
            own = {k: v for k, v in values.items() if k not in self.factory.fixed}
            by_step: dict[Any, list[int]] = {}
            for p, record in records.items():
                by_step.setdefault((record.step, record.carried), []).append(position[p])
            found += [(own, tuple(where)) for where in by_step.values()]
        return found

    def pair_state(self, members: Sequence[Parameter]) -> Any:
        """The state of the algorithm's pair over a list of parameters of one cohort."""
        records = [self.records[p] for p in members]
        buffers = [record.shared() for record in records]
        carried = [scalar_array(x) for x in records[0].carried]
        _, treedef = trees.flatten(Members([0] * len(members)))
        return pair_state(self.rule, scalar_array(records[0].step), carried, buffers, treedef)

    def adoption(self, cohorts: Sequence[tuple[Sequence[Parameter], Any]]) -> Callable[[], None]:
        """What takes over the states of cohorts' pairs, which are checked now."""
        found = {}
        for members, state in cohorts:
            if not isinstance(state, self.rule.state):
                raise TypeError(f"state should hold {self.rule.state.__name__}, but has {state!r}")
            _, treedef = trees.flatten(Members([0] * len(members)))
            columns = [
                [None] * len(members)
                if getattr(state, name) is None
                else trees.flatten_like(getattr(state, name), treedef, "state", "its parameters")
                for name in self.rule.buffers
            ]
            carried = tuple(float(getattr(state, name)) for name in self.rule.carried.names)
            for p, *row in zip(members, *columns, strict=True):
                named = zip(self.rule.buffers, row, strict=True)
                present = {name: buffer for name, buffer in named if buffer is not None}
                _check_like(present, self.records[p], p)
                found[p] = Record(int(state.step), carried, present, outside=True)
        return lambda: self.records.update(found)


def _decays(group: Mapping[str, Any]) -> bool:
    """Whether a group has weight decay (an array may always be)."""
    weight_decay = group.get("weight_decay", 0)
    return not (is_number(weight_decay) and weight_decay == 0)


def _refuse_complex(rule: Rule, parts: Sequence[Part]) -> None:
    """Raises torch's ValueError if there is a complex parameter."""
    found = [
        [index, position]
        for index, group, _ in parts
        for position, p in enumerate(group["params"])
        if jnp.issubdtype(p.dtype, jnp.complexfloating)
    ]
    if found:
        raise ValueError(
            f"Complex params at indices {found}: {rule.name} does not support complex parameters"
        )


def _check_like(buffers: Mapping[str, Any], record: Record, p: Parameter) -> None:
    """Raises unless these are buffers like the record's: the same names, shapes and dtypes."""
    wanted = {name for name in record.names if name is not None}
    if buffers.keys() != wanted:
        raise ValueError(f"the state of {p!r} should hold {sorted(wanted)}, but has {[*buffers]}")
    for name in wanted:
        new, old = buffers[name], record.buffers[name]
        if new.shape != old.shape:
            raise ValueError(f"{name} of {p!r} has shape {new.shape}, but should have {old.shape}")
        if new.dtype != old.dtype:
            raise TypeError(f"{name} of {p!r} has dtype {new.dtype}, but should have {old.dtype}")


def _flags(selects_code: Collection[str], values: Mapping[str, Any]) -> Hashable:
    """What of the hyperparameters decides which buffers there are: all but the size of numbers.

    The same object for equal flags, so that a comparison is `is`.
    """
    flags: list[Hashable] = []
    for name, value in values.items():
        if name in selects_code:
            flags.append(value)
        else:
            flags.append((type(value), is_number(value) and value == 0))
    return _unique.setdefault(tuple(flags), tuple(flags))


_unique: dict[Hashable, Hashable] = {}
