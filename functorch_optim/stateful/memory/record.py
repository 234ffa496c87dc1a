"""What an optimizer remembers of each parameter. How buffers are stored is known here alone."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functorch_optim.core.arithmetic import float32
from functorch_optim.rules.leaf import init_leaf
from functorch_optim.rules.rule import Buffers, Rule
from functorch_optim.stateful.parameter import Parameter


class Record:
    """The memory of one parameter.

    Attributes:
      step: updates made so far, a number of the host.
      carried: the rule's carried numbers, float32 in value.
      buffers: arrays by torch's names, in torch's order.
      flags: what selected the buffers in use; `None` if that is not known.
      names: the name of each buffer in use, in the rule's order; `None` for one that is not.
    """

    __slots__ = ("_outside", "_read", "buffers", "carried", "flags", "names", "step")

    def __init__(
        self,
        step: int,
        carried: tuple[Any, ...],
        buffers: dict[str, jax.Array],
        outside: bool = False,
    ):
        self.step = step
        self.carried = carried
        self.buffers = buffers
        self.flags: Hashable = None
        self.names: tuple[str | None, ...] = ()
        self._read = True
        self._outside = outside  # the arrays came from a user

    def release(self) -> Buffers:
        """The buffers in use, for a computation that reuses their memory.

        One that somebody else holds is copied first. `replace` takes the results.
        """
        if self._read:
            for name, buffer in self.buffers.items():
                if self._outside or sys.getrefcount(buffer) > _ALONE:
                    self.buffers[name] = jnp.copy(buffer)
        return self._in_use()

    def shared(self) -> Buffers:
        """The buffers in use, to be held by somebody else."""
        self._read = True
        return self._in_use()

    def _in_use(self) -> Buffers:
        return tuple([None if name is None else self.buffers[name] for name in self.names])

    def replace(self, new: Buffers, step: int, carried: tuple[Any, ...]) -> None:
        """Takes the results of an update; nobody else holds these arrays."""
        for name, buffer in zip(self.names, new, strict=True):
            if name is not None:
                self.buffers[name] = buffer
        self.step = step
        self.carried = carried
        self._read = self._outside = False

    def torch_view(self, rule: Rule) -> dict[str, Any]:
        """torch's per-parameter dict. Its arrays stay readable after later steps."""
        self._read = True
        if not rule.torch.has_step:
            return dict(self.buffers)
        carried = dict(zip(rule.carried.names, map(scalar_array, self.carried), strict=True))
        step = self.step if rule.torch.step_is_int else scalar_array(self.step)
        return {"step": step, **carried, **self.buffers}


def prepared(
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
        record = Record(
            0,
            tuple(map(float32, rule.carried.start(h))),
            {n: b for n, b in buffers if b is not None},
        )
    for name in needed:
        if name not in record.buffers:
            raise KeyError(name)
    record.flags = flags
    record.names = tuple(name if name in needed else None for name in rule.buffers)
    return record


Needs = Callable[[tuple[int, ...], Any], dict[str, tuple[int, ...]]]


def needs_of(rule: Rule, h: SimpleNamespace) -> Needs:
    """`needs(shape, dtype)`: the shapes of the buffers that such a parameter needs, by name.

    Traced once for all parameters of a shape and dtype.
    """

    @functools.cache
    def needs(shape: tuple[int, ...], dtype: Any) -> dict[str, tuple[int, ...]]:
        like = jax.ShapeDtypeStruct(shape, dtype)
        buffers = jax.eval_shape(lambda x: init_leaf(rule, x, h), like)
        named = zip(rule.buffers, buffers, strict=True)
        return {name: buffer.shape for name, buffer in named if buffer is not None}

    return needs


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
    shapes = needs(p.shape, p.dtype)
    buffers = {
        name: _buffer(value, p, shapes.get(name, p.shape), f"{where}: {name}")
        for name, value in present.items()
    }
    return Record(step, carried, buffers, outside=True)


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


def _buffer(value: Any, p: Parameter, shape: tuple[int, ...], where: str) -> jax.Array:
    array = value if isinstance(value, jax.Array) else np.asarray(value)
    if array.shape != shape:
        whose = "its parameter has" if shape == p.shape else "should have"
        raise ValueError(f"{where} has shape {array.shape}, but {whose} shape {shape}")
    complex_to_real = jnp.iscomplexobj(array) and not jnp.iscomplexobj(p._data)
    if complex_to_real or not jnp.issubdtype(array.dtype, jnp.number):
        raise TypeError(f"{where} has dtype {array.dtype}, but its parameter has dtype {p.dtype}")
    loaded = jnp.array(array, p.dtype, copy=not isinstance(value, jax.Array))
    return p.placed(loaded)


@functools.lru_cache(maxsize=1024)
def _shared_scalar(value: float) -> jax.Array:
    with jax.ensure_compile_time_eval():  # kept, so never a tracer
        return jnp.asarray(value, jnp.float32)


def scalar_array(value: Any) -> jax.Array:
    """torch's scalar state: a 0-d float32 array. Equal numbers share one."""
    return value if isinstance(value, jax.Array) else _shared_scalar(value)


def _references_when_alone() -> int:
    held = {"buffer": object()}
    for _, buffer in held.items():  # the loop of `Record.release`
        count = sys.getrefcount(buffer)
    return count


# What the loop of `Record.release` counts when the record alone holds a buffer.
_ALONE = _references_when_alone()


class StateView(Mapping[Parameter, Mapping[str, Any]]):
    """`optimizer.state`: torch's dict of each parameter, to read. `load_state_dict` writes."""

    def __init__(self, records: Mapping[Parameter, Record], rule: Rule):
        self._records = records
        self._rule = rule

    def __getitem__(self, parameter: Parameter) -> Mapping[str, Any]:
        record = self._records.get(parameter)
        return MappingProxyType({} if record is None else record.torch_view(self._rule))

    def get(self, parameter: Parameter, default: Any = None) -> Any:
        """The dict of a parameter that has one, else the default."""
        if parameter not in self:
            return default
        return self[parameter]

    def __contains__(self, parameter: object) -> bool:
        record = self._records.get(parameter)  # type: ignore[call-overload]  # any key may be asked
        return record is not None and (bool(record.buffers) or self._rule.torch.has_step)

    def __iter__(self) -> Iterator[Parameter]:
        return iter([p for p in self._records if p in self])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __repr__(self) -> str:
        return repr({p: dict(self[p]) for p in self})
