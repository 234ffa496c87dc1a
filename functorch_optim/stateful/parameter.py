"""A parameter: a cell that holds an array and its gradient, and stands where an array can."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from functorch_optim.core import checks, trees
from functorch_optim.stateful.array_operators import ArrayOperators
from functorch_optim.stateful.memory.cell import OUTSIDE, READ, Cell, Changes

# Attributes of an array that give other arrays over its memory, which no reference count shows.
_SHARE_MEMORY = {"addressable_data", "addressable_shards", "clone", "global_shards", "to_device"}

# What says something of an array, and gives nothing of it away.
_SAID = {"aval", "committed", "device", "devices", "is_fully_addressable", "nbytes", "sharding"}

if TYPE_CHECKING:
    # It may stand where an array is expected. Its `__jax_array__` says so to jax, and nothing but
    # this to a type checker: jax has no type for what has that method.
    AnArray = Any
else:
    AnArray = object


class Parameter(ArrayOperators, AnArray):  # type: ignore[misc]  # Any, on purpose
    """A cell with a value and a gradient, torch's `nn.Parameter` for JAX arrays.

    It computes as its value does: `2 * p`, `p @ x`, `p[0]`, `p.T`, `p.sum()`, `float(p)`,
    `jnp.asarray(p)`; results are plain arrays. `==` is the exception: a Parameter is equal only to
    itself, so that it can be the key of a dict. It is a leaf of any pytree. A function that
    `jax.jit` compiled takes `p.data`, or reads a Parameter that it captured: it sees the value of
    the moment when it is traced.

    Args:
      data: the value. A jax array is not copied: an optimizer never overwrites an array that
        somebody else still holds. Anything else is copied.
      requires_grad: whether `backward` fills `.grad`. Always False for integers.
      name: shown in messages and by `named_parameters`.
    """

    __slots__ = ("__weakref__", "_cell", "_floating", "_grad", "_requires_grad", "name")

    def __init__(self, data: Any, requires_grad: bool = True, name: str | None = None):
        self._cell = Cell(data if isinstance(data, jax.Array) else jnp.array(data))
        self._grad: Any = None
        self.name = name
        self._floating = not trees.has_no_update(self._data)
        self._requires_grad = requires_grad and self._floating

    @property
    def requires_grad(self) -> bool:
        """Whether `backward` fills `.grad` and `make_step` trains it."""
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        checks.flag("requires_grad", value)
        if value and not self._floating:
            raise RuntimeError(
                "only Tensors of floating point and complex dtype can require gradients, but "
                f"{self._described()} has dtype {self.dtype}"
            )
        self._requires_grad = bool(value)

    def requires_grad_(self, requires_grad: bool = True) -> Parameter:
        """Sets `requires_grad`; returns the Parameter.

        As in torch, a gradient that is there stays, and `step` uses it: take it away by
        `zero_grad`, or by `p.grad = None`.

        Raises:
          TypeError: requires_grad is not True or False. RuntimeError: torch's, for integers.
        """
        self.requires_grad = requires_grad
        return self

    @property
    def data(self) -> jax.Array:
        """The value. It stays readable after later steps, which do not change it."""
        return self._cell.read()

    @data.setter
    def data(self, value: Any) -> None:
        if not isinstance(value, jax.Array):
            value = self.placed(jnp.array(value))
        self.check_like("value", value)
        changes = Changes()
        changes.put([self._cell], [value], OUTSIDE)
        changes.make()

    @property
    def _data(self) -> jax.Array:
        """The value, to look at: whoever keeps it takes `data`."""
        return self._cell.array

    @property
    def grad(self) -> Any:
        """The gradient, of the value's shape; `None` where there is none."""
        return self._grad

    @grad.setter
    def grad(self, value: Any) -> None:
        self._grad = None if value is None else self.checked_gradient(value)

    def checked_gradient(self, value: Any) -> Any:
        """A gradient as an array (as it is if sparse), if it can be this Parameter's.

        Raises:
          ValueError: its shape is not the value's.
          TypeError: it is not floating point, or the value is not; it is complex, the value real.
        """
        if not isinstance(value, jax.Array) and not trees.is_sparse(value):
            value = jnp.asarray(value)
        if value.shape != self._data.shape:
            raise ValueError(
                f"a gradient of shape {value.shape} was given to {self._described()}, "
                f"which has shape {self._data.shape}"
            )
        if value.dtype != self._data.dtype or not self._floating:
            narrows = jnp.iscomplexobj(value) and not jnp.iscomplexobj(self._data)
            if narrows or not self._floating or not jnp.issubdtype(value.dtype, jnp.inexact):
                raise TypeError(
                    f"a gradient of dtype {value.dtype} was given to {self._described()}, "
                    f"which has dtype {self.dtype}"
                )
        return value

    def check_devices(self, gradient: Any) -> None:
        """Raises ValueError for a gradient on other devices than the value's."""
        there, here = trees.devices(gradient), trees.devices(self._data)
        if there != here and there is not None and here is not None:
            raise ValueError(
                f"a gradient on {sorted(map(str, there))} was given to {self._described()}, which "
                f"is on {sorted(map(str, here))}. Move it: jax.device_put(grad, p.data.sharding)"
            )

    def placed(self, array: jax.Array) -> jax.Array:
        """An array of the value's shape, on the value's devices and sharded as it is."""
        sharding = self._data.sharding
        if array.shape != self._data.shape or array.sharding == sharding:
            return array
        # By way of the host: an array of one mesh cannot always be put on another directly.
        return jax.device_put(np.asarray(array) if array.is_fully_addressable else array, sharding)

    def check_like(self, what: str, value: jax.Array) -> None:
        """Raises ValueError for another shape than the value's, TypeError for another dtype."""
        if value.shape != self._data.shape or value.dtype != self._data.dtype:
            raise (ValueError if value.shape != self._data.shape else TypeError)(
                f"a {what} of shape {value.shape} and dtype {value.dtype} was assigned to "
                f"{self._described()}, which holds shape {self._data.shape} and dtype "
                f"{self._data.dtype}"
            )

    def _described(self) -> str:
        return f"parameter {self.name!r}" if self.name else "a parameter"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the value."""
        return self._data.shape

    @property
    def dtype(self) -> np.dtype:
        """Of the value."""
        return self._data.dtype

    @property
    def size(self) -> int:
        """The number of elements."""
        return self._data.size

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return self._data.ndim

    def numel(self) -> int:
        """The number of elements, as torch spells it."""
        return self.size

    def detach(self) -> jax.Array:
        """The value: a plain array has no gradient."""
        return self.data

    def __getattr__(self, name: str) -> Any:
        """What else an array has: `p.T`, `p.sum()`, `p.at[0].set(1)`, `p.sharding`."""
        if not name.startswith("_") and hasattr(type(self._cell.array), name):
            if name in _SAID:
                return getattr(self._cell.array, name)
            array = self._cell.read(OUTSIDE if name in _SHARE_MEMORY else READ)
            with contextlib.suppress(AttributeError):
                return getattr(array, name)
        hint = ""
        if name.endswith("_") and hasattr(jax.Array, name[:-1]):
            hint = f"; arrays do not change: write p.data = p.data.{name[:-1]}(...)"
        raise AttributeError(
            f"'Parameter' object has no attribute {name!r}{hint}", name=name, obj=self
        )

    def __repr__(self) -> str:
        name = f"{self.name!r}, " if self.name else ""
        frozen = "" if self.requires_grad else ", requires_grad=False"
        return f"Parameter({name}{self.dtype}{list(self.shape)}{frozen})"
