"""What compiles a program and what does not: counted in XLA, and as `compile_count` tells it."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim.stateful as optim
from functorch_optim.stateful import lr_scheduler
from tests.support.stateful import cells, compilations, give_gradients, new_shape

CHANGES = {
    "SGD": (
        {"lr": 0.5},
        {"lr": 1},
        {"lr": np.float64(0.25)},
        {"lr": np.float32(0.125)},
        {"momentum": 0.5},
        {"dampening": 0.1},
        {"dampening": 0},
        {"weight_decay": 0.1},
        {"weight_decay": 0.2, "momentum": 0.3, "lr": 0.0},
        {"foreach": True, "fused": None, "differentiable": True},
    ),
    "Adam": (
        {"lr": 0.5},
        {"lr": 1},
        {"lr": np.float64(0.25)},
        {"betas": (0.5, 0.7)},
        {"betas": [0.3, 0.2]},
        {"betas": (0.0, 0.2)},
        {"eps": 0.1},
        {"eps": 0},
        {"weight_decay": 0.1},
        {"weight_decay": 0.2, "eps": 1e-3, "lr": 0.0},
        {"foreach": True, "fused": None, "capturable": True},
    ),
}
CHANGES["AdamW"] = CHANGES["Adam"]


def warm(name: str, *, shapes: Any = None, **kwargs: Any) -> tuple[Any, list[optim.Parameter]]:
    """An optimizer of two groups after two steps, with gradients for the next."""
    p, q = cells(*(shapes or (new_shape(), new_shape())))
    opt = getattr(optim, name)([{"params": p}, {"params": q, "lr": 0.02}], **kwargs)
    for i in range(2):
        give_gradients([p, q], i)
        opt.step()
    return opt, [p, q]


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_number_compiles_nothing(name: str) -> None:
    opt, _ = warm(name, lr=0.1, weight_decay=0.3, **({"momentum": 0.9} if name == "SGD" else {}))
    assert opt.compile_count == 1
    with compilations() as compiled:
        for change in CHANGES[name]:
            opt.param_groups[1].update(change)
            opt.step()
            opt.param_groups[0].update(change)
            opt.step()
    assert compiled == []
    assert opt.compile_count == 1


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_number_is_used(name: str) -> None:
    """So that the test above cannot pass because changes are ignored."""
    kwargs = {"lr": 0.1, **({"momentum": 0.9} if name == "SGD" else {})}
    results = []
    for change in ({}, *CHANGES[name][:-1]):
        opt, (p, _) = warm(name, shapes=((3,), (3,)), **kwargs)
        opt.param_groups[0].update(change)
        opt.step()
        opt.step()
        results.append(tuple(np.asarray(p.data).tolist()))
    unchanged = {i for i, change in enumerate(CHANGES[name]) if 0 in change.values()}
    distinct = {r for i, r in enumerate(results) if i - 1 not in unchanged}
    assert len(distinct) == len(results) - len(unchanged)


def test_the_counters_see_a_compilation() -> None:
    p, q = cells(new_shape(), new_shape())
    opt = optim.SGD([p, q])
    give_gradients([p, q])
    with compilations() as compiled:
        opt.step()
    assert len(compiled) >= 1
    assert opt.compile_count == 1


def test_a_replaced_learning_rate_array_compiles_nothing() -> None:
    rates = [jnp.float32(x) for x in (0.1, 0.2, 0.3)]
    opt, (p, _) = warm("Adam", lr=rates[0], betas=(0.9, 0.99), weight_decay=0.2)
    before = np.array(p.data)
    with compilations() as compiled:
        opt.param_groups[0]["lr"] = rates[1]
        opt.step()
        opt.param_groups[0]["lr"] = rates[2]
        opt.step()
        opt.param_groups[0]["betas"] = (0.5, 0.6)
        opt.param_groups[0]["weight_decay"] = 0.1
        opt.step()
    assert compiled == []
    assert opt.compile_count == 1
    assert not np.array_equal(p.data, before)


@pytest.mark.parametrize("lr", [0.1, "array"])
@pytest.mark.parametrize("name", ["SGD", "AdamW", "RMSprop"])
def test_weight_decay_is_switched_on_by_one_program(name: str, lr: Any) -> None:
    """Without any, nothing is computed for it. Switched off and on again, both are there."""
    opt, _ = warm(name, lr=jnp.float32(0.1) if lr == "array" else lr, weight_decay=0)
    opt.param_groups[0]["weight_decay"] = 0.1
    opt.step()
    assert opt.compile_count == 2
    for weight_decay in (0, 0.2, 0.0, 0.3):
        opt.param_groups[0]["weight_decay"] = weight_decay
        opt.step()
    assert opt.compile_count == 2


def test_beside_an_array_a_whole_number_can_become_a_fraction() -> None:
    opt, _ = warm("Adam", lr=jnp.float32(0.1), weight_decay=1, eps=1)
    with compilations() as compiled:
        opt.param_groups[0]["weight_decay"] = 0.1
        opt.step()
        opt.param_groups[0]["eps"] = 0.5
        opt.step()
    assert compiled == []


def test_a_learning_rate_array_is_not_fetched() -> None:
    """A traced value cannot be fetched: jax would raise."""
    opt, (p, _) = warm("Adam", lr=jnp.float32(0.1), betas=(0.9, 0.99))

    def traced(lr: jax.Array) -> jax.Array:
        opt.param_groups[0]["lr"] = lr
        opt.step()
        return p.data

    assert jax.eval_shape(traced, jnp.float32(0.2)).shape == p.shape


@pytest.mark.parametrize("lr", [0.1, "array"])
def test_scheduler_steps_compile_nothing(lr: Any) -> None:
    opt, (p, _) = warm("SGD", lr=jnp.float32(0.1) if lr == "array" else lr)
    step_lr = lr_scheduler.StepLR(opt, 1, gamma=0.5)
    cosine = lr_scheduler.CosineAnnealingLR(opt, 50)
    for scheduler in step_lr, cosine:  # an array's first arithmetic is compiled
        opt.step()
        scheduler.step()
    values = []
    with compilations() as compiled:
        for _ in range(4):
            opt.step()
            step_lr.step()
            cosine.step()
            values.append(np.array(p.data))
    assert compiled == []
    assert opt.compile_count == 1
    steps = [np.abs(b - a).max() for a, b in itertools.pairwise(values)]
    assert steps[0] > 1.9 * steps[1] > 3.6 * steps[2] > 0


def test_a_schedule_in_a_group_compiles_nothing() -> None:
    opt, _ = warm("Adam", lr=lambda count: 0.1 / (1 + count))
    with compilations() as compiled:
        opt.step()
        opt.param_groups[0]["lr"] = lambda count: 0.2 / (1 + count)
        opt.step()
    assert compiled == []


def test_nesterov_selects_another_program() -> None:
    opt, _ = warm("SGD", momentum=0.9)
    opt.param_groups[0]["nesterov"] = True
    with compilations() as compiled:
        opt.step()
    assert len(compiled) == 1
    assert opt.compile_count == 2
    with compilations() as compiled:
        opt.step()
        opt.param_groups[0]["nesterov"] = False
        opt.step()
        opt.param_groups[0]["nesterov"] = True
        opt.step()
    assert compiled == []
    assert opt.compile_count == 2


@pytest.mark.parametrize("name", CHANGES)
def test_maximize_selects_another_program(name: str) -> None:
    opt, _ = warm(name)
    opt.param_groups[1]["maximize"] = True
    with compilations() as compiled:
        opt.step()
        opt.step()
    assert len(compiled) == 1
    assert opt.compile_count == 2


def test_amsgrad_switched_off_selects_another_program() -> None:
    opt, _ = warm("Adam", amsgrad=True)
    opt.param_groups[0]["amsgrad"] = False
    with compilations() as compiled:
        opt.step()
        opt.step()
    assert len(compiled) == 1
    assert opt.compile_count == 2


@pytest.mark.parametrize("name", CHANGES)
def test_equal_configurations_share_one_compilation(name: str) -> None:
    shapes = new_shape(), new_shape()
    opts = [warm(name, shapes=shapes, weight_decay=0.1)[0]]
    with compilations() as compiled:
        opts += [warm(name, shapes=shapes, weight_decay=0.1)[0] for _ in range(2)]
        opts.append(warm(name, shapes=shapes, weight_decay=0.2, lr=0.5)[0])  # numbers may differ
    assert compiled == []
    assert [opt.compile_count for opt in opts] == [1, 0, 0, 0]


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_each_set_of_parameters_with_gradients_compiles_once(name: str) -> None:
    opt, (p, q) = warm(name, **({"momentum": 0.9} if name == "SGD" else {}))

    def step_without_the_second() -> None:
        give_gradients([p])
        q.grad = None
        opt.step()

    def step_with_both() -> None:
        give_gradients([p, q])
        opt.step()

    with compilations() as compiled:
        step_without_the_second()
    assert len(compiled) == 1
    assert opt.compile_count == 2
    step_with_both()
    seen = opt.compile_count
    with compilations() as compiled:
        for _ in range(3):
            step_without_the_second()
            step_with_both()
    assert compiled == []
    assert opt.compile_count == seen


def test_parameters_of_one_group_with_different_steps_compile_one_more_program() -> None:
    """The numbers of a group are one row until its steps differ."""
    p, q = cells(new_shape(), new_shape())
    opt = optim.Adam([p, q])
    give_gradients([p, q])
    opt.step()
    q.grad = None
    opt.step()
    assert opt.compile_count == 2
    with compilations() as compiled:
        for i in range(3):
            give_gradients([p, q], i)
            opt.step()
    assert len(compiled) == 1
    assert opt.compile_count == 3


def test_a_loaded_state_dict_compiles_nothing() -> None:
    shapes = new_shape(), new_shape()
    first, _ = warm("Adam", shapes=shapes)
    second, _ = warm("Adam", shapes=shapes)
    saved = first.state_dict()
    first.step()  # compiles the copying of arrays that somebody holds
    with compilations() as compiled:
        second.load_state_dict(saved)
        second.step()
    assert compiled == []
    assert second.compile_count == 0


def test_backward_compiles_once_for_each_function() -> None:
    shape = new_shape()
    p, q = cells(shape, shape)
    data = [jnp.full(shape, x) for x in (1.0, 2.0)]

    def loss_fn(params: Any, x: jax.Array) -> jax.Array:
        return jnp.sum(params["a"] * params["b"] * x)

    model = {"a": p, "b": q}
    opt = optim.SGD([p, q])
    for _ in range(2):  # the second adds to the first's gradients
        optim.backward(loss_fn, model, data[0])
    opt.step()
    with compilations() as compiled:
        opt.zero_grad()
        optim.backward(loss_fn, model, data[1])
        optim.backward(loss_fn, model, data[0])
        opt.step()
        optim.backward(loss_fn, {"a": q, "b": p}, data[0])  # another model of that structure
    assert compiled == []
