"""`optimizer.state`: torch's dict of each parameter, to read and to write."""

from __future__ import annotations

import threading
import weakref
from collections.abc import ItemsView, Iterator, Mapping, MutableMapping, ValuesView
from typing import Any, Protocol

from functorch_optim.stateful.memory.cell import VALUES
from functorch_optim.stateful.parameter import Parameter

Entry = Mapping[str, Any]


class Holder(Protocol):
    """An optimizer, as a view of its state needs it."""

    _lock: threading.RLock
    _views: weakref.WeakValueDictionary[Parameter, ParameterState]

    def _entries(self) -> Mapping[Parameter, Entry]:
        """torch's dict of each parameter that has state."""

    def _write(self, entries: Mapping[Parameter, Entry | None]) -> None:
        """Puts these in their places, all or none; `None` for one that goes."""


class ParameterState(MutableMapping[str, Any]):
    """The state of one parameter: always that of now. `copy()` and `items()` are of one moment.

    When the optimizer forgets the parameter, it keeps what it showed last and is a plain dict, as
    in torch: `old = opt.state[p]; del opt.state[p]; opt.state[q] = old`.

    Attributes:
      kept: what it showed last, when it no longer belongs to an optimizer.
    """

    __slots__ = ("__weakref__", "_holder", "_parameter", "kept")

    def __init__(self, holder: Holder, parameter: Parameter):
        self._holder = holder
        self._parameter = parameter
        self.kept: dict[str, Any] | None = None

    def copy(self) -> dict[str, Any]:
        """A plain dict of what it holds now."""
        kept = self.kept
        return dict(self._holder._entries().get(self._parameter, {}) if kept is None else kept)

    def _replace(self, entry: dict[str, Any]) -> None:
        if self.kept is None:
            self._holder._write({self._parameter: entry})
        else:
            self.kept = entry

    def __getitem__(self, name: str) -> Any:
        return self.copy()[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self.update({name: value})

    def __delitem__(self, name: str) -> None:
        with self._holder._lock:
            entry = self.copy()
            del entry[name]
            self._replace(entry)

    def update(self, *others: Any, **values: Any) -> None:
        """Writes several values, all or none."""
        new = dict(*others, **values)
        with self._holder._lock:
            self._replace(self.copy() | new)

    def clear(self) -> None:
        """Takes everything out: the parameter starts anew."""
        with self._holder._lock:
            self._replace({})

    def items(self) -> ItemsView[str, Any]:
        """What it holds now, all of one moment."""
        return self.copy().items()

    def values(self) -> ValuesView[Any]:
        """What it holds now, all of one moment."""
        return self.copy().values()

    def __iter__(self) -> Iterator[str]:
        return iter(self.copy())

    def __len__(self) -> int:
        return len(self.copy())

    def __or__(self, other: Entry) -> dict[str, Any]:
        return self.copy() | dict(other)

    def __ror__(self, other: Entry) -> dict[str, Any]:
        return dict(other) | self.copy()

    def __ior__(self, other: Entry) -> ParameterState:
        self.update(other)
        return self

    def __reduce__(self) -> Any:
        return dict, (self.copy(),)  # a copy is torch's dict

    def __repr__(self) -> str:
        return repr(self.copy())


class StateView(MutableMapping[Parameter, MutableMapping[str, Any]]):
    """The state of each parameter. What is written is checked as `load_state_dict` checks it.

    A parameter without state has an empty dict; what is written into it begins its state.
    """

    __slots__ = ("_holder",)

    def __init__(self, holder: Holder):
        self._holder = holder

    def __getitem__(self, parameter: Parameter) -> ParameterState:
        views = self._holder._views
        with VALUES.lock:
            view = views.get(parameter)
            if view is None or view.kept is not None:
                view = views[parameter] = ParameterState(self._holder, parameter)
            return view

    def get(self, parameter: Parameter, default: Any = None) -> Any:
        """The dict of a parameter that has one, else the default."""
        if parameter not in self:
            return default
        return self[parameter]

    def __setitem__(self, parameter: Parameter, entry: Entry) -> None:
        self.update({parameter: entry})

    def __delitem__(self, parameter: Parameter) -> None:
        with self._holder._lock:
            if parameter not in self:
                raise KeyError(parameter)
            self._holder._write({parameter: None})

    def pop(self, parameter: Parameter, *default: Any) -> Any:
        """Takes out the dict of a parameter, for example to change it and to put it back."""
        with self._holder._lock:
            if parameter not in self and default:
                return default[0]
            entry = self[parameter].copy()
            del self[parameter]
            return entry

    def setdefault(self, parameter: Parameter, default: Any = None) -> ParameterState:
        """The dict of a parameter; this one, if it has none."""
        with self._holder._lock:
            if parameter not in self and default:
                self[parameter] = default
            return self[parameter]

    def update(self, *others: Any) -> None:
        """Writes the dicts of several parameters, all or none."""
        self._holder._write({p: _plain(entry) for p, entry in dict(*others).items()})

    def clear(self) -> None:
        """Takes out all: every parameter starts anew."""
        with self._holder._lock:
            self._holder._write(dict.fromkeys(self))

    def replace(self, entries: Mapping[Parameter, Entry]) -> None:
        """Takes these in the place of all that there is, all or none."""
        new = {p: _plain(entry) for p, entry in entries.items()}
        with self._holder._lock:
            self._holder._write({**dict.fromkeys(self), **new})

    def copy(self) -> dict[Parameter, dict[str, Any]]:
        """Plain dicts of what it holds now, all of one moment."""
        return {p: dict(entry) for p, entry in self._holder._entries().items()}

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
