"""The operators of an array, for a class that holds one: each reads the value and computes on it.

Python looks operators up on the class, so each has to be there. Results are plain arrays.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
import numpy as np

Unary = Callable[[Any], Any]
Binary = Callable[[Any, Any], Any]


def _unary(function: Unary) -> Unary:
    def computed(self: ArrayOperators) -> Any:
        return function(self.data)

    return computed


def _binary(function: Binary) -> Binary:
    def computed(self: ArrayOperators, other: Any) -> Any:
        return function(self.data, _plain(other))

    return computed


def _both_sides(function: Binary) -> tuple[Binary, Binary]:
    def reflected(self: ArrayOperators, other: Any) -> Any:
        return function(_plain(other), self.data)

    return _binary(function), reflected


def _in_place(symbol: str) -> Callable[[Any, Any], NoReturn]:
    def refused(self: ArrayOperators, other: Any) -> NoReturn:
        raise RuntimeError(
            f"a leaf Parameter is being used in an in-place operation: instead of p {symbol}= x "
            f"write p.data = p.data {symbol} x"
        )

    return refused


def _plain(x: Any) -> Any:
    return x.data if isinstance(x, ArrayOperators) else x


class ArrayOperators:
    """An array's operators, indexing and conversions; `==` compares identities."""

    __slots__ = ()

    # Arrays of NumPy leave their operators to this class, as they do to jax arrays.
    __array_priority__ = 100

    @property
    def data(self) -> jax.Array:
        """The value, for somebody who may keep it."""
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    __lt__ = _binary(operator.lt)
    __le__ = _binary(operator.le)
    __gt__ = _binary(operator.gt)
    __ge__ = _binary(operator.ge)

    __add__, __radd__ = _both_sides(operator.add)
    __sub__, __rsub__ = _both_sides(operator.sub)
    __mul__, __rmul__ = _both_sides(operator.mul)
    __matmul__, __rmatmul__ = _both_sides(operator.matmul)
    __truediv__, __rtruediv__ = _both_sides(operator.truediv)
    __floordiv__, __rfloordiv__ = _both_sides(operator.floordiv)
    __mod__, __rmod__ = _both_sides(operator.mod)
    __divmod__, __rdivmod__ = _both_sides(divmod)
    __pow__, __rpow__ = _both_sides(operator.pow)
    __and__, __rand__ = _both_sides(operator.and_)
    __or__, __ror__ = _both_sides(operator.or_)
    __xor__, __rxor__ = _both_sides(operator.xor)
    __lshift__, __rlshift__ = _both_sides(operator.lshift)
    __rshift__, __rrshift__ = _both_sides(operator.rshift)

    # Without these, `p += x` would quietly put a plain array in the place of the Parameter.
    __iadd__ = _in_place("+")
    __isub__ = _in_place("-")
    __imul__ = _in_place("*")
    __imatmul__ = _in_place("@")
    __itruediv__ = _in_place("/")
    __ifloordiv__ = _in_place("//")
    __imod__ = _in_place("%")
    __ipow__ = _in_place("**")
    __iand__ = _in_place("&")
    __ior__ = _in_place("|")
    __ixor__ = _in_place("^")
    __ilshift__ = _in_place("<<")
    __irshift__ = _in_place(">>")

    __neg__ = _unary(operator.neg)
    __pos__ = _unary(operator.pos)
    __abs__ = _unary(operator.abs)
    __invert__ = _unary(operator.invert)

    def __round__(self, ndigits: int | None = None) -> Any:
        return round(self.data) if ndigits is None else round(self.data, ndigits)

    def __getitem__(self, index: Any) -> jax.Array:
        parts = tuple(map(_plain, index)) if isinstance(index, tuple) else _plain(index)
        return self.data[parts]

    def __setitem__(self, index: Any, value: Any) -> NoReturn:
        raise TypeError(
            "a Parameter does not support item assignment, for arrays do not change: instead of "
            "p[index] = x write p.data = p.data.at[index].set(x)"
        )

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[jax.Array]:
        return iter(self.data)

    def __contains__(self, x: Any) -> bool:
        return _plain(x) in self.data

    def __bool__(self) -> bool:
        return bool(self.data)

    def __int__(self) -> int:
        return int(self.data)

    def __float__(self) -> float:
        return float(self.data)

    def __complex__(self) -> complex:
        return complex(self.data)

    def __index__(self) -> int:
        return operator.index(self.data)

    def __format__(self, spec: str) -> str:
        return format(self.data, spec) if spec else str(self)

    def __jax_array__(self) -> jax.Array:
        return self.data

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.data, dtype=dtype, copy=copy)

    def __dlpack__(self, **options: Any) -> Any:
        return self.data.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        value: Any = self.data
        return value.__dlpack_device__()
