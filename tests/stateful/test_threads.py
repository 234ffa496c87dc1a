"""Steps of several threads on one optimizer take turns."""

from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import numpy as np

import functorch_optim.stateful as optim


def adam() -> optim.Optimizer:
    cells = [optim.Parameter(np.linspace(-1, 1, 1000, dtype=np.float32)) for _ in range(20)]
    for p in cells:
        p.grad = jnp.full(p.shape, 0.5)
    return optim.Adam(cells, lr=1e-2)


def test_no_step_of_two_threads_is_lost() -> None:
    together, alone = adam(), adam()
    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(together.step) for _ in range(40)]:
            done.result()
    for _ in range(40):
        alone.step()
    for p, wanted in zip(together.params, alone.params, strict=True):
        np.testing.assert_array_equal(p, wanted)
    assert {float(state["step"]) for state in together.state.values()} == {40.0}
