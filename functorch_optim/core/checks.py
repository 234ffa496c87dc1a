"""Checks of hyperparameters that several algorithms share, in torch's words.

Only plain numbers are checked: the value of an array or of a schedule is not known yet.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functorch_optim.core.arithmetic import is_number


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
    if isinstance(value, jax.Array | np.ndarray):
        return jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)
    return is_number(value) and not isinstance(value, complex | np.complexfloating)


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
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(
            f"{name} should be a whole number, but got {value!r} of type {type(value).__name__}"
        )
    if value < least:
        raise ValueError(f"{name} should be at least {least}, but is {value}")


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


def state(pair: str, kind: Any, given: Any) -> None:
    """Raises TypeError if update was called with something else than a pair's own state."""
    if not all(hasattr(given, field) for field in kind._fields):
        raise TypeError(
            f"{pair}: state should be the {kind.__name__} that init returned, but is a "
            f"{type(given).__name__}"
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


def own_state(pair: str, kind: Any, given: Any) -> None:
    """Raises TypeError unless a state is of a pair's own class.

    A class that was made anew (by a reload, by unpickling) is known by its name and fields.
    """
    fields = getattr(given, "_fields", None)
    same = type(given).__name__ == kind.__name__ and fields == kind._fields
    if not (isinstance(given, kind) or same):
        raise TypeError(
            f"{pair}: state should be the {kind.__name__} that init returned, but is a "
            f"{type(given).__name__}"
        )


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
