"""The numbers of a step, for every parameter of a group.

They are computed on the host in double, as torch computes them, and reach the compiled program as
one vector: a changed hyperparameter is a changed input, never a new program. A group with a jax
array among its hyperparameters has its numbers computed on the device, in double too, so that
nothing waits for the array.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from functorch_optim.core.arithmetic import as_float, float_dtype, is_number
from functorch_optim.rules.numbers import StepNumbers, has_decay, hyperparameters_at, step_numbers
from functorch_optim.rules.pair import Factory
from functorch_optim.rules.rule import Rule
from functorch_optim.stateful.memory.record import Record


class Layout(NamedTuple):
    """How a group's numbers lie in the program's inputs. Hashable: it selects the program.

    Attributes:
      structure: the structure of one row of numbers, or `None` if they come from the device.
      per_parameter: one row for each parameter, because their steps differ; else one for all.
    """

    structure: jax.tree_util.PyTreeDef | None
    per_parameter: bool


class Numbers(NamedTuple):
    """A step's numbers: one vector for the groups of the host, rows for those of the device."""

    host: Any
    device: tuple[tuple[StepNumbers, ...], ...]


Carried = list[list[tuple[Any, ...]]]


def numbers_of(
    factory: Factory[Any], groups: Sequence[tuple[Mapping[str, Any], Sequence[Record]]]
) -> tuple[tuple[Layout, ...], Numbers, Carried]:
    """The numbers of the next update of each group's records.

    Args:
      factory: the algorithm.
      groups: for each group its hyperparameters by name, and the records of its parameters.

    Returns:
      Each group's layout, all numbers, and each record's next carried numbers.
    """
    layouts: list[Layout] = []
    vector: list[float] = []
    device: list[tuple[StepNumbers, ...]] = []
    carried: Carried = []
    for values, records in groups:
        rows: dict[Any, StepNumbers] = {}
        on_device = _has_arrays(values, records)
        compute = _device_numbers if on_device else _host_numbers
        keys = [_key(record) for record in records]
        for key, record in zip(keys, records, strict=True):
            if key not in rows:
                rows[key] = compute(factory, values, record.step, record.carried)
        following = {key: _carried(factory.rule, s) for key, s in rows.items()}
        carried.append([following[key] for key in keys])
        chosen = list(rows.values()) if len(rows) == 1 else [rows[key] for key in keys]
        if on_device:
            layouts.append(Layout(None, len(rows) > 1))
            device.append(tuple(chosen))
            continue
        layouts.append(Layout(jax.tree.structure(chosen[0]), len(rows) > 1))
        for s in chosen:
            vector.extend(jax.tree.leaves(s))
    host = np.asarray(vector, float_dtype())
    return tuple(layouts), Numbers(host, tuple(device)), carried


def unpacked(
    layouts: Sequence[Layout], sizes: Sequence[int], numbers: Numbers
) -> Iterator[list[StepNumbers]]:
    """For each group, the numbers of each of its parameters. To be traced."""
    start = 0
    device = iter(numbers.device)
    for layout, size in zip(layouts, sizes, strict=True):
        if layout.structure is None:
            rows = list(next(device))
        else:
            rows = []
            for _ in range(size if layout.per_parameter else 1):
                end = start + layout.structure.num_leaves
                row = [jax.lax.index_in_dim(numbers.host, i, 0, False) for i in range(start, end)]
                rows.append(jax.tree.unflatten(layout.structure, row))
                start = end
        yield rows if layout.per_parameter else rows * size


def _host_numbers(
    factory: Factory[Any], values: Mapping[str, Any], step: int, carried: Any
) -> StepNumbers:
    return step_numbers(factory.rule, hyperparameters_at(values, step), step + 1, carried)


def _device_numbers(
    factory: Factory[Any], values: Mapping[str, Any], step: int, carried: Any
) -> StepNumbers:
    at_step = hyperparameters_at(values, step)
    chosen = {*factory.selects_code, *(() if has_decay(at_step) else ("weight_decay",))}
    numeric, flags = {}, []
    for name, value in vars(at_step).items():
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


def _has_arrays(values: Mapping[str, Any], records: Sequence[Record]) -> bool:
    at_step = vars(hyperparameters_at(values, records[0].step))
    return any(
        isinstance(x, jax.Array) for x in jax.tree.leaves([*at_step.values(), records[0].carried])
    )


def _key(record: Record) -> Any:
    """Equal for records that need the same numbers."""
    if not record.carried:
        return record.step
    return record.step, *(x if is_number(x) else id(x) for x in record.carried)


def _carried(rule: Rule, s: StepNumbers) -> tuple[Any, ...]:
    new = (getattr(s, name) for name in rule.carried.names)
    return tuple(
        x.astype(jnp.float32) if isinstance(x, jax.Array) else float(np.float32(x)) for x in new
    )
