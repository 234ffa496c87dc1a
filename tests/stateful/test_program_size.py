"""The program of a step moves no more bytes than that of the pair, and holds nothing besides."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim as fo
import functorch_optim.stateful as optim
from functorch_optim.stateful.step import program
from tests.tables.algorithm import Algorithm
from tests.tables.algorithms import OF_TORCH

SIZE = 1 << 16
SHAPES = {"Muon": (256, 256), "Adafactor": (256, 256)}
SMALL = 4096  # what the numbers of a step may take


def measured(compiled: Any) -> tuple[int, int]:
    """The bytes of temporaries, and all bytes that are read or written."""
    analysis = compiled.cost_analysis()
    return compiled.memory_analysis().temp_size_in_bytes, int(analysis["bytes accessed"])


def of_class(cls: Any, shape: tuple[int, ...], patch: pytest.MonkeyPatch) -> tuple[int, int]:
    found: list[Any] = []
    build = program.compiled_update

    def spied(*inputs: Any) -> Any:
        found.append(measured(build.lower(*inputs).compile()))
        raise InterruptedError  # that is all there is to see

    patch.setattr(program, "compiled_update", spied)
    p = optim.Parameter(np.ones(shape, np.float32))
    p.grad = jnp.ones(shape)
    opt = cls([p])
    with pytest.raises(InterruptedError):
        opt.step()
    return found[0]


def of_pair(tx: fo.GradientTransformation, shape: tuple[int, ...]) -> tuple[int, int]:
    params = jnp.ones(shape)

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return fo.apply_updates(params, updates), state

    jitted = jax.jit(step, donate_argnums=(0, 1))
    return measured(jitted.lower(params, tx.init(params), params).compile())


@pytest.mark.parametrize("row", OF_TORCH, ids=lambda row: row.name)
def test_a_step_is_as_small_as_that_of_the_pair(
    row: Algorithm, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls = getattr(optim, row.torch_class)
    shape = SHAPES.get(row.torch_class, (SIZE,))
    ours, pairs = of_class(cls, shape, monkeypatch), of_pair(row.factory(), shape)
    for stateful, pure in zip(ours, pairs, strict=True):
        assert stateful <= pure + SMALL
