"""Running statistics of batch norm, computed anew for weights that never saw data.

A library's running statistic is `new = m * old + (1 - m) * s`, where s is that of the batch. Three
starting values tell m and s apart:

    old = 0      gives (1 - m) * s, without the rounding that a large m * old brings
    old = 2**k   of the largest size absorbs s, and gives m as the library rounded it, exactly
    old = 1      tells whether this holds at all

1 - m is not taken from the rounded m (with 0.999 it would be off by 1.3e-5), but from the shortest
decimal that is m within its rounding: what somebody wrote into a constructor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from functorch_optim.core import trees

Stats = TypeVar("Stats")


def update_bn(
    batches: Iterable[Any], apply_fn: Callable[[Stats, Any], Stats], stats: Stats
) -> Stats:
    """Running statistics of batch norm, computed anew: their mean over batches.

    What torch.optim.swa_utils.update_bn does, for the statistics of any library: each batch has
    the same weight. The variance is whichever the library keeps (flax's and equinox's are biased,
    torch's is not). Nothing needs to be known of the library but that it keeps moving averages,
    `m * old + (1 - m) * batch`; m and the statistics of the batch are found from three starting
    values, to the last digits.

    With flax's linen::

        def apply_fn(batch_stats, images):
            variables = {"params": average, "batch_stats": batch_stats}
            return model.apply(variables, images, mutable=["batch_stats"])[1]["batch_stats"]

        batch_stats = update_bn(batches, jax.jit(apply_fn), batch_stats)

    Args:
      batches: any iterable; gone through once.
      apply_fn: `apply_fn(stats, batch) -> stats`, the forward pass in training mode. It is called
        under `jax.vmap` over the starting values, which costs about one forward pass, for in
        training mode nothing but the statistics depends on them; a function that cannot be traced
        is called three times. Give a compiled one.
      stats: a tree of statistics, as the library has it. The values of floating point leaves do
        not matter, but one that apply_fn does not change (a frozen layer's) is kept. Signed
        integers are counters: they are 0 for each batch, and in the result (where equinox's
        BatchNorm then corrects nothing). Other leaves are those of the last batch. A library that
        normalizes with its running statistics while it trains (equinox with mode="ema") needs the
        state of a new model here, whose first batch is normalized with its own.

    Returns:
      The tree with the means, in the dtypes of `stats`; `stats` itself if there is nothing
      floating point in it, without a look at the batches.

    Raises:
      ValueError: there is no batch (torch leaves the statistics at 0 and 1); apply_fn changes
        nothing, or a leaf that is no moving average. TypeError: apply_fn returns another structure.
    """
    start, treedef = trees.flatten(stats)
    running = [i for i, x in enumerate(start) if _runs(x)]
    if not running:
        return stats
    start = [None if x is None else jnp.asarray(x) for x in start]
    start = [jnp.zeros_like(x) if _is_counter(x) else x for x in start]
    probe = _probing(apply_fn, start, running, treedef)
    total: dict[int, np.ndarray] = {}
    last: list[Any] = []
    count = 0
    for batch in batches:
        count += 1
        last = probe(batch)
        if count == 1:
            changed = [i for i in running if not _is_untouched(last[i], start[i].dtype)]
            if not changed:
                raise ValueError(
                    "update_bn: apply_fn changes none of the statistics. It should be the forward "
                    "pass in training mode, and return the new statistics"
                )
            if changed != running:  # anew, with what is kept at its own values
                running = changed
                probe = _probing(apply_fn, start, running, treedef)
                last = probe(batch)
        for i in running:
            found = _batch_statistic(last[i], start[i].dtype)
            if found is None:
                raise ValueError(
                    f"update_bn: the statistic at {trees.path_of(treedef, i)} is no moving "
                    "average m * old + (1 - m) * batch of its own old value, with m in [0, 1). If "
                    "the model normalizes with its running statistics while it trains, give the "
                    "statistics of a newly made model; what is no statistic of batch norm should "
                    "not be in `stats`"
                )
            total[i] = total.get(i, 0.0) + found
    if not count:
        raise ValueError("update_bn: there is no batch to compute statistics of")
    result = [x if _is_counter(x) or _runs(x) else out for x, out in zip(start, last, strict=True)]
    for i in running:
        mean = (total[i] / count).astype(start[i].dtype)
        result[i] = jax.device_put(mean, start[i].sharding if start[i].committed else None)
    return treedef.unflatten(result)


def _runs(x: Any) -> bool:
    return not trees.has_no_update(x)


def _is_counter(x: Any) -> bool:
    return x is not None and jnp.issubdtype(x.dtype, jnp.signedinteger)


def _starting_values(dtype: Any) -> np.ndarray:
    return np.array([0.0, 1.0, 2.0 ** (jnp.finfo(dtype).maxexp - 2)])


def _probing(
    apply_fn: Callable[[Any, Any], Any],
    start: Sequence[Any],
    running: Sequence[int],
    treedef: jax.tree_util.PyTreeDef,
) -> Callable[[Any], list[Any]]:
    """A function of a batch: what apply_fn makes of the leaves.

    Those that run are found from each starting value, in double; others from their own values.
    """

    def apply(values: Sequence[jax.Array], batch: Any) -> list[Any]:
        filled = list(start)
        for i, value in zip(running, values, strict=True):
            filled[i] = value
        new = apply_fn(treedef.unflatten(filled), batch)
        name = "the result of apply_fn"
        found = trees.flatten_like(new, treedef, name, "stats")
        trees.check_shapes(found, filled, treedef, name, "stats")
        return found

    values = [
        jnp.stack([jnp.full_like(start[i], x) for x in _starting_values(start[i].dtype)])
        for i in running
    ]

    def probe(batch: Any) -> list[Any]:
        try:  # copies, since a compiled apply_fn may take the memory of its argument
            outcome = jax.vmap(lambda values: apply(values, batch))([jnp.copy(x) for x in values])
        except Exception:
            # It looks at values, or changes a model in place: one at a time, then. What is wrong
            # with it otherwise is raised here again.
            each = [apply([x[k] for x in values], batch) for k in range(3)]
            outcome = [None if xs[0] is None else jnp.stack(xs) for xs in zip(*each, strict=True)]
        arrays = jax.device_get([outcome[i] for i in running])
        found = [None if x is None or i in running else x[0] for i, x in enumerate(outcome)]
        for i, array in zip(running, arrays, strict=True):
            found[i] = _in_double(array)
        return found

    return probe


def _in_double(x: np.ndarray) -> np.ndarray:
    return x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)


def _is_untouched(outcome: np.ndarray, dtype: Any) -> bool:
    values = _starting_values(dtype)
    return bool(np.all(outcome == values.reshape(-1, *[1] * (outcome.ndim - 1))))


def _batch_statistic(outcome: np.ndarray, dtype: Any) -> np.ndarray | None:
    """The statistic of the batch, from the outcomes of the three starting values.

    `None` if they are not those of a moving average.
    """
    from_zero, from_one, from_largest = outcome
    eps = float(jnp.finfo(dtype).eps)
    with np.errstate(invalid="ignore"):  # NaN and infinities are refused right here
        m = np.real(from_largest - from_zero) / _starting_values(dtype)[2]
        m = np.where(np.abs(m) <= eps, 0.0, m)
        error = np.abs(from_one - (m + from_zero))
        fits = (error <= 64 * eps * np.maximum(1.0, np.abs(from_zero))) & (m >= 0) & (m < 1)
    if not np.all(fits):
        return None
    values, places = np.unique(m, return_inverse=True)
    decimals = np.array([_shortest_decimal(float(x), dtype) for x in values])
    return from_zero / (1 - decimals[places].reshape(m.shape))


def _real_part(dtype: Any) -> np.dtype:
    return np.zeros((), dtype).real.dtype


def _shortest_decimal(x: float, dtype: Any) -> float:
    """The decimal of the fewest digits that this dtype rounds to x."""
    for digits in range(1, 17):
        decimal = float(f"{x:.{digits}g}")
        if float(np.asarray(decimal, _real_part(dtype))) == x:
            return decimal
    return x
