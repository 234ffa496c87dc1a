"""What stands in for parameters at init: their shapes alone, or no leaf at all."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functorch_optim.core import trees
from functorch_optim.core.pair import Params, State


def abstract_aware(init: Callable[[Params], State]) -> Callable[[Params], State]:
    """An init that takes `jax.ShapeDtypeStruct` leaves too, and allocates nothing for them.

    Weakly typed leaves, Python numbers among them, reach it as arrays of their dtypes: a buffer
    that is made like one of them would change its type at the first step.

    With one among the leaves the state is what `jax.eval_shape(init, params)` gives. A buffer that
    belongs to a struct with a sharding (its path ends in the struct's, and the shapes are equal)
    has that sharding.
    """

    @functools.wraps(init)
    def aware(params: Params) -> State:
        leaves, treedef = trees.flatten(params)
        structs = {i: x for i, x in enumerate(leaves) if isinstance(x, jax.ShapeDtypeStruct)}
        if not structs:
            return init(treedef.unflatten([_strongly_typed(x) for x in leaves]))

        def of_structs(arrays: dict[int, Any]) -> State:
            filled = [arrays.get(i, x) for i, x in enumerate(leaves)]
            return init(treedef.unflatten(filled))

        return _with_shardings(jax.eval_shape(of_structs, structs), params)

    return aware


def _strongly_typed(x: Any) -> Any:
    if isinstance(x, jax.Array):
        weak = getattr(x, "weak_type", False)  # a typed key has none
        return jax.lax.convert_element_type(x, x.dtype) if weak else x
    return jnp.array(x, jnp.result_type(x)) if type(x) in (int, float, complex) else x


def _with_shardings(state: State, params: Params) -> State:
    """A state of structs whose buffers are sharded as their parameters are."""
    sharded = [
        (path, leaf.shape, leaf.sharding)
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
        if isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding is not None
    ]

    def placed(path: Any, x: Any) -> Any:
        for end, shape, sharding in sharded:
            if x.shape == shape and path[len(path) - len(end) :] == end:
                return x.update(sharding=sharding)
        return x

    return jax.tree_util.tree_map_with_path(placed, state) if sharded else state


def is_placeholder(params: Params) -> bool:
    """Whether params is a node of another library without any leaf, in the place of a whole tree.

    `optax.tree_utils.tree_map_params` finds out with it where a state has trees of the params'
    structure. No mask and no label can say anything of it.
    """
    known = isinstance(params, tuple | list | dict | np.ndarray | jax.Array) or params is None
    return not known and not trees.flatten(params)[0]
