"""What the Python side of `Optimizer.step()` adds to its compiled call.

    python -m pip install -e . && python benchmarks/step_overhead.py

Side by side in one run, over the shapes of ResNet-50's 161 parameters and over 1,000 small ones:
the whole `step()`, and the compiled program alone, in a loop that hands its results back to it.
Both wait for the device. The ratio is of medians; this is a measurement, not a test.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import functorch_optim.stateful as optim
from functorch_optim.stateful.step import program

STEPS = 40


def resnet50() -> list[tuple[int, ...]]:
    """The shapes of ResNet-50's parameters: convolutions, their norms, the classifier."""
    shapes: list[tuple[int, ...]] = [(7, 7, 3, 64), (64,), (64,)]
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            for kernel in ((1, channels, width), (3, width, width), (1, width, 4 * width)):
                size, before, after = kernel
                shapes += [(size, size, before, after), (after,), (after,)]
            if block == 0:
                shapes += [(1, 1, channels, 4 * width), (4 * width,), (4 * width,)]
            channels = 4 * width
    return [*shapes, (2048, 1000), (1000,)]


def many_small() -> list[tuple[int, ...]]:
    return [(64, 64) if i % 2 else (64,) for i in range(1000)]


def optimizer_over(shapes: list[tuple[int, ...]]) -> optim.Optimizer:
    cells = [optim.Parameter(np.ones(shape, np.float32)) for shape in shapes]
    for p in cells:
        p.grad = jnp.full(p.shape, 0.1)
    return optim.AdamW(cells, lr=1e-3)


def measured(shapes: list[tuple[int, ...]]) -> tuple[float, float]:
    """Median seconds of `step()`, and of the compiled program in a loop of its own.

    Taken in turns, so that both see the same machine.
    """
    opt, twin = optimizer_over(shapes), optimizer_over(shapes)
    opt.step()
    twin.step()
    cells = twin.param_groups[0]["params"]
    grads = [[p.grad for p in cells]]
    plan, buffers, numbers, _ = twin._memory.prepare(twin._parts(cells))
    carry = [[p.release() for p in cells]], buffers
    del twin, cells, buffers

    def compiled() -> None:
        nonlocal carry
        carry = program.compiled_update(plan, *carry, grads, numbers)
        jax.block_until_ready(carry)

    def step() -> None:
        opt.step()
        jax.block_until_ready([p._data for p in opt.param_groups[0]["params"]])

    pairs = [(_seconds(step), _seconds(compiled)) for _ in range(STEPS)]
    whole, inside = (statistics.median(times) for times in zip(*pairs[5:], strict=True))
    return whole, inside


def _seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    print("| parameters | step() ms | compiled call ms | ratio |")
    print("|---|---|---|---|")
    for name, shapes in (("ResNet-50 (161)", resnet50()), ("1,000 small", many_small())):
        assert name != "ResNet-50 (161)" or len(shapes) == 161
        step, compiled = measured(shapes)
        print(f"| {name} | {1e3 * step:.2f} | {1e3 * compiled:.2f} | {step / compiled:.2f} |")


if __name__ == "__main__":
    main()
