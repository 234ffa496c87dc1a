"""The Parameters of a model as one vector, as torch.nn.utils does it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functorch_optim.core import trees
from functorch_optim.stateful.memory.cell import NOBODY, Changes
from functorch_optim.stateful.model import all_parameters, values
from functorch_optim.stateful.parameter import Parameter


def parameters_to_vector(parameters: Any) -> jax.Array:
    """All values in a row, in the common dtype. Compiled.

    Args:
      parameters: a Parameter, an iterable of them, or a model: in the tree's order. Those that are
        not floating point, torch's buffers, are left out.

    Raises:
      ValueError: there is none.
    """
    cells = _floating(parameters)
    if not cells:
        raise ValueError("torch.cat(): expected a non-empty list of Tensors")
    return _joined(values(cells))


def vector_to_parameters(vec: Any, parameters: Any) -> None:
    """Assigns the parts of a vector to Parameters, in their dtypes and on their devices.

    Args:
      vec: as `parameters_to_vector` gives it.
      parameters: a Parameter, an iterable of them, or a model. Those that are not floating point
        stay as they are.

    Raises:
      TypeError: vec is no array, or complex for real Parameters. ValueError: it is no vector, or
        has another length than the Parameters together (torch passes over what is too much).
        Nothing is changed by either.
    """
    if not isinstance(vec, jax.Array | np.ndarray):
        raise TypeError(f"expected an array, torch's torch.Tensor, but got: {type(vec).__name__}")
    cells = _floating(parameters)
    wanted = sum(p.size for p in cells)
    if vec.shape != (wanted,):
        raise ValueError(
            f"shape '{(wanted,)}', that of the parameters together, is invalid for a vector of "
            f"shape {vec.shape}"
        )
    for p in cells:
        if jnp.iscomplexobj(vec) and not jnp.issubdtype(p.dtype, jnp.complexfloating):
            raise TypeError(f"a vector of dtype {vec.dtype} was given to {p!r}")
    parts = _split(vec, tuple((p.shape, p.dtype) for p in cells))
    changes = Changes()
    placed = [p.placed(x) for p, x in zip(cells, parts, strict=True)]
    changes.put([p._cell for p in cells], placed, NOBODY)
    changes.make()


def _floating(parameters: Any) -> list[Parameter]:
    return [p for p in all_parameters(parameters) if not trees.has_no_update(p._data)]


@jax.jit
def _joined(arrays: Sequence[jax.Array]) -> jax.Array:
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(*arrays)
    return jnp.concatenate([x.astype(dtype).reshape(-1) for x in arrays])


def _split(vec: Any, like: Sequence[tuple[tuple[int, ...], Any]]) -> list[jax.Array]:
    vec = jnp.array(vec)
    ends = list(itertools.accumulate(int(np.prod(shape)) for shape, _ in like))
    parts = zip([0, *ends], ends, like, strict=False)
    return [vec[i:j].reshape(shape).astype(dtype) for i, j, (shape, dtype) in parts]
