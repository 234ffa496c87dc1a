"""torch's tensors and checkpoints. Needs `functorch_optim[torch]`.

`from_torch` and `to_torch` turn the state_dict of any optimizer or scheduler into the other
library's; given names and transforms, also for a model that changed names and layout on the way.
`load` and `save` do so for `.pt` files, and never run code of a file. `as_array` and `as_tensor`
are for single tensors, by a copy or by sharing memory.
"""

from __future__ import annotations

import collections
import os
import pickle
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from functorch_optim.core import trees
from functorch_optim.core.arithmetic import float_dtype
from functorch_optim.interop import whole_files as files
from functorch_optim.interop.torch import translation as moving
from functorch_optim.interop.torch.layouts import (
    Transform,
    conv,
    conv_transpose,
    flattened_linear,
    identity,
    linear,
)
from functorch_optim.interop.torch.translation import Names, Preview, Transforms
from functorch_optim.stateful.parameter import Parameter

try:
    import torch
except ImportError as error:
    raise ImportError(
        'functorch_optim.interop.torch needs torch: pip install "functorch_optim[torch]"'
    ) from error

__all__ = [
    "Preview",
    "Transform",
    "as_array",
    "as_tensor",
    "conv",
    "conv_transpose",
    "flattened_linear",
    "from_torch",
    "identity",
    "linear",
    "load",
    "preview",
    "save",
    "to_torch",
    "weights_from_torch",
    "weights_to_torch",
]

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
_BITS = {1: (torch.uint8, np.uint8), 2: (torch.int16, np.int16)}


def from_torch(
    state_dict: Any,
    names: Names | None = None,
    transforms: Transforms = (),
    like: Any = None,
) -> Any:
    """torch's state_dict, of an optimizer or a scheduler, with arrays where it has tensors.

    Every array is a copy of its tensor's dtype. A 64-bit one is a numpy array where JAX's 64-bit
    types are off; `load_state_dict` takes those as well. Whatever is no tensor stays as it is.

    Without names and transforms any nested value is converted. With them an optimizer's state_dict
    is also brought to the names and layouts of a model here, for
    `opt.load_state_dict(..., match="name")`.

    Args:
      state_dict: torch's; also one that is converted already.
      names: our names (dotted, as `named_parameters` gives them) by torch's, or by position in
        torch's optimizer if it was built without names; or a list of ours in torch's order. `None`:
        torch's names are ours.
      transforms: `(pattern, transform)`, of which the first is used whose regular expression is
        found in a parameter's name, torch's or ours; or a mapping from a whole name. A transform is
        one of this module, or a pair (function, inverse) from torch's layout to ours and back.
      like: our optimizer, or the tree of its parameters. Then all names and shapes are checked, and
        the parameters of a group have its order. L-BFGS needs it wherever something moves.

    Returns:
      The same structure with arrays.

    Raises:
      ValueError: a name is missing, a shape does not fit, a buffer cannot follow its parameter, a
        transform is used for nothing. All problems are in the message.
      TypeError: a tensor that is no array (sparse, quantized); names for something else than an
        optimizer's state_dict.
    """
    arrays = _map(state_dict, lambda x: _numpy_view(x) if isinstance(x, torch.Tensor) else x)
    if names is not None or len(transforms) or like is not None:
        arrays = moving.optimizer_to_ours(arrays, names, transforms, like)
    return _map(arrays, lambda x: _own_array(x) if isinstance(x, np.ndarray) else x)


def to_torch(
    state_dict: Any,
    names: Names | None = None,
    transforms: Transforms = (),
    like: Any = None,
) -> Any:
    """The inverse of `from_torch`: a state_dict of ours with tensors where it has arrays.

    Every tensor is a copy, on the CPU, of its array's dtype.

    Args:
      state_dict: ours.
      names: as for `from_torch`. torch matches by position, so a mapping should list torch's names
        in the order of its optimizer, as `named_parameters()` of its module does.
      transforms: as for `from_torch`.
      like: our optimizer, or the tree of its parameters: needed if it was built without names, and
        for L-BFGS.

    Returns:
      The same structure with tensors.

    Raises:
      ValueError: as `from_torch`. TypeError: an array that torch has no dtype for.
    """
    if names is not None or len(transforms) or like is not None:
        arrays = _map(state_dict, lambda x: np.asarray(x) if isinstance(x, jax.Array) else x)
        state_dict = moving.optimizer_to_torch(arrays, names, transforms, like)
    return _map(state_dict, _tensor_or_same)


def weights_from_torch(
    state_dict: Mapping[str, Any],
    names: Names | None = None,
    transforms: Transforms = (),
    like: Any = None,
) -> Any:
    """A torch module's state_dict in our names and layouts.

    Args:
      state_dict: of the module.
      names: our names by torch's; `None` as a name leaves an entry behind (`num_batches_tracked`).
      transforms: as for `from_torch`.
      like: a tree of arrays (or Parameters): the result has its structure, and must fit it.

    Returns:
      `{our name: array}`; or a tree like `like`, in the dtypes of the tensors.

    Raises:
      ValueError: what is missing, left over, or of another shape.
    """
    arrays = _map(state_dict, lambda x: _numpy_view(x) if isinstance(x, torch.Tensor) else x)
    moved = moving.weights_to_ours(arrays, names, transforms, like)
    weights = {name: _own_array(x) for name, x in moved.items()}
    if like is None:
        return weights
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: weights.get(trees.dotted(path), leaf), like
    )


def weights_to_torch(
    weights: Any, names: Names | None = None, transforms: Transforms = ()
) -> dict[str, torch.Tensor]:
    """The inverse of `weights_from_torch`: what a torch module's `load_state_dict` takes.

    Args:
      weights: a tree of arrays or Parameters, or a dict of arrays by name.
      names: as for `weights_from_torch`.
      transforms: as for `from_torch`.

    Returns:
      Tensors by torch's names, in the order of `names`. What `names` leaves behind is not there
      (`load_state_dict(..., strict=False)`).
    """
    moved = moving.weights_to_torch(weights, names, transforms)
    return {name: _tensor(x) for name, x in moved.items()}


def preview(
    state_dict: Mapping[str, Any],
    names: Names | None = None,
    transforms: Transforms = (),
    like: Any = None,
) -> Preview:
    """What `from_torch` or `weights_from_torch` would do with the same arguments; nothing is done.

    `print(preview(...))` shows a table of names, shapes, transforms and state entries, then the
    problems: what is missing, unused, or of another shape.
    """
    arrays = _map(state_dict, lambda x: _numpy_view(x) if isinstance(x, torch.Tensor) else x)
    return moving.planned(arrays, names, transforms, like)


# Files.

_PLAIN = (bool, int, float, complex, str, bytes)


def load(path: files.Path) -> Any:
    """What torch saved in a file, with arrays for its tensors. No code of the file is ever run.

    Args:
      path: a file of `torch.save` or `save`.

    Returns:
      The nested containers; dtypes as in `from_torch`.

    Raises:
      ValueError: it holds objects besides tensors, numbers, strings and containers of them, or it
        is damaged. Nothing was executed then.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{os.fspath(path)} was not loaded: it is no file of torch, or holds something besides "
            "tensors, numbers, strings and containers of them, whose loading could run code. "
            f"torch says: {str(error).strip()}"
        ) from error
    except (RuntimeError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{os.fspath(path)} cannot be read as a file of torch: {error}") from error
    return from_torch(saved)


def save(path: files.Path, state_dict: Any) -> None:
    """Saves nested containers of arrays and numbers as a `.pt` file, which torch reads.

    The file is written beside `path` and then put in its place: whatever happens, a whole file is
    there, the old or the new.

    Args:
      path: the file.
      state_dict: arrays become tensors (`to_torch`); tensors, numbers, strings, `None`, dicts,
        lists and tuples are saved as they are.

    Raises:
      TypeError: something else, which `load` would refuse; it is named and nothing is written.
    """
    tensors = to_torch(state_dict)
    _check_plain(tensors, "the state_dict")
    files.write_atomically(path, lambda file: torch.save(tensors, file))


def _check_plain(x: Any, where: str) -> None:
    if type(x) in (dict, collections.OrderedDict, collections.Counter):
        for key, value in x.items():
            _check_plain(key, f"a key of {where}")
            _check_plain(value, f"{where}[{key!r}]")
    elif type(x) in (list, tuple, set):
        for i, item in enumerate(x):
            _check_plain(item, f"{where}[{i}]")
    elif not (
        x is None or type(x) in (*_PLAIN, torch.Size, torch.dtype) or isinstance(x, torch.Tensor)
    ):
        raise TypeError(
            f"{where} is a {type(x).__module__}.{type(x).__qualname__}, which a file can hold as a "
            "pickled object only; `load` would refuse it. Save the numbers that it is made of"
        )


# Single tensors.


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
    _check_dense(tensor)
    if not _fits(tensor.dtype.itemsize, tensor.dtype.is_complex):
        raise TypeError(
            f"a tensor of {tensor.dtype} needs JAX's 64-bit types: "
            'jax.config.update("jax_enable_x64", True), or convert the tensor'
        )
    if copy:
        return jnp.array(_numpy_view(tensor))
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
        return _tensor(array)
    try:
        if isinstance(array, jax.Array):
            array = jax.block_until_ready(array)
        return torch.utils.dlpack.from_dlpack(array)
    except (ValueError, RuntimeError, BufferError, TypeError) as error:
        raise ValueError(f"the memory of the array cannot be shared, use copy=True: {error}") from (
            error
        )


# What `from_torch` and `to_torch` are made of.


def _map(x: Any, function: Callable[[Any], Any]) -> Any:
    """A nested value with every leaf replaced; containers keep their types, and dicts their order.

    Mappings of other types become dicts. (`jax.tree.map` would sort the keys.)
    """
    if isinstance(x, Mapping):
        items = {key: _map(value, function) for key, value in x.items()}
        if type(x) in (collections.OrderedDict, collections.Counter):
            return cast(Any, type(x))(items)
        return items
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*[_map(item, function) for item in x])
    if type(x) in (list, tuple):
        return type(x)([_map(item, function) for item in x])
    return function(x)


def _check_dense(tensor: torch.Tensor) -> None:
    if tensor.layout != torch.strided or tensor.is_quantized:
        kind = "quantized" if tensor.is_quantized else str(tensor.layout)
        raise TypeError(
            f"a {kind} tensor of shape {tuple(tensor.shape)} is no array: make it dense"
        )


def _numpy_view(tensor: torch.Tensor) -> np.ndarray:
    """A tensor's numbers for numpy, in the tensor's memory where it is on the CPU."""
    _check_dense(tensor)
    tensor = tensor.detach().resolve_conj().resolve_neg().cpu()
    if tensor.dtype not in _NUMPY_OF:
        return tensor.numpy()
    bits, _ = _BITS[tensor.dtype.itemsize]
    return tensor.view(bits).numpy().view(_NUMPY_OF[tensor.dtype])


def _fits(itemsize: int, is_complex: bool) -> bool:
    """Whether JAX has types of this size now."""
    return float_dtype().itemsize == 8 or itemsize < (16 if is_complex else 8)


def _own_array(x: np.ndarray) -> Any:
    """A copy as a jax array; as a numpy array where JAX would narrow it."""
    return jnp.array(x) if _fits(x.dtype.itemsize, np.iscomplexobj(x)) else np.array(x)


def _tensor_or_same(x: Any) -> Any:
    if isinstance(x, np.generic):
        return x.item()
    if isinstance(x, Parameter):
        x = x.data
    return _tensor(x) if isinstance(x, jax.Array | np.ndarray) else x


def _tensor(x: Any) -> torch.Tensor:
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
