"""`make_step`: forward, backward and update in one program."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim.stateful as optim
from functorch_optim.stateful import lr_scheduler
from tests.support.stateful import compilations, exactly, new_shape, numbers, run, snapshot


def build_model(width: int = 3) -> dict[str, Any]:
    """Two layers, a scale that is trained by nobody, and leaves that are no arrays."""
    tree = {
        "first": {"kernel": numbers(0, (2, width)), "bias": numbers(1, (width,))},
        "second": {"kernel": numbers(2, (width, 1))},
        "scale": numbers(3, ()),
        "activation": jnp.tanh,
        "power": 2,
    }
    return optim.parameters(tree)


def loss_fn(params: Any, x: jax.Array) -> jax.Array:
    first = params["first"]
    hidden = params["activation"](x @ first["kernel"] + jnp.expand_dims(first["bias"], 0))
    out = params["scale"] * (hidden @ params["second"]["kernel"])
    return jnp.mean(out ** params["power"])


def loss_with_aux(params: Any, x: jax.Array) -> Any:
    loss = loss_fn(params, x)
    return loss, {"twice": 2 * loss}


def batch(i: int = 0) -> jax.Array:
    return jnp.asarray(numbers(50 + i, (4, 2)))


def groups_of(model: Any) -> list[dict[str, Any]]:
    return [{"params": model["first"]}, {"params": model["second"], "lr": 0.3}]


OPTIMIZERS = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    "Adam": {"lr": 0.1, "amsgrad": True},
    "AdamW": {"lr": 0.1},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_is_backward_and_step(name: str) -> None:
    models = build_model(), build_model()
    opts = [getattr(optim, name)(groups_of(m), **OPTIMIZERS[name]) for m in models]
    train_step = opts[0].make_step(loss_fn, models[0])
    for i in range(5):
        for opt in opts:
            opt.param_groups[1]["lr"] = 0.3 / (1 + i)
        loss = train_step(batch(i))
        wanted = optim.backward(loss_fn, models[1], batch(i))
        opts[1].step()
        opts[1].zero_grad()
        np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    got, want = (opt.state_dict() for opt in opts)
    assert got["param_groups"] == want["param_groups"]
    assert list(got["state"]) == list(want["state"])
    pairs = (
        jax.tree.leaves((got["state"], opts[0].params)),
        jax.tree.leaves((want["state"], opts[1].params)),
    )
    for a, b in zip(*pairs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_can_be_mixed_with_steps() -> None:
    models = build_model(), build_model()
    opts = [optim.Adam(groups_of(m), lr=0.1) for m in models]
    train_step = opts[0].make_step(loss_fn, models[0])
    for i in range(4):
        if i % 2:
            train_step(batch(i))
        else:
            optim.backward(loss_fn, models[0], batch(i))
            opts[0].step()
            opts[0].zero_grad()
        optim.backward(loss_fn, models[1], batch(i))
        opts[1].step()
        opts[1].zero_grad()
    for a, b in zip(*(jax.tree.leaves(opt.params) for opt in opts), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_returns_the_loss_before_the_update() -> None:
    model = build_model()
    train_step = optim.SGD(groups_of(model), lr=0.1).make_step(loss_fn, model)
    wanted = loss_fn(optim.values(model), batch())
    loss = train_step(batch())
    assert isinstance(loss, jax.Array)
    assert loss.shape == ()
    np.testing.assert_allclose(loss, wanted, rtol=1e-6)
    assert float(loss_fn(optim.values(model), batch())) < float(loss)


def test_returns_aux_too() -> None:
    model = build_model()
    opt = optim.SGD(groups_of(model), lr=0.1)
    loss, aux = opt.make_step(loss_with_aux, model, has_aux=True)(batch())
    np.testing.assert_allclose(aux["twice"], 2 * loss, rtol=1e-6)


def test_what_the_optimizer_does_not_hold_is_constant() -> None:
    model = build_model()
    opt = optim.SGD(model["first"], lr=0.1)
    first, second = exactly(model["first"]), exactly((model["second"], model["scale"]))
    opt.make_step(loss_fn, model)(batch())
    assert exactly((model["second"], model["scale"])) == second
    assert exactly(model["first"]) != first


def test_constants_are_read_at_every_call() -> None:
    model = build_model()
    opt = optim.SGD(model["first"], lr=0.0)
    train_step = opt.make_step(loss_fn, model)
    loss = train_step(batch())
    model["scale"].data = model["scale"].data * 2.0
    np.testing.assert_allclose(train_step(batch()), 4 * loss, rtol=1e-6)


def test_requires_grad_is_respected() -> None:
    model = build_model()
    model["first"]["bias"].requires_grad = False
    opt = optim.Adam(groups_of(model), lr=0.1)
    before = exactly(model["first"]["bias"])
    train_step = opt.make_step(loss_fn, model)
    train_step(batch())
    assert exactly(model["first"]["bias"]) == before
    assert model["first"]["bias"] not in list(opt.state)
    model["first"]["bias"].requires_grad = True
    train_step(batch())
    assert exactly(model["first"]["bias"]) != before
    assert float(opt.state[model["first"]["bias"]]["step"]) == 1


def test_gradients_are_neither_read_nor_written() -> None:
    model = build_model()
    opt = optim.SGD(groups_of(model), lr=0.1)
    model["first"]["bias"].grad = np.full(3, 100.0, np.float32)
    opt.make_step(loss_fn, model)(batch())
    assert model["first"]["kernel"].grad is None
    np.testing.assert_array_equal(model["first"]["bias"].grad, np.full(3, 100.0))
    assert np.abs(model["first"]["bias"].data).max() < 10


def test_hyperparameters_are_live_and_compile_nothing() -> None:
    (width,) = new_shape()
    model = build_model(width)
    opt = optim.Adam(groups_of(model), lr=0.1, weight_decay=0.2)
    train_step = opt.make_step(loss_fn, model)
    x = batch()
    with compilations() as compiled:
        train_step(x)
    assert len(compiled) >= 1
    assert opt.compile_count == 1
    train_step(x)
    before = [np.array(p.data) for _, p in optim.named_parameters(model)]
    with compilations() as compiled:
        opt.param_groups[1].update(lr=0.5, betas=(0.5, 0.6), eps=0.1, weight_decay=0.1)
        train_step(x)
        for group in opt.param_groups:
            group.update(lr=0.0)
        values = [np.array(p.data) for _, p in optim.named_parameters(model)]
        train_step(x)
    assert compiled == []
    assert opt.compile_count == 1
    after = [np.array(p.data) for _, p in optim.named_parameters(model)]
    assert all(np.array_equal(a, b) for a, b in zip(values, after, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(values, before, strict=True))


def test_a_flag_selects_another_program() -> None:
    (width,) = new_shape()
    model = build_model(width)
    opt = optim.SGD(groups_of(model), lr=0.1, momentum=0.9)
    train_step = opt.make_step(loss_fn, model)
    train_step(batch())
    opt.param_groups[0]["nesterov"] = True
    train_step(batch())
    train_step(batch())
    assert opt.compile_count == 2


def test_a_scheduler_works_with_it_without_a_warning() -> None:
    model = build_model()
    opt = optim.SGD(groups_of(model), lr=0.1)
    train_step = opt.make_step(loss_fn, model)
    scheduler = lr_scheduler.StepLR(opt, 1, gamma=0.0)  # a warning would be an error
    train_step(batch())
    scheduler.step()
    before = exactly(model)
    train_step(batch())
    assert exactly(model) == before


def test_two_optimizers_can_share_a_model() -> None:
    model = build_model()
    opts = optim.SGD(model["first"], lr=0.1), optim.Adam(model["second"], lr=0.1)
    train_steps = [opt.make_step(loss_fn, model) for opt in opts]
    losses = [float(train_steps[i % 2](batch())) for i in range(20)]
    assert losses[-1] < 0.5 * losses[0]


def test_a_parameter_in_two_places_gets_the_sum_of_its_gradients() -> None:
    p = optim.Parameter(np.ones(2, np.float32))
    opt = optim.SGD([p], lr=1.0)
    opt.make_step(lambda t: jnp.sum(2.0 * t["a"]) + jnp.sum(3.0 * t["b"]), {"a": p, "b": p})()
    np.testing.assert_array_equal(p.data, [-4.0, -4.0])


@pytest.mark.parametrize("held", ["another parameter", "nothing"])
def test_a_model_without_parameters_of_the_optimizer_is_refused(held: str) -> None:
    model = build_model()
    params = [optim.Parameter(np.ones(2))] if held == "another parameter" else []
    opt = optim.SGD([{"params": params}], lr=0.1)
    train_step = opt.make_step(loss_fn, model)
    with pytest.raises(ValueError, match="no Parameter of the model is held by this optimizer"):
        train_step(batch())


def test_a_failing_loss_changes_nothing() -> None:
    model = build_model()
    opt = optim.Adam(groups_of(model), lr=0.1)
    train_step = opt.make_step(loss_fn, model)
    train_step(batch())
    before = snapshot(opt)
    with pytest.raises(TypeError):
        train_step(jnp.ones((4, 5)))  # shapes that cannot be multiplied
    assert snapshot(opt) == before
    train_step(batch())
    assert snapshot(opt) != before


def test_a_loss_that_is_no_scalar_is_refused() -> None:
    model = build_model()
    opt = optim.SGD(groups_of(model), lr=0.1)
    before = snapshot(opt)
    with pytest.raises(TypeError, match="scalar"):
        opt.make_step(lambda params, x: x, model)(batch())
    assert snapshot(opt) == before


def test_continues_a_loaded_state() -> None:
    model = build_model()
    opt = optim.Adam(groups_of(model), lr=0.1)
    train_step = opt.make_step(loss_fn, model)
    run(opt, 2)
    saved, values = opt.state_dict(), opt.params
    train_step(batch())
    wanted = snapshot(opt)[1]
    opt.load_state_dict(saved)
    parameters = [p for group in opt.param_groups for p in group["params"]]
    for p, value in zip(parameters, jax.tree.leaves(values), strict=True):
        p.data = value
    train_step(batch())
    assert snapshot(opt)[1] == wanted
