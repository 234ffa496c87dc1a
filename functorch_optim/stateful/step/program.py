"""The compiled programs of the stateful layer: a step, and a whole training step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from functorch_optim.core.pair import EmptyState
from functorch_optim.stateful.backward import value_and_grads
from functorch_optim.stateful.model import Skeleton
from functorch_optim.stateful.parameter import Parameter
from functorch_optim.transforms.clipping import clip_by_global_norm

# The part of a group that takes part in a step: its index, its entries, its parameters.
Part = tuple[int, Mapping[str, Any], list[Parameter]]
Grouped = Sequence[Sequence[Any]]
Place = tuple[int, int]


class Plan(Hashable, Protocol):
    """What selects a compiled program, and the update that the program holds."""

    def update(
        self, data: Grouped, buffers: Any, grads: Grouped, numbers: Any
    ) -> tuple[Grouped, Any]:
        """New values of each group's parameters, and new buffers. To be traced."""


class Prepared(NamedTuple):
    """A step that is ready to run.

    Attributes:
      plan: selects the program.
      buffers: the state of the parameters that take part, to be donated.
      numbers: all numbers of the step.
      commit: takes the new buffers. Calling it again does no harm.
    """

    plan: Any
    buffers: Any
    numbers: Any
    commit: Callable[[Any], None]


class _Counter:
    traced = 0


def trace_count() -> int:
    """How many programs of optimizers were traced in this process so far."""
    return _Counter.traced


def count_trace() -> None:
    """To be called by each of these programs: it runs when the program is traced."""
    _Counter.traced += 1


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def compiled_update(plan: Plan, data: Grouped, buffers: Any, grads: Grouped, numbers: Any) -> Any:
    """The update alone: `(data, buffers)`."""
    count_trace()
    return plan.update(data, buffers, grads, numbers)


def compiled_train_step(
    loss_fn: Callable[..., Any], has_aux: bool, accumulate: int, clip_norm: Any
) -> Callable[..., Any]:
    """Forward, backward and update in one program, which returns `(result, data, buffers)`."""

    @functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(3, 4))
    def train_step(
        plan: Plan,
        skeleton: Skeleton,
        places: Sequence[Place],
        data: Grouped,
        buffers: Any,
        constant: Sequence[Any],
        numbers: Any,
        args: Any,
    ) -> Any:
        count_trace()
        # places: the (group, position) of each trained leaf, in the model's order
        trained = tuple(data[group][position] for group, position in places)
        compute = evaluation(loss_fn, has_aux, accumulate, skeleton, constant, args)
        result, flat = compute(trained)
        if clip_norm is not None:
            flat, _ = clip_by_global_norm(clip_norm).update(flat, EmptyState())
        by_place = dict(zip(places, flat, strict=True))
        grads = [[by_place[i, j] for j in range(len(group))] for i, group in enumerate(data)]
        return result, *plan.update(data, buffers, grads, numbers)

    return train_step


def evaluation(
    loss_fn: Callable[..., Any],
    has_aux: bool,
    accumulate: int,
    skeleton: Skeleton,
    constant: Sequence[Any],
    args: Any,
) -> Callable[[Sequence[jax.Array]], tuple[Any, Sequence[jax.Array]]]:
    """A function of the trained arrays: loss_fn's result, and gradients; means if accumulated."""

    def compute(trained: Sequence[jax.Array]) -> tuple[Any, Sequence[jax.Array]]:
        once = functools.partial(value_and_grads, loss_fn, has_aux, skeleton, trained, constant)
        return once(args) if accumulate == 1 else _mean(once, trained, args, has_aux)

    return compute


def _mean(compute: Callable[..., Any], trained: Sequence[jax.Array], args: Any, has_aux: bool):  # type: ignore[no-untyped-def]  # as value_and_grads
    """The mean loss and gradients over micro-batches; every aux, stacked."""
    count = len(jax.tree.leaves(args)[0])

    def micro(total: Any, args: Any) -> Any:
        result, grads = compute(args)
        return jax.tree.map(jnp.add, total, grads), result

    total, results = jax.lax.scan(micro, jax.tree.map(jnp.zeros_like, trained), args)
    grads = jax.tree.map(lambda g: g / count, total)
    if has_aux:
        losses, aux = results
        return (jnp.mean(losses, axis=0), aux), grads
    return jnp.mean(results, axis=0), grads


def check_accumulate(accumulate: Any) -> None:
    """Raises ValueError unless it is a positive integer."""
    if not isinstance(accumulate, int) or isinstance(accumulate, bool) or accumulate < 1:
        raise ValueError(f"accumulate should be a positive integer, but is {accumulate!r}")


def check_micro_batches(args: Any, count: int) -> None:
    """Raises ValueError unless every array of the batch has a first axis of this length."""
    flat = jax.tree_util.tree_flatten_with_path(args)[0]
    if not flat:
        raise ValueError(
            f"make_step(accumulate={count}) takes {count} micro-batches, but train_step was called "
            "without any array"
        )
    for path, x in flat:
        if jnp.ndim(x) == 0 or jnp.shape(x)[0] != count:
            raise ValueError(
                f"make_step(accumulate={count}) takes {count} micro-batches stacked along the "
                f"first axis, but argument {jax.tree_util.keystr(path)} has shape {jnp.shape(x)}"
            )
