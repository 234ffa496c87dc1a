"""Layouts of parameters: how one library's differs from another's, and what that does to a buffer.

Nothing here needs another library: arrays are numpy's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Shape = tuple[int, ...]
Move = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class LayoutChange:
    """How a parameter in torch's layout becomes one in ours, and back.

    Attributes:
      name: shown by `preview` and in messages.
      forward: from torch's layout to ours; takes and returns an array. It should only move numbers
        (transpose, reshape, flip, pad with zeros), or no optimizer's buffers can follow.
      inverse: the way back.
      axes: for a transposition of so many dimensions, which of torch's axes becomes each of ours.
    """

    name: str
    forward: Move
    inverse: Move
    axes: Callable[[int], Shape] | None = None


def _transposition(name: str, axes: Callable[[int], Shape]) -> LayoutChange:
    return LayoutChange(
        name,
        lambda x: np.transpose(x, axes(np.ndim(x))),
        lambda x: np.transpose(x, np.argsort(axes(np.ndim(x)))),
        axes,
    )


def _linear_axes(ndim: int) -> Shape:
    if ndim != 2:
        raise ValueError(f"`linear` is for two dimensions, (out, in), not for {ndim}")
    return (1, 0)


def _conv_axes(ndim: int) -> Shape:
    _check_conv("conv", ndim)
    return (*range(2, ndim), 1, 0)


def _check_conv(name: str, ndim: int) -> None:
    if ndim < 3:
        raise ValueError(f"`{name}` is for (out, in, *spatial), not for {ndim} dimensions")


def _from_conv_transpose(x: Any) -> Any:
    _check_conv("conv_transpose", np.ndim(x))
    return np.moveaxis(np.flip(x, tuple(range(2, np.ndim(x)))), (0, 1), (-2, -1))


def _to_conv_transpose(x: Any) -> Any:
    _check_conv("conv_transpose", np.ndim(x))
    return np.flip(np.moveaxis(x, (-2, -1), (0, 1)), tuple(range(2, np.ndim(x))))


# The same layout in both: embeddings, biases, norms, and every parameter without a rule.
identity = _transposition("identity", lambda ndim: tuple(range(ndim)))
# (out, in) -> (in, out)
linear = _transposition("linear", _linear_axes)
# (out, in, *spatial) -> (*spatial, in, out), for any number of spatial dimensions
conv = _transposition("conv", _conv_axes)
# (in, out, *spatial) -> (*spatial, in, out), and mirrored: torch's is the transpose of a
# convolution, flax's and `jax.lax.conv_transpose` are convolutions of a dilated input.
conv_transpose = LayoutChange("conv_transpose", _from_conv_transpose, _to_conv_transpose)


def flattened_linear(channels: int, *spatial: int) -> LayoutChange:
    """For the first linear layer behind a flattened image: also its inputs change their order.

    torch flattens (channels, *spatial), JAX's libraries (*spatial, channels).

    Args:
      channels: of the image that is flattened.
      *spatial: its height, width, ...
    """

    def forward(x: Any) -> Any:
        image = np.reshape(x, (np.shape(x)[0], channels, *spatial))
        return np.reshape(np.moveaxis(image, (1, 0), (-2, -1)), (-1, np.shape(x)[0]))

    def inverse(x: Any) -> Any:
        image = np.reshape(x, (*spatial, channels, np.shape(x)[-1]))
        return np.reshape(np.moveaxis(image, (-2, -1), (1, 0)), (np.shape(x)[-1], -1))

    return LayoutChange(f"flattened_linear{(channels, *spatial)}", forward, inverse)


def as_layout_change(value: Any) -> LayoutChange:
    """A LayoutChange; a pair of functions becomes one.

    Raises:
      TypeError: something else.
    """
    if isinstance(value, LayoutChange):
        return value
    if isinstance(value, tuple) and len(value) == 2 and all(map(callable, value)):
        name = getattr(value[0], "__name__", "a function")
        return LayoutChange("a function" if name == "<lambda>" else name, *value)
    raise TypeError(
        f"a transform is a LayoutChange or a pair (function, inverse), but got {value!r}"
    )


def applied(function: Move, array: Any, where: str) -> np.ndarray:
    """`function(array)` as an array of the same dtype.

    Raises:
      ValueError: the function refuses this shape. TypeError: it changes the dtype.
    """
    array = np.asarray(array)
    try:
        result = np.asarray(function(array), order="C")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}, of shape {array.shape}: {error}") from error
    if result.dtype != array.dtype:
        raise TypeError(f"{where}: its transform makes {array.dtype} to {result.dtype}")
    return result


def shape_after(function: Move, shape: Shape, where: str) -> Shape:
    """The shape that a transform makes of a shape."""
    return applied(function, np.empty(shape, np.int8), where).shape


def moved_entries(
    entries: Mapping[str, Any], transform: LayoutChange, to_ours: bool, where: str
) -> dict[str, Any]:
    """A parameter's dict of an optimizer's state in the other layouts.

    Entries of the parameter's shape move as it does, numbers and 0-d arrays stay. Adafactor's means
    over rows and columns change places with them.

    Args:
      entries: by torch's names.
      transform: that of the parameter.
      to_ours: the direction.
      where: the parameter, for messages.

    Raises:
      ValueError: an entry that cannot follow the transform.
    """
    arrays = {name: x for name, x in entries.items() if np.ndim(x) > 0}
    if transform is identity or not arrays:
        return dict(entries)
    if any(isinstance(x, list | tuple | Mapping) for x in entries.values()):
        raise ValueError(f"{where}: {transform.name} cannot move a state of lists or dicts")
    if "row_var" in arrays and "col_var" in arrays:
        means = _moved_means(
            arrays.pop("row_var"), arrays.pop("col_var"), transform, to_ours, where
        )
    else:
        means = {}
    shapes = {name: np.shape(x) for name, x in arrays.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(
            f"{where}: {transform.name} cannot move entries of different shapes: {shapes}"
        )
    if shapes:
        check_moves(transform, next(iter(shapes.values())), to_ours, where)
    function = transform.forward if to_ours else transform.inverse
    moved = {name: applied(function, x, f"{where}: {name}") for name, x in arrays.items()}
    return {name: {**moved, **means}.get(name, value) for name, value in entries.items()}


def entries_shape(entries: Mapping[str, Any]) -> Shape | None:
    """The shape of the parameter that has this state, if that can be told from it."""
    if "row_var" in entries and "col_var" in entries:
        return (*np.shape(entries["row_var"])[:-1], np.shape(entries["col_var"])[-1])
    shapes = {np.shape(x) for x in entries.values() if hasattr(x, "shape") and np.ndim(x) > 0}
    return shapes.pop() if len(shapes) == 1 else None


def _moved_means(
    row: Any, col: Any, transform: LayoutChange, to_ours: bool, where: str
) -> dict[str, Any]:
    """Adafactor's row_var (..., n, 1) and col_var (..., 1, m) of a parameter (..., n, m)."""
    ndim = np.ndim(row)
    last = ndim - 2, ndim - 1
    axes: Sequence[int] = ()
    if transform.axes is not None:
        axes = transform.axes(ndim)
        axes = axes if to_ours else [int(i) for i in np.argsort(axes)]
    if set(axes[-2:]) != set(last):
        raise ValueError(
            f"{where}: row_var and col_var are means over the last two axes, and {transform.name} "
            "makes others of them the last: what they would be there is not known. Let this "
            "parameter start anew (delete its entries from the state_dict), or keep its layout"
        )
    row, col = (np.asarray(np.transpose(x, axes), order="C") for x in (row, col))
    return (
        {"row_var": row, "col_var": col}
        if tuple(axes[-2:]) == last
        else ({"row_var": col, "col_var": row})
    )


def check_moves(transform: LayoutChange, shape: Shape, to_ours: bool, where: str) -> None:
    """Raises ValueError unless a transform only moves numbers (zeros may be added) and can undo it.

    Args:
      transform: what is checked; a transposition needs no check.
      shape: of an entry in the layout that it comes from.
      to_ours: the direction; from ours, the shape is ours.
      where: the parameter, for messages.
    """
    if transform.axes is not None:
        return
    if not to_ours:
        shape = shape_after(transform.inverse, shape, where)
    size = int(np.prod(shape))
    numbered = np.arange(1, size + 1, dtype=np.int32).reshape(shape)
    there = applied(transform.forward, numbered, where)
    back = applied(transform.inverse, there, where)
    if not np.array_equal(back, numbered):
        raise ValueError(f"{where}: the inverse of {transform.name} does not undo it")
    if not np.array_equal(np.sort(there[there != 0], axis=None), numbered.reshape(-1)):
        raise ValueError(
            f"{where}: {transform.name} does more than move numbers, so an optimizer's buffers "
            "cannot follow it"
        )
