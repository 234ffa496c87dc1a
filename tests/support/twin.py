"""The same run with torch.optim and with ours, step by step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import pytest

import functorch_optim.stateful as optim
from tests.support.stateful import numbers

SHAPES = ((3,), (2, 2)), ((),)


def plain(x: Any) -> Any:
    """A tree with numpy arrays for torch's tensors and for jax's arrays; half types as float32."""
    if isinstance(x, dict):
        return {key: plain(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return type(x)(plain(item) for item in x)
    if hasattr(x, "detach"):  # a tensor
        x = x.detach()
        return (x.float() if x.dtype.itemsize == 2 else x).numpy().copy()
    if hasattr(x, "dtype"):
        x = np.asarray(x)
        return x.astype(np.float32) if x.dtype.itemsize == 2 else x
    return x


class Twin:
    """An optimizer of ours and one of torch's over equal parameters.

    Args:
      name: the class, in both libraries.
      shapes: for each group the shapes of its parameters.
      dtype: of all parameters; a half type is given by torch's name.
      options: what each group has of its own.
      **kwargs: for both constructors.
    """

    def __init__(
        self,
        name: str,
        shapes: Sequence[Sequence[Sequence[int]]] = SHAPES,
        dtype: str = "float32",
        options: Sequence[dict[str, Any]] = (),
        **kwargs: Any,
    ):
        self.torch = pytest.importorskip("torch", reason="compares with torch live")
        import jax.numpy as jnp

        half = dtype in ("bfloat16", "float16")
        self.kind = np.dtype(np.float32 if half else dtype)
        self.cast_ours: Callable[[Any], Any] = lambda x: jnp.asarray(x).astype(dtype)
        self.cast_theirs: Callable[[Any], Any] = lambda x: self.torch.tensor(x).to(
            getattr(self.torch, dtype)
        )
        every_shape = [shape for group in shapes for shape in group]
        start = [numbers(i, shape, self.kind) for i, shape in enumerate(every_shape)]
        self.ours = [optim.Parameter(self.cast_ours(x)) for x in start]
        self.theirs = [self.cast_theirs(x).requires_grad_() for x in start]
        options = options or [{} for _ in shapes]

        def grouped(parameters: Sequence[Any]) -> list[dict[str, Any]]:
            rest = iter(parameters)
            return [
                {"params": [next(rest) for _ in group], **own}
                for group, own in zip(shapes, options, strict=True)
            ]

        self.opt = getattr(optim, name)(grouped(self.ours), **kwargs)
        self.reference = getattr(self.torch.optim, name)(grouped(self.theirs), **kwargs)
        self.steps = 0

    def step(self, count: int = 1, without: Collection[int] = ()) -> None:
        """Steps both, with new gradients; the parameters of these indices have none."""
        for _ in range(count):
            self.give_gradients(without)
            self.opt.step()
            self.reference.step()

    def give_gradients(self, without: Collection[int] = ()) -> None:
        self.steps += 1
        for i, (p, q) in enumerate(zip(self.ours, self.theirs, strict=True)):
            g = numbers(1000 * self.steps + i, p.shape, self.kind)
            p.grad = None if i in without else self.cast_ours(g)
            q.grad = None if i in without else self.cast_theirs(g)

    def set(self, index: int, **changes: Any) -> None:
        """Writes hyperparameters of a group, in both."""
        self.opt.param_groups[index].update(changes)
        self.reference.param_groups[index].update(changes)

    def check(self, rtol: float) -> None:
        """The parameters and the state_dict are torch's: keys, order, dtypes and numbers."""
        for p, q in zip(self.ours, self.theirs, strict=True):
            close(plain(p.data), plain(q), rtol, "parameter")
        ours, theirs = plain(self.opt.state_dict()), plain(self.reference.state_dict())
        assert list(ours) == list(theirs)
        assert list(ours["state"]) == list(theirs["state"])
        for key, entries in theirs["state"].items():
            assert list(ours["state"][key]) == list(entries)
            for name, value in entries.items():
                close(ours["state"][key][name], value, rtol, f"{key}: {name}")
        for own, other in zip(ours["param_groups"], theirs["param_groups"], strict=True):
            assert list(own.items()) == list(other.items())


def close(actual: np.ndarray, wanted: np.ndarray, rtol: float, what: str) -> None:
    """Equal in dtype and shape, and within rtol of each element and rtol/100 of the largest."""
    assert (actual.dtype, actual.shape) == (wanted.dtype, wanted.shape), what
    atol = 0.01 * rtol * np.max(np.abs(wanted), initial=0.0)
    np.testing.assert_allclose(actual, wanted, rtol, atol, err_msg=what)
