"""Records as the state of an algorithm's pair over the parameters of a cohort, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from functorch_optim.core import trees
from functorch_optim.core.pair import State
from functorch_optim.rules.pair import pair_state
from functorch_optim.rules.rule import Rule
from functorch_optim.stateful.memory.cell import OUTSIDE, Cell, at_one_moment
from functorch_optim.stateful.memory.cohorts import Members
from functorch_optim.stateful.memory.record import Record, scalar_array
from functorch_optim.stateful.parameter import Parameter


@at_one_moment
def state_of(rule: Rule, records: Sequence[Record]) -> State:
    """The state of the algorithm's pair over the parameters of one cohort."""
    buffers = [
        tuple(None if cell is None else cell.read() for cell in record.in_use) for record in records
    ]
    carried = [scalar_array(x) for x in records[0].carried]
    _, treedef = trees.flatten(Members([0] * len(records)))
    step = jnp.asarray(records[0].step, jnp.int32)
    return pair_state(rule, step, carried, buffers, treedef)


def adopted(
    rule: Rule, state: Any, members: Sequence[Parameter], records: Sequence[Record]
) -> dict[Parameter, Record]:
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
