"""Runs whose results were recorded from torch 2.13.0 in float64: they need no torch to be checked.

Where torch is installed, it must still give the recorded numbers.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim.stateful as optim

STEPS = 12
RECORDED: dict[str, tuple[str, dict[str, Any], tuple[float, ...]]] = {
    "sgd": (
        "SGD",
        {"lr": 0.1},
        (
            1.0125000000000002,
            -0.48500000000000004,
            0.24260985864905604,
            1.7244241397886724,
            -0.5344641404585599,
            1.1408139544972802,
        ),
    ),
    "sgd with damped momentum": (
        "SGD",
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
        (
            1.0691177717493436,
            -0.4067857000446456,
            -0.2063242885968006,
            1.8372728178620763,
            -0.3793990239591179,
            0.13190375528100629,
            -0.4812096144050208,
            0.8426676609251037,
        ),
    ),
    "sgd with nesterov": (
        "SGD",
        {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True},
        (
            0.8974626593470627,
            -0.5970867094311499,
            0.42590059261810664,
            0.9293368263663699,
            1.1585667820624999,
            -0.50174949915,
            0.8829115014038125,
            0.3194808136360995,
        ),
    ),
    "adam": (
        "Adam",
        {"lr": 0.1, "weight_decay": 0.05},
        (
            1.0608526589148328,
            -0.423710149707461,
            -0.02314595858998555,
            2.100615342498927,
            12.0,
            -0.48188438621390345,
            0.1878364503456857,
            0.46933636136304396,
            0.3600730619064373,
            10.0,
            -0.05907244700502877,
            0.1997516550957744,
            0.0069134029192750275,
            0.006257404700305515,
        ),
    ),
    "adam with amsgrad": (
        "Adam",
        {"lr": 0.1, "amsgrad": True},
        (
            1.076154802274836,
            -0.4679811404691261,
            -0.02034457339676555,
            2.154450245909409,
            12.0,
            -0.5326329782,
            0.20795554896,
            0.49861475997530924,
            0.36760478191212725,
            0.49861475997530924,
            0.459505977390159,
            10.0,
            -0.05983525251572928,
            0.19024163524418627,
            0.006882665036218274,
            0.006473273226581992,
            0.006882665036218274,
            0.006473273226581992,
        ),
    ),
    "adamw": (
        "AdamW",
        {"lr": 0.1},
        (
            1.0731965839202209,
            -0.4677004714527656,
            -0.019071761325113942,
            2.0991009105245833,
            12.0,
            -0.5326329782,
            0.20795554896,
            0.49861475997530924,
            0.36760478191212725,
            10.0,
            -0.057855426124999956,
            -0.042696368474999996,
            0.006839787250991288,
            0.005289686889755527,
        ),
    ),
}


def gradient(step: int, index: int) -> list[float]:
    """Exact in every float, of both signs, sometimes 0."""
    return [((7 * step + 3 * index + 5 * i) % 11 - 5) / 4 for i in range(2)]


def lead(opt: Any, set_gradient: Any) -> None:
    """12 steps of two groups of one parameter each; the second lacks some gradients."""
    for step in range(STEPS):
        if step == 4:
            opt.param_groups[0]["lr"] *= 0.25
            opt.param_groups[1]["weight_decay"] = 0.2
        if step == 7 and "betas" in opt.param_groups[0]:
            opt.param_groups[0].update(betas=(0.6, 0.8), eps=0.01)
        if step == 7 and "momentum" in opt.param_groups[0]:
            opt.param_groups[1]["momentum"] = 0.6
        set_gradient(0, gradient(step, 0))
        set_gradient(1, None if step in (0, 5) else gradient(step, 1))
        opt.step()


def our_result(name: str, kwargs: dict[str, Any], dtype: Any) -> list[float]:
    cells = [optim.Parameter(jnp.asarray(x, dtype)) for x in ([1.0, -0.5], [0.25, 2.0])]
    opt = getattr(optim, name)([{"params": cells[0], "lr": 0.04}, {"params": cells[1]}], **kwargs)

    def set_gradient(index: int, value: Any) -> None:
        cells[index].grad = None if value is None else jnp.asarray(value, dtype)

    lead(opt, set_gradient)
    buffers = [x for entries in opt.state_dict()["state"].values() for x in entries.values()]
    return flat([*(p.data for p in cells), *buffers])


def flat(arrays: Any) -> list[float]:
    return [float(x) for array in arrays for x in np.ravel(np.asarray(array))]


over_recorded = pytest.mark.parametrize("run", RECORDED)


@over_recorded
def test_float64_numbers_are_the_recorded_ones(run: str) -> None:
    name, kwargs, wanted = RECORDED[run]
    with jax.enable_x64(True):
        result = our_result(name, kwargs, jnp.float64)
    np.testing.assert_allclose(result, wanted, rtol=1e-13, atol=1e-14)


@over_recorded
def test_float32_numbers_are_the_recorded_ones(run: str) -> None:
    name, kwargs, wanted = RECORDED[run]
    result = our_result(name, kwargs, jnp.float32)
    np.testing.assert_allclose(result, wanted, rtol=3e-6, atol=3e-7)


@over_recorded
def test_torch_still_gives_the_recorded_numbers(run: str) -> None:
    torch = pytest.importorskip("torch", reason="compares the recorded results with torch's own")
    name, kwargs, wanted = RECORDED[run]
    cells = [torch.tensor(x, dtype=torch.float64) for x in ([1.0, -0.5], [0.25, 2.0])]
    groups = [{"params": [cells[0]], "lr": 0.04}, {"params": [cells[1]]}]
    opt = getattr(torch.optim, name)(groups, **kwargs)

    def set_gradient(index: int, value: Any) -> None:
        cells[index].grad = None if value is None else torch.tensor(value, dtype=torch.float64)

    lead(opt, set_gradient)
    buffers = [x for entries in opt.state_dict()["state"].values() for x in entries.values()]
    result = flat(x.numpy() for x in [*cells, *buffers])
    np.testing.assert_allclose(result, wanted, rtol=1e-14, atol=1e-15)
