"""Gradients of embedding tables that hold the rows of a batch, and no others.

A table of ten million rows of which a batch reads a thousand has a gradient of which a thousand
rows are not zero. `jax.grad` makes all ten million. Here the loss is differentiated with respect to
what `take` reads:

    rows  = table[ids] + offset             offset = 0
    grad  = (d loss / d offset, ids)        a BCOO array with one entry for each id

`sparse_adam`, `sgd` and `adagrad` update the rows of such a gradient only, and `apply_updates`
writes them in place when the table is donated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp

from functorch_optim.compose.leaf_labels import PerLeaf, check_mask, chosen
from functorch_optim.core import checks, trees
from functorch_optim.core.pair import Params, Updates
from functorch_optim.core.sparse_leaves import in_range


def sparse_value_and_grad(
    loss_fn: Callable[..., Any], tables: PerLeaf, has_aux: bool = False
) -> Callable[..., tuple[Any, Updates]]:
    """`jax.value_and_grad`, with sparse gradients for the tables whose rows `take` reads.

    For a classifier of words::

        def loss_fn(params, ids, labels):
            vectors = fo.take(params["table"], ids)
            return cross_entropy(vectors @ params["kernel"], labels)

        value_and_grad = fo.sparse_value_and_grad(loss_fn, {"table": True, "kernel": False})
        loss, grads = value_and_grad(params, ids, labels)  # grads["table"] is a BCOO array

    A table may be read several times, by ids of any shape. It may not be used in any other way
    (a product with its transpose, say): its gradient is not sparse then, and it should be left out
    of `tables`. `take` has to stand outside of what loss_fn itself transforms (`jit`, `vmap`,
    `scan`, `checkpoint`); take the rows before, and pass them on. All of it may stand inside `jit`.

    Args:
      loss_fn: `loss_fn(params, *args, **kwargs) -> loss`, a real scalar. It is traced twice.
      tables: which leaves of params are tables: a tree of its structure (or of its top) with True
        and False, or a function of params that returns one, `by_path([("embedding", True)],
        default=False)` for instance.
      has_aux: loss_fn returns `(loss, aux)`.

    Returns:
      A function of loss_fn's arguments that returns loss_fn's result and the gradients by params,
      its first argument: BCOO arrays for tables, which hold one row for each id that was taken, in
      order, equal ids not yet summed, with an index out of range for an id that was; arrays for all
      other leaves; `None` for those that are not floating point.

    Raises:
      TypeError: loss_fn is no function, has_aux no bool; the mask's structure is not that of params
        or it holds something else than True and False; a table is not floating point with
        one axis at least; from the function, a table was used without `take`.
      RuntimeError: from the function, `take` stands inside a transformation of loss_fn's own.
    """
    if not callable(loss_fn):
        raise TypeError(f"loss_fn should be a function, but got {loss_fn!r}")
    check_mask(tables)
    checks.flag("has_aux", has_aux)

    def value_and_grad(params: Params, *args: Any, **kwargs: Any) -> tuple[Any, Updates]:
        on, ps, treedef = chosen(tables, params)
        sparse, dense, gradients = {}, {}, [None] * len(ps)
        for index, (is_table, p) in enumerate(zip(on, ps, strict=True)):
            if is_table:
                sparse[index] = _checked(p, treedef, index)
            elif not trees.has_no_update(p):
                dense[index] = p

        def evaluated(dense: Mapping[int, Any], offsets: Mapping[int, Any]) -> Any:
            trace = _trace()
            cells = {
                index: Table(array, offsets.get(index), trace, trees.path_of(treedef, index))
                for index, array in sparse.items()
            }
            given = [cells.get(i, dense.get(i, p)) for i, p in enumerate(ps)]
            return loss_fn(treedef.unflatten(given), *args, **kwargs), cells

        def rows(dense: Mapping[int, Any]) -> dict[int, list[jax.Array]]:
            _, cells = evaluated(dense, {})
            return {index: cell.rows for index, cell in cells.items()}

        def loss_of(dense: Mapping[int, Any], offsets: Mapping[int, Any]) -> Any:
            result, cells = evaluated(dense, offsets)
            loss, aux = result if has_aux else (result, None)
            return loss, (aux, {index: cell.ids for index, cell in cells.items()})

        offsets = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(rows, dense))
        differentiated = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)
        (loss, (aux, ids)), (by_leaf, by_table) = differentiated(dense, offsets)
        for index, table in sparse.items():
            gradients[index] = _collected(table, ids[index], by_table[index])
        for index, gradient in by_leaf.items():
            gradients[index] = gradient
        return ((loss, aux) if has_aux else loss), treedef.unflatten(gradients)

    return value_and_grad


def take(table: Any, ids: Any) -> jax.Array:
    """The rows of a table: `jnp.take(table, ids, axis=0)`.

    Inside of `sparse_value_and_grad` it records which rows were read; of an array it is just that.

    Args:
      table: an array, or what loss_fn finds in its place.
      ids: integers of any shape and dtype. Negative ones count from the end. The row of one that is
        out of range is NaN, and has no gradient.

    Returns:
      An array of the shape `ids.shape + table.shape[1:]`.

    Raises:
      TypeError: the ids are not integers. RuntimeError: see `sparse_value_and_grad`.
    """
    ids = jnp.asarray(ids)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(f"ids should be integers, but have dtype {ids.dtype}")
    if isinstance(table, Table):
        return table.taken(ids)
    table = jnp.asarray(table)
    return jnp.take(table, in_range(ids, len(table)), axis=0)


class Table:
    """What loss_fn finds in the place of a table: it can be handed to `take`, and nothing else.

    It has the table's `shape`, `dtype` and `ndim`.
    """

    def __init__(
        self, array: jax.Array, offsets: Sequence[jax.Array] | None, trace: Any, name: str
    ):
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim
        self.rows: list[jax.Array] = []
        self.ids: list[jax.Array] = []
        self._array = array
        self._offsets = offsets
        self._trace = trace
        self._name = name

    def taken(self, ids: jax.Array) -> jax.Array:
        """The rows of these ids, recorded."""
        if _trace() != self._trace:
            raise RuntimeError(
                f"the rows of {self._name} are taken inside a transformation (jit, vmap, scan, "
                "checkpoint, ...) within the loss function; take them outside of it and pass them "
                "on, or leave this table out of `tables`"
            )
        ids = in_range(ids, len(self._array))
        rows = jnp.take(self._array, ids, axis=0)
        if self._offsets is not None:
            rows = rows + self._offsets[len(self.rows)]
        self.rows.append(rows)
        self.ids.append(ids)
        return rows

    def __repr__(self) -> str:
        return f"Table({self._name}, to be read by take)"

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(
            f"{self._name} is one of the `tables`, of which the loss function may take rows, "
            "take(table, ids), and which it may not use in any other way: its gradient would not "
            "be sparse. Leave it out of `tables`, or take its rows"
        )

    __array__ = __getitem__ = __iter__ = __len__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = _refuse
    __matmul__ = __rmatmul__ = __pow__ = __neg__ = __abs__ = _refuse

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # a protocol that is asked for
            raise AttributeError(name)
        self._refuse()


def _trace() -> Any:
    """Which transformation is being traced."""
    from jax.extend.core import get_opaque_trace_state  # brings Pallas: a sixth of the import

    return get_opaque_trace_state(convention="flax")


def _checked(table: Any, treedef: Any, index: int) -> jax.Array:
    if trees.has_no_update(table) or jnp.ndim(table) == 0:
        raise TypeError(
            f"a table should be a floating-point array with one axis at least, but at "
            f"{trees.path_of(treedef, index)} there is {table!r}"
        )
    return jnp.asarray(table)


def _collected(table: jax.Array, ids: Sequence[jax.Array], rows: Sequence[jax.Array]) -> Any:
    """The gradient of a table from those of all its takes."""
    from jax.experimental.sparse import BCOO  # a third of a second that only this needs

    width = table.shape[1:]
    none = jnp.zeros((0, *width), table.dtype), jnp.zeros((0,), jnp.int32)
    data = jnp.concatenate([none[0], *(row.reshape(-1, *width) for row in rows)])
    indices = jnp.concatenate([none[1], *(one.reshape(-1) for one in ids)])
    return BCOO((data, indices[:, None]), shape=table.shape)
