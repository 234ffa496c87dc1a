"""Batch norm's running statistics computed anew, against numpy, for every library at hand."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functorch_optim.averages.batch_norm import update_bn
from tests.support.stateful import exactly

FEATURES = 3


def batches(dtype: Any = np.float32, sizes: tuple[int, ...] = (8, 8, 5)) -> list[np.ndarray]:
    """Of different sizes: each batch weighs the same all the same."""
    random = np.random.RandomState(5)
    return [
        (random.standard_normal((size, FEATURES)) * [1.0, 30.0, 0.01] + [0.3, -7.0, 0.02]).astype(
            dtype
        )
        for size in sizes
    ]


def wanted(data: list[np.ndarray], ddof: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The means over batches of the mean and of the variance, in double."""
    mean, var = np.zeros(FEATURES), np.zeros(FEATURES)
    for batch in data:
        batch = batch.astype(np.float64)
        mean += batch.mean(axis=0) / len(data)
        var += batch.var(axis=0, ddof=ddof) / len(data)
    return mean, var


def check(mean: Any, var: Any, data: list[np.ndarray], rtol: float, ddof: int = 0) -> None:
    for found, right in zip((mean, var), wanted(data, ddof), strict=True):
        np.testing.assert_allclose(np.asarray(found, np.float64), right, rtol=rtol)


def norm(m: Any, as_torch: bool = False) -> Callable[[Any, Any], Any]:
    """A batch norm by hand; as torch, with the weight of the new and the unbiased variance."""

    def apply_fn(stats: dict[str, jax.Array], x: jax.Array) -> dict[str, jax.Array]:
        x = jnp.asarray(x)
        mean = jnp.mean(x, axis=0)
        var = jnp.var(x, axis=0, ddof=int(as_torch))
        new = dict(stats)
        for name, value in (("mean", mean), ("var", var)):
            old = stats[name]
            if as_torch:
                new[name] = old + (value - old) * (1 - m)
            else:
                new[name] = m * old + (1 - m) * value
        if "count" in stats:
            new["count"] = stats["count"] + 1
        return new

    return apply_fn


def start(dtype: Any = np.float32) -> dict[str, Any]:
    """Statistics of some earlier training."""
    return {
        "count": jnp.asarray(41, jnp.int32),
        "mean": jnp.full(FEATURES, 3.7, dtype),
        "var": jnp.full(FEATURES, 0.2, dtype),
    }


@pytest.mark.parametrize("as_torch", [False, True])
@pytest.mark.parametrize("m", [0.0, 0.1, 0.9, 0.99, 0.999, 0.9375, 1 / 3])
def test_the_mean_over_batches(m: float, as_torch: bool) -> None:
    """1 - m from m in float32 would be off by 1e-6 (0.99), 1.3e-5 (0.999)."""
    data = batches()
    stats = update_bn(iter(data), norm(m, as_torch), start())
    check(stats["mean"], stats["var"], data, 1e-6, ddof=int(as_torch))
    assert {name: x.dtype for name, x in stats.items()} == {
        "count": np.int32,
        "mean": np.float32,
        "var": np.float32,
    }
    assert int(stats["count"]) == 0


@pytest.mark.parametrize("m", [0.1, 0.99, 0.9999])
def test_in_double(m: float, x64: None) -> None:
    data = batches(np.float64)
    stats = update_bn(data, norm(m), start(np.float64))
    check(stats["mean"], stats["var"], data, 1e-12)


@pytest.mark.parametrize(("dtype", "rtol"), [("bfloat16", 0.03), ("float16", 4e-3)])
def test_half_precision(dtype: str, rtol: float) -> None:
    data = [x[:, :1].astype(np.float32) for x in batches()]

    def apply_fn(stats: jax.Array, x: jax.Array) -> jax.Array:
        return 0.9 * stats + 0.1 * jnp.mean(jnp.asarray(x), axis=0).astype(dtype)

    found = update_bn(data, apply_fn, jnp.zeros(1, dtype))
    assert found.dtype == dtype
    right = np.mean([x.astype(np.float64).mean(axis=0) for x in data], axis=0)
    np.testing.assert_allclose(np.asarray(found, np.float64), right, rtol=rtol)


def test_complex_statistics() -> None:
    data = [x[:, 0] + 1j * x[:, 1] for x in batches()]

    def apply_fn(stats: jax.Array, z: jax.Array) -> jax.Array:
        return 0.99 * stats + 0.01 * jnp.mean(jnp.asarray(z))

    found = update_bn(data, apply_fn, jnp.zeros((), jnp.complex64))
    right = np.mean([z.astype(np.complex128).mean() for z in data])
    assert found.dtype == np.complex64
    np.testing.assert_allclose(found, right, rtol=1e-6)


def test_each_channel_may_have_its_own_weight() -> None:
    data = batches()
    m = jnp.asarray([0.5, 0.9, 0.0])
    stats = update_bn(data, norm(m), start())
    check(stats["mean"], stats["var"], data, 1e-6)


def test_a_channel_that_is_constant() -> None:
    data = [np.full((4, FEATURES), 2.0, np.float32)] * 2
    stats = update_bn(data, norm(0.99), start())
    np.testing.assert_array_equal(stats["var"], np.zeros(FEATURES))
    np.testing.assert_allclose(stats["mean"], np.full(FEATURES, 2.0), rtol=1e-6)


def test_a_weight_that_follows_a_counter() -> None:
    """torch's momentum=None: 1 / (batches so far + 1) for the new."""

    def apply_fn(stats: dict[str, Any], x: Any) -> dict[str, Any]:
        count = stats["count"] + 1
        new = norm(0.0)(stats, x)
        share = 1.0 / count.astype(jnp.float32)
        for name in ("mean", "var"):
            new[name] = stats[name] * (1 - share) + new[name] * share
        return new

    data = batches()
    stats = update_bn(data, apply_fn, start())
    check(stats["mean"], stats["var"], data, 1e-6)


def test_the_batches_are_gone_through_once_and_nothing_given_changes() -> None:
    data = batches()
    passes = 0

    def loader() -> Iterator[np.ndarray]:
        nonlocal passes
        passes += 1
        yield from data

    given = start()
    before = exactly(given)
    stats = update_bn(loader(), jax.jit(norm(0.9)), given)
    assert passes == 1
    assert exactly(given) == before
    check(stats["mean"], stats["var"], data, 1e-6)


def test_a_frozen_layer_keeps_its_statistics() -> None:
    """And normalizes with them, not with any starting value of the search."""
    frozen = {"mean": jnp.full(FEATURES, 0.5), "var": jnp.full(FEATURES, 4.0)}

    def apply_fn(stats: dict[str, Any], x: Any) -> dict[str, Any]:
        layer = stats["frozen"]
        x = (jnp.asarray(x) - layer["mean"][None]) / jnp.sqrt(layer["var"][None])
        return {"frozen": layer, "norm": norm(0.99)(stats["norm"], x), "other": None}

    data = batches()
    stats = {"frozen": frozen, "norm": start(), "other": None}
    found = update_bn(data, apply_fn, stats)
    assert exactly(found["frozen"]) == exactly(frozen)
    normalized = [(x.astype(np.float64) - 0.5) / 2.0 for x in data]
    check(found["norm"]["mean"], found["norm"]["var"], normalized, 2e-6)


def test_flags_and_keys_are_those_of_the_last_batch() -> None:
    def apply_fn(stats: dict[str, Any], x: Any) -> dict[str, Any]:
        new = norm(0.9)({k: stats[k] for k in ("mean", "var")}, x)
        return {**new, "first": jnp.asarray(False), "key": jax.random.split(stats["key"])[0]}

    key = jax.random.key(1)
    stats = {k: v for k, v in start().items() if k != "count"}
    found = update_bn(batches(), apply_fn, {**stats, "first": jnp.asarray(True), "key": key})
    assert not bool(found["first"])
    assert bool(found["key"] == jax.random.split(key)[0])


def test_without_floating_point_statistics_nothing_is_touched() -> None:
    def never() -> Iterator[Any]:
        raise AssertionError("the loader was asked")
        yield

    for stats in ({}, None, {"count": jnp.asarray(3)}):
        assert update_bn(never(), norm(0.9), stats) is stats


def test_no_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no batch"):
        update_bn([], norm(0.9), start())


def test_inference_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="changes none of the statistics"):
        update_bn(batches(), lambda stats, x: stats, start())


def squared(old: Any, mean: Any) -> Any:
    return 0.9 * old * old + 0.1 * mean


def largest(old: Any, mean: Any) -> Any:
    return jnp.maximum(0.9 * old, mean)


def summed(old: Any, mean: Any) -> Any:
    return old + mean


def welford(old: Any, mean: Any) -> Any:
    return 0.9 * old + 0.1 * mean + 0.09 * (old - mean) ** 2


@pytest.mark.parametrize("rule", [squared, largest, summed, welford], ids=lambda f: f.__name__)
def test_what_is_no_moving_average_is_refused(rule: Any) -> None:
    def apply_fn(stats: dict[str, Any], x: Any) -> dict[str, Any]:
        return {"layer": rule(stats["layer"], jnp.mean(jnp.asarray(x), axis=0))}

    with pytest.raises(ValueError, match=r"statistic at \['layer'\] is no moving average"):
        update_bn(batches(), apply_fn, {"layer": jnp.zeros(FEATURES)})


def test_a_result_of_another_structure_or_shape_is_refused() -> None:
    with pytest.raises(TypeError, match="the result of apply_fn and stats differ in structure"):
        update_bn(batches(), lambda stats, x: (stats, x), start())
    with pytest.raises(ValueError, match="differ in shape"):
        update_bn(batches(), lambda stats, x: jnp.zeros(2), jnp.zeros(FEATURES))


# The libraries. They promote dtypes as jax does by default, not as strictly as these tests.


@pytest.fixture
def lenient() -> Iterator[None]:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def imported(name: str) -> Any:
    # On import the libraries warn of what they themselves use of newer versions of jax.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


def two_layers(data: list[np.ndarray], eps: float = 1e-5) -> list[np.ndarray]:
    """What the second layer sees behind a normalization by the batch's own statistics."""
    wide = [x.astype(np.float64) for x in data]
    return [np.tanh((x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + eps)) for x in wide]


@pytest.mark.parametrize("momentum", [0.99, 0.999])
def test_flax_linen(momentum: float, lenient: None) -> None:
    linen = imported("flax.linen")

    class Model(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            kwargs = {
                "use_running_average": False,
                "momentum": momentum,
                "use_fast_variance": False,
            }
            x = jnp.tanh(linen.BatchNorm(name="first", **kwargs)(x))
            return linen.BatchNorm(name="second", **kwargs)(x)

    model, data = Model(), batches()
    variables = model.init(jax.random.key(0), data[0])

    @jax.jit
    def apply_fn(stats: Any, x: Any) -> Any:
        given = {"params": variables["params"], "batch_stats": stats}
        return model.apply(given, x, mutable=["batch_stats"])[1]["batch_stats"]

    stats = apply_fn(variables["batch_stats"], data[0])  # as left by some training
    found = update_bn(data, apply_fn, stats)
    check(found["first"]["mean"], found["first"]["var"], data, 1e-6)
    second = two_layers(data)
    mean, var = wanted(second)
    np.testing.assert_allclose(found["second"]["mean"], mean, atol=1e-6)
    np.testing.assert_allclose(found["second"]["var"], var, rtol=1e-5)  # of the forward pass


def test_flax_linen_in_double(lenient: None, x64: None) -> None:
    linen = imported("flax.linen")
    model = linen.BatchNorm(
        use_running_average=False, param_dtype=jnp.float64, force_float32_reductions=False
    )
    data = batches(np.float64)
    variables = model.init(jax.random.key(0), data[0])

    def apply_fn(stats: Any, x: Any) -> Any:
        given = {"params": variables["params"], "batch_stats": stats}
        return model.apply(given, x, mutable=["batch_stats"])[1]["batch_stats"]

    found = update_bn(data, apply_fn, variables["batch_stats"])
    assert found["mean"].dtype == np.float64
    np.testing.assert_allclose(found["mean"], wanted(data)[0], rtol=1e-12)
    # flax's variance is E[x*x] - E[x]**2 here, which cancels where the mean is large
    np.testing.assert_allclose(found["var"], wanted(data)[1], rtol=1e-12)


def test_flax_nnx(lenient: None) -> None:
    nnx = imported("flax.nnx")

    class Model(nnx.Module):
        def __init__(self) -> None:
            self.first = nnx.BatchNorm(FEATURES, use_fast_variance=False, rngs=nnx.Rngs(0))

        def __call__(self, x: Any) -> Any:
            return self.first(x)

    model, data = Model(), batches()
    graph, stats, rest = nnx.split(model, nnx.BatchStat, ...)

    @jax.jit
    def apply_fn(stats: Any, x: Any) -> Any:
        whole = nnx.merge(graph, stats, rest)
        whole(x)
        return nnx.state(whole, nnx.BatchStat)

    nnx.update(model, update_bn(data, apply_fn, stats))
    check(model.first.mean[...], model.first.var[...], data, 1e-6)


@pytest.mark.parametrize("mode", ["batch", "ema"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equinox(mode: Any, dtype: Any, lenient: None, request: pytest.FixtureRequest) -> None:
    eqx = imported("equinox")
    if dtype == np.float64:
        request.getfixturevalue("x64")
    data = batches(dtype)

    class Model(eqx.Module):
        first: Any
        second: Any

        def __init__(self) -> None:
            self.first = eqx.nn.BatchNorm(FEATURES, "batch", mode=mode, dtype=dtype)
            self.second = eqx.nn.BatchNorm(FEATURES, "batch", mode=mode, dtype=dtype)

        def __call__(self, x: Any, state: Any) -> Any:
            x, state = self.first(x, state)
            return self.second(jnp.tanh(x), state)

    model, state = eqx.nn.make_with_state(Model)()
    run = jax.vmap(model, in_axes=(0, None), out_axes=(0, None), axis_name="batch")

    @jax.jit
    def apply_fn(state: Any, x: Any) -> Any:
        return run(x, state)[1]

    trained = state
    for x in data[:2]:
        trained = apply_fn(trained, jnp.asarray(x))
    if mode == "ema":  # normalizes by its running statistics once it has some
        with pytest.raises(ValueError, match="a newly made model"):
            update_bn(map(jnp.asarray, data), apply_fn, trained)
    found = update_bn(map(jnp.asarray, data), apply_fn, state if mode == "ema" else trained)

    # Seen through inference, where mode="batch" divides by 1 - momentum**counter.
    inference = eqx.nn.inference_mode(model)
    look = jax.vmap(inference.first, in_axes=(0, None), out_axes=(0, None), axis_name="batch")
    out, _ = look(jnp.asarray(data[0]), found)
    mean, var = wanted(data)
    right = (data[0].astype(np.float64) - mean) / np.sqrt(var + 1e-5)
    exact = dtype == np.float64
    np.testing.assert_allclose(
        out, right, rtol=1e-11 if exact else 1e-5, atol=1e-11 if exact else 1e-5
    )

    index = "batch_state_index" if mode == "batch" else "ema_state_index"
    first = found.get(getattr(model.first, index))
    check(*first, data, 1e-12 if exact else 1e-6)
    second = found.get(getattr(model.second, index))
    np.testing.assert_allclose(
        second[0], wanted(two_layers(data))[0], atol=1e-12 if exact else 1e-6
    )
    np.testing.assert_allclose(
        second[1], wanted(two_layers(data))[1], rtol=1e-11 if exact else 1e-5
    )
    if mode == "ema":
        assert not bool(found.get(model.first.ema_first_time_index))


def test_a_function_that_cannot_be_traced() -> None:
    """It computes in numpy."""
    data = batches()

    def apply_fn(stats: dict[str, Any], x: np.ndarray) -> dict[str, np.ndarray]:
        mean, var = np.asarray(stats["mean"]), np.asarray(stats["var"])
        weight = np.float32(0.1)
        return {
            "mean": np.float32(0.9) * mean + weight * x.mean(axis=0),
            "var": np.float32(0.9) * var + weight * x.var(axis=0),
        }

    stats = update_bn(data, apply_fn, {name: x for name, x in start().items() if name != "count"})
    check(stats["mean"], stats["var"], data, 1e-5)


def test_a_function_that_gives_away_its_argument() -> None:
    data = batches()
    stats = {name: x for name, x in start().items() if name != "count"}
    found = update_bn(data, jax.jit(norm(0.9), donate_argnums=0), stats)
    check(found["mean"], found["var"], data, 1e-5)
