"""Arrays that an optimizer holds, and who may hold them besides it.

A step reuses the memory of values and buffers. What a user holds must stay as it is, so one thing
has to be known of each array: does anybody else hold it? That is decided here, and nowhere else.
"""

from __future__ import annotations

import collections
import functools
import itertools
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp

# Who may hold an array besides its cell. What came from outside may share its memory with arrays
# that no reference count shows: `jax.device_put` gives a second array over one buffer.
NOBODY, READ, OUTSIDE = range(3)


P = ParamSpec("P")
T = TypeVar("T")
Lock = Any  # threading.RLock, which is a function to a type checker


def alone(lock: Lock, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls a function while this thread alone has the lock, which is reentrant.

    `with lock:` would do the same, but for an interrupt between its last two instructions, after
    which the lock stays locked for ever.
    """
    before = lock._recursion_count()
    try:
        try:
            lock.acquire()
            return function(*args, **kwargs)
        finally:
            _release(lock, before)
    finally:
        _release(lock, before)  # once more: an interrupt may have come within the first


def _release(lock: Lock, count: int) -> None:
    while lock._recursion_count() > count:
        lock.release()


# The values of all cells change, and are read together, while this is held: for moments, never
# while anything is compiled or functions of users run.
VALUES: Lock = threading.RLock()


def at_one_moment(function: Callable[P, T]) -> Callable[P, T]:
    """A function that reads or changes several values, as one that sees them of one moment."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        return alone(VALUES, function, *args, **kwargs)

    return wrapper


# Computations that were started on values which they do not hold as users do, by a token of each:
# steps leave these values alone.
READERS: set[object] = set()


def reading(take: Callable[[], Any], compute: Callable[..., T]) -> T:
    """`compute(*take())`, where `take` reads values that a step on another thread leaves alone."""
    token = object()
    try:
        READERS.add(token)
        return compute(*alone(VALUES, take))
    finally:
        READERS.discard(token)


class Cell:
    """A place for an array.

    Attributes:
      array: what is in it. To take it without letting anybody else have it.
      held: `NOBODY`, `READ` or `OUTSIDE`.
    """

    __slots__ = ("array", "held")

    def __init__(self, array: Any, held: int = OUTSIDE):
        self.array = array
        self.held = held

    def read(self) -> Any:
        """The array, for somebody who may keep it."""
        return alone(VALUES, self._read)

    def _read(self) -> Any:
        if self.held == NOBODY:
            self.held = READ
        return self.array

    def release(self, copies: bool = False) -> Any:
        """The array for a computation that reuses its memory: a copy if somebody else holds it.

        The cell keeps what it has until `Changes.put` gives it the result of the computation.

        Args:
          copies: give a copy in any case.
        """
        shared = self.held == OUTSIDE or self.held == READ or len(READERS) > 0
        if copies or self.held == OUTSIDE or (shared and self._references() > self._alone()):
            return jnp.copy(self.array)
        return self.array

    def _references(self) -> int:
        return sys.getrefcount(self.array)

    def _alone(self) -> int:
        """What `_references` counts when the cell alone holds its array: the interpreter's."""
        return _ALONE

    def __getstate__(self) -> Any:
        return self.read()

    def __setstate__(self, array: Any) -> None:
        self.array = array
        self.held = OUTSIDE


_ALONE = Cell(object())._references()  # any object: no backend is started for it


class CellTree:
    """A tree of arrays in cells.

    Attributes:
      treedef: its structure.
      cells: its arrays, in order.
    """

    def __init__(self, tree: Any, held: int = OUTSIDE):
        self.treedef: Any
        arrays, self.treedef = jax.tree.flatten(tree)
        self.cells = [Cell(x, held) for x in arrays]

    def read(self) -> Any:
        """The tree, for somebody who may keep its arrays."""
        return self.treedef.unflatten(alone(VALUES, self._read))

    def _read(self) -> list[Any]:
        return [cell._read() for cell in self.cells]

    def release(self, copies: bool = False) -> Any:
        """The tree for a computation that reuses its memory."""
        return self.treedef.unflatten([cell.release(copies) for cell in self.cells])


class Changes:
    """Assignments that are made as one: nothing comes between them, not even an interrupt.

    Python looks for signals between two instructions of its own. All of these assignments are made
    by one call into C: a KeyboardInterrupt comes before the first of them or after the last.
    """

    def __init__(self) -> None:
        self._calls: list[Callable[[], Iterator[Any]]] = []

    def put(self, cells: Sequence[Cell], arrays: Sequence[Any], held: int = NOBODY) -> None:
        """New arrays in cells: fresh ones that nobody else holds, unless it is said otherwise."""
        if len(cells) != len(arrays):
            raise ValueError(f"{len(arrays)} arrays for {len(cells)} cells")
        self.set(cells, "array", arrays)
        self.set(cells, "held", itertools.repeat(held))

    def set(self, objects: Sequence[Any], name: str, values: Iterable[Any]) -> None:
        """The attribute of this name of each object."""
        self._calls.append(lambda: map(setattr, objects, itertools.repeat(name), values))

    def update(self, mapping: dict[Any, Any], items: Mapping[Any, Any]) -> None:
        """Entries of a dict: of an object's `__dict__`, say."""
        self._calls.append(lambda: map(mapping.update, (items,)))

    def make(self) -> None:
        """Makes them. Doing it twice is no error."""
        alone(VALUES, self._make)

    def _make(self) -> None:
        calls = [call() for call in self._calls]
        collections.deque(itertools.chain.from_iterable(calls), maxlen=0)
