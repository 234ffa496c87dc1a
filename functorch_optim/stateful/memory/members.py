"""The parameters of a group as a pytree that can be told from all others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax


@jax.tree_util.register_pytree_node_class
class Members(tuple[Any, ...]):
    """A tuple with one entry for each parameter of a group.

    Where a transform's state holds something per parameter, it holds a `Members`: this is how its
    state is taken apart into torch's per-parameter dicts.
    """

    def tree_flatten(self) -> tuple[tuple[Any, ...], None]:
        """For JAX."""
        return tuple(self), None

    @classmethod
    def tree_unflatten(cls, aux: None, children: Iterable[Any]) -> Members:
        """For JAX."""
        return cls(children)
