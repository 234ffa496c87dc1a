"""Learning rates that are arrays; and that no scheduler has the optimizer compiled anew."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim.stateful as optim
from tests.support.lr_scheduler import ALL, OURS, Build, advance, optimizer, over, seen
from tests.support.stateful import cells, compilations, give_gradients, new_shape

PLATEAU: dict[str, Build] = {
    "Plateau": lambda lib, opt: lib.ReduceLROnPlateau(opt, patience=0, factor=0.5, min_lr=1e-3)
}
EVERY = ALL | PLATEAU


def step(scheduler: Any) -> None:
    scheduler.step(*([1.0] if isinstance(scheduler, OURS.ReduceLROnPlateau) else []))


def with_arrays(build: Build, kind: str, rate: Any, epochs: int) -> tuple[Any, Any]:
    opt = optimizer(OURS, kind)
    for group in opt.param_groups:
        group["lr"] = rate(group["lr"])
    scheduler = build(OURS, opt)
    for _ in range(epochs):
        opt.step()
        step(scheduler)
    return opt, scheduler


RATES = {
    "float32": lambda x: jnp.float32(x),
    "weak": lambda x: jnp.asarray(x),
    "of one element": lambda x: jnp.full((1,), x, jnp.float32),
    "bfloat16": lambda x: jnp.bfloat16(x),
}


@over(EVERY)
@pytest.mark.parametrize("rate", RATES.values(), ids=list(RATES))
def test_an_array_stays_an_array_of_its_kind(build: Build, rate: Any) -> None:
    opt, _ = with_arrays(build, "SGD", rate, 13)
    number, _ = with_arrays(build, "SGD", float, 13)
    for mine, other in zip(opt.param_groups, number.param_groups, strict=True):
        assert jax.typeof(mine["lr"]) == jax.typeof(rate(0.1))
        low = mine["lr"].dtype == jnp.bfloat16
        np.testing.assert_allclose(
            np.float32(mine["lr"]).reshape(()), other["lr"], rtol=0.5 if low else 1e-4, atol=1e-3
        )


@over(EVERY)
def test_an_array_is_not_fetched(build: Build) -> None:
    """A traced value cannot be fetched: jax would raise."""

    def last(first: jax.Array, second: jax.Array) -> Any:
        opt = optimizer(OURS)
        for group, rate in zip(opt.param_groups, (first, second), strict=True):
            group["lr"] = rate
        scheduler = build(OURS, opt)
        opt.step()
        for _ in range(12):
            step(scheduler)
        return [group["lr"] for group in opt.param_groups]

    shapes = jax.eval_shape(last, jnp.float32(0.1), jnp.float32(0.03))
    assert [(x.shape, x.dtype) for x in shapes] == [((), jnp.float32)] * 2


def test_bounds_and_rates_may_all_be_arrays() -> None:
    opt = optimizer(OURS, "Adam", lr=jnp.float32(0.1))
    opt.param_groups[1]["betas"] = (jnp.float32(0.9), 0.99)
    schedulers = [
        OURS.CyclicLR(opt, jnp.float32(0.01), [jnp.float32(0.1), 0.5], 3),
        OURS.SWALR(opt, jnp.float32(0.05), 4),
        OURS.ReduceLROnPlateau(opt, min_lr=jnp.float32(0.001), patience=0),
    ]
    opt.step()
    for _ in range(5):
        for scheduler in schedulers:
            step(scheduler)
    assert jax.typeof(opt.param_groups[1]["betas"][0]) == jax.typeof(jnp.float32(1))
    assert opt.param_groups[1]["betas"][1] == 0.99
    assert isinstance(opt.param_groups[0]["initial_lr"], jax.Array)
    assert all(isinstance(x, jax.Array) for x in schedulers[0].base_lrs)


def test_an_array_stays_on_its_device() -> None:
    device = jax.devices()[-1]
    opt = optimizer(OURS, lr=jax.device_put(jnp.float32(0.1), device))
    for name in "Step", "Cyclic", "Restarts", "Linear":
        scheduler = ALL[name](OURS, opt)
        opt.step()
        scheduler.step()
        assert opt.param_groups[0]["lr"].devices() == {device}
        assert opt.param_groups[0]["lr"].committed


def trained(kind: str, **kwargs: Any) -> tuple[Any, list[optim.Parameter]]:
    p, q = cells(new_shape(), new_shape())
    opt = getattr(optim, kind)([{"params": p}, {"params": q}], **kwargs)
    give_gradients([p, q])
    return opt, [p, q]


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
@pytest.mark.parametrize("lr", ["number", "array"])
def test_the_optimizers_step_is_compiled_once_for_all_schedulers(kind: str, lr: str) -> None:
    rate = jnp.float32(0.1) if lr == "array" else 0.1
    opt, (p, _) = trained(kind, lr=rate, **({"momentum": 0.9} if kind == "SGD" else {}))
    opt.step()
    opt.step()  # the first that has an array of its own to overwrite
    values = set()
    for build in EVERY.values():
        scheduler = build(OURS, opt)
        for group in opt.param_groups:  # some end at 0, from where multiplication leads nowhere
            group["lr"] = group["lr"] + 0.1
        for _ in range(4):
            with compilations() as compiled:
                opt.step()
            assert compiled == []
            step(scheduler)  # an array's first arithmetic is compiled, once for all schedulers
            values.add(np.asarray(p.data).tobytes())
    assert opt.compile_count == 1
    assert len(values) > 3 * len(EVERY)


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
@pytest.mark.parametrize("name", ["Cyclic", "OneCycle", "Cyclic lists"])
def test_cycling_compiles_nothing_at_all(kind: str, name: str) -> None:
    opt, _ = trained(kind, lr=0.1)
    scheduler = ALL[name](OURS, opt)
    advance(opt, scheduler)
    advance(opt, scheduler)
    momenta = []
    with compilations() as compiled:
        for _ in range(8):
            momenta.append(seen(opt)[1])
            opt.step()
            scheduler.step()
    assert compiled == []
    assert opt.compile_count == 1
    assert len(set(momenta)) > 3
