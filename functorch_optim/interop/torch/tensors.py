"""Single tensors as arrays and back: `as_array` and `as_tensor`, and what they are made of."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch

from functorch_optim.core.arithmetic import float_dtype
from functorch_optim.stateful.parameter import Parameter

# The dtypes that numpy lacks: torch's by name, and the integers that carry their bits over.
_EXTENSIONS = {
    name: np.dtype(getattr(ml_dtypes, name))
    for name in (
        "bfloat16",
        "float8_e4m3fn",
        "float8_e4m3fnuz",
        "float8_e5m2",
        "float8_e5m2fnuz",
        "float8_e8m0fnu",
    )
    if hasattr(torch, name)
}
_NUMPY_OF = {getattr(torch, name): dtype for name, dtype in _EXTENSIONS.items()}
_TORCH_OF = {dtype: theirs for theirs, dtype in _NUMPY_OF.items()}
_SHARED = {
    getattr(torch, name): np.dtype(name)
    for name in (
        *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
        *("float16", "float32", "float64", "complex64", "complex128"),
    )
}
_BITS = {1: (torch.uint8, np.uint8), 2: (torch.int16, np.int16)}


def as_array(tensor: torch.Tensor, copy: bool = True) -> jax.Array:
    """A tensor as a jax array of the same dtype.

    Args:
      tensor: a dense one. Its history (`requires_grad`) is left behind.
      copy: True: an array with memory of its own, on JAX's default device. False: an array over the
        tensor's memory, by DLPack: what torch writes into the tensor later (`zero_()`, the next
        `backward()`) changes the array, also while a computation still reads it. A `Parameter` and
        a step are safe with it: they copy a value before they overwrite it, and read a gradient
        only.

    Raises:
      TypeError: not a tensor; a sparse or quantized one; a 64-bit dtype without JAX's x64.
      ValueError: copy is False, and the memory cannot be shared (strided or not aligned to 64
        bytes, or on a device that JAX has not).
    """
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"as_array takes a torch tensor, but got {type(tensor).__name__}")
    tensor = tensor.detach()
    check_dense(tensor)
    if not _fits(tensor.dtype.itemsize, tensor.dtype.is_complex):
        raise TypeError(
            f"a tensor of {tensor.dtype} needs JAX's 64-bit types: "
            'jax.config.update("jax_enable_x64", True), or convert the tensor'
        )
    if copy:
        return jnp.array(numpy_view(tensor))
    if tensor.is_conj() or tensor.is_neg():
        raise ValueError("a tensor that is a lazy conjugate or negative needs copy=True")
    try:
        return jax.dlpack.from_dlpack(tensor, copy=False)
    except (ValueError, RuntimeError, BufferError, TypeError) as error:
        raise ValueError(
            f"the memory of a tensor of shape {tuple(tensor.shape)} and stride {tensor.stride()} "
            f"cannot be shared, use copy=True: {error}"
        ) from error


def as_tensor(array: Any, copy: bool = True) -> torch.Tensor:
    """A jax (or numpy) array, or the value of a Parameter, as a tensor of the same dtype.

    Args:
      array: on one device.
      copy: True: a tensor with memory of its own, on the CPU. False: a tensor over the array's
        memory, on its device, by DLPack. JAX takes arrays for constants, so do not write into that
        tensor. While it lives, a step that would reuse the memory takes other memory instead: the
        tensor keeps its values.

    Raises:
      TypeError: torch has no such dtype.
      ValueError: copy is False, and the memory cannot be shared.
    """
    if isinstance(array, Parameter):
        array = array.data
    if not isinstance(array, jax.Array | np.ndarray):
        raise TypeError(f"as_tensor takes an array, but got {type(array).__name__}")
    if copy:
        return own_tensor(array)
    try:
        if isinstance(array, jax.Array):
            array = jax.block_until_ready(array)
        return torch.utils.dlpack.from_dlpack(array)
    except (ValueError, RuntimeError, BufferError, TypeError) as error:
        raise ValueError(f"the memory of the array cannot be shared, use copy=True: {error}") from (
            error
        )


def check_dense(tensor: torch.Tensor) -> None:
    """Raises TypeError for a tensor that is not one block of numbers."""
    if tensor.is_nested:
        raise TypeError("a nested tensor is no array: give its parts, `tensor.unbind()`")
    if tensor.is_meta:
        raise TypeError(f"a meta tensor of shape {tuple(tensor.shape)} is no array: it has no data")
    if tensor.layout != torch.strided or tensor.is_quantized:
        kind = "quantized" if tensor.is_quantized else str(tensor.layout)
        raise TypeError(
            f"a {kind} tensor of shape {tuple(tensor.shape)} is no array: make it dense"
        )


def numpy_dtype(dtype: torch.dtype) -> np.dtype:
    """numpy's dtype of the same name.

    Raises:
      ValueError: there is none.
    """
    found = _NUMPY_OF.get(dtype) or _SHARED.get(dtype)
    if found is None:
        raise ValueError(f"there is no array of {dtype}: convert the tensor")
    return found


def numpy_view(tensor: torch.Tensor) -> np.ndarray:
    """A tensor's numbers for numpy, in the tensor's memory where it is on the CPU."""
    check_dense(tensor)
    tensor = tensor.detach().resolve_conj().resolve_neg().cpu()
    if tensor.dtype not in _NUMPY_OF:
        return tensor.numpy()
    bits, _ = _BITS[tensor.dtype.itemsize]
    return tensor.view(bits).numpy().view(_NUMPY_OF[tensor.dtype])


def _fits(itemsize: int, is_complex: bool) -> bool:
    """Whether JAX has types of this size now."""
    return float_dtype().itemsize == 8 or itemsize < (16 if is_complex else 8)


def own_array(x: np.ndarray) -> Any:
    """A copy as a jax array; as a numpy array where JAX would narrow it."""
    return jnp.array(x) if _fits(x.dtype.itemsize, np.iscomplexobj(x)) else np.array(x)


def tensor_or_same(x: Any) -> Any:
    """A tensor for an array or a Parameter, a number for numpy's scalar; anything else as it is."""
    if isinstance(x, np.generic):
        return x.item()
    if isinstance(x, Parameter):
        x = x.data
    return own_tensor(x) if isinstance(x, jax.Array | np.ndarray) else x


def own_tensor(x: Any) -> torch.Tensor:
    """A tensor with memory of its own."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        raise TypeError("a random key is no tensor: save jax.random.key_data(key)")
    array = np.array(x, order="C")
    theirs = _TORCH_OF.get(array.dtype)
    try:
        if theirs is None:
            return torch.from_numpy(array)
    except TypeError as error:
        raise TypeError(f"torch has no dtype for an array of {array.dtype}") from error
    _, bits = _BITS[array.dtype.itemsize]
    return torch.from_numpy(array.view(bits)).view(theirs)
