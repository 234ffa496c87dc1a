"""Clipping of the gradients of Parameters, as torch.nn.utils does it."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from functorch_optim.core import checks, trees, updating
from functorch_optim.core.arithmetic import is_number
from functorch_optim.core.dtypes import real_dtype, widest
from functorch_optim.stateful.memory.cell import Changes
from functorch_optim.stateful.model import all_parameters
from functorch_optim.stateful.parameter import Parameter
from functorch_optim.transforms.clipping import global_norm, scaled_to


def clip_grad_norm_(
    parameters: Any,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> jax.Array:
    """Scales the gradients of all Parameters together so that their norm is at most `max_norm`.

    Every gradient is multiplied by `min(1, max_norm / (norm + 1e-6))`. Compiled; `max_norm` may
    change without a recompile.

    Args:
      parameters: a Parameter, an iterable of them, or a model. Those without gradient are skipped.
      max_norm: the bound.
      norm_type: the order of the norm, of all elements together; `math.inf` for the maximum.
      error_if_nonfinite: raise if the norm is NaN or infinite (waits for the device).
      foreach: accepted and ignored.

    Returns:
      The norm before clipping, a 0-d array.

    Raises:
      RuntimeError: the norm is not finite and `error_if_nonfinite` is set; nothing is changed.
      TypeError: an argument is of another kind. ValueError: max_norm is below 0, or NaN.
    """
    checks.number("max_norm", max_norm, least=0.0)
    _check_norm_type(norm_type)
    checks.flag("error_if_nonfinite", error_if_nonfinite)
    chosen = _with_gradients(parameters)
    if not chosen:
        return jnp.zeros(())
    grads = tuple(p.grad for p in chosen)
    bound = float(max_norm) if is_number(max_norm) else max_norm
    norm, clipped = _clipped_by_norm(grads, bound, float(norm_type))
    if error_if_nonfinite:
        _check_finite(norm, float(norm_type))
    _give(chosen, clipped)
    return norm


def get_total_norm(
    tensors: Any,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> jax.Array:
    """The norm of all elements of some arrays together. Compiled.

    Args:
      tensors: an array, or an iterable or tree of them: of gradients, say. `None` is passed over,
        a Parameter counts by its value.
      norm_type: the order of the norm; `math.inf` for the maximum.
      error_if_nonfinite: raise if the norm is NaN or infinite (waits for the device).
      foreach: accepted and ignored.

    Returns:
      The norm, a 0-d array.

    Raises:
      RuntimeError: an array is not floating point; the norm is not finite and `error_if_nonfinite`
        is set. TypeError: an argument is of another kind.
    """
    _check_norm_type(norm_type)
    checks.flag("error_if_nonfinite", error_if_nonfinite)
    if isinstance(tensors, Iterator):
        tensors = list(tensors)
    found = [p.data if isinstance(p, Parameter) else p for p in trees.flatten(tensors)[0]]
    arrays = tuple(x if trees.is_sparse(x) else jnp.asarray(x) for x in found if x is not None)
    for x in arrays:
        if trees.has_no_update(x):
            raise RuntimeError(
                "linalg.vector_norm: Expected a floating point or complex tensor as input. Got "
                f"{x.dtype}"
            )
    if not arrays:
        return jnp.zeros(())
    norm = _total_norm(arrays, float(norm_type))
    if error_if_nonfinite:
        _check_finite(norm, float(norm_type))
    return norm


def clip_grads_with_norm_(
    parameters: Any, max_norm: float, total_norm: Any, foreach: bool | None = None
) -> None:
    """Scales the gradients by `min(1, max_norm / (total_norm + 1e-6))`: a norm that is known.

    Args:
      parameters: a Parameter, an iterable of them, or a model. Those without gradient are skipped.
      max_norm: the bound.
      total_norm: what `get_total_norm` returned, or a number.
      foreach: accepted and ignored.

    Raises:
      TypeError: an argument is of another kind. ValueError: max_norm is below 0, or NaN.
    """
    checks.number("max_norm", max_norm, least=0.0)
    checks.number_or_array("total_norm", total_norm)
    checks.one_element("total_norm", total_norm)
    chosen = _with_gradients(parameters)
    norm = total_norm if isinstance(total_norm, jax.Array) else jnp.asarray(total_norm, float)
    bound = float(max_norm) if is_number(max_norm) else max_norm
    _give(chosen, _scaled_to(tuple(p.grad for p in chosen), norm, bound))


def clip_grad_value_(parameters: Any, clip_value: float, foreach: bool | None = None) -> None:
    """Limits every element of the gradients to `[-clip_value, clip_value]`. Compiled.

    Args:
      parameters: a Parameter, an iterable of them, or a model. Those without gradient are skipped.
      clip_value: the bound, for real gradients.
      foreach: accepted and ignored.

    Raises:
      TypeError: clip_value is no number. ValueError: it is below 0, or NaN.
    """
    checks.number("clip_value", clip_value, least=0.0)
    chosen = _with_gradients(parameters)
    clipped = _clipped_by_value(tuple(p.grad for p in chosen), float(clip_value))
    _give(chosen, clipped)


def _with_gradients(parameters: Any) -> list[Parameter]:
    return [p for p in all_parameters(parameters) if p.grad is not None]


def _give(parameters: Sequence[Parameter], grads: Sequence[Any]) -> None:
    changes = Changes()
    changes.set(parameters, "_grad", grads)
    changes.make()


def _check_finite(norm: jax.Array, norm_type: float) -> None:
    if not math.isfinite(float(norm)):
        raise RuntimeError(
            f"The total norm of order {norm_type} for gradients from `parameters` is non-finite, "
            "so it cannot be clipped. To disable this error and scale the gradients by the "
            "non-finite norm anyway, set `error_if_nonfinite=False`"
        )


@functools.partial(jax.jit, static_argnums=2)
def _clipped_by_norm(
    grads: Sequence[Any], max_norm: Any, norm_type: float
) -> tuple[jax.Array, list[Any]]:
    norm = total_norm(grads, norm_type)
    return norm, scaled_to(list(grads), norm, max_norm)


@jax.jit
def _scaled_to(grads: Sequence[Any], norm: jax.Array, max_norm: Any) -> list[Any]:
    return scaled_to(list(grads), norm.reshape(()), max_norm)


def _check_norm_type(norm_type: Any) -> None:
    checks.number("norm_type", float(norm_type) if isinstance(norm_type, str) else norm_type)


def total_norm(grads: Sequence[Any], norm_type: float) -> jax.Array:
    """The norm of all elements together, in float32 at least."""
    if norm_type == 2.0:
        return global_norm(list(grads))
    # The elements that a sparse gradient does not have count where a norm falls with zeros.
    grads = [
        g.todense() if norm_type < 0.0 and trees.is_sparse(g) else updating.elements(g)
        for g in grads
    ]
    dtype = real_dtype(widest(*(g.dtype for g in grads)))
    sizes = [jnp.abs(g.astype(widest(g.dtype))).astype(dtype) for g in grads]
    if norm_type == math.inf:
        return functools.reduce(jnp.maximum, [jnp.max(x, initial=0.0) for x in sizes])
    if norm_type == -math.inf:
        return functools.reduce(jnp.minimum, map(jnp.min, sizes))
    if norm_type == 0.0:  # torch counts the gradients whose count of nonzeros is not zero
        return sum((jnp.any(x != 0).astype(dtype) for x in sizes), jnp.zeros((), dtype))
    # In half precision a high power leaves float32 long before the norm does.
    halves = all(jnp.finfo(g.dtype).bits == 16 for g in grads)
    unit = _unit(sizes, norm_type) if halves else jnp.ones((), dtype)
    powers = sum((jnp.sum((x / unit) ** norm_type) for x in sizes), jnp.zeros((), dtype))
    return unit * powers ** (1.0 / norm_type)


_total_norm = jax.jit(total_norm, static_argnums=1)


def _unit(sizes: Sequence[jax.Array], norm_type: float) -> jax.Array:
    """The size that weighs most in a norm; 1 where that is 0 or not finite."""
    if norm_type > 0.0:
        largest = functools.reduce(jnp.maximum, [jnp.max(x, initial=0.0) for x in sizes])
    else:
        largest = functools.reduce(jnp.minimum, map(jnp.min, sizes))
    return jnp.where(jnp.isfinite(largest) & (largest > 0), largest, jnp.ones_like(largest))


@jax.jit
def _clipped_by_value(grads: Sequence[Any], clip_value: Any) -> list[Any]:
    def clipped(g: jax.Array) -> jax.Array:
        return jnp.clip(g, -clip_value.astype(g.dtype), clip_value.astype(g.dtype))

    return [updating.entrywise(clipped)(g) if trees.is_sparse(g) else clipped(g) for g in grads]
