"""Gradients into Parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp

from functorch_optim.core.trees import is_array
from functorch_optim.core.updating import add
from functorch_optim.stateful.memory.cell import Changes, reading
from functorch_optim.stateful.model import Skeleton, arrays, check_loss, if_plain, split, values
from functorch_optim.stateful.parameter import Parameter
from functorch_optim.stateful.program_cache import ProgramCache


@overload
def backward(
    loss_fn: Callable[..., Any], model: Any, *args: Any, has_aux: Literal[False] = False
) -> jax.Array: ...
@overload
def backward(
    loss_fn: Callable[..., Any], model: Any, *args: Any, has_aux: Literal[True]
) -> tuple[jax.Array, Any]: ...
@overload
def backward(
    loss_fn: Callable[..., Any], model: Any, *args: Any, has_aux: bool
) -> jax.Array | tuple[jax.Array, Any]: ...
def backward(
    loss_fn: Callable[..., Any], model: Any, *args: Any, has_aux: bool = False
) -> jax.Array | tuple[jax.Array, Any]:
    """Computes a loss and adds its gradient to `.grad` of the model's Parameters.

    Args:
      loss_fn: `loss_fn(params, *args) -> loss`, where params is the plain tree. Compiled once for
        each function: define it outside the loop.
      model: a tree with Parameters. Those that require no gradient, and plain arrays, are
        constants.
      *args: handed to loss_fn.
      has_aux: loss_fn returns `(loss, aux)`.

    Returns:
      The loss, or `(loss, aux)`. For a complex Parameter `.grad` is torch's: the direction of
      steepest ascent, the conjugate of what `jax.grad` returns.
    """
    check_loss("backward", loss_fn)
    if any(isinstance(x, Parameter) for x in jax.tree.leaves(args)):  # a batch may hold some
        args = values(args)
    skeleton, trained, constant = split(model)
    if not trained:
        raise ValueError(
            f"backward: no Parameter of the model requires a gradient{if_plain(model)}"
        )
    program = _programs(loss_fn, has_aux)
    (loss, aux), grads = reading(
        lambda: (skeleton, arrays(trained), arrays(constant), args), program
    )
    before = tuple(p.grad for p in trained)
    if any(g is not None for g in before):
        grads = _sum(before, grads)
    changes = Changes()
    changes.set(trained, "grad", grads)
    changes.make()
    return (loss, aux) if has_aux else loss


def value_and_grads(
    loss_fn: Callable[..., Any],
    has_aux: bool,
    skeleton: Skeleton,
    trained: Sequence[jax.Array],
    constant: Sequence[jax.Array],
    args: Sequence[Any],
) -> tuple[tuple[jax.Array, Any], tuple[jax.Array, ...]]:
    """`((loss, aux), gradients)`: the directions of steepest ascent for the trained arrays."""

    def loss_of(trained: Sequence[jax.Array]) -> tuple[Any, tuple[Any, Any]]:
        result = loss_fn(skeleton.fill(trained, constant), *args)
        loss, aux = result if has_aux else (result, None)
        return _scalar(loss), (loss, aux)

    (_, result), grads = jax.value_and_grad(loss_of, has_aux=True)(tuple(trained))
    return result, tuple(jnp.conj(g) if jnp.iscomplexobj(g) else g for g in grads)


def _scalar(loss: Any) -> Any:
    """A loss of one element, in whatever shape, as JAX differentiates it."""
    if not is_array(loss) or jnp.size(loss) != 1:
        shown = f"the loss has shape {jnp.shape(loss)}" if is_array(loss) else f"it is {loss!r}"
        raise TypeError(f"grad can be implicitly created only for scalar outputs, but {shown}")
    return jnp.reshape(loss, ())


@jax.jit
def _sum(before: tuple[Any, ...], grads: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    return tuple(g if b is None else add(b, g) for b, g in zip(before, grads, strict=True))


def _compiled(loss_fn: Callable[..., Any], has_aux: bool) -> Callable[..., Any]:
    return jax.jit(functools.partial(value_and_grads, loss_fn, has_aux), static_argnums=0)


_programs = ProgramCache(_compiled)
