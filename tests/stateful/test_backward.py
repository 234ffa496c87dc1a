"""`backward`: a loss, and gradients in `.grad`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim.stateful as optim
from tests.support.stateful import numbers


def build_model() -> dict[str, optim.Parameter]:
    return optim.parameters({"w": numbers(0, (3,)), "b": numbers(1, ())})


def loss_fn(params: Any, x: Any) -> jax.Array:
    return jnp.sum((params["w"] * x) ** 2) + params["b"] ** 3


def gradients(model: Any) -> Any:
    return jax.tree.map(lambda p: p.grad, model)


def test_returns_the_loss_and_fills_gradients() -> None:
    model = build_model()
    x = numbers(2, (3,))
    loss = optim.backward(loss_fn, model, x)
    wanted = jax.value_and_grad(loss_fn)(optim.values(model), x)
    assert isinstance(loss, jax.Array)
    np.testing.assert_allclose(loss, wanted[0], rtol=1e-6)
    for name, p in model.items():
        np.testing.assert_allclose(p.grad, wanted[1][name], rtol=1e-6)
        assert p.grad.dtype == p.dtype


def test_gradients_accumulate_until_they_are_zeroed() -> None:
    model = build_model()
    opt = optim.SGD(model)
    optim.backward(loss_fn, model, numbers(2, (3,)))
    first = jax.tree.map(np.array, gradients(model))
    optim.backward(loss_fn, model, numbers(3, (3,)))
    both = jax.tree.map(np.array, gradients(model))
    opt.zero_grad()
    optim.backward(loss_fn, model, numbers(3, (3,)))
    for name, p in model.items():
        np.testing.assert_allclose(both[name], first[name] + np.array(p.grad), rtol=1e-6)


def test_adds_to_a_gradient_that_only_some_have() -> None:
    model = build_model()
    model["b"].grad = np.float32(10.0)
    optim.backward(loss_fn, model, numbers(2, (3,)))
    wanted = jax.grad(loss_fn)(optim.values(model), numbers(2, (3,)))
    np.testing.assert_allclose(model["b"].grad, 10 + wanted["b"], rtol=1e-6)
    np.testing.assert_allclose(model["w"].grad, wanted["w"], rtol=1e-6)


def test_adds_to_a_gradient_of_another_dtype() -> None:
    p = optim.Parameter(jnp.ones(2, jnp.bfloat16))
    p.grad = np.full(2, 0.5, np.float32)
    optim.backward(lambda x: jnp.sum(x), p)
    np.testing.assert_array_equal(p.grad.astype(jnp.float32), [1.5, 1.5])


def test_an_earlier_gradient_that_is_held_stays() -> None:
    model = build_model()
    optim.backward(loss_fn, model, numbers(2, (3,)))
    held = model["w"].grad
    before = np.array(held)
    optim.backward(loss_fn, model, numbers(3, (3,)))
    np.testing.assert_array_equal(held, before)


def test_aux_is_returned() -> None:
    model = build_model()

    def with_aux(params: Any, x: Any) -> Any:
        return loss_fn(params, x), {"doubled": 2 * params["w"]}

    loss, aux = optim.backward(with_aux, model, numbers(2, (3,)), has_aux=True)
    assert loss.shape == ()
    np.testing.assert_array_equal(aux["doubled"], 2 * model["w"].data)
    assert model["w"].grad is not None


def test_what_requires_no_gradient_gets_none() -> None:
    model = build_model()
    model["w"].requires_grad = False
    optim.backward(loss_fn, model, numbers(2, (3,)))
    assert model["w"].grad is None
    assert model["b"].grad is not None
    model["w"].requires_grad = True
    optim.backward(loss_fn, model, numbers(2, (3,)))
    assert model["w"].grad is not None


def test_a_constant_is_read_anew_at_every_call() -> None:
    model = {**build_model(), "scale": jnp.float32(2.0)}

    def scaled(params: Any) -> jax.Array:
        return params["scale"] * jnp.sum(params["w"]) + params["b"]

    optim.backward(scaled, model)
    np.testing.assert_array_equal(model["w"].grad, [2.0, 2.0, 2.0])
    model["w"].grad = None
    model["scale"] = jnp.float32(5.0)
    optim.backward(scaled, model)
    np.testing.assert_array_equal(model["w"].grad, [5.0, 5.0, 5.0])


def test_leaves_that_are_no_arrays_reach_the_function() -> None:
    seen = []

    def spying(params: Any) -> jax.Array:
        is_array = isinstance(params["count"], jax.Array)
        seen.append((params["name"], params["power"], params["nothing"], is_array))
        return jnp.sum(params["activation"](params["w"]) ** params["power"])

    model = {
        "w": optim.Parameter(numbers(0, (3,))),
        "activation": jnp.tanh,
        "name": "tanh",
        "power": 2,
        "nothing": None,
        "count": np.arange(3),
    }
    loss = optim.backward(spying, model)
    np.testing.assert_allclose(loss, np.sum(np.tanh(numbers(0, (3,))) ** 2), rtol=1e-5)
    assert seen[0] == ("tanh", 2, None, True)
    model["power"] = 3
    optim.backward(spying, model)
    assert seen[-1][1] == 3


def test_integers_and_keys_in_a_model_are_constants() -> None:
    model = optim.parameters(
        {"w": numbers(0, (3,)), "index": np.arange(2), "key": jax.random.key(0)}
    )

    def noisy(params: Any) -> jax.Array:
        noise = jax.random.normal(params["key"], (3,))
        return jnp.sum((params["w"] * noise)[params["index"]])

    optim.backward(noisy, model)
    wanted = np.array(jax.random.normal(jax.random.key(0), (3,)))
    wanted[2] = 0
    np.testing.assert_allclose(model["w"].grad, wanted, rtol=1e-6)
    assert model["index"].grad is None
    assert model["key"].grad is None


def test_a_bare_parameter_is_a_model() -> None:
    p = optim.Parameter(np.ones(3, np.float32))
    optim.backward(lambda x: jnp.sum(2 * x), p)
    np.testing.assert_array_equal(p.grad, [2.0, 2.0, 2.0])


def test_a_parameter_in_two_places_gets_the_sum_of_its_gradients() -> None:
    """Tied weights, as of an embedding and the output layer."""
    p = optim.Parameter(np.ones(2, np.float32))
    model = {"a": p, "b": p}
    optim.backward(lambda t: jnp.sum(2.0 * t["a"]) + jnp.sum(3.0 * t["b"]), model)
    np.testing.assert_array_equal(p.grad, [5.0, 5.0])


def test_a_parameter_that_the_loss_ignores_gets_zeros() -> None:
    model = build_model()
    optim.backward(lambda params: params["b"] * 2, model)
    np.testing.assert_array_equal(model["w"].grad, [0.0, 0.0, 0.0])


@pytest.mark.parametrize("requires_grad", [False, True])
def test_a_model_without_anything_to_train_is_refused(requires_grad: bool) -> None:
    model = {"a": np.ones(2, np.float32)}
    if not requires_grad:
        model["b"] = optim.Parameter(np.ones(2), requires_grad=False)
    with pytest.raises(ValueError, match="no Parameter of the model requires a gradient"):
        optim.backward(lambda params: jnp.sum(params["a"]), model)


def test_a_loss_that_is_no_scalar_is_refused_and_nothing_changes() -> None:
    model = build_model()
    optim.backward(loss_fn, model, numbers(2, (3,)))
    before = gradients(model)
    with pytest.raises(TypeError, match="scalar"):
        optim.backward(lambda params, x: params["w"] * x, model, numbers(2, (3,)))
    assert all(gradients(model)[name] is before[name] for name in model)


def complex_loss(params: Any, c: Any, lib: Any) -> Any:
    """Real, of a complex and of a real parameter, and not holomorphic."""
    z, x = params["z"], params["x"]
    return (lib.abs(z * c) ** 2).sum() + (lib.real(z * z * c) * x).sum() + lib.imag(z).sum()


def test_a_complex_gradient_is_the_direction_of_steepest_ascent() -> None:
    z = numbers(0, (3,), np.complex64)
    p = optim.Parameter(z)
    optim.backward(lambda x: jnp.sum(jnp.abs(x) ** 2), p)
    np.testing.assert_allclose(p.grad, 2 * z, rtol=1e-6)
    optim.backward(lambda x: jnp.sum(jnp.imag(x)), p)
    np.testing.assert_allclose(p.grad, 2 * z + 1j, rtol=1e-6)


def test_complex_gradients_are_torchs() -> None:
    torch = pytest.importorskip("torch", reason="compares with torch's autograd")
    values = {"z": numbers(0, (3,), np.complex64), "x": numbers(1, (3,))}
    c = numbers(2, (3,), np.complex64)
    model = optim.parameters(values)
    loss = optim.backward(lambda params, c: complex_loss(params, c, jnp), model, c)
    tensors = {name: torch.tensor(x, requires_grad=True) for name, x in values.items()}
    wanted = complex_loss(tensors, torch.tensor(c), torch)
    wanted.backward()
    np.testing.assert_allclose(loss, wanted.item(), rtol=1e-5)
    for name, tensor in tensors.items():
        np.testing.assert_allclose(model[name].grad, tensor.grad.numpy(), rtol=1e-5)


def test_a_complex_descent_descends() -> None:
    """The gradient convention and the optimizer's update belong together."""
    target = numbers(5, (3,), np.complex64)
    p = optim.Parameter(np.zeros(3, np.complex64))
    opt = optim.SGD([p], lr=0.1)

    def distance(z: jax.Array, target: jax.Array) -> jax.Array:
        return jnp.sum(jnp.abs(z - target) ** 2)

    for _ in range(30):
        optim.backward(distance, p, target)
        opt.step()
        opt.zero_grad()
    np.testing.assert_allclose(p.data, target, atol=1e-2)
