"""Single tensors as arrays and back: copied, or over one memory that no step overwrites."""

from __future__ import annotations

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim.stateful as optim

torch = pytest.importorskip("torch")
interop = importlib.import_module("functorch_optim.interop.torch")

DTYPES = ("float32", "bfloat16", "float16", "float64", "complex64", "bool", "int32")


def tensor_of(dtype: str, n: int = 64) -> Any:
    return torch.arange(n).to(getattr(torch, dtype))


def plain(x: Any) -> np.ndarray:
    return np.asarray(x).astype(np.complex128)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("copy", [True, False])
def test_a_tensor_as_an_array(dtype: str, copy: bool, x64: None) -> None:
    tensor = tensor_of(dtype)
    array = interop.as_array(tensor, copy=copy)
    assert isinstance(array, jax.Array)
    assert array.dtype.name == dtype
    np.testing.assert_array_equal(plain(array), tensor.to(torch.complex128))
    assert (array.unsafe_buffer_pointer() == tensor.data_ptr()) == (not copy)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("copy", [True, False])
def test_an_array_as_a_tensor(dtype: str, copy: bool, x64: None) -> None:
    array = jnp.arange(64).astype(dtype)
    tensor = interop.as_tensor(array, copy=copy)
    assert tensor.dtype == getattr(torch, dtype)
    np.testing.assert_array_equal(tensor.to(torch.complex128), plain(array))
    assert (array.unsafe_buffer_pointer() == tensor.data_ptr()) == (not copy)


def test_copies_are_the_default() -> None:
    tensor = torch.ones(64)
    array = interop.as_array(tensor)
    tensor.zero_()
    assert np.asarray(array).all()
    again = interop.as_tensor(array)
    again.zero_()
    assert np.asarray(array).all()


def test_shapes_without_numbers_and_transposes_are_shared_too() -> None:
    for tensor in torch.ones(()), torch.ones(0, 3), torch.arange(12.0).reshape(3, 4).T:
        np.testing.assert_array_equal(interop.as_array(tensor, copy=False), tensor)


def test_history_is_left_behind() -> None:
    tensor = torch.ones(16, requires_grad=True)
    for copy in True, False:
        assert np.asarray(interop.as_array(tensor, copy=copy)).all()


REFUSED = {
    "strided": lambda: torch.ones(4, 64)[:, ::2],
    "unaligned": lambda: torch.ones(33)[1:],
    "expanded": lambda: torch.ones(1, 3).expand(2, 3),
    "conjugate": lambda: torch.ones(16, dtype=torch.complex64).conj(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_memory_that_cannot_be_shared_is_refused_and_copied(name: str) -> None:
    tensor = REFUSED[name]()
    with pytest.raises(ValueError, match="copy=True"):
        interop.as_array(tensor, copy=False)
    np.testing.assert_array_equal(interop.as_array(tensor), tensor.resolve_conj())


def test_wrong_values_are_refused() -> None:
    with pytest.raises(TypeError, match="takes a torch tensor, but got ndarray"):
        interop.as_array(np.ones(2))
    with pytest.raises(TypeError, match="takes an array, but got Tensor"):
        interop.as_tensor(torch.ones(2))
    with pytest.raises(TypeError, match="no array: make it dense"):
        interop.as_array(torch.eye(2).to_sparse(), copy=False)
    for copy in True, False:
        with pytest.raises(TypeError, match=r"torch.float64 needs JAX's 64-bit types"):
            interop.as_array(torch.ones(2, dtype=torch.float64), copy=copy)
    with pytest.raises(ValueError, match="cannot be shared, use copy=True"):
        interop.as_tensor(jnp.ones(4, jnp.int4), copy=False)
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(
        jnp.ones(4), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    )
    with pytest.raises(ValueError, match="cannot be shared, use copy=True"):
        interop.as_tensor(spread, copy=False)
    assert torch.equal(interop.as_tensor(spread), torch.ones(4))


@pytest.mark.parametrize("how", ["step", "make_step"])
def test_a_step_does_not_write_into_a_tensors_memory(how: str) -> None:
    """A Parameter over a tensor, with its gradient: both libraries go on from the same values."""
    theirs = torch.linspace(-1, 1, 256).requires_grad_()
    start = theirs.detach().clone()
    p = optim.Parameter(interop.as_array(theirs, copy=False))
    assert p.data.unsafe_buffer_pointer() == theirs.data_ptr()
    opt = optim.SGD([p], lr=0.1, momentum=0.9)
    train_step = opt.make_step(lambda x: jnp.sum(x**2), p)
    reference = torch.optim.SGD([start.clone().requires_grad_()], lr=0.1, momentum=0.9)
    copy = reference.param_groups[0]["params"][0]
    for _ in range(3):
        (copy**2).sum().backward()
        if how == "step":
            p.grad = interop.as_array(copy.grad, copy=False)
            assert p.grad.unsafe_buffer_pointer() == copy.grad.data_ptr()
            before = copy.grad.clone()
            opt.step()
            jax.block_until_ready(p.data)
            assert torch.equal(copy.grad, before)
            p.grad = None
        else:
            jax.block_until_ready(train_step())
        reference.step()
        reference.zero_grad()
        assert torch.equal(theirs.detach(), start)
        np.testing.assert_allclose(p, copy.detach(), rtol=1e-5, atol=1e-7)


def test_a_tensor_over_a_parameter_keeps_its_values() -> None:
    p = optim.Parameter(jnp.ones(256))
    opt = optim.SGD([p], lr=0.5)
    p.grad = jnp.ones(256)
    opt.step()  # now the value is the optimizer's own, and would be overwritten
    tensor = interop.as_tensor(p, copy=False)
    assert tensor.data_ptr() == p.data.unsafe_buffer_pointer()
    for _ in range(2):
        opt.step()
    assert torch.equal(tensor, torch.full((256,), 0.5))
    np.testing.assert_array_equal(p, np.full(256, -0.5))


def test_donation_spares_shared_memory() -> None:
    """What the two tests before rest on."""
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    tensor = torch.ones(256)
    add(interop.as_array(tensor, copy=False))
    array = jnp.zeros(256)
    shared = interop.as_tensor(array, copy=False)
    add(array)
    assert torch.equal(tensor, torch.ones(256))
    assert torch.equal(shared, torch.zeros(256))
