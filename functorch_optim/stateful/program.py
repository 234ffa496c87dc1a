"""The compiled programs of the stateful layer: a step, and a whole training step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from functorch_optim import leaves
from functorch_optim.per_leaf import Buffers, Rule, step_leaf
from functorch_optim.stateful.backward import value_and_grads
from functorch_optim.stateful.model import Skeleton
from functorch_optim.stateful.numbers import Layout, Numbers, unpacked

Grouped = Sequence[Sequence[Any]]
Place = tuple[int, int]


class _Counter:
    traced = 0


def trace_count() -> int:
    """How many programs of this file were traced in this process so far."""
    return _Counter.traced


def update_groups(
    rule: Rule,
    layouts: Sequence[Layout],
    data: Grouped,
    buffers: Grouped,
    grads: Grouped,
    numbers: Numbers,
) -> tuple[list[list[jax.Array]], list[list[Buffers]]]:
    """New values and buffers of all groups' parameters. To be traced."""
    _Counter.traced += 1
    new_data: list[list[jax.Array]] = []
    new_buffers: list[list[Buffers]] = []
    rows = unpacked(layouts, [len(group) for group in data], numbers)
    for columns in zip(data, buffers, grads, rows, strict=True):
        new_data.append([])
        new_buffers.append([])
        for p, old, g, s in zip(*columns, strict=True):
            update, new = step_leaf(rule.leaf, g, p, old, s)
            new_data[-1].append(leaves.add(p, update))
            new_buffers[-1].append(new)
    return new_data, new_buffers


compiled_update = jax.jit(update_groups, static_argnums=(0, 1), donate_argnums=(2, 3))


def compiled_train_step(loss_fn: Callable[..., Any], has_aux: bool) -> Callable[..., Any]:
    """Forward, backward and update in one program, which returns `(result, data, buffers)`."""

    @functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=(4, 5))
    def train_step(
        rule: Rule,
        layouts: Sequence[Layout],
        skeleton: Skeleton,
        places: Sequence[Place],
        data: Grouped,
        buffers: Grouped,
        constant: Sequence[Any],
        numbers: Numbers,
        args: Sequence[Any],
    ) -> Any:
        # places: the (group, position) of each trained leaf, in the model's order
        trained = [data[group][position] for group, position in places]
        result, flat = value_and_grads(loss_fn, has_aux, skeleton, trained, constant, args)
        by_place = dict(zip(places, flat, strict=True))
        grads = [[by_place[i, j] for j in range(len(group))] for i, group in enumerate(data)]
        return result, *update_groups(rule, layouts, data, buffers, grads, numbers)

    return train_step
