"""The state of L-BFGS: vectors of all parameters, which are cut and put together anew."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from functorch_optim.interop.torch.layouts import Move, Shape, applied

_VECTORS = "d", "prev_flat_grad"
_LISTS = "old_dirs", "old_stps"


def is_flat(entries: Mapping[str, Any]) -> bool:
    """Whether a state is that of L-BFGS, which holds vectors of all parameters."""
    return "func_evals" in entries


def moved_vectors(entries: Mapping[str, Any], index: np.ndarray) -> dict[str, Any]:
    """L-BFGS' state with the numbers of each vector taken from these places.

    Raises:
      ValueError: the vectors have another length.
    """

    def taken(x: Any) -> np.ndarray:
        x = np.asarray(x)
        if x.shape != index.shape:
            raise ValueError(
                f"the state of L-BFGS has vectors of {x.size} numbers, the parameters {index.size}"
            )
        return x[index]

    moved = dict(entries)
    for name in _VECTORS:
        if entries.get(name) is not None:
            moved[name] = taken(entries[name])
    for name in _LISTS:
        if entries.get(name) is not None:
            moved[name] = [taken(x) for x in entries[name]]
    return moved


@dataclasses.dataclass(frozen=True)
class VectorPart:
    """A parameter's part of a vector: its shape in the layout it comes from, and how it moves."""

    shape: Shape
    function: Move
    complex: bool
    where: str

    @property
    def size(self) -> int:
        """Its length in the vector; a complex number is two."""
        return int(np.prod(self.shape)) * (2 if self.complex else 1)

    def source_indices(self) -> np.ndarray:
        """Where each number of the moved part comes from in this part."""
        size = int(np.prod(self.shape))
        numbered = np.arange(size, dtype=np.int32).reshape(self.shape)
        moved = applied(self.function, numbered, self.where).reshape(-1)
        if not np.array_equal(np.sort(moved), numbered.reshape(-1)):
            raise ValueError(f"{self.where}: its transform does more than move numbers")
        return np.stack([2 * moved, 2 * moved + 1], axis=-1).reshape(-1) if self.complex else moved


def vector_index(
    source: Sequence[Any], target: Sequence[Any], parts: Mapping[Any, VectorPart]
) -> np.ndarray:
    """Where each number of the new vector comes from in the old one.

    Args:
      source: the keys of the parameters in the old order.
      target: in the new order.
      parts: the parts, by key.
    """
    ends = np.cumsum([parts[key].size for key in source])
    starts = {key: int(end) - parts[key].size for key, end in zip(source, ends, strict=True)}
    index = [starts[key] + parts[key].source_indices() for key in target]
    return np.concatenate(index) if index else np.zeros(0, np.int64)
