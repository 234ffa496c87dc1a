"""What is remembered of one parameter: its step, the carried numbers, its buffers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functorch_optim.core.arithmetic import float32
from functorch_optim.rules.leaf import abstract_buffers, init_leaf
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
      lacks: the names of numbers that a user took out, or did not yet write.
    """

    __slots__ = ("buffers", "carried", "flags", "in_use", "lacks", "step")

    def __init__(
        self,
        step: int,
        carried: tuple[Any, ...],
        buffers: dict[str, Cell],
        lacks: Collection[str] = (),
    ):
        self.step = step
        self.carried = carried
        self.buffers = buffers
        self.lacks = lacks
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
        numbers = {"step": step, **carried}
        return {k: x for k, x in numbers.items() if k not in self.lacks} | buffers

    def snapshot(self) -> Record:
        """A copy that later steps do not change."""
        cells = {name: Cell(cell.read()) for name, cell in self.buffers.items()}
        return Record(self.step, self.carried, cells, self.lacks)


Needs = Callable[[tuple[int, ...], Any], dict[str, jax.ShapeDtypeStruct]]


def needs_of(rule: Rule, h: SimpleNamespace) -> Needs:
    """`needs(shape, dtype)`: the buffers that such a parameter needs, by name, as abstract arrays.

    Traced once for all parameters of a shape and dtype.
    """

    @functools.cache
    def needs(shape: tuple[int, ...], dtype: Any) -> dict[str, jax.ShapeDtypeStruct]:
        named = zip(rule.buffers, abstract_buffers(rule, h, shape, dtype), strict=True)
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
        step, as `amsgrad`; or it, or a number, was taken out of the state.
    """
    needed = needs(p.shape, p.dtype)
    if record is None or (needed and not record.buffers):
        buffers = zip(rule.buffers, init_leaf(rule, p._data, h), strict=True)
        cells = {name: Cell(buffer, NOBODY) for name, buffer in buffers if buffer is not None}
        record = Record(0, tuple(map(float32, rule.carried.start(h))), cells)
    for name in (*record.lacks, *(name for name in needed if name not in record.buffers)):
        raise KeyError(name)
    record.flags = flags
    record.in_use = tuple(record.buffers[name] if name in needed else None for name in rule.buffers)
    return record


def from_torch(entries: Any, p: Parameter, rule: Rule, needs: Needs, where: str) -> Record:
    """A record from torch's per-parameter dict, which `where` names in messages.

    Buffers have the shapes that the algorithm needs (`needs_of`); what it does not know is kept,
    and has the parameter's shape.

    Raises:
      TypeError, ValueError: an entry that cannot be this parameter's.
    """
    record = written(None, entries, p, rule, needs, where)
    for name in record.lacks:
        raise ValueError(f"{where}: {name} is missing")
    return record


def written(
    known: Record | None, entries: Any, p: Parameter, rule: Rule, needs: Needs, where: str
) -> Record:
    """A record from torch's per-parameter dict, of which numbers may be missing.

    Where the dict holds what the known record shows, the new one holds what that one has.

    Raises:
      TypeError, ValueError: an entry that cannot be this parameter's.
    """
    if not isinstance(entries, Mapping):
        raise TypeError(f"{where} should be a dict, but is {type(entries).__name__}")
    given = {name: value for name, value in entries.items() if value is not None}
    shown = {} if known is None else known.torch_view(rule)

    def number(name: str, old: Any, convert: Callable[[Any, str], Any]) -> Any:
        if name not in given:
            lacks.append(name)
            return 0
        value = given.pop(name)
        return old if name in shown and value is shown[name] else convert(value, f"{where}: {name}")

    lacks: list[str] = []
    # An algorithm without `step` starts anew where it has no buffers.
    step = max(1, 1 if known is None else known.step)
    if rule.torch.has_step:
        step = number("step", None if known is None else known.step, _count)
    olds = rule.carried.names if known is None else known.carried
    carried = tuple(
        number(name, old, _float32) for name, old in zip(rule.carried.names, olds, strict=True)
    )
    like_p = jax.ShapeDtypeStruct(p.shape, p.dtype)
    buffers = {}
    for name, value in given.items():
        if name in shown and value is shown[name] and known is not None:
            buffers[name] = known.buffers[name]
            continue
        like = needs(p.shape, p.dtype).get(name, like_p)
        buffers[name] = Cell(_buffer(value, p, like, f"{where}: {name}"), OUTSIDE)
    return Record(step, carried, buffers, tuple(lacks))


def entry_name(key: Any, p: Parameter) -> str:
    """What messages call the dict of a parameter which has this key in a state_dict."""
    return f"state of parameter {key}" + (f" ({p.name})" if p.name else "")


def _count(value: Any, where: str) -> int:
    number = _number(value, where)
    if not (math.isfinite(number) and number >= 0 and number == int(number)):
        raise ValueError(f"{where} should be a count of updates, but is {number}")
    return int(number)


def _float32(value: Any, where: str) -> float:
    return float32(_number(value, where))


def _number(value: Any, where: str) -> float:
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


class LeafView(Mapping[Parameter, Mapping[str, Any]]):
    """torch's dict of each parameter that has state, of the moment of asking."""

    def __init__(self, rule: Rule, records: Mapping[Parameter, Record]):
        self._rule = rule
        self._records = records

    def __getitem__(self, parameter: Parameter) -> Mapping[str, Any]:
        if parameter not in self:
            raise KeyError(parameter)
        return self._records[parameter].torch_view(self._rule)

    def __contains__(self, parameter: object) -> bool:
        record = self._records.get(parameter)  # type: ignore[call-overload]  # any key may be asked
        return record is not None and (bool(record.buffers) or self._rule.torch.has_step)

    def __iter__(self) -> Iterator[Parameter]:
        return iter([p for p in self._records if p in self])

    def __len__(self) -> int:
        return len(list(iter(self)))
