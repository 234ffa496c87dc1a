"""The numbers of a step, traced in float32, against those computed in double on the host."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim as fo
from functorch_optim.algorithms.radam import length_of_average
from functorch_optim.core.arithmetic import as_float, share
from functorch_optim.rules.numbers import hyperparameters_at, step_numbers
from functorch_optim.transforms import momentum
from tests.tables.algorithms import TABLE

FACTORIES = (*(row.factory for row in TABLE), fo.sparse_adam, momentum._trace, momentum._ema)
STEPS = (1, 2, 5, 6, 10, 100, 10**4, 10**6, 2**24, 2**24 + 1, 10**8, 2**31 - 1)
BETAS = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999)
OPTIONS = {  # arguments that are 0 or off by default, and enter a number
    "adagrad": {"lr_decay": 0.1},
    "prodigy": {"use_bias_correction": True},
    "asgd": {"lambd": 0.1},
    "_trace": {"decay": 0.9, "nesterov": False},
    "_ema": {"decay": 0.9, "debias": True},
}


def configurations(factory: Any) -> list[dict[str, Any]]:
    plain = {**factory.defaults, **OPTIONS.get(factory.__name__, {})}
    for name in ("betas", "decay"):
        if name in plain:
            count = len(plain[name]) if name == "betas" else None
            return [
                {**plain, name: (beta,) * count if count is not None else beta} for beta in BETAS
            ]
    return [plain]


@pytest.mark.parametrize("factory", FACTORIES, ids=lambda f: f.__name__)
def test_the_numbers_of_a_traced_step_are_accurate_at_any_count(factory: Any) -> None:
    rule = factory.rule
    for values in configurations(factory):
        start = rule.carried.start(SimpleNamespace(**values))
        for t in STEPS:
            # A count among what is carried is that of the updates before.
            host = [x if not isinstance(x, int) else t - 1 for x in start]
            traced = [
                None if x is None else jnp.asarray(x, jnp.int32 if type(x) is int else jnp.float32)
                for x in host
            ]
            step = jnp.int32(t - 1)
            exact = step_numbers(rule, hyperparameters_at(values, t - 1), t, host)
            found = step_numbers(rule, hyperparameters_at(values, step), as_float(step) + 1, traced)
            leaves, structure = jax.tree.flatten(exact)
            wanted = structure.unflatten([float(x) for x in leaves])
            actual = structure.unflatten([float(x) for x in jax.tree.leaves(found)])
            for name in exact.tree_flatten()[1][0]:
                expected = getattr(wanted, name)
                if expected is not None:
                    np.testing.assert_allclose(
                        getattr(actual, name), expected, rtol=1e-6, err_msg=f"{name} at {t}"
                    )


@pytest.mark.parametrize("beta", BETAS)
def test_the_slope_of_radams_length_is_finite(beta: float) -> None:
    for t in STEPS:
        slope = jax.grad(length_of_average)(jnp.float32(beta), jnp.float32(t))
        assert math.isfinite(slope)


def test_a_share_of_nothing_is_nothing_and_has_a_slope() -> None:
    x = jnp.asarray([2.0, jnp.inf, jnp.nan])
    np.testing.assert_array_equal(share(jnp.float32(0), x), [0, 0, 0])
    np.testing.assert_array_equal(share(jnp.float32(2), x), [4, jnp.inf, jnp.nan])
    slope = jax.grad(lambda w: share(w, x)[0])(jnp.float32(0))
    assert slope == 2


def test_prodigy_counts_on_beyond_what_float32_can_count() -> None:
    p = jnp.ones(2)
    tx = fo.prodigy(use_bias_correction=True)
    state = tx.init(p)._replace(steps_taken=jnp.int32(2**24 + 1))
    for i in range(3):
        _, state = tx.update(p, state, p)
        assert int(state.steps_taken) == 2**24 + 2 + i
