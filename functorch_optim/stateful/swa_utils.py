"""What weight averaging needs beside an optimizer: averages, batch norm, a learning rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from functorch_optim.averages import batch_norm
from functorch_optim.averages.weights import Each, EmaLeaf, swa_leaf
from functorch_optim.core import trees
from functorch_optim.stateful.averaged_model import AveragedModel, filled, parts
from functorch_optim.stateful.lr_scheduler.swa import SWALR
from functorch_optim.stateful.model import values

__all__ = [
    "SWALR",
    "AveragedModel",
    "get_ema_avg_fn",
    "get_ema_multi_avg_fn",
    "get_swa_avg_fn",
    "get_swa_multi_avg_fn",
    "update_bn",
]


def get_ema_avg_fn(decay: Any = 0.999) -> Callable[[Any, Any, Any], jax.Array]:
    """An `avg_fn`: `decay * average + (1 - decay) * current`. It can be pickled.

    Args:
      decay: the weight of the average so far, a number in [0, 1], an array, or a function of
        `n_averaged`. Default: 0.999.

    Raises:
      ValueError: a number outside of [0, 1].
    """
    return EmaLeaf(decay)


def get_ema_multi_avg_fn(decay: Any = 0.999) -> Callable[[list[Any], list[Any], Any], list[Any]]:
    """`get_ema_avg_fn` as a `multi_avg_fn`, of lists; it returns the list of new averages.

    Args:
      decay: as there. Default: 0.999.

    Raises:
      ValueError: a number outside of [0, 1].
    """
    return Each(EmaLeaf(decay))


def get_swa_avg_fn() -> Callable[[Any, Any, Any], jax.Array]:
    """An `avg_fn`: `average + (current - average) / (n_averaged + 1)`, the mean of all."""
    return swa_leaf


def get_swa_multi_avg_fn() -> Callable[[list[Any], list[Any], Any], list[Any]]:
    """`get_swa_avg_fn` as a `multi_avg_fn`, of lists; it returns the list of new averages."""
    return Each(swa_leaf)


def update_bn(
    loader: Iterable[Any],
    model: Any,
    apply_fn: Callable[[Any, Any], Any],
    device: Any = None,
) -> Any:
    """Computes a model's running statistics anew, by one pass over the data.

    For each batch of the loader they are the library's own statistics of that batch, found as
    `functorch_optim.update_bn` does; the result is their mean.

    Args:
      loader: an iterable of batches: the input, or a list or tuple whose first element is the
        input.
      model: an `AveragedModel`, or a tree of Parameters. Its floating point arrays that are no
        Parameters are the statistics.
      apply_fn: `apply_fn(tree, input) -> tree`: takes the model's plain tree (`optim.values`), and
        returns it with the statistics as the forward pass in training mode leaves them. What it
        returns in the place of Parameters is not used. Give a compiled one.
      device: where to put the input first. Default: `None`, it stays where it is.

    Returns:
      The tree with the new statistics (its Parameters are the same cells). That of an
      `AveragedModel` is also its new `module`. A model without buffers is returned as it is, and
      the loader is not touched.

    Raises:
      ValueError, TypeError: as `functorch_optim.update_bn`.
    """
    tree = model.module if isinstance(model, AveragedModel) else model
    plain = values(tree)
    _, treedef, places = parts(tree)

    def inputs() -> Iterable[Any]:
        for batch in loader:
            first = batch[0] if isinstance(batch, list | tuple) else batch
            yield first if device is None else jax.device_put(first, device)

    def forward(buffers: list[Any], batch: Any) -> list[Any]:
        whole, _ = trees.flatten(plain)
        for i, buffer in zip(places, buffers, strict=True):
            whole[i] = buffer
        new = trees.flatten_like(
            apply_fn(treedef.unflatten(whole), batch), treedef, "the result of apply_fn", "model"
        )
        return [new[i] for i in places]

    flat, _ = trees.flatten(plain)
    buffers = batch_norm.update_bn(inputs(), forward, [jnp.asarray(flat[i]) for i in places])
    if not places:
        return tree
    if isinstance(model, AveragedModel):
        model.set_buffers(buffers)
        return model.module
    return filled(tree, buffers)
