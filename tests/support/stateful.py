"""What the tests of the stateful layer share."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import functorch_optim.stateful as optim
from tests.support.problems import draw

COMPILED = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """Collects one entry for every program that XLA compiles inside the block."""
    seen: list[str] = []

    def listen(event: str, duration: float, **info: Any) -> None:
        if event == COMPILED:
            seen.append(str(info.get("fun_name", event)))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


_sizes = itertools.count(1001)


def new_shape() -> tuple[int]:
    """A shape that no test before used: nothing is compiled for it yet."""
    return (next(_sizes),)


def numbers(seed: int, shape: Sequence[int] = (3,), dtype: Any = np.float32) -> np.ndarray:
    """Fixed normal numbers; complex ones for a complex dtype."""
    return draw(*shape, seed=seed, dtype=dtype)


def cells(*shapes: Sequence[int], dtype: Any = np.float32) -> list[optim.Parameter]:
    """Parameters of these shapes with fixed values."""
    return [optim.Parameter(numbers(i, shape, dtype)) for i, shape in enumerate(shapes)]


def give_gradients(parameters: Sequence[optim.Parameter], seed: int = 0) -> None:
    """Sets a fixed gradient on each parameter."""
    for i, p in enumerate(parameters):
        p.grad = jnp.asarray(numbers(100 + 7 * seed + i, p.shape)).astype(p.dtype)


def all_parameters(opt: optim.Optimizer) -> list[optim.Parameter]:
    return [p for group in opt.param_groups for p in group["params"]]


def run(opt: optim.Optimizer, steps: int, start: int = 0) -> None:
    """Steps with fixed gradients."""
    for i in range(start, start + steps):
        give_gradients(all_parameters(opt), i)
        opt.step()


def exactly(x: Any) -> Any:
    """A value that is equal only for a tree with the same bits, types and order of keys."""
    if isinstance(x, optim.Parameter):
        return "parameter", x.name, x.requires_grad, exactly(x.data), exactly(x.grad)
    if isinstance(x, jax.Array | np.ndarray):
        array = np.asarray(x)
        return type(x).__name__, str(array.dtype), array.shape, array.tobytes()
    if isinstance(x, dict):
        return "dict", tuple((key, exactly(value)) for key, value in x.items())
    if isinstance(x, list | tuple):
        return type(x).__name__, tuple(exactly(item) for item in x)
    return type(x).__name__, repr(x)


def snapshot(opt: optim.Optimizer) -> Any:
    """Everything that can be seen of an optimizer, bit for bit."""
    return exactly(opt.param_groups), exactly(opt.state_dict()), exactly(opt.defaults)


def progress(opt: optim.Optimizer) -> Any:
    """What training has made of an optimizer, bit for bit: its values and its state_dict."""
    return exactly([p.data for p in all_parameters(opt)]), exactly(opt.state_dict())


def with_arrays(function: Callable[[Any], Any], tree: Any) -> Any:
    """A state_dict with every array replaced. `jax.tree.map` would sort the keys."""
    if isinstance(tree, dict):
        return {key: with_arrays(function, value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(with_arrays(function, item) for item in tree)
    return function(tree) if isinstance(tree, jax.Array | np.ndarray) else tree


def pointers(opt: optim.Optimizer) -> set[int]:
    """Where the values and the buffers (not the counts) lie in memory."""
    found = set()
    for p in all_parameters(opt):
        arrays = [p.data, *(x for x in opt.state[p].values() if x.ndim)]
        found |= {x.unsafe_buffer_pointer() for x in arrays}
    return found
