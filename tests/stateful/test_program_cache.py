"""What a user dropped does not stay alive: losses, schedules, and what they captured."""

from __future__ import annotations

import dataclasses
import functools
import gc
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim as fo
import functorch_optim.stateful as optim
from tests.support.stateful import compilations, new_shape


class Loss:
    """An object whose method is a loss."""

    def __init__(self, target: jax.Array):
        self.target = target

    def loss(self, params: Any) -> Any:
        return jnp.sum(jnp.square(params[0] - self.target))


@dataclasses.dataclass
class Unhashable:
    """A callable that cannot be hashed, as an equinox module is."""

    target: jax.Array

    def __call__(self, params: Any) -> Any:
        return jnp.sum(jnp.square(params[0] - self.target))


def closure(target: jax.Array) -> Callable[[Any], Any]:
    return lambda params: jnp.sum(jnp.square(params[0] - target))


def difference(target: jax.Array, params: Any) -> Any:
    return jnp.sum(jnp.square(params[0] - target))


KINDS: dict[str, Callable[[jax.Array], Any]] = {
    "closure": closure,
    "bound method": lambda target: Loss(target).loss,
    "callable object": Unhashable,
    "partial": lambda target: functools.partial(difference, target),
}
over_kinds = pytest.mark.parametrize("kind", KINDS)


def live(shape: tuple[int, ...]) -> int:
    gc.collect()
    return sum(x.shape == shape for x in jax.live_arrays())


@over_kinds
def test_a_dropped_loss_leaves_nothing(kind: str) -> None:
    shape = new_shape()
    model = [optim.Parameter(np.zeros(shape, np.float32))]
    optim.backward(KINDS[kind](jnp.ones(shape)), model)
    held = live(shape)
    for i in range(4):
        optim.backward(KINDS[kind](jnp.full(shape, float(i))), model)
    assert live(shape) == held


@over_kinds
def test_a_kept_loss_compiles_once(kind: str) -> None:
    model = [optim.Parameter(np.zeros(new_shape(), np.float32))]
    loss_fn = KINDS[kind](jnp.ones(()))
    optim.backward(loss_fn, model)
    optim.backward(loss_fn, model)  # the sum of gradients
    with compilations() as compiled:
        for _ in range(3):
            loss = optim.backward(loss_fn, model)
    assert compiled == []
    assert float(loss) == model[0].size


@over_kinds
def test_two_losses_of_one_kind_are_not_mixed_up(kind: str) -> None:
    model = [optim.Parameter(np.zeros(3, np.float32))]
    losses = [KINDS[kind](jnp.float32(i)) for i in range(3)]
    assert [float(optim.backward(loss_fn, model)) for loss_fn in losses] == [0, 3, 12]


@over_kinds
def test_a_dropped_train_step_leaves_nothing(kind: str) -> None:
    shape = new_shape()
    model = [optim.Parameter(np.zeros(shape, np.float32))]
    opt = optim.SGD(model, lr=0.1)
    opt.make_step(KINDS[kind](jnp.ones(shape)), model)()
    held = live(shape)
    for i in range(3):
        opt.make_step(KINDS[kind](jnp.full(shape, float(i))), model)()
    assert live(shape) <= held


@pytest.mark.parametrize(
    "build",
    [
        lambda schedule: fo.adam(lr=schedule),
        lambda schedule: fo.chain(fo.clip_by_global_norm(1.0), fo.sgd(schedule)),
        lambda schedule: fo.inject_hyperparams(fo.sgd)(lr=schedule),
        lambda schedule: fo.scale_by_schedule(schedule),
        lambda schedule: fo.schedule_free(fo.sgd(0.1), schedule),
        lambda schedule: fo.sequential_lr([schedule, schedule], [3]),
    ],
)
def test_a_dropped_schedule_leaves_nothing(build: Callable[[Any], Any]) -> None:
    scale = 2.0

    def schedule(step: Any) -> Any:
        return scale * 0.5**step

    reference = weakref.ref(schedule)
    made = build(schedule)
    assert build(schedule) is made  # for as long as it is there
    del schedule, made
    for _ in range(3):  # what is built of something is dropped first
        gc.collect()
    assert reference() is None


def test_a_schedule_of_a_traced_value_is_no_leak() -> None:
    with jax.checking_leaks():

        @jax.jit
        def trained(scale: jax.Array) -> jax.Array:
            tx = fo.adam(lr=lambda step: scale / (1.0 + step.astype(jnp.float32)))
            params = jnp.ones(3)
            updates, _ = tx.update(params, tx.init(params), params)
            return fo.apply_updates(params, updates)

        np.testing.assert_allclose(trained(jnp.float32(0.5)), 0.5, rtol=1e-6)
