"""Parameters on another device than the first, and spread over several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

import functorch_optim.stateful as optim
from tests.support.stateful import numbers, with_arrays

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")


def spread() -> Any:
    return NamedSharding(jax.make_mesh((8,), ("x",)), PartitionSpec("x"))


def second() -> Any:
    return SingleDeviceSharding(jax.devices()[1])


PLACES: dict[str, Callable[[], Any]] = {"8 devices": spread, "the second device": second}
over_places = pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)


def loss_fn(params: jax.Array) -> jax.Array:
    return jnp.sum(params**2)


def trained(place: Any) -> tuple[optim.Optimizer, optim.Parameter]:
    p = optim.Parameter(jax.device_put(numbers(0, (16, 3)), place))
    opt = optim.Adam([p], lr=0.1)
    for _ in range(2):
        optim.backward(loss_fn, p)
        opt.step()
        opt.zero_grad()
    return opt, p


def assert_lies_at(place: Any, opt: optim.Optimizer, p: optim.Parameter) -> None:
    for x in (p.data, opt.state[p]["exp_avg"], opt.state[p]["exp_avg_sq"]):
        assert x.sharding.is_equivalent_to(place, x.ndim)


@over_places
def test_values_and_state_stay_where_the_values_lie(place: Any) -> None:
    opt, p = trained(place())
    assert_lies_at(place(), opt, p)
    opt.make_step(loss_fn, p)()
    assert_lies_at(place(), opt, p)
    elsewhere, q = trained(SingleDeviceSharding(jax.devices()[0]))
    elsewhere.make_step(loss_fn, q)()
    np.testing.assert_allclose(p.data, q.data, rtol=1e-6)


SOURCES: dict[str, Callable[[Any], Any]] = {
    "numpy": np.array,
    "the first device": lambda x: jax.device_put(x, jax.devices()[0]),
}


@over_places
@pytest.mark.parametrize("convert", SOURCES.values(), ids=SOURCES)
def test_loaded_state_goes_where_the_values_lie(place: Any, convert: Any) -> None:
    """torch moves it to the parameter's device."""
    opt, p = trained(place())
    opt.load_state_dict(with_arrays(convert, opt.state_dict()))
    optim.backward(loss_fn, p)
    opt.step()
    assert float(opt.state[p]["step"]) == 3
    assert_lies_at(place(), opt, p)
