"""What is remembered of one parameter: its step, the carried numbers, its buffers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Mapping
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functorch_optim.core.arithmetic import float32
from functorch_optim.rules.leaf import init_leaf
from functorch_optim.rules.rule import Rule
from functorch_optim.stateful.memory.cell import NOBODY, OUTSIDE, Cell, at_one_moment
from functorch_optim.stateful.parameter import Parameter


class Record:
    """The memory of one parameter.

    Attributes:
      step: updates made so far, a number of the host.
      carried: the rule's carried numbers, float32 in value.
      buffers: cells by torch's names, in torch's order.
      flags: what selected the buffers in use; `None` if that is not known.
      in_use: the cell of each buffer of the rule, in its order; `None` for one that is not used.
    """

    __slots__ = ("buffers", "carried", "flags", "in_use", "step")

    def __init__(self, step: int, carried: tuple[Any, ...], buffers: dict[str, Cell]):
        self.step = step
        self.carried = carried
        self.buffers = buffers
        self.flags: Hashable = None
        self.in_use: tuple[Cell | None, ...] = ()

    @at_one_moment
    def torch_view(self, rule: Rule) -> dict[str, Any]:
        """torch's per-parameter dict. Its arrays stay readable after later steps."""
        buffers = {name: cell.read() for name, cell in self.buffers.items()}
        if not rule.torch.has_step:
            return buffers
        carried = dict(zip(rule.carried.names, map(scalar_array, self.carried), strict=True))
        step = self.step if rule.torch.step_is_int else scalar_array(self.step)
        return {"step": step, **carried, **buffers}

    def snapshot(self) -> Record:
        """A copy that later steps do not change."""
        cells = {name: Cell(cell.read()) for name, cell in self.buffers.items()}
        return Record(self.step, self.carried, cells)


Needs = Callable[[tuple[int, ...], Any], dict[str, jax.ShapeDtypeStruct]]


def needs_of(rule: Rule, h: SimpleNamespace) -> Needs:
    """`needs(shape, dtype)`: the buffers that such a parameter needs, by name, as abstract arrays.

    Traced once for all parameters of a shape and dtype.
    """

    @functools.cache
    def needs(shape: tuple[int, ...], dtype: Any) -> dict[str, jax.ShapeDtypeStruct]:
        like = jax.ShapeDtypeStruct(shape, dtype)
        buffers = jax.eval_shape(lambda x: init_leaf(rule, x, h), like)
        named = zip(rule.buffers, buffers, strict=True)
        return {name: buffer for name, buffer in named if buffer is not None}

    return needs


def ready_record(
    record: Record | None,
    rule: Rule,
    p: Parameter,
    h: SimpleNamespace,
    needs: Needs,
    flags: Hashable,
) -> Record:
    """A record that has the buffers which these hyperparameters need (`needs_of(rule, h)`).

    A parameter without any starts anew, as in torch.

    Raises:
      KeyError: some buffers are there but a needed one is not: a flag was set after the first
        step, as `amsgrad`.
    """
    needed = needs(p.shape, p.dtype)
    if record is None or (needed and not record.buffers):
        buffers = zip(rule.buffers, init_leaf(rule, p._data, h), strict=True)
        cells = {name: Cell(buffer, NOBODY) for name, buffer in buffers if buffer is not None}
        record = Record(0, tuple(map(float32, rule.carried.start(h))), cells)
    for name in needed:
        if name not in record.buffers:
            raise KeyError(name)
    record.flags = flags
    record.in_use = tuple(record.buffers[name] if name in needed else None for name in rule.buffers)
    return record


def from_torch(entries: Any, p: Parameter, rule: Rule, needs: Needs, key: Any) -> Record:
    """A record from torch's per-parameter dict; `key` names it in messages.

    Buffers have the shapes that the algorithm needs (`needs_of`); what it does not know is kept,
    and has the parameter's shape.

    Raises:
      TypeError, ValueError: an entry that cannot be this parameter's.
    """
    where = f"state of parameter {key}" + (f" ({p.name})" if p.name else "")
    if not isinstance(entries, Mapping):
        raise TypeError(f"{where} should be a dict, but is {type(entries).__name__}")
    present = {name: value for name, value in entries.items() if value is not None}
    step = 1  # an algorithm without `step` starts anew where it has no buffers
    if rule.torch.has_step:
        step = _step(present.pop("step", None), where)
    carried = tuple(
        float32(_number(present.pop(name, None), f"{where}: {name}")) for name in rule.carried.names
    )
    known = needs(p.shape, p.dtype)
    like_p = jax.ShapeDtypeStruct(p.shape, p.dtype)
    buffers = {
        name: Cell(_buffer(value, p, known.get(name, like_p), f"{where}: {name}"), OUTSIDE)
        for name, value in present.items()
    }
    return Record(step, carried, buffers)


def _step(value: Any, where: str) -> int:
    number = _number(value, f"{where}: step")
    if not (math.isfinite(number) and number >= 0 and number == int(number)):
        raise ValueError(f"{where}: step should be a count of updates, but is {number}")
    return int(number)


def _number(value: Any, where: str) -> float:
    if value is None:
        raise ValueError(f"{where} is missing")
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "iuf":
        raise TypeError(f"{where} should be a number, but is {value!r}")
    return float(array.reshape(()))


def _buffer(value: Any, p: Parameter, like: jax.ShapeDtypeStruct, where: str) -> jax.Array:
    array = value if isinstance(value, jax.Array) else np.asarray(value)
    if array.shape != like.shape:
        whose = "its parameter has" if like.shape == p.shape else "should have"
        raise ValueError(f"{where} has shape {array.shape}, but {whose} shape {like.shape}")
    complex_to_real = jnp.iscomplexobj(array) and not jnp.issubdtype(
        like.dtype, jnp.complexfloating
    )
    if complex_to_real or not jnp.issubdtype(array.dtype, jnp.number):
        raise TypeError(f"{where} has dtype {array.dtype}, but its parameter has dtype {p.dtype}")
    loaded = jnp.array(array, like.dtype, copy=not isinstance(value, jax.Array))
    return p.placed(loaded)


@functools.lru_cache(maxsize=1024)
def _shared_scalar(value: float) -> jax.Array:
    with jax.ensure_compile_time_eval():  # kept, so never a tracer
        return jnp.asarray(value, jnp.float32)


def scalar_array(value: Any) -> jax.Array:
    """torch's scalar state: a 0-d float32 array. Equal numbers share one."""
    return value if isinstance(value, jax.Array) else _shared_scalar(value)
