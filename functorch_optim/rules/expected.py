"""What the state of a pair should look like: what its init would give."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np

from functorch_optim.core import trees
from functorch_optim.core.arithmetic import is_number
from functorch_optim.rules.leaf import abstract_buffers
from functorch_optim.rules.rule import Buffers, Rule


class ExpectedState:
    """The shapes and the kinds of dtypes that a rule's state has, by the shape of a leaf.

    Args:
      rule: the math.
      name: of the pair, for messages.
    """

    def __init__(self, rule: Rule, name: str):
        self._rule, self._name = rule, name
        self._known: dict[Any, Buffers] = {}

    def check_numbers(self, state: Any) -> None:
        """Raises unless the numbers of a state, its step and what is carried, are single reals.

        Raises:
          TypeError: one is missing or complex. ValueError: one is an array with axes.
        """
        for field in ("step", *self._rule.carried.names):
            value = getattr(state, field)
            if value is None and field != "step":
                continue
            if not trees.is_array(value) or not _is_real(jnp.result_type(value)):
                raise TypeError(
                    f"{self._name}: {field} of the state should be a number, but is {value!r}"
                )
            if np.shape(value) != ():
                raise ValueError(
                    f"{self._name}: {field} of the state should be one number, but has shape "
                    f"{np.shape(value)}"
                )

    def check(self, h: SimpleNamespace, p: Any, buffers: Buffers, treedef: Any, index: int) -> None:
        """Raises unless a leaf's buffers are as init would give them for a parameter like p.

        Raises:
          TypeError: one is missing, or there is one too many, or its dtype is of another kind.
          ValueError: one has another shape. Each names the path.
        """
        wanted = self._of(h, p)
        if any(b is not None and w is None for b, w in zip(buffers, wanted, strict=True)):
            wanted = self._most(h, p)
        for name, buffer, like in zip(self._rule.buffers, buffers, wanted, strict=True):
            problem = _problem(name, buffer, like)
            if problem is not None:
                what, error, words = problem
                place = trees.path_of(treedef, index)
                raise error(f"state and params differ in {what} at {place}: {words}")

    def _most(self, h: SimpleNamespace, p: Any) -> Buffers:
        """The buffers if no number were 0, which may mean that a buffer is not needed."""
        changed = {
            name: 1.0 if is_number(value) and not isinstance(value, bool) and value == 0 else value
            for name, value in vars(h).items()
        }
        h = SimpleNamespace(**changed)
        return abstract_buffers(self._rule, h, np.shape(p), jnp.result_type(p))

    def _of(self, h: SimpleNamespace, p: Any) -> Buffers:
        key = np.shape(p), jnp.result_type(p)
        if key not in self._known:
            self._known[key] = abstract_buffers(self._rule, h, *key)
        return self._known[key]


def _problem(name: str, buffer: Any, like: Any) -> tuple[str, type[Exception], str] | None:
    if like is None:
        is_extra = buffer is not None
        return ("structure", TypeError, f"{name} should not be there") if is_extra else None
    if buffer is None:
        return "structure", TypeError, f"{name} is missing"
    if not trees.is_array(buffer):
        return "structure", TypeError, f"{name} is {buffer!r}"
    if np.shape(buffer) != like.shape:
        words = f"{name} has shape {np.shape(buffer)}, but should have {like.shape}"
        return "shape", ValueError, words
    dtype = jnp.result_type(buffer)
    if _kind(dtype) != _kind(like.dtype):
        return "dtype", TypeError, f"{name} has {dtype}, but should have {like.dtype}"
    return None


def _kind(dtype: Any) -> Any:
    kinds = jnp.complexfloating, jnp.floating, jnp.integer, jnp.bool_
    return next((kind for kind in kinds if jnp.issubdtype(dtype, kind)), dtype)


def _is_real(dtype: Any) -> bool:
    return _kind(dtype) in (jnp.floating, jnp.integer)
