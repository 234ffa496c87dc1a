"""`make_step(accumulate=k, clip_norm=c)`: the mean over micro-batches, clipped, in one program."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim.stateful as optim
from functorch_optim.stateful.step import program
from tests.support.stateful import all_parameters, compilations, new_shape, numbers, snapshot


def build_model(width: int = 3) -> dict[str, Any]:
    tree = {"kernel": numbers(0, (2, width)), "bias": numbers(1, (width,)), "scale": numbers(2, ())}
    return optim.parameters(tree)


def loss_fn(params: Any, x: jax.Array, factor: jax.Array) -> jax.Array:
    hidden = jnp.tanh(x @ params["kernel"] + jnp.expand_dims(params["bias"], 0))
    return factor * params["scale"] * jnp.mean(hidden**2)


def loss_with_aux(params: Any, x: jax.Array, factor: jax.Array) -> Any:
    return loss_fn(params, x, factor), {"mean": jnp.mean(x), "x": x}


def batches(count: int, seed: int = 0) -> tuple[jax.Array, jax.Array]:
    """`count` micro-batches of four rows, each with a factor of its own."""
    x = jnp.asarray(numbers(70 + seed, (count, 4, 2)))
    return x, jnp.arange(1.0, count + 1)


value_and_grad = jax.jit(jax.value_and_grad(loss_fn))


def by_hand(model: Any, args: Any, clip_norm: float | None = None) -> tuple[Any, Any]:
    """The mean loss and the mean gradient, in double, clipped."""
    values = optim.values(model)
    results = [value_and_grad(values, *row) for row in zip(*args, strict=True)]
    loss = np.mean([float(loss) for loss, _ in results])
    grads = {k: np.mean([np.float64(grads[k]) for _, grads in results], axis=0) for k in values}
    norm = np.sqrt(sum(np.sum(g**2) for g in grads.values()))
    factor = 1.0 if clip_norm is None else min(1.0, clip_norm / (norm + 1e-6))
    return loss, {k: factor * g for k, g in grads.items()}


@pytest.mark.parametrize(
    ("accumulate", "clip_norm"), [(1, None), (1, 0.1), (2, 1e6), (5, None), (5, 0.1)]
)
def test_is_the_mean_gradient(accumulate: int, clip_norm: float | None) -> None:
    model = build_model()
    opt = optim.SGD(model, lr=1.0)
    train_step = opt.make_step(loss_fn, model, accumulate=accumulate, clip_norm=clip_norm)
    x, factor = batches(accumulate)
    for _ in range(2):
        before = {k: np.array(p.data) for k, p in model.items()}
        wanted, grads = by_hand(model, (x, factor), clip_norm)
        loss = train_step(x, factor) if accumulate > 1 else train_step(x[0], factor[0])
        assert loss.shape == ()
        np.testing.assert_allclose(loss, wanted, rtol=1e-5)
        for k, p in model.items():
            np.testing.assert_allclose(before[k] - p.data, grads[k], rtol=1e-4, atol=1e-6)


def test_clipping_bounds_the_mean_and_not_each_gradient() -> None:
    """Opposite gradients cancel before they are clipped."""
    w = optim.Parameter(np.zeros(2, np.float32))
    opt = optim.SGD([w], lr=1.0)
    train_step = opt.make_step(
        lambda params, x: jnp.sum(params[0] * x), [w], accumulate=2, clip_norm=1.0
    )
    train_step(jnp.asarray([[100.0, 0.0], [-99.0, 0.0]]))
    np.testing.assert_allclose(w.data, [-0.5, 0.0], rtol=1e-5)


def test_is_what_backward_and_clip_grad_norm_do() -> None:
    models = build_model(), build_model()
    opts = [optim.SGD(model, lr=0.1, momentum=0.9) for model in models]
    train_step = opts[0].make_step(loss_fn, models[0], accumulate=4, clip_norm=0.05)
    for i in range(3):
        x, factor = batches(4, i)
        train_step(x, factor)
        for row in zip(x, factor / 4, strict=True):
            optim.backward(loss_fn, models[1], *row)
        optim.clip_grad_norm_(models[1], 0.05)
        opts[1].step()
        opts[1].zero_grad()
    for k in models[0]:
        np.testing.assert_allclose(models[0][k].data, models[1][k].data, rtol=1e-4)


def test_complex_parameters() -> None:
    w = optim.Parameter(np.complex64([1 + 1j, 2]))
    opt = optim.SGD([w], lr=1.0)
    train_step = opt.make_step(
        lambda params, x: jnp.sum(jnp.abs(params[0]) ** 2) * x, [w], accumulate=2
    )
    train_step(jnp.float32([0.25, 0.75]))  # the mean gradient is 2 * 0.5 * w
    np.testing.assert_allclose(w.data, np.zeros(2), atol=1e-6)


def test_aux_comes_back_stacked() -> None:
    model = build_model()
    opt = optim.SGD(model, lr=0.1)
    train_step = opt.make_step(loss_with_aux, model, has_aux=True, accumulate=3)
    x, factor = batches(3)
    wanted, _ = by_hand(model, (x, factor))
    loss, aux = train_step(x, factor)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    np.testing.assert_allclose(aux["mean"], np.mean(np.asarray(x), axis=(1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(aux["x"], x)


def test_without_accumulation_aux_is_not_stacked() -> None:
    model = build_model()
    train_step = optim.SGD(model, lr=0.1).make_step(loss_with_aux, model, True, accumulate=1)
    x, factor = batches(1)
    _, aux = train_step(x[0], factor[0])
    assert aux["mean"].shape == ()


def test_trees_of_micro_batches() -> None:
    w = optim.Parameter(np.zeros(2, np.float32))
    opt = optim.SGD([w], lr=1.0)

    def loss(params: Any, batch: Any, mask: Any) -> jax.Array:
        return jnp.sum(params[0] * batch["x"]) * mask[0]

    train_step = opt.make_step(loss, [w], accumulate=2)
    train_step({"x": np.float32([[1, 2], [3, 4]]), "unused": None}, (np.float32([1, 3]),))
    np.testing.assert_allclose(w.data, [-5, -7])


@pytest.mark.parametrize(
    ("index", "bad"),
    [
        (0, np.ones((2, 4, 2), np.float32)),
        (0, np.ones((6, 4, 2), np.float32)),
        (1, np.float32(1.0)),
        (1, 1.0),
        (1, np.ones(4, np.float32)),
    ],
)
def test_another_first_axis_is_refused_and_names_the_argument(index: int, bad: Any) -> None:
    model = build_model()
    opt = optim.SGD(model, lr=0.1)
    train_step = opt.make_step(loss_fn, model, accumulate=3)
    args: list[Any] = list(batches(3))
    train_step(*args)
    before = snapshot(opt)
    args[index] = bad
    with pytest.raises(ValueError) as caught:
        train_step(*args)
    assert f"argument [{index}] has shape {np.shape(bad)}" in str(caught.value)
    assert "takes 3 micro-batches stacked along the first axis" in str(caught.value)
    assert snapshot(opt) == before


def test_the_path_inside_an_argument_is_named() -> None:
    model = build_model()
    opt = optim.SGD(model, lr=0.1)
    train_step = opt.make_step(lambda params, batch: 1.0, model, accumulate=3)
    with pytest.raises(ValueError, match=r"argument \[0\]\['x'\]\[1\] has shape \(2,\)"):
        train_step({"x": [np.ones(3), np.ones(2)]})


def test_without_any_micro_batch() -> None:
    """There is nothing to tell batches apart: an error that says so, or one gradient."""
    w = optim.Parameter(np.zeros(2, np.float32))
    opt = optim.SGD([w], lr=1.0)
    train_step = opt.make_step(lambda params: jnp.sum(params[0]), [w], accumulate=2)
    with pytest.raises(ValueError, match="micro-batches"):
        train_step()


@pytest.mark.parametrize("accumulate", [0, -1, 2.0, "2", None])
def test_accumulate_is_a_positive_integer(accumulate: Any) -> None:
    model = build_model()
    opt = optim.SGD(model, lr=0.1)
    with pytest.raises(ValueError, match="accumulate should be a positive integer, but is"):
        opt.make_step(loss_fn, model, accumulate=accumulate)


@pytest.mark.parametrize("clip_norm", [-1.0, float("nan"), "1"])
def test_an_unusable_clip_norm_is_refused(clip_norm: Any) -> None:
    model = build_model()
    opt = optim.SGD(model, lr=0.1)
    before = snapshot(opt)
    with pytest.raises((TypeError, ValueError), match=r"max_norm|clip_norm"):
        opt.make_step(loss_fn, model, clip_norm=clip_norm)(*(x[0] for x in batches(1)))
    assert snapshot(opt) == before


def test_compiles_once() -> None:
    (width,) = new_shape()
    model = build_model(width)
    opt = optim.SGD(model, lr=0.1, momentum=0.9)
    train_step = opt.make_step(loss_fn, model, accumulate=3, clip_norm=1.0)
    args = [batches(3, i) for i in range(4)]
    for _ in range(2):
        train_step(*args[0])
    with compilations() as compiled:
        for i in range(1, 4):
            opt.param_groups[0].update(lr=0.1 / i, momentum=0.5)
            train_step(*args[i])
    assert compiled == []
    assert opt.compile_count == 1


SIDE = 128
COPY = 4 * SIDE * SIDE  # the bytes of the parameter


def programs(monkeypatch: pytest.MonkeyPatch, count: int) -> tuple[int, Any]:
    """The bytes that a train step needs beside its inputs and results, and its jaxpr."""
    found: list[Any] = []
    build = program.compiled_train_step

    def spied(*args: Any) -> Any:
        train = build(*args)

        def call(*inputs: Any) -> Any:
            jaxpr = jax.make_jaxpr(train, static_argnums=(0, 1, 2))(*inputs)
            analysis = train.lower(*inputs).compile().memory_analysis()
            found.append((analysis.temp_size_in_bytes, jaxpr))
            raise InterruptedError  # that is all there is to see

        return call

    monkeypatch.setattr(program, "compiled_train_step", spied)
    w = optim.Parameter(np.ones((SIDE, SIDE), np.float32))
    opt = optim.SGD([w], lr=0.1, momentum=0.9)
    train_step = opt.make_step(
        lambda params, x: jnp.mean((x @ params[0]) ** 2), [w], accumulate=count
    )
    rows = np.ones((count, 1, SIDE) if count > 1 else (1, SIDE), np.float32)
    with pytest.raises(InterruptedError):
        train_step(jnp.asarray(rows))
    ((size, jaxpr),) = found
    return size, jaxpr


def shapes(jaxpr: Any) -> set[tuple[int, ...]]:
    """Of everything that is computed, in the programs inside too."""
    found: set[tuple[int, ...]] = set()
    for equation in jaxpr.eqns:
        found |= {x.aval.shape for x in equation.outvars}
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found |= shapes(inner)
    return found


def test_gradients_are_not_held_for_every_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 16
    with monkeypatch.context() as patch:
        one, _ = programs(patch, 1)
    with monkeypatch.context() as patch:
        two, _ = programs(patch, 2)
    with monkeypatch.context() as patch:
        many, jaxpr = programs(patch, count)
    assert many - two < 0.5 * COPY
    assert many - one < 2.5 * COPY  # the sum, and the gradient to be added
    computed = shapes(jaxpr.jaxpr)
    assert (SIDE, SIDE) in computed  # so that the next line cannot pass by seeing nothing
    assert (count, SIDE, SIDE) not in computed


def test_parameters_without_gradient_have_no_sum() -> None:
    model = build_model()
    model["scale"].requires_grad = False
    opt = optim.Adam(model, lr=0.1)
    before = np.array(model["scale"].data)
    opt.make_step(loss_fn, model, accumulate=2, clip_norm=1.0)(*batches(2))
    np.testing.assert_array_equal(model["scale"].data, before)
    assert [p in opt.state for p in all_parameters(opt)] == [True, True, False]
