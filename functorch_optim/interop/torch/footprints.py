"""What a value of a file would take in memory, before it is taken.

In a pickle a container may be mentioned again for two bytes, so that ten lists of ten mentions are
a tree of ten thousand items, and a hundred such lists more than any memory holds. Whoever goes
through a state_dict goes through that tree.
"""

from __future__ import annotations

import collections
from typing import Any

import torch

from functorch_optim.interop.torch.pickles import StoredTensor
from functorch_optim.interop.untrusted import BYTES_OF_AN_ITEM, check_level

_BYTES_OF_AN_ARRAY = 1024  # besides its numbers
_CONTAINERS = (dict, collections.OrderedDict, collections.Counter, list, tuple)
_LEAVES = (
    *(type(None), bool, int, float, complex, str, bytes, bytearray, set),
    *(torch.Size, torch.dtype, torch.device),
)


def bytes_needed(value: Any) -> int:
    """The bytes of the arrays in a value, and of the items that are mentioned more than once.

    What is there once takes memory in proportion to the file, and is not counted.

    Raises:
      ValueError: the value is nested too deep, or has an item that is no value.
    """
    walk = _Walk()
    total, _ = walk.size(value, 0)
    return total - walk.counted_once


class _Walk:
    """Over a graph of containers, each looked at once."""

    def __init__(self) -> None:
        self.counted_once = 0
        self._known: dict[int, tuple[int, int]] = {}

    def size(self, x: Any, level: int) -> tuple[int, int]:
        """The bytes of a value as a tree, and how many levels it has."""
        check_level(level, "its value")
        if id(x) in self._known:
            total, levels = self._known[id(x)]
            check_level(level + levels, "its value")
            return total, levels
        if isinstance(x, StoredTensor):
            own, parts = _BYTES_OF_AN_ARRAY, [(x.nbytes, 0)]
        elif type(x) in _CONTAINERS:
            items = x.values() if isinstance(x, dict) else x
            own = BYTES_OF_AN_ITEM * (1 + len(x))
            parts = [self.size(item, level + 1) for item in items]
        elif type(x) in _LEAVES:
            return 0, 0
        else:
            raise ValueError(f"it holds a {type(x).__name__} where a value should be")
        self.counted_once += own
        total = own + sum(size for size, _ in parts)
        levels = 1 + max((levels for _, levels in parts), default=0)
        self._known[id(x)] = total, levels
        return total, levels
