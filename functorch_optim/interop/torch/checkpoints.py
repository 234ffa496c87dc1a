"""state_dicts from torch and back: `from_torch`, `to_torch`, and the same for a model's weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import torch

from functorch_optim.core import trees
from functorch_optim.interop.torch import translation
from functorch_optim.interop.torch.nested import map_leaves
from functorch_optim.interop.torch.plan import Names, Preview, Transforms, planned
from functorch_optim.interop.torch.tensors import numpy_view, own_array, own_tensor, tensor_or_same


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
    arrays = map_leaves(state_dict, lambda x: numpy_view(x) if isinstance(x, torch.Tensor) else x)
    if names is not None or len(transforms) or like is not None:
        arrays = translation.optimizer_to_ours(arrays, names, transforms, like)
    return map_leaves(arrays, lambda x: own_array(x) if isinstance(x, np.ndarray) else x)


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
        arrays = map_leaves(state_dict, lambda x: np.asarray(x) if isinstance(x, jax.Array) else x)
        state_dict = translation.optimizer_to_torch(arrays, names, transforms, like)
    return map_leaves(state_dict, tensor_or_same)


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
    arrays = map_leaves(state_dict, lambda x: numpy_view(x) if isinstance(x, torch.Tensor) else x)
    moved = translation.weights_to_ours(arrays, names, transforms, like)
    weights = {name: own_array(x) for name, x in moved.items()}
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
    moved = translation.weights_to_torch(weights, names, transforms)
    return {name: own_tensor(x) for name, x in moved.items()}


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
    arrays = map_leaves(state_dict, lambda x: numpy_view(x) if isinstance(x, torch.Tensor) else x)
    return planned(arrays, names, transforms, like)
