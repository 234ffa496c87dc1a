"""The compiled programs of the stateful layer: a step, and a whole training step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from functorch_optim.core.dtypes import widest
from functorch_optim.core.pair import EmptyState
from functorch_optim.stateful.backward import value_and_grads
from functorch_optim.stateful.memory.protocol import Grouped, Plan
from functorch_optim.stateful.model import Skeleton
from functorch_optim.transforms.clipping import clip_by_global_norm

Position = tuple[int, int]
"""The (group, place in it) of a trained leaf."""


class Traces:
    """The programs of optimizers that were traced in this process so far.

    Attributes:
      count: how many.
    """

    count = 0

    @classmethod
    def add(cls) -> None:
        """To be called by each of these programs: it runs when the program is traced."""
        cls.count += 1


class Structure(tuple[Any, ...]):
    """The structure of a result that a program returns as leaves: a 1-tuple of it.

    What comes out of a compiled call is put together by JAX. For a user's own containers that runs
    Python, where an interrupt could come between the end of a step and the moment that its results
    are kept. So the results are leaves, and their structure is a part of the call's own.
    """


# Put together by a function of C: of `(structure,)` and no children the larger tuple.
_put_together: Any = max
jax.tree_util.register_pytree_node(Structure, lambda s: ((), s), _put_together)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def compiled_update(plan: Plan, values: Grouped, buffers: Any, grads: Grouped, numbers: Any) -> Any:
    """The update alone: `(leaves of no result, structure, values, buffers)`."""
    Traces.add()
    _, *new = plan.train(lambda _: (None, grads), values, buffers, numbers)
    return [], Structure((None,)), *new


def compiled_train_step(
    loss_fn: Callable[..., Any], has_aux: bool, accumulate: int, clip_norm: Any
) -> Callable[..., Any]:
    """Forward, backward and update in one program.

    It returns `(leaves of (loss, aux), their structure, values, buffers)`.
    """

    @functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(3, 4))
    def train_step(
        plan: Plan,
        skeleton: Skeleton,
        positions: Sequence[Position],
        values: Grouped,
        buffers: Any,
        constant: Sequence[Any],
        numbers: Any,
        args: Any,
    ) -> Any:
        Traces.add()

        def evaluate(values: Grouped) -> tuple[Any, Grouped]:
            trained = tuple(values[group][place] for group, place in positions)
            once = functools.partial(value_and_grads, loss_fn, has_aux, skeleton, trained, constant)
            result, flat = once(args) if accumulate == 1 else _mean(once, trained, args, accumulate)
            if clip_norm is not None:
                flat, _ = clip_by_global_norm(clip_norm).update(flat, EmptyState())
            found = dict(zip(positions, flat, strict=True))
            grads = [[found.get((i, j)) for j in range(len(of))] for i, of in enumerate(values)]
            return result, grads

        result, *new = plan.train(evaluate, values, buffers, numbers)
        leaves, structure = jax.tree.flatten(result)
        return leaves, Structure((structure,)), *new

    return train_step


def _mean(
    compute: Callable[[Any], Any], trained: Sequence[jax.Array], args: Any, count: int
) -> tuple[Any, Sequence[jax.Array]]:
    """The mean loss and gradients over micro-batches; every aux, stacked.

    Gradients are summed in float32 at least: of half-precision ones a sum may not be a number.
    """

    def wide(x: Any) -> Any:
        return x.astype(widest(x.dtype))

    def micro(total: Any, args: Any) -> Any:
        result, grads = compute(args)
        return [t + wide(g) for t, g in zip(total, grads, strict=True)], result

    start = [jnp.zeros_like(wide(x)) for x in trained]
    total, (losses, aux) = jax.lax.scan(micro, start, args)
    means = tuple((t / count).astype(x.dtype) for t, x in zip(total, trained, strict=True))
    return (jnp.mean(wide(losses), axis=0).astype(losses.dtype), aux), means


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
