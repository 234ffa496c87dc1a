"""The numbers of a step, for every parameter of a group.

They are computed on the host in double, as torch computes them, and reach the compiled program as
one vector: a changed hyperparameter is a changed input, never a new program. A group with a jax
array among its hyperparameters has its numbers computed on the device, in double too, so that
nothing waits for the array.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from functorch_optim.core.arithmetic import as_float, float_dtype, is_number
from functorch_optim.rules.numbers import (
    StepNumbers,
    has_decay,
    hyperparameters_at,
    step_numbers,
)
from functorch_optim.rules.pair import Factory
from functorch_optim.rules.rule import Rule
from functorch_optim.stateful.memory.record import Record


class RowFormat(NamedTuple):
    """How a group's numbers lie in the program's inputs. Hashable: it selects the program.

    Attributes:
      structure: the structure of one row of numbers, or `None` if they come from the device.
      per_parameter: one row for each parameter, because their steps differ; else one for all.
    """

    structure: jax.tree_util.PyTreeDef | None
    per_parameter: bool


class PackedNumbers(NamedTuple):
    """A step's numbers: one vector for the groups of the host, rows for those of the device."""

    host: Any
    device: tuple[tuple[StepNumbers, ...], ...]


Carried = list[list[tuple[Any, ...]]]
At = Callable[[int], SimpleNamespace]


def packed(
    factory: Factory[Any], groups: Sequence[tuple[At, Sequence[Record]]]
) -> tuple[tuple[RowFormat, ...], PackedNumbers, Carried]:
    """The numbers of the next update of each group's records.

    Args:
      factory: the algorithm.
      groups: for each group its hyperparameters by the count of updates, and the records of its
        parameters.

    Returns:
      The format of each group's rows, all numbers, and each record's next carried numbers.
    """
    formats: list[RowFormat] = []
    vector: list[float] = []
    device: list[tuple[StepNumbers, ...]] = []
    carried: Carried = []
    for at, records in groups:
        keys = [record.step if not record.carried else _key(record) for record in records]
        ready = {key: record for key, record in zip(keys, records, strict=True)}
        hs = {key: at(record.step) for key, record in ready.items()}
        on_device = any(_has_arrays(h, ready[key].carried) for key, h in hs.items())
        compute = _on_device if on_device else _on_host
        rows = {
            key: compute(factory, h, ready[key].step, ready[key].carried) for key, h in hs.items()
        }
        following = {key: _following(factory.rule, s) for key, s in rows.items()}
        carried.append([following[key] for key in keys])
        chosen = list(rows.values()) if len(rows) == 1 else [rows[key] for key in keys]
        if on_device:
            formats.append(RowFormat(None, len(rows) > 1))
            device.append(tuple(chosen))
            continue
        formats.append(RowFormat(jax.tree.structure(chosen[0]), len(rows) > 1))
        for s in chosen:
            vector.extend(jax.tree.leaves(s))
    host = np.asarray(vector, float_dtype())
    return tuple(formats), PackedNumbers(host, tuple(device)), carried


def unpacked(
    formats: Sequence[RowFormat], sizes: Sequence[int], numbers: PackedNumbers
) -> Iterator[list[StepNumbers]]:
    """For each group, the numbers of each of its parameters. To be traced."""
    start = 0
    device = iter(numbers.device)
    for row_format, size in zip(formats, sizes, strict=True):
        if row_format.structure is None:
            rows = list(next(device))
        else:
            rows = []
            for _ in range(size if row_format.per_parameter else 1):
                end = start + row_format.structure.num_leaves
                row = [jax.lax.index_in_dim(numbers.host, i, 0, False) for i in range(start, end)]
                rows.append(jax.tree.unflatten(row_format.structure, row))
                start = end
        yield rows if row_format.per_parameter else rows * size


def _on_host(factory: Factory[Any], h: SimpleNamespace, step: int, carried: Any) -> StepNumbers:
    return step_numbers(factory.rule, h, step + 1, carried)


def _on_device(factory: Factory[Any], h: SimpleNamespace, step: int, carried: Any) -> StepNumbers:
    chosen = {*factory.selects_code, *(() if has_decay(h) else ("weight_decay",))}
    numeric, flags = {}, []
    for name, value in vars(h).items():
        if name in chosen or value is None:
            flags.append((name, value))
        else:  # one kind of number, so that 1 may become 0.5 without another trace
            numeric[name] = jax.tree.map(_floating, value)
    dtype = float_dtype()
    with jax.enable_x64(True):
        return _device_program(factory.rule, tuple(flags), dtype, numeric, step, carried)


def _floating(x: Any) -> Any:
    return x if isinstance(x, jax.Array) else float(x)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _device_program(
    rule: Rule, flags: Any, dtype: Any, numeric: Mapping[str, Any], step: Any, carried: Any
) -> StepNumbers:
    h = hyperparameters_at({**numeric, **dict(flags)}, step)
    s = step_numbers(rule, h, as_float(step) + 1, carried)
    return jax.tree.map(lambda x: jnp.asarray(x).astype(dtype), s)


def _has_arrays(h: SimpleNamespace, carried: tuple[Any, ...]) -> bool:
    return any(isinstance(x, jax.Array) for x in jax.tree.leaves([*vars(h).values(), carried]))


def _key(record: Record) -> Any:
    """Equal for records that need the same numbers."""
    return record.step, *(x if is_number(x) else id(x) for x in record.carried)


def _following(rule: Rule, s: StepNumbers) -> tuple[Any, ...]:
    """The carried numbers after the step: rounded to float32, in kind."""
    new = (getattr(s, name) for name in rule.carried.names)
    return tuple(
        x.astype(jnp.float32) if isinstance(x, jax.Array) else float(np.float32(x)) for x in new
    )
