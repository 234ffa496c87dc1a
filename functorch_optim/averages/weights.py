"""Averages of the weights over training, as pure pairs.

With p_n the parameters of update n = 1, 2, ...:

    swa    a_1 = p_1,  a_{n+1} = a_n + (p_{n+1} - a_n) / (n + 1)          the mean of all
    ema    a_1 = p_1,  a_{n+1} = decay * a_n + (1 - decay) * p_{n+1}      recent ones weigh more

Stochastic weight averaging: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better
Generalization" (2018). The formulas are those of torch.optim.swa_utils. The averaged weights never
saw data: where a model keeps running statistics (batch norm), `update_bn` (batch_norm.py) computes
those of the averaged weights by a pass over the data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from functorch_optim.core import checks, trees
from functorch_optim.core.abstract import abstract_aware
from functorch_optim.core.arithmetic import as_float, float_dtype, is_number, one_minus_power
from functorch_optim.core.counting import LAST, increment
from functorch_optim.core.dtypes import from_real, real_dtype, to_real, widest
from functorch_optim.core.equal_pairs import value_equal
from functorch_optim.core.pair import Hyperparameter, Params, Scalar
from functorch_optim.core.recipe import Recorded
from functorch_optim.core.sums import check_state_dtype, in_sum_dtype, sum_dtype

AverageFunction = Callable[[Any, Any, Any], Any]
JointAverageFunction = Callable[[list[Any], list[Any], Any], Sequence[Any]]


class AverageState(NamedTuple):
    """What a weight average remembers.

    Attributes:
      n_averaged: how many parameters were averaged so far (int32, saturates at 2**31 - 1).
      average: their average; before the correction where `debias` is set.
      log_remaining: where `debias` is set and `decay` is a schedule, the logarithm of the product
        of all decays so far; else `None`.
    """

    n_averaged: Scalar
    average: Params
    log_remaining: Scalar | None = None


class _Fields(NamedTuple):
    init: Callable[[Params], AverageState]
    update: Callable[[Params, AverageState], tuple[Params, AverageState]]


class WeightAverage(Recorded, _Fields):
    """A pure pair that averages parameters.

    Attributes:
      init: `init(params) -> state`. The average in the state has the dtypes of `state_dtype`.
      update: `update(params, state) -> (average, state)`. The average that is returned has the
        parameters' dtypes. Where it is not compiled and nothing is corrected, it shares its arrays
        with the state, unless the dtypes differ.
    """


def swa_leaf(average: Any, current: Any, n_averaged: Any) -> jax.Array:
    """The mean of one more array: `average + (current - average) / (n_averaged + 1)`."""
    before, now = _reals(average, current)
    count = jnp.asarray(n_averaged).astype(before.dtype) + 1
    return from_real(before + (now - before) / count, jnp.result_type(average))


@dataclasses.dataclass(frozen=True)
class EmaLeaf:
    """`decay * average + (1 - decay) * current`, as a function of (average, current, n_averaged).

    Raises:
      ValueError: decay is a number outside of [0, 1], or an array of several elements.
      TypeError: it is no number, array or schedule.
    """

    decay: Any

    def __post_init__(self) -> None:
        checks.kind("decay", self.decay)
        checks.one_element("decay", self.decay)
        if is_number(self.decay) and not 0.0 <= self.decay <= 1.0:
            raise ValueError(
                f"Invalid decay value {self.decay} provided. Please provide a value in [0,1] range."
            )

    def __call__(self, average: Any, current: Any, n_averaged: Any) -> jax.Array:
        """The average of one more array."""
        before, now = _reals(average, current)
        decay = self.at(n_averaged)
        new = jnp.asarray(decay, before.dtype) * before + jnp.asarray(1 - decay, now.dtype) * now
        return from_real(new, jnp.result_type(average))

    def at(self, n_averaged: Any) -> Any:
        """The decay of an update: a number (so that `1 - decay` is exact), or a 0-d array."""
        if not callable(self.decay):
            return self.decay if is_number(self.decay) else as_float(self.decay).reshape(())
        value = self.decay(jnp.asarray(n_averaged).astype(jnp.int32))
        return value if is_number(value) else as_float(value)

    def weight(self, state: AverageState) -> tuple[Any, Scalar | None]:
        """What all the parameters weigh in an average from zeros after an update of this state.

        That is `1 - decay**n`, or 1 minus the product of a schedule's decays, whose logarithm is
        the second result.
        """
        if not callable(self.decay):
            return one_minus_power(self.at(0), as_float(jnp.asarray(state.n_averaged)) + 1), None
        total = jnp.asarray(state.log_remaining)
        total = total + jnp.log1p(-jnp.asarray(1 - self.at(state.n_averaged), total.dtype))
        return -jnp.expm1(total), total


@dataclasses.dataclass(frozen=True)
class Each:
    """A function of one array as a function of lists of them: a list of results."""

    function: AverageFunction

    def __call__(self, averages: list[Any], currents: list[Any], n_averaged: Any) -> list[Any]:
        """`n_averaged` reaches each function in the precision of its arrays."""
        results = []
        for average, current in zip(averages, currents, strict=True):
            # Ours take the count as it is: float32 is exact up to 2**24 only.
            ours = self.function is swa_leaf or isinstance(self.function, EmaLeaf)
            dtype = jnp.int32 if ours else real_dtype(jnp.result_type(average))
            results.append(self.function(average, current, jnp.asarray(n_averaged).astype(dtype)))
        return results


def _reals(average: Any, current: Any) -> tuple[jax.Array, jax.Array]:
    dtype = real_dtype(jnp.result_type(average))
    average, current = jnp.asarray(average), jnp.asarray(current)
    return to_real(average, dtype), to_real(current, dtype)


@value_equal
def swa_average(state_dtype: Any = None) -> WeightAverage:
    """The mean of all parameters so far, each with equal weight.

    Use it in the last part of training, with a learning rate that stays high::

        averaging = swa_average()
        averages = averaging.init(params)
        ...  # after each epoch
        average, averages = averaging.update(params, averages)

    The first update copies the parameters. Integers are always copied, `None` stays `None`.
    float16 and bfloat16 are computed, and kept in the state, in float32; what is returned is
    rounded to them once.

    Args:
      state_dtype: dtype of the average in the state. Default: `None`, float32 for float16 and
        bfloat16 parameters and the parameter's own otherwise. Another one, a real floating dtype,
        holds for all; a complex parameter's average is then complex, in that precision or
        complex64.

    Returns:
      A `WeightAverage` whose state is `AverageState`.
    """
    return average(swa_leaf, state_dtype)


@value_equal
def ema_average(
    decay: Hyperparameter = 0.999, debias: bool = False, state_dtype: Any = None
) -> WeightAverage:
    """The exponential moving average of the parameters.

    A bfloat16 average could not follow with a decay near 1, for `0.001 * p` is below its precision:
    the state's is float32, unless `state_dtype` says otherwise.

    Args:
      decay: the weight of the average so far, in [0, 1]: a number, an array, or a function of
        `n_averaged`. Default: 0.999.
      debias: start from zeros instead of the first parameters, and divide the average that is
        returned by the weight that the parameters have in it, `1 - decay**n` (as Adam does; for a
        schedule 1 minus the product of the decays). The state keeps it undivided. While that
        weight is 0, the current parameters are returned. Default: False.
      state_dtype: as in `swa_average`.

    Returns:
      A `WeightAverage` whose state is `AverageState`.

    Raises:
      ValueError: decay is a number outside of [0, 1], or 1 with debias. TypeError: it is no
        number, array or schedule.
    """
    leaf = EmaLeaf(decay)
    checks.flag("debias", debias)
    check_state_dtype(state_dtype)
    if not debias:
        return average(leaf, state_dtype)
    if is_number(decay) and decay == 1:
        raise ValueError("debias divides by 1 - decay**n, which is 0 with decay=1")

    @abstract_aware
    def init(params: Params) -> AverageState:
        log_remaining = jnp.zeros((), float_dtype()) if callable(decay) else None
        zeros = jax.tree.map(lambda p: _start_at_zero(p, state_dtype), params)
        return AverageState(jnp.zeros((), jnp.int32), zeros, log_remaining)

    def update(params: Params, state: AverageState) -> tuple[Params, AverageState]:
        _check_state(state)
        n = jnp.asarray(state.n_averaged).astype(jnp.int32)
        weight, log_remaining = leaf.weight(state)

        def step(before: list[Any], now: list[Any]) -> list[Any]:
            return Each(leaf)(before, now, n)

        def corrected(raw: Any, p: Any) -> Any:
            some = jnp.where(weight > 0, weight, jnp.ones_like(weight))
            dtype = real_dtype(raw.dtype)
            divided = to_real(raw, dtype) / some.astype(dtype)
            return jnp.where(weight > 0, from_real(divided, raw.dtype), p)

        result, kept = _stepped(params, state.average, step, corrected)
        return result, AverageState(increment(n), kept, log_remaining)

    return WeightAverage(init, update)


@value_equal
def average(avg_fn: AverageFunction, state_dtype: Any = None) -> WeightAverage:
    """An average by any function of one array, the `avg_fn` of torch's `AveragedModel`.

    The first update copies the parameters, later ones call the function.

    Args:
      avg_fn: `avg_fn(average, params, n_averaged) -> average` of one leaf. It gets float16 and
        bfloat16 leaves in float32, and the count (1 at the second update) as a 0-d float of the
        leaf's precision; it is traced where the update is.
      state_dtype: as in `swa_average`.

    Returns:
      A `WeightAverage` whose state is `AverageState`.

    Raises:
      TypeError: avg_fn is no function. ValueError, at update: its result has another shape.
    """
    if not callable(avg_fn):
        raise TypeError(
            f"avg_fn should be a function of (average, params, n_averaged), but got {avg_fn!r}"
        )
    return joint_average(Each(avg_fn), state_dtype)


@value_equal
def joint_average(multi_avg_fn: JointAverageFunction, state_dtype: Any = None) -> WeightAverage:
    """An average by a function of all arrays at once.

    Args:
      multi_avg_fn: `multi_avg_fn(averages, params, n_averaged) -> averages`, of lists that hold all
        leaves which are averaged, otherwise as in `average`; the count is a 0-d int32, below
        2**31 - 1, so that one more is no overflow.
      state_dtype: as in `swa_average`.

    Returns:
      A `WeightAverage` whose state is `AverageState`.

    Raises:
      TypeError: multi_avg_fn is no function; at update: it returns no list, or one of another
        length. ValueError, at update: one of its results has another shape.
    """
    if not callable(multi_avg_fn):
        raise TypeError(
            "multi_avg_fn should be a function of (averages, params, n_averaged), but got "
            f"{multi_avg_fn!r}"
        )
    check_state_dtype(state_dtype)

    @abstract_aware
    def init(params: Params) -> AverageState:
        first = jax.tree.map(lambda p: _fresh(in_sum_dtype(p, state_dtype)), params)
        return AverageState(jnp.zeros((), jnp.int32), first)

    def update(params: Params, state: AverageState) -> tuple[Params, AverageState]:
        _check_state(state)
        n = jnp.asarray(state.n_averaged).astype(jnp.int32)

        def step(before: list[Any], now: list[Any]) -> list[Any]:
            # At the first update the results are not used; a function that divides by the count
            # would make their derivatives NaN all the same.
            later = multi_avg_fn(list(before), list(now), jnp.clip(n, 1, LAST - 1))
            if not isinstance(later, Sequence) or len(later) != len(now):
                raise TypeError(
                    f"multi_avg_fn should return a list of {len(now)} arrays, but returned "
                    f"{type(later).__name__}; arrays are not changed in place here"
                )
            return [
                jnp.where(n == 0, p, _checked(new, p)) for new, p in zip(later, now, strict=True)
            ]

        result, kept = _stepped(params, state.average, step, lambda raw, p: raw)
        return result, AverageState(increment(n), kept, state.log_remaining)

    return WeightAverage(init, update)


def _fresh(p: Any) -> jax.Array:
    """A copy of an array for a state, that is not weakly typed."""
    if jnp.issubdtype(jnp.result_type(p), jax.dtypes.extended):  # a typed key
        return jnp.copy(p)
    p = jnp.asarray(p)
    return jax.lax.convert_element_type(jnp.copy(p), p.dtype)


def _start_at_zero(p: Any, state_dtype: Any) -> jax.Array:
    return jnp.zeros(np.shape(p), sum_dtype(p, state_dtype)) if _averaged(p) else _fresh(p)


def _averaged(p: Any) -> bool:
    return not trees.has_no_update(p)


def _checked(new: Any, p: jax.Array) -> jax.Array:
    new = jnp.asarray(new)
    if new.shape != p.shape:
        raise ValueError(
            f"the average of arrays of shape {p.shape} should have that shape, but has {new.shape}"
        )
    return new.astype(p.dtype)


def _returned(kept: Any, given: Any) -> Any:
    """The dtype of a returned average: the parameter's, or the state's if that alone is complex."""
    kinds = [jnp.issubdtype(dtype, jnp.complexfloating) for dtype in (kept, given)]
    return given if kinds[0] == kinds[1] else kept


def _check_state(state: Any) -> None:
    checks.state("update(params, state) of an average", AverageState, state)
    checks.scalars("update(params, state) of an average", state, "n_averaged")
    if state.log_remaining is not None:
        checks.scalars("update(params, state) of an average", state, "log_remaining")


def _stepped(
    params: Params,
    averages: Params,
    step: Callable[[list[Any], list[Any]], list[Any]],
    finish: Callable[[Any, Any], Any],
) -> tuple[Params, Params]:
    """The averages after an update: those to return (`finish(raw, p)`), and those to keep.

    `step` gets the leaves that are averaged, in the wider dtype of average and parameter, float32
    at least; its results are rounded once each: to the parameter's dtype, and to the state's. Other
    leaves are copied from the parameters.
    """
    before, treedef = trees.flatten(averages)
    now = trees.flatten_like(params, treedef, "an average: params", "average")
    trees.check_shapes(now, before, treedef, "an average: params", "average")
    chosen = [
        i for i, pair in enumerate(zip(before, now, strict=True)) if all(map(_averaged, pair))
    ]
    result = [
        a if p is None else None if a is None else _fresh(p)
        for a, p in zip(before, now, strict=True)
    ]
    kept = list(result)
    dtypes = [jnp.result_type(before[i]) for i in chosen]
    wide = [widest(dtype, jnp.result_type(now[i])) for i, dtype in zip(chosen, dtypes, strict=True)]
    for i in chosen:
        if jnp.iscomplexobj(now[i]) and not jnp.iscomplexobj(before[i]):
            raise TypeError(
                f"params are complex at {trees.path_of(treedef, i)}, where their average is real"
            )
    currents = [jnp.asarray(now[i]).astype(w) for i, w in zip(chosen, wide, strict=True)]
    starts = [jnp.asarray(before[i]).astype(w) for i, w in zip(chosen, wide, strict=True)]
    new = step(starts, currents)
    for i, raw, p, dtype in zip(chosen, new, currents, dtypes, strict=True):
        kept[i] = raw.astype(dtype)
        result[i] = finish(raw, p).astype(_returned(dtype, jnp.result_type(now[i])))
    return treedef.unflatten(result), treedef.unflatten(kept)
