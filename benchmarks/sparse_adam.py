"""What a step of Adam on the rows of an embedding table costs.

    python -m pip install -e . torch && python benchmarks/sparse_adam.py

Side by side in one run, for tables of 64 columns and gradients with so many rows (drawn with
repetition): the compiled step of `sparse_adam` with `apply_updates`, parameters and state donated,
and `torch.optim.SparseAdam.step()`. First our step on a small and on a large table: it should cost
the same. The ratio is of medians; this is a measurement, not a test.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.experimental.sparse import BCOO

from functorch_optim import apply_updates
from functorch_optim.algorithms.sparse_adam import sparse_adam

COLUMNS = 64
STEPS = 60


def gradient(table_rows: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.RandomState(0)
    ids = random.randint(0, table_rows, rows)
    return ids, random.standard_normal((rows, COLUMNS)).astype(np.float32)


def our_step(table_rows: int, rows: int) -> Callable[[], None]:
    tx = sparse_adam(1e-3)
    params = jnp.zeros((table_rows, COLUMNS))
    ids, data = gradient(table_rows, rows)
    grads = BCOO(
        (jnp.asarray(data), jnp.asarray(ids[:, None], jnp.int32)), shape=(table_rows, COLUMNS)
    )

    @jax.jit
    def start(params: Any) -> Any:
        return params, tx.init(params)

    def update(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return apply_updates(params, updates), state

    compiled = jax.jit(update, donate_argnums=(0, 1))
    carry = start(params)

    def step() -> None:
        nonlocal carry
        carry = compiled(*carry, grads)
        jax.block_until_ready(carry)

    return step


def torch_step(table_rows: int, rows: int) -> Callable[[], None]:
    p = torch.nn.Parameter(torch.zeros(table_rows, COLUMNS))
    ids, data = gradient(table_rows, rows)
    opt = torch.optim.SparseAdam([p], lr=1e-3)
    indices, values = torch.from_numpy(ids[None]), torch.from_numpy(data)

    def step() -> None:
        # A new tensor each time: torch remembers in it that its rows were summed.
        p.grad = torch.sparse_coo_tensor(indices, values, p.shape, check_invariants=False)
        opt.step()

    return step


def medians(*steps: Callable[[], None]) -> list[float]:
    """Median milliseconds of each, taken in turns so that all see the same machine."""
    times = [[seconds(step) for step in steps] for _ in range(STEPS)]
    return [1e3 * statistics.median(column) for column in zip(*times[5:], strict=True)]


def seconds(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def main() -> None:
    rows = 1_024
    small, large = medians(our_step(100_000, rows), our_step(4_000_000, rows))
    print(f"| rows | 100k x {COLUMNS} ms | 4M x {COLUMNS} ms | ratio |\n|---|---|---|---|")
    print(f"| {rows:,} | {small:.3f} | {large:.3f} | {large / small:.2f} |\n")
    print(f"| rows of 1M x {COLUMNS} | torch ms | ours ms | torch / ours |\n|---|---|---|---|")
    for rows in (1_024, 16_384):
        theirs, ours = medians(torch_step(1_000_000, rows), our_step(1_000_000, rows))
        print(f"| {rows:,} | {theirs:.3f} | {ours:.3f} | {theirs / ours:.2f} |")


if __name__ == "__main__":
    main()
