"""Checks of hyperparameters that several algorithms share, in torch's words.

Only plain numbers are checked: the value of an array or of a schedule is not known yet.
"""

from __future__ import annotations

import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functorch_optim.core.arithmetic import is_number, is_whole


def kind(name: str, value: Any) -> None:
    """Raises TypeError unless value is a real number, an array of such, or a schedule."""
    if not (_is_real(value) or callable(value)):
        raise TypeError(
            f"{name} should be a number, an array or a schedule (a function of the step count), "
            f"but got {value!r} of type {type(value).__name__}"
        )


def number_or_array(name: str, value: Any) -> None:
    """Raises TypeError for what has no value of its own, where no step count is at hand."""
    if not _is_real(value):
        raise TypeError(
            f"{name} should be a number or an array, but got {value!r} of type "
            f"{type(value).__name__}"
        )


def _is_real(value: Any) -> bool:
    if isinstance(value, jax.Array | np.ndarray | np.generic) and not isinstance(value, np.bool_):
        return jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)
    return isinstance(value, numbers.Real | np.bool_)


def number_or_schedule(name: str, value: Any, may_be_nan: bool = False) -> None:
    """Raises unless value is a number, an array of one element or a schedule.

    Raises:
      TypeError: it is none of these. ValueError: it has several elements, is NaN, or too large.
    """
    kind(name, value)
    one_element(name, value)
    if not is_number(value):
        return
    try:
        is_nan = math.isnan(value)
    except OverflowError:
        raise ValueError(f"{name} is too large for a float: {value}") from None
    if is_nan and not may_be_nan:
        raise ValueError(f"Invalid {name} value: {value}")


def finite(**arguments: Any) -> None:
    """Raises ValueError for the first number that is infinite."""
    for name, value in arguments.items():
        if is_number(value) and value in (math.inf, -math.inf):
            raise ValueError(f"{name} should be finite, but is {value}")


def number_from_schedule(name: str, value: Any) -> None:
    """Raises unless a schedule returned one real number.

    Raises:
      TypeError: it returned something else. ValueError: several numbers.
    """
    if not _is_real(value):
        raise TypeError(
            f"{name} is a schedule, which should return a number, but returned {value!r} of type "
            f"{type(value).__name__}"
        )
    if np.size(value) != 1:
        raise ValueError(
            f"{name} is a schedule, which should return one number, but returned an array of "
            f"shape {np.shape(value)}"
        )


def several(name: str, value: Any, wanted: int) -> None:
    """Raises unless value is a tuple (or list) of so many elements.

    Raises:
      TypeError: it is none. ValueError: it has another length.
    """
    if not isinstance(value, tuple | list):
        raise TypeError(
            f"{name} should be a tuple of {wanted} values, but got {value!r} of type "
            f"{type(value).__name__}"
        )
    if len(value) != wanted:
        raise ValueError(f"{name} must be exactly {wanted} values, but got {len(value)}")


def word(name: str, value: Any) -> None:
    """Raises TypeError unless value is a str."""
    if not isinstance(value, str):
        raise TypeError(
            f"{name} should be a word, but got {value!r} of type {type(value).__name__}"
        )


def flag(name: str, value: Any) -> None:
    """Raises TypeError unless value is True or False: a word is true, whatever it says."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(
            f"{name} should be True or False, but got {value!r} of type {type(value).__name__}"
        )


def count(name: str, value: Any, least: int = 1) -> None:
    """Raises unless value is a whole number of at least `least`: it selects code.

    Raises:
      TypeError: it is no whole number. ValueError: it is smaller.
    """
    whole(name, value)
    if value < least:
        raise ValueError(f"{name} should be at least {least}, but is {value}")


def whole(name: str, value: Any) -> None:
    """Raises TypeError unless value is a whole number."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(
            f"{name} should be a whole number, but got {value!r} of type {type(value).__name__}"
        )


def number_of_times(name: str, value: Any) -> None:
    """Raises unless value is a count that may be traced: a whole number, such an array, a schedule.

    Raises:
      TypeError: it is none of these. ValueError: it is below 0, or several.
    """
    kind(name, value)
    one_element(name, value)
    if not callable(value) and not is_whole(value):
        raise TypeError(f"{name} should be a whole number, but is {value!r}")
    if is_number(value):
        count(name, value, least=0)


def at_least_zero(name: str, value: Any, message: str) -> None:
    """Raises ValueError(message) for a number below 0 or NaN."""
    kind(name, value)
    if is_number(value) and not value >= 0.0:
        raise ValueError(f"{message}: {value}")


def not_negative(**arguments: Any) -> None:
    """Checks arguments that are numbers or arrays, the numbers at least 0, in the order given.

    Raises:
      TypeError: one is neither a number nor an array. ValueError: one is below 0 or NaN.
    """
    for name, value in arguments.items():
        number_or_array(name, value)
        at_least_zero(name, value, f"Invalid {name} value")


def given(pair: str, argument: str, value: Any, reason: str) -> None:
    """Raises ValueError if update was called without an argument that a pair needs."""
    if value is None:
        call = "params" if argument == "params" else f"params, {argument}={argument}"
        raise ValueError(
            f"{pair}: the argument `{argument}` of update is missing, and it is needed because "
            f"{reason}. Call update(grads, state, {call})."
        )


# The state comes second, as in optax.
ORDER = "Call update(grads, state, params), in this order"


def state(pair: str, kind: Any, given: Any) -> None:
    """Raises TypeError if update was called with something else than a pair's own state.

    A state is known by its class's name and fields: a class that was pickled is another object.
    """
    its = type(given).__name__, getattr(given, "_fields", None)
    if not isinstance(given, kind) and its != (kind.__name__, kind._fields):
        raise TypeError(
            f"{pair}: state should be the {kind.__name__} that init returned, but is a "
            f"{type(given).__name__}. {ORDER}"
        )


def learning_rate(lr: Any) -> None:
    """torch's checks of lr: one element, not below 0, not NaN."""
    one_element("lr", lr)
    at_least_zero("lr", lr, "Invalid learning rate")


def one_element(name: str, value: Any) -> None:
    """Raises ValueError for an array of several elements."""
    if isinstance(value, jax.Array | np.ndarray) and value.size != 1:
        raise ValueError(f"Tensor {name} must be 1-element")


def adam_family(lr: Any, betas: Any, eps: Any, weight_decay: Any) -> None:
    """torch's checks of the hyperparameters that all variants of Adam have, in its order."""
    learning_rate(lr)
    at_least_zero("eps", eps, "Invalid epsilon value")
    averages(betas)
    at_least_zero("weight_decay", weight_decay, "Invalid weight_decay value")


def averages(betas: Any) -> None:
    """torch's checks of the coefficients of the running averages: in [0, 1)."""
    for index, beta in enumerate(betas):
        kind(f"betas[{index}]", beta)
        if is_number(beta) and not 0.0 <= beta < 1.0:
            raise ValueError(f"Invalid beta parameter at index {index}: {beta}")


def real(**arguments: Any) -> None:
    """Checks arguments that are real numbers or arrays of such, in the order given.

    Raises:
      TypeError: one is neither. ValueError: one is NaN.
    """
    for name, value in arguments.items():
        if isinstance(value, np.generic):
            is_real = jnp.issubdtype(value.dtype, jnp.floating) or isinstance(
                value, np.integer | np.bool_
            )
        else:
            is_real = isinstance(value, numbers.Real) or (not is_number(value) and _is_real(value))
        if not is_real:
            raise TypeError(
                f"{name} should be a number or an array, but got {value!r} of type "
                f"{type(value).__name__}"
            )
        if is_number(value) and value != value:
            raise ValueError(f"{name} should be a number, but is {value}")


def function(name: str, value: Any, of: str = "the step count") -> None:
    """Raises TypeError for what cannot be called."""
    if not callable(value):
        raise TypeError(
            f"{name} should be a function of {of}, but got {value!r} of type {type(value).__name__}"
        )


def returned(name: str, value: Any) -> Any:
    """What a function of the user's returned, if that is a real number or an array of such.

    Raises:
      TypeError: it is something else: `None` of a function that forgot its return.
    """
    is_array = isinstance(value, jax.Array | np.ndarray)
    if not (is_array and value.dtype == bool):
        kind = numbers.Real | np.generic
        if not _is_real(value) or (not is_array and not isinstance(value, kind)):
            raise TypeError(
                f"{name} should return a number or an array, but returned {value!r} of type "
                f"{type(value).__name__}"
            )
    return value


def scalars(pair: str, given: Any, *fields: str) -> None:
    """Raises ValueError unless these fields of a state hold one number each."""
    for field in fields:
        shape = np.shape(getattr(given, field))
        if shape != ():
            raise ValueError(f"{pair}: state.{field} should be one number, but has shape {shape}")


def number(
    name: str,
    value: Any,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> None:
    """Checks one real number, or an array of one element, whose value is not looked at.

    Args:
      name: of the argument.
      value: what was given for it.
      least: the number is at least this.
      most: at most.
      above: larger than this.
      below: smaller than this.

    Raises:
      TypeError: it is neither. ValueError: it is NaN or out of its range, or an array has several
        elements.
    """
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} should be a number or an array, but got {value!r} of type bool")
    number_or_array(name, value)
    one_element(name, value)
    if is_number(value) and not (
        value == value
        and (least is None or value >= least)
        and (most is None or value <= most)
        and (above is None or value > above)
        and (below is None or value < below)
    ):
        raise ValueError(f"Invalid {name} value: {value}")


def length(name: str, value: Any, least: int = 1) -> None:
    """Checks a whole number of at least `least`, or an array of one, whose value is not looked at.

    Raises:
      TypeError: it is True or False. ValueError: it is no whole number, too small, or too large for
        int32; an array has several elements.
    """
    if isinstance(value, jax.Array | np.ndarray):
        number_or_array(name, value)
        one_element(name, value)
        return
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} should be a whole number, but got {value!r} of type bool")
    if not (isinstance(value, int | np.integer) and least <= value <= np.iinfo(np.int32).max):
        kind = "positive" if least else "non-negative"
        raise ValueError(f"Expected {kind} integer {name}, but got {value}")
