"""Momentum as transforms of their own: a decaying sum of the updates, and their running average.

    trace:  t_k = g_k + decay * t_{k-1}             nesterov returns g_k + decay * t_k
    ema:    m_k = decay * m_{k-1} + (1 - decay) * g_k
                                                    debias returns m_k / (1 - decay**k)

Polyak, "Some methods of speeding up the convergence of iteration methods", 1964. Sutskever,
Martens, Dahl, Hinton, "On the importance of initialization and momentum in deep learning", ICML
2013 (nesterov). Kingma, Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015 (debias).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax

from functorch_optim.core import checks, trees
from functorch_optim.core.abstract import abstract_aware
from functorch_optim.core.arithmetic import is_number, one_minus_power
from functorch_optim.core.equal_pairs import value_equal
from functorch_optim.core.pair import (
    GradientTransformation,
    Hyperparameter,
    Pair,
    Params,
    PerParam,
    Scalar,
    State,
    Updates,
)
from functorch_optim.core.sums import check_state_dtype, in_sum_dtype
from functorch_optim.rules.numbers import StepNumbers
from functorch_optim.rules.pair import per_leaf
from functorch_optim.rules.rule import Buffers, Rule, zeros


class TraceState(NamedTuple):
    """`step` counts updates (int32, saturates at 2**31 - 1); `trace` is their decaying sum."""

    step: Scalar
    trace: PerParam


def _trace_scalars(t: Any, h: SimpleNamespace) -> StepNumbers:
    return StepNumbers(flags={"nesterov": h.nesterov}, decay_rate=h.decay)


def _trace_leaf(
    g: jax.Array, p: Any, buffers: Buffers, s: StepNumbers
) -> tuple[jax.Array, Buffers]:
    (total,) = buffers
    total = g + s.decay_rate * total
    return g + s.decay_rate * total if s.nesterov else total, (total,)


@per_leaf(Rule("trace", TraceState, zeros(1), _trace_scalars, _trace_leaf))
def _trace(decay: Hyperparameter, nesterov: bool) -> None:
    checks.at_least_zero("decay", decay, "Invalid decay value")
    checks.one_element("decay", decay)
    checks.flag("nesterov", nesterov)


@value_equal
def trace(
    decay: Hyperparameter = 0.9, nesterov: bool = False, state_dtype: Any = None
) -> GradientTransformation:
    """A decaying sum of the updates: momentum, as `sgd` has it.

    `chain(trace(0.9), scale(-lr))` is SGD with momentum; `chain(scale(-lr), trace(0.9))` is the
    same while lr is constant, and otherwise keeps in the sum what lr was at each step.

    Args:
      decay: what the sum is multiplied by at each step; at least 0. A number, an array or a
        schedule.
      nesterov: look ahead by one momentum step.
      state_dtype: dtype of the sum. Default: `None`, float32 for float16 and bfloat16 parameters
        and the parameter's own otherwise. Another one, a real floating dtype, holds for all; a
        complex parameter's sum is then complex, in that precision or complex64.

    Returns:
      A pair whose state is `TraceState`.

    Raises:
      ValueError: decay is below 0, NaN or several. TypeError: it is not a number, an array or a
        schedule; nesterov is no bool, state_dtype no real floating dtype.
    """
    return _with_state_dtype("trace", TraceState, _trace(decay, nesterov), state_dtype)


class EmaState(NamedTuple):
    """`step` counts updates (int32, saturates at 2**31 - 1); `ema` is their average, 0 at first."""

    step: Scalar
    ema: PerParam


def _ema_scalars(t: Any, h: SimpleNamespace) -> StepNumbers:
    return StepNumbers(
        decay_rate=h.decay,
        new_weight=1 - h.decay,
        total_weight=one_minus_power(h.decay, t) if h.debias else None,
    )


def _ema_leaf(g: jax.Array, p: Any, buffers: Buffers, s: StepNumbers) -> tuple[jax.Array, Buffers]:
    (average,) = buffers
    average = s.decay_rate * average + s.new_weight * g
    return average if s.total_weight is None else average / s.total_weight, (average,)


@per_leaf(Rule("ema", EmaState, zeros(1), _ema_scalars, _ema_leaf))
def _ema(decay: Hyperparameter, debias: bool) -> None:
    checks.kind("decay", decay)
    checks.one_element("decay", decay)
    checks.flag("debias", debias)
    if is_number(decay) and not 0.0 <= decay < 1.0:  # type: ignore[operator]  # a number here
        raise ValueError(f"Invalid decay value: {decay}")


@value_equal
def ema(
    decay: Hyperparameter = 0.9, debias: bool = True, state_dtype: Any = None
) -> GradientTransformation:
    """An exponential running average of the updates.

    Args:
      decay: weight of the average so far, in [0, 1). A number, an array or a schedule (the debiased
        average then takes the decay of each update for that of all before it, as `adam` does).
      debias: divide by the sum of the weights, so that the first updates are not too small.
      state_dtype: dtype of the average, as in `trace`.

    Returns:
      A pair whose state is `EmaState`.

    Raises:
      ValueError: decay is outside of [0, 1) or several. TypeError: it is not a number, an array or
        a schedule; debias is no bool, state_dtype no real floating dtype.
    """
    return _with_state_dtype("ema", EmaState, _ema(decay, debias), state_dtype)


def _with_state_dtype(name: str, kind: Any, tx: Pair, state_dtype: Any) -> GradientTransformation:
    """A pair whose buffer has the dtype of a sum: a rule keeps the dtype that it had at init."""
    check_state_dtype(state_dtype)
    (field,) = set(kind._fields) - {"step"}

    @abstract_aware
    def init(params: Params) -> State:
        ps, treedef = trees.flatten(params)
        trees.check_arrays(ps, treedef, "params")
        return tx.init(treedef.unflatten([in_sum_dtype(p, state_dtype) for p in ps]))

    def update(
        updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        checks.state(name, kind, state)
        checks.scalars(name, state, "step")
        us, treedef = trees.flatten(updates)
        label = f"{name}: state.{field}"
        kept = trees.flatten_like(getattr(state, field), treedef, label, "updates")
        trees.check_shapes(kept, us, treedef, label, "updates")
        return tx.update(updates, state, params, **extra)

    return GradientTransformation(init, update)
