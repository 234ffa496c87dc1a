"""One compiled call, from a prepared step to results that are kept: whatever comes between.

A program takes the memory of values and buffers, and gives new ones back. An exception in between,
a KeyboardInterrupt above all, must neither lose nor mix them:

- A call that may run Python on its way (it compiles, or JAX sees other kinds of arrays than last
  time) gets copies. Whatever happens, the optimizer has what it had.
- Any other call is one call into C, from taking the memory to a list that holds the results. If an
  exception comes before, nothing has changed; if it comes after, the results are kept.
- The results are kept by one call into C as well (`Changes`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from functorch_optim.stateful.memory.cell import NOBODY, READERS, VALUES, Changes, alone
from functorch_optim.stateful.memory.protocol import ActiveGroup, Memory, NextStep
from functorch_optim.stateful.step.program import Traces

_abstract = operator.attrgetter("aval", "sharding")


class Call(NamedTuple):
    """A program, and what it takes besides the optimizer's values, buffers and numbers.

    Attributes:
      program: a compiled function.
      arguments: `arguments(plan, values, buffers, numbers)`, all that it takes, in order.
      inputs: arrays from outside: gradients, or a batch.
      selects: what else selects the program.
      skipped: `skipped(leaves of the result)`, whether the program left values and buffers as they
        were, so that the step does not count. It waits for the device.
    """

    program: Callable[..., Any]
    arguments: Callable[[Any, Any, Any, Any], Sequence[Any]]
    inputs: Sequence[Any]
    selects: Any
    skipped: Callable[[Any], bool] | None = None


class Outcome(NamedTuple):
    """What a call did besides its step.

    Attributes:
      released: the buffers that it was given.
      traced: how many programs were traced.
      kind: what the call was like, for the next `run`.
    """

    released: Any
    traced: int
    kind: Any


def run(
    memory: Memory,
    groups: Sequence[ActiveGroup],
    call: Call,
    last: Any,
    after: Callable[[Changes, Outcome], None],
) -> Any:
    """Makes the step that comes next.

    Args:
      memory: the optimizer's.
      groups: those that take part.
      call: the program.
      last: `Outcome.kind` of the call before, or `None`.
      after: adds to the changes that the step makes; if called again, the same.

    Returns:
      What the program computed besides values and buffers.

    Raises:
      RuntimeError: an error on the device, which has the parameters: they are lost.
    """
    step = memory.prepare(groups)
    kind = call.program, step.plan, call.selects, _kinds(call.inputs)
    if kind != last:
        return _made(memory, groups, call, step, kind, after, copies=True)
    # Readers on other threads wait for a moment.
    return alone(VALUES, _made, memory, groups, call, step, kind, after, copies=False)


def _made(
    memory: Memory,
    groups: Sequence[ActiveGroup],
    call: Call,
    step: NextStep,
    kind: Any,
    after: Callable[[Changes, Outcome], None],
    copies: bool,
) -> Any:
    cells = [p._cell for group in groups for p in group.parameters]
    values, buffers = alone(VALUES, _released, groups, step, copies)
    arguments = call.arguments(step.plan, values, buffers, step.numbers)
    done: list[Any] = []
    traced = Traces.count

    def keep() -> None:
        leaves, _, new_values, new_buffers = done[0]
        skipped = call.skipped is not None and call.skipped(leaves)
        known = kind
        if copies and not _alike((values, buffers), (new_values, new_buffers)):
            known = None  # JAX will see the next call as one of another kind
        changes = Changes()
        changes.put(cells, [x for of_group in new_values for x in of_group])
        (step.put_back if skipped else step.commit)(changes, new_buffers)
        after(changes, Outcome(buffers, Traces.count - traced, known))
        changes.make()

    try:
        done.extend(map(call.program, *[(argument,) for argument in arguments]))
        if not done:
            raise RuntimeError("a function of this step raised StopIteration")
        keep()
    except BaseException as error:
        if done:
            keep()  # once more: it does the same
        elif any(x.is_deleted() for x in [*(c.array for c in cells), *memory.arrays(groups)]):
            raise RuntimeError(
                "the step failed after its parameters and state were given to the device: "
                "they are lost. Restore them from a checkpoint."
            ) from error
        raise
    leaves, (structure,), *_ = done[0]
    return None if structure is None else structure.unflatten(leaves)


def _released(groups: Sequence[ActiveGroup], step: NextStep, copies: bool) -> tuple[Any, Any]:
    """The values and buffers of a step, for a program that reuses their memory."""
    free = not copies and not READERS
    values = [
        [
            cell.array if free and cell.held == NOBODY else cell.release(copies)
            for cell in [p._cell for p in group.parameters]
        ]
        for group in groups
    ]
    return values, step.release(copies)


def _kinds(inputs: Sequence[Any]) -> list[Any]:
    """What of each input selects how JAX runs a program."""
    try:
        return list(map(_abstract, inputs))
    except AttributeError:  # not all of them are jax arrays
        return [_kind(x) for x in inputs]


def _kind(x: Any) -> Any:
    if isinstance(x, jax.Array):
        return x.aval if isinstance(x, jax.core.Tracer) else _abstract(x)
    return (type(x), x.shape, x.dtype) if isinstance(x, np.ndarray | np.generic) else type(x)


def _alike(given: Any, new: Any) -> bool:
    """Whether the results of a call are like what it took."""
    pairs = zip(jax.tree.leaves(given), jax.tree.leaves(new), strict=True)
    return all(_placed(a) == _placed(b) for a, b in pairs)


def _placed(x: Any) -> Any:
    return x.aval if isinstance(x, jax.core.Tracer) else (x.aval, x.sharding, x.committed)
