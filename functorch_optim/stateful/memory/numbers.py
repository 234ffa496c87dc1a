"""The numbers of a step, for every parameter of a group.

They are computed on the host in double, as torch computes them, and reach the compiled program as
one vector: a changed hyperparameter is a changed input, never a new program. A group with a jax
array among its hyperparameters has its numbers computed on the device, in double too, so that
nothing waits for the array.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from functorch_optim.core.arithmetic import as_float, float_dtype
from functorch_optim.rules.numbers import (
    StepNumbers,
    has_decay,
    hyperparameters_at,
    step_numbers,
)
from functorch_optim.rules.pair import Factory
from functorch_optim.rules.rule import Rule


class RowFormat(NamedTuple):
    """How a group's numbers lie in the program's inputs. Hashable: it selects the program.

    Attributes:
      structure: the structure of one row of numbers.
      per_parameter: one row for each parameter, because their steps differ; else one for all.
      on_device: they come from the device, not in the vector.
    """

    structure: jax.tree_util.PyTreeDef
    per_parameter: bool
    on_device: bool


class PackedNumbers(NamedTuple):
    """A step's numbers: one vector for the groups of the host, rows for those of the device."""

    host: Any
    device: tuple[tuple[StepNumbers, ...], ...]


def unpacked(
    formats: Sequence[RowFormat], sizes: Sequence[int], numbers: PackedNumbers
) -> Iterator[list[StepNumbers]]:
    """For each group, the numbers of each of its parameters. To be traced."""
    start = 0
    device = iter(numbers.device)
    for row_format, size in zip(formats, sizes, strict=True):
        if row_format.on_device:
            rows = list(next(device))
        else:
            rows = []
            for _ in range(size if row_format.per_parameter else 1):
                end = start + row_format.structure.num_leaves
                row = [jax.lax.index_in_dim(numbers.host, i, 0, False) for i in range(start, end)]
                rows.append(jax.tree.unflatten(row_format.structure, row))
                start = end
        yield rows if row_format.per_parameter else rows * size


def on_device(factory: Factory[Any], h: SimpleNamespace, step: int, carried: Any) -> StepNumbers:
    """The numbers of the update that follows `step` others, where one of them is a jax array."""
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
