"""What a unit of a weight is: the numbers that feed one output of a layer.

In JAX's layouts outputs are the last axis: a dense kernel is (in, out), a convolution's is
(height, width, in, out). So the default unit axis is -1, and all other axes run inside a unit. In
torch's layouts (out, in, ...) outputs are the first axis, 0. An attention kernel (in, heads,
features) has two: (-2, -1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax

from functorch_optim.core.norms import norm_along

UnitAxis: TypeAlias = int | tuple[int, ...]


def unit_axes(unit_axis: Any) -> tuple[int, ...]:
    """The argument `unit_axis` of a factory as a tuple.

    Raises:
      TypeError: it is neither a whole number nor several.
    """
    axes = tuple(unit_axis) if isinstance(unit_axis, Sequence) else (unit_axis,)
    if not axes or any(isinstance(axis, bool) or not isinstance(axis, int) for axis in axes):
        raise TypeError(f"unit_axis should be an axis or a tuple of axes, but got {unit_axis!r}")
    return axes


def axes_inside(shape: tuple[int, ...], units: tuple[int, ...]) -> tuple[int, ...] | None:
    """The axes of a leaf that run inside a unit; `None` for a leaf that has no others (a bias).

    Raises:
      ValueError: the leaf lacks a unit axis.
    """
    ndim = len(shape)
    if ndim <= len(units):
        return None
    for axis in units:
        if not -ndim <= axis < ndim:
            raise ValueError(f"unit_axis: a leaf of shape {shape} has no axis {axis}")
    return tuple(axis for axis in range(ndim) if axis not in units and axis - ndim not in units)


def unit_norm(x: jax.Array, units: tuple[int, ...]) -> jax.Array:
    """The 2-norm of each unit, in a shape that broadcasts to x; a bias is one unit."""
    return norm_along(x, axes_inside(x.shape, units))
