"""`optimizer.state`: torch's dict of each parameter, to read and to write."""

from __future__ import annotations

import functools
from collections.abc import Callable, ItemsView, Iterator, Mapping, MutableMapping, ValuesView
from typing import Any, Protocol

from functorch_optim.stateful.memory.cell import Lock, alone, at_one_moment
from functorch_optim.stateful.parameter import Parameter

Entry = Mapping[str, Any]


class Holder(Protocol):
    """An optimizer, as a view of its state needs it."""

    _lock: Lock

    def _entries(self) -> Mapping[Parameter, Entry]:
        """torch's dict of each parameter that has state."""

    def _write(self, entries: Mapping[Parameter, Entry | None]) -> None:
        """Puts these in their places, all or none; `None` for one that goes."""


def _in_turn(method: Callable[..., Any]) -> Any:
    """A method of a view during which no other thread steps or writes."""

    @functools.wraps(method)
    def wrapper(self: Any, *args: Any) -> Any:
        return alone(self._holder._lock, method, self, *args)

    return wrapper


class ParameterState(dict[str, Any]):
    """The state of one parameter as it was when asked for; what is written goes into the optimizer.

    When the optimizer has forgotten the parameter, it is a plain dict, as in torch:
    `old = opt.state[p]; del opt.state[p]; opt.state[q] = old`.
    """

    __slots__ = ("_holder", "_parameter")

    def __init__(self, holder: Holder, parameter: Parameter, shown: Entry):
        super().__init__(shown)
        self._holder = holder
        self._parameter = parameter

    @_in_turn
    def _change(self, change: Callable[[dict[str, Any]], Any]) -> Any:
        """Changes the dict that the optimizer has now, and shows the new one."""
        now = self._holder._entries().get(self._parameter)
        forgotten = bool(self) and now is None
        entry = dict(self if forgotten else now or {})
        result = change(entry)
        if not forgotten:
            self._holder._write({self._parameter: entry})
            entry = dict(self._holder._entries().get(self._parameter, {}))
        super().clear()
        super().update(entry)
        return result

    def __setitem__(self, name: str, value: Any) -> None:
        self.update({name: value})

    def __delitem__(self, name: str) -> None:
        self.pop(name)

    def pop(self, name: str, *default: Any) -> Any:
        """Takes a value out and returns it."""
        return self._change(lambda entry: entry.pop(name, *default))

    def popitem(self) -> tuple[str, Any]:
        """Takes the last value out and returns it with its name."""
        return self._change(lambda entry: entry.popitem())

    def setdefault(self, name: str, default: Any = None) -> Any:
        """The value of this name; this one, if there is none."""
        if name not in self:
            self[name] = default
        return self.get(name)

    def update(self, *others: Any, **values: Any) -> None:
        """Writes several values, all or none."""
        new = dict(*others, **values)
        self._change(lambda entry: entry.update(new))

    def clear(self) -> None:
        """Takes everything out: the parameter starts anew."""
        self._change(lambda entry: entry.clear())

    def __ior__(self, other: Any) -> ParameterState:  # type: ignore[override,misc]
        self.update(other)
        return self

    def __reduce__(self) -> Any:
        return dict, (dict(self),)  # a copy is torch's dict


class StateView(MutableMapping[Parameter, MutableMapping[str, Any]]):
    """The state of each parameter. What is written is checked as `load_state_dict` checks it.

    A parameter without state has an empty dict; what is written into it begins its state.
    """

    __slots__ = ("_holder",)

    def __init__(self, holder: Holder):
        self._holder = holder

    def __getitem__(self, parameter: Parameter) -> ParameterState:
        shown = self._holder._entries().get(parameter, {})
        return ParameterState(self._holder, parameter, shown)

    def get(self, parameter: Parameter, default: Any = None) -> Any:
        """The dict of a parameter that has one, else the default."""
        if parameter not in self:
            return default
        return self[parameter]

    def __setitem__(self, parameter: Parameter, entry: Entry) -> None:
        self.update({parameter: entry})

    @_in_turn
    def __delitem__(self, parameter: Parameter) -> None:
        if parameter not in self:
            raise KeyError(parameter)
        self._holder._write({parameter: None})

    @_in_turn
    def pop(self, parameter: Parameter, *default: Any) -> Any:
        """Takes out the dict of a parameter, for example to change it and to put it back."""
        if parameter not in self and default:
            return default[0]
        entry = dict(self[parameter])
        del self[parameter]
        return entry

    @_in_turn
    def popitem(self) -> tuple[Parameter, dict[str, Any]]:
        """Takes out the dict of the parameter that came last."""
        if not len(self):
            raise KeyError("popitem(): no parameter has state")
        parameter = list(self)[-1]
        return parameter, self.pop(parameter)

    @_in_turn
    def setdefault(self, parameter: Parameter, default: Any = None) -> ParameterState:
        """The dict of a parameter; this one, if it has none."""
        if parameter not in self and default:
            self[parameter] = default
        return self[parameter]

    def update(self, *others: Any) -> None:
        """Writes the dicts of several parameters, all or none."""
        self._holder._write({p: _plain(entry) for p, entry in dict(*others).items()})

    @_in_turn
    def clear(self) -> None:
        """Takes out all: every parameter starts anew."""
        self._holder._write(dict.fromkeys(self))

    @_in_turn
    def replace(self, entries: Mapping[Parameter, Entry]) -> None:
        """Takes these in the place of all that there is, all or none."""
        new = {p: _plain(entry) for p, entry in entries.items()}
        self._holder._write({**dict.fromkeys(self), **new})

    @at_one_moment
    def copy(self) -> dict[Parameter, dict[str, Any]]:
        """Plain dicts of what it holds now, all of one moment."""
        return {p: dict(entry) for p, entry in self._holder._entries().items()}

    @at_one_moment
    def items(self) -> ItemsView[Parameter, MutableMapping[str, Any]]:
        """Parameters and their dicts, all of one moment."""
        entries = self._holder._entries().items()
        found: dict[Parameter, MutableMapping[str, Any]] = {
            p: ParameterState(self._holder, p, entry) for p, entry in entries
        }
        return found.items()

    def values(self) -> ValuesView[MutableMapping[str, Any]]:
        """The parameters' dicts, all of one moment."""
        return dict(self.items()).values()

    def __contains__(self, parameter: object) -> bool:
        return parameter in self._holder._entries()

    def __iter__(self) -> Iterator[Parameter]:
        return iter(list(self._holder._entries()))

    def __len__(self) -> int:
        return len(self._holder._entries())

    def __or__(self, other: Mapping[Any, Any]) -> dict[Any, Any]:
        return {**self.copy(), **other}

    def __ior__(self, other: Mapping[Any, Any]) -> StateView:
        self.update(other)
        return self

    def __reduce__(self) -> Any:
        return dict, (self.copy(),)

    def __repr__(self) -> str:
        return repr(self.copy())


def _plain(entry: Any) -> dict[str, Any]:
    if not isinstance(entry, Mapping):
        raise TypeError(f"the state of a parameter should be a dict, but is {entry!r}")
    return dict(entry)
