"""Nested values whose containers keep their types: what a state_dict is."""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping
from typing import Any, cast

from functorch_optim.interop.untrusted import check_level


def map_leaves(x: Any, function: Callable[[Any], Any], level: int = 0) -> Any:
    """A nested value with every leaf replaced; containers keep their types, and dicts their order.

    Mappings of other types become dicts. (`jax.tree.map` would sort the keys.)

    Raises:
      ValueError: it is nested deeper than any state is, or contains itself.
    """
    check_level(level, "the value")
    if isinstance(x, Mapping):
        items = {key: map_leaves(value, function, level + 1) for key, value in x.items()}
        if type(x) in (collections.OrderedDict, collections.Counter):
            return cast(Any, type(x))(items)
        return items
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*[map_leaves(item, function, level + 1) for item in x])
    if type(x) in (list, tuple):
        return type(x)([map_leaves(item, function, level + 1) for item in x])
    return function(x)
