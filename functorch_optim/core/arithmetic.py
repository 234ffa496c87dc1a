"""Arithmetic on step-dependent numbers: exact in double on the host, accurate when traced.

Every function takes Python numbers or 0-d arrays. With numbers alone the result is a Python
number computed in double, as torch computes its scalars. With an array the result is traced, in
a form that stays accurate in float32: `1 - beta**t` with beta = 0.999 loses 13 bits there, the
form used here loses one.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functorch_optim.core.pair import Number


def is_number(x: Any) -> bool:
    """Whether x is a plain number, whose value is known now."""
    return isinstance(x, numbers.Number | np.generic)


def float_dtype() -> np.dtype:
    """The widest float in use: float64 with x64 enabled, float32 without."""
    return jax.dtypes.canonicalize_dtype(np.float64)


def as_float(x: Any) -> Any:
    """A number as it is; an array (a step count, say) as the widest float in use.

    A whole number that no int32 holds is a float: beside an array it would overflow.
    """
    if is_number(x):
        return float(x) if isinstance(x, int) and not -(2**31) <= x < 2**31 else x
    return jnp.asarray(x).astype(float_dtype())


def align(*xs: Any) -> tuple[Any, ...]:
    """The same numbers in one kind: whole numbers as they are, otherwise all as floats.

    Counts and lengths stay integers as long as possible: float32 is exact only up to 2**24.
    """
    if all(is_number(x) for x in xs) or all(is_whole(x) for x in xs):
        return xs
    return tuple(float(x) if is_number(x) else as_float(x) for x in xs)


def is_whole(x: Any) -> bool:
    """Whether x is an integer, or an array of such."""
    return isinstance(x, int) or jnp.issubdtype(jnp.result_type(x), jnp.integer)


def _either(on_numbers: Callable[..., Any], on_arrays: Callable[..., Any]) -> Callable[..., Any]:
    def function(*args: Any) -> Any:
        args = align(*args)
        return (on_numbers if all(is_number(x) for x in args) else on_arrays)(*args)

    return function


def _of_counts(
    on_numbers: Callable[..., Any],
    on_arrays: Callable[..., Any],
    count_and_far: Callable[..., Any] | None = None,
    far_and_count: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Of two numbers, one of which may be a whole number that the other's integers do not reach.

    A count inside jit has 32 bits, a length that the user writes has as many as it needs. What is
    beyond every count is handled by a function of its own, or else in floats.
    """
    plain = _either(on_numbers, on_arrays)

    def in_floats(x: Any, y: Any) -> Any:
        return plain(as_float(x), as_float(y))

    def function(x: Any, y: Any) -> Any:
        if _is_beyond(y, x):
            return (count_and_far or in_floats)(x, y)
        if _is_beyond(x, y):
            return (far_and_count or in_floats)(x, y)
        return plain(x, y)

    return function


def _is_beyond(x: Any, count: Any) -> bool:
    if not isinstance(x, int) or is_number(count) or not is_whole(count):
        return False
    return x > int(jnp.iinfo(jnp.result_type(count)).max)


def _far_minus_count(far: int, count: Any) -> Any:
    # Of two parts that are not negative, the first exact: nothing is lost where they are close.
    last = int(jnp.iinfo(jnp.result_type(count)).max)
    left = as_float(last - jnp.maximum(count, 0)) - as_float(jnp.minimum(count, 0))
    return left + float(far - last)


def _always(answer: bool) -> Callable[..., Any]:
    return lambda x, y: jnp.full(jnp.shape(y if is_number(x) else x), answer)


minimum = _of_counts(min, jnp.minimum, lambda count, far: count, lambda far, count: count)
maximum = _of_counts(max, jnp.maximum)
# A count is not negative: all of it is left, and no whole part.
quotient = _of_counts(operator.floordiv, operator.floordiv, lambda count, far: count * 0)
remainder = _of_counts(operator.mod, operator.mod, lambda count, far: count)
subtract = _of_counts(
    operator.sub, operator.sub, lambda count, far: -_far_minus_count(far, count), _far_minus_count
)
at_least = _of_counts(operator.ge, operator.ge, _always(False), _always(True))
equal = _of_counts(operator.eq, operator.eq, _always(False), _always(False))
cos = _either(math.cos, jnp.cos)
sin = _either(math.sin, jnp.sin)
exp = _either(math.exp, jnp.exp)
log = _either(math.log, jnp.log)


def float32(x: Any) -> Any:
    """x rounded to float32, for numbers that torch keeps so: a number again, or a wide array."""
    return float(np.float32(x)) if is_number(x) else as_float(jnp.asarray(x, jnp.float32))


def where(condition: Any, x: Any, y: Any) -> Any:
    """x where the condition holds, else y."""
    if isinstance(condition, bool | np.bool_):
        return x if condition else y
    return jnp.where(condition, *(jnp.asarray(v, float_dtype()) for v in (x, y)))


@jax.custom_jvp
def _sqrt(x: jax.Array) -> jax.Array:
    return jnp.sqrt(x)


@_sqrt.defjvp
def _sqrt_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[Any, Any]:
    (x,), (dx,) = primals, tangents
    root = _sqrt(x)
    at_zero = root == 0
    slope = jnp.where(at_zero, jnp.zeros_like(x), 0.5 / jnp.where(at_zero, jnp.ones_like(x), root))
    return root, slope * dx


def sqrt(x: Any) -> Any:
    """Square root, whose derivative at 0 is taken as 0 instead of infinity.

    A second moment is 0 wherever every gradient so far was 0, and d sqrt(g*g)/dg is finite there:
    without this, `jax.grad` through an update gives NaN.
    """
    return math.sqrt(x) if is_number(x) else _sqrt(x)


def share(weight: Any, x: Any) -> jax.Array:
    """`weight * x`, where a weight of 0 takes nothing of what is infinite, or NaN, either."""
    nothing = (weight == 0) & ~jnp.isfinite(x)
    return weight * jnp.where(nothing, jnp.zeros_like(x), x)


@jax.custom_jvp
def _one_minus_power(beta: jax.Array, t: jax.Array) -> jax.Array:
    return -jnp.expm1(t * jnp.log(beta))


@_one_minus_power.defjvp
def _one_minus_power_jvp(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
    # The closed derivative, finite at beta = 0, where the chain rule through log is not.
    (beta, t), (dbeta, dt) = primals, tangents
    positive = beta > 0
    log_beta = jnp.where(positive, jnp.log(jnp.where(positive, beta, jnp.ones_like(beta))), 0)
    slopes = -t * beta ** (t - 1), -(beta**t) * log_beta
    return _one_minus_power(beta, t), slopes[0] * dbeta + slopes[1] * dt


def one_minus_power(beta: Number, t: Number) -> Number:
    """`1 - beta**t`, the bias correction of a running average after t updates."""
    if is_number(beta) and is_number(t):
        return 1 - beta**t
    if is_number(beta):  # the logarithm in double, rounded once
        log_beta = math.log(beta) if beta > 0 else -math.inf
        return -jnp.expm1(jnp.asarray(t) * np.asarray(log_beta, jnp.asarray(t).dtype))
    beta_array = as_float(beta)
    return _one_minus_power(beta_array, jnp.asarray(t, beta_array.dtype))


def power(base: Number, exponent: Number) -> Any:
    """`base**exponent`; too large a number is infinity, as it is in an array.

    Rounding a base to float32 changes a power of 10 million by a third. A base that is a number is
    therefore split into its rounding and the ratio to it, whose small logarithm is taken in double.
    """
    if is_number(base) and is_number(exponent):
        try:
            return base**exponent
        except OverflowError:
            return math.inf
    exponent = jnp.asarray(exponent, float_dtype())
    if not is_number(base):
        base = as_float(base)
        # The derivative of 0**0 with respect to the base is 0 here, and NaN in jnp.power.
        constant = (base == 0) & (exponent == 0)
        return jnp.power(jnp.where(constant, jnp.ones_like(base), base), exponent)
    rounded = jnp.asarray(base, exponent.dtype)
    ratio = _ratio_to_rounding(float(base), exponent.dtype)
    return jnp.power(rounded, exponent) * jnp.exp(exponent * math.log(ratio))


def _ratio_to_rounding(x: float, dtype: np.dtype) -> float:
    rounded = float(np.asarray(x, dtype))
    return x / rounded if rounded and math.isfinite(rounded) else 1.0
