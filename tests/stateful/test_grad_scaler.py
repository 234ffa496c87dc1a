"""`GradScaler`: torch's scale, growth and skipped steps, in a loop and in one compiled program."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import sparse

import functorch_optim.stateful as optim
from tests.stateful.test_interrupts import instructions, interrupted_at
from tests.support.stateful import compilations, exactly, new_shape, numbers, progress, snapshot

# What the loss is multiplied by, step after step: gradients overflow float32 where it is infinite,
# or where the scale is too large for it.
FACTORS = (1.0, 1.0, math.inf, 1.0, 1.0, 1.0, 1.0, 1e38, 1e38, 1.0, math.nan, 1.0, 1.0, 1.0)
OPTIONS = {"init_scale": 8.0, "growth_factor": 1.9, "backoff_factor": 0.3, "growth_interval": 3}


def loss_fn(params: Any, factor: Any) -> jax.Array:
    return jnp.sum(params["w"] * params["w"]) * factor + jnp.sum(params["b"])


def build(**options: Any) -> tuple[Any, optim.Optimizer, optim.GradScaler]:
    model = optim.parameters({"w": numbers(0), "b": numbers(1, (2, 1))})
    return model, optim.Adam(model, lr=0.1), optim.GradScaler(**{**OPTIONS, **options})


def loop(model: Any, opt: Any, scaler: Any, factors: Any, clip: float | None = None) -> list[Any]:
    """What is seen after each step."""
    seen = []

    def scaled_loss(params: Any, factor: Any) -> jax.Array:
        return scaler.scale(loss_fn(params, factor))

    for factor in factors:
        optim.backward(scaled_loss, model, np.float32(factor))
        if clip is not None:
            scaler.unscale_(opt)
            optim.clip_grad_norm_(model, clip)
        scaler.step(opt)
        scaler.update()
        opt.zero_grad()
        seen.append(look(model, opt, scaler))
    return seen


def look(model: Any, opt: Any, scaler: Any) -> list[Any]:
    values = [*np.ravel(model["w"].data), *np.ravel(model["b"].data)]
    steps = [float(opt.state[p]["step"]) for p in model.values() if p in opt.state]
    return [scaler.get_scale(), scaler.state_dict()["_growth_tracker"], steps, values]


def check(seen: list[Any], wanted: list[Any]) -> None:
    for (*state, values), (*their_state, their_values) in zip(seen, wanted, strict=True):
        assert state == their_state
        np.testing.assert_allclose(values, their_values, rtol=1e-5, atol=1e-6)


def torch_loop(clip: float | None) -> list[Any]:
    torch = pytest.importorskip("torch", reason="compares with torch live")
    model = {"w": numbers(0), "b": numbers(1, (2, 1))}
    model = {name: torch.nn.Parameter(torch.tensor(x)) for name, x in model.items()}
    opt = torch.optim.Adam(list(model.values()), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", **OPTIONS)
    seen = []
    for factor in FACTORS:
        loss = (model["w"] ** 2).sum() * torch.tensor(factor) + model["b"].sum()
        scaler.scale(loss).backward()
        if clip is not None:
            scaler.unscale_(opt)
            torch.nn.utils.clip_grad_norm_(list(model.values()), clip)
        scaler.step(opt)
        scaler.update()
        opt.zero_grad()
        values = np.concatenate([x.detach().numpy().ravel() for x in model.values()])
        steps = [float(opt.state[x]["step"]) for x in model.values() if x in opt.state]
        tracker = scaler.state_dict()["_growth_tracker"]
        seen.append([scaler.get_scale(), tracker, steps, values])
    return seen


@pytest.mark.parametrize("clip", [None, 0.5])
def test_a_loop_is_torchs(clip: float | None) -> None:
    seen = loop(*build(), FACTORS, clip)
    check(seen, torch_loop(clip))
    assert len({scale for scale, *_ in seen}) > 4  # it grew and fell


@pytest.mark.parametrize("clip", [None, 0.5])
def test_a_training_step_is_the_loop(clip: float | None) -> None:
    model, opt, scaler = build()
    train_step = opt.make_step(loss_fn, model, clip_norm=clip, scaler=scaler)
    seen = []
    for factor in FACTORS:
        wanted = loss_fn(optim.values(model), factor)
        np.testing.assert_allclose(train_step(np.float32(factor)), wanted, rtol=1e-6)
        seen.append(look(model, opt, scaler))
    check(seen, loop(*build(), FACTORS, clip))
    assert opt.compile_count == 1


def test_a_first_step_that_is_skipped_leaves_no_state() -> None:
    model, opt, scaler = build()
    before = snapshot(opt), exactly(optim.values(model))
    train_step = opt.make_step(loss_fn, model, scaler=scaler)
    train_step(np.float32(math.inf))
    assert (snapshot(opt), exactly(optim.values(model))) == before
    assert dict(opt.state) == {}
    train_step(np.float32(1.0))
    assert [float(entry["step"]) for entry in opt.state.values()] == [1.0, 1.0]


def test_a_skipped_training_step_changes_nothing_of_a_pairs_state() -> None:
    import functorch_optim as fo

    model = optim.parameters({"w": numbers(0), "b": numbers(1, (2, 1))})
    opt = optim.from_transformation(fo.adam)(model, lr=0.1)
    scaler = optim.GradScaler(init_scale=4.0)
    train_step = opt.make_step(loss_fn, model, scaler=scaler)
    train_step(np.float32(1.0))
    before = snapshot(opt), exactly(optim.values(model))
    train_step(np.float32(math.nan))
    assert (snapshot(opt), exactly(optim.values(model))) == before
    train_step(np.float32(1.0))
    assert snapshot(opt) != before[0]


def test_a_training_step_with_aux_and_micro_batches() -> None:
    def with_aux(params: Any, x: Any) -> Any:
        return loss_fn(params, x), {"x": x}

    model, opt, scaler = build()
    plain_model, plain_opt, _ = build()
    train_step = opt.make_step(with_aux, model, has_aux=True, accumulate=2, scaler=scaler)
    plain_step = plain_opt.make_step(with_aux, plain_model, has_aux=True, accumulate=2)
    for x in np.float32([1, 3]), np.float32([2, 5]):
        loss, aux = train_step(x)
        wanted, _ = plain_step(x)
        np.testing.assert_allclose(loss, wanted, rtol=1e-6)
        np.testing.assert_array_equal(aux["x"], x)
    np.testing.assert_allclose(model["w"].data, plain_model["w"].data, rtol=1e-6)
    loss, _ = train_step(np.float32([1, math.inf]))
    assert scaler.get_scale() == np.float32(8 * 0.3)


def test_a_training_step_can_be_mixed_with_a_loop() -> None:
    model, opt, scaler = build()
    train_step = opt.make_step(loss_fn, model, scaler=scaler)
    seen = []
    for i, factor in enumerate(FACTORS):
        if i % 2:
            train_step(np.float32(factor))
            seen.append(look(model, opt, scaler))
        else:
            seen += loop(model, opt, scaler, [factor])
    check(seen, loop(*build(), FACTORS))


def test_a_scale_that_changes_compiles_nothing() -> None:
    model = optim.parameters({"w": np.ones(new_shape(), np.float32), "b": numbers(0)})
    opt, scaler = optim.SGD(model, lr=0.0), optim.GradScaler(init_scale=4.0)

    @jax.jit
    def own(params: Any) -> Any:
        return jax.grad(lambda p: scaler.scale(loss_fn(p, 1.0)))(params)

    def scaled_loss(params: Any) -> Any:
        return scaler.scale(loss_fn(params, 1.0))

    train_step = opt.make_step(loss_fn, model, scaler=scaler)

    def once() -> float:
        params = optim.values(model)
        optim.backward(scaled_loss, model)
        scale = float(model["b"].grad[0])
        assert float(own(params)["b"][0]) == scale
        scaler.step(opt)
        assert float(model["b"].grad[0]) == 1.0
        train_step(np.float32(1.0))
        opt.zero_grad()
        return scale

    assert once() == 4.0
    scaler.update(16.0)
    once()
    with compilations() as compiled:
        scaler.update(32.0)
        assert once() == 32.0
        scaler.update()
        scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0})
        assert once() == 2.0
    assert compiled == []


def test_the_scale_is_live_in_a_scan_and_under_a_checkpoint() -> None:
    scaler = optim.GradScaler(init_scale=4.0)

    @jax.jit
    def total(x: Any) -> Any:
        def body(carry: Any, _: Any) -> Any:
            return carry + jax.grad(jax.checkpoint(lambda x: scaler.scale(x * x)))(x), None

        return jax.lax.scan(body, jnp.zeros(()), length=3)[0]

    assert float(total(1.0)) == 24.0
    scaler.update(8.0)
    assert float(total(1.0)) == 48.0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32"])
@pytest.mark.parametrize("shape", [(), (1,), (3,)])
def test_scaled_outputs_are_torchs(dtype: str, shape: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch", reason="compares with torch live")
    theirs = torch.amp.GradScaler("cpu")
    ours = optim.GradScaler()
    x = np.full(shape, 0.5 if dtype != "int32" else 2)
    wanted = theirs.scale(torch.tensor(x, dtype=getattr(torch, dtype)))
    got = ours.scale(jnp.asarray(x, dtype))
    np.testing.assert_array_equal(np.asarray(got, np.float64), wanted.double().numpy())
    if dtype != "int32" or shape == ():
        assert str(wanted.dtype) == f"torch.{got.dtype}"


def test_scales_trees_and_iterators() -> None:
    scaler = optim.GradScaler(init_scale=4.0)
    x = jnp.float32(1.5)
    assert scaler.scale([x, (x, x)]) == [6.0, (6.0, 6.0)]
    assert scaler.scale({"a": np.float32(1.5)}) == {"a": 6.0}
    assert list(scaler.scale(x for _ in range(2))) == [6.0, 6.0]


@pytest.mark.parametrize("bad", ["loss", None, [jnp.ones(()), "x"], 1.0])
def test_scales_nothing_else(bad: Any) -> None:
    with pytest.raises(ValueError, match="outputs must be a Tensor or an iterable of Tensors"):
        optim.GradScaler().scale(bad)


@pytest.mark.parametrize("scale", [3.0, 2.0**127, 2.0**-120])
def test_unscaled_gradients(scale: float) -> None:
    p, q = optim.Parameter(np.ones(2, np.float32)), optim.Parameter(np.ones(2, np.float32))
    opt, scaler = optim.SGD([p, q], lr=1.0), optim.GradScaler(init_scale=scale)
    scaler.scale(jnp.ones(()))
    p.grad = np.float32([scale, -scale])
    q.grad = sparse.BCOO((jnp.float32([scale]), jnp.array([[1]])), shape=(2,))
    scaler.unscale_(opt)
    np.testing.assert_allclose(p.grad, [1.0, -1.0], rtol=1e-6)
    np.testing.assert_allclose(q.grad.todense(), [0.0, 1.0], rtol=1e-6)


def test_a_shared_scaler_falls_if_one_of_two_optimizers_skips() -> None:
    p, q = (optim.Parameter(np.ones(1, np.float32)) for _ in range(2))
    opts = optim.SGD([p], lr=1.0), optim.SGD([q], lr=1.0)
    scaler = optim.GradScaler(init_scale=4.0)
    scaler.scale(jnp.ones(()))
    p.grad, q.grad = np.float32([4.0]), np.float32([math.inf])
    for opt in opts:
        scaler.step(opt)
    scaler.update()
    assert (p.item(), q.item(), scaler.get_scale()) == (0.0, 1.0, 2.0)


def ready() -> tuple[optim.GradScaler, optim.Optimizer, optim.Parameter]:
    p = optim.Parameter(np.ones(2, np.float32))
    opt, scaler = optim.SGD([p], lr=1.0), optim.GradScaler(init_scale=4.0)
    scaler.scale(jnp.ones(()))
    p.grad = np.float32([4, 4])
    return scaler, opt, p


def in_torch() -> Any:
    torch = pytest.importorskip("torch", reason="compares with torch live")
    p = torch.nn.Parameter(torch.ones(2))
    opt, scaler = torch.optim.SGD([p], lr=1.0), torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.ones(()))
    p.grad = torch.tensor([4.0, 4.0])
    return scaler, opt, p


def _no_gradient(scaler: Any, opt: Any, p: Any) -> None:
    p.grad = None
    scaler.step(opt)


def _twice(name: str) -> Any:
    def called(scaler: Any, opt: Any, p: Any) -> None:
        getattr(scaler, name)(opt)
        getattr(scaler, name)(opt)

    return called


def _unscaled_after_step(scaler: Any, opt: Any, p: Any) -> None:
    scaler.step(opt)
    scaler.unscale_(opt)


def _pickled_between(scaler: Any, opt: Any, p: Any) -> None:
    scaler.unscale_(opt)
    pickle.dumps(scaler)


MISUSES = {
    "unscale_ twice": _twice("unscale_"),
    "step twice": _twice("step"),
    "unscale_ after step": _unscaled_after_step,
    "no gradient": _no_gradient,
    "update before anything": lambda scaler, opt, p: scaler.update(),
    "closure": lambda scaler, opt, p: scaler.step(opt, closure=lambda: 1.0),
    "empty state": lambda scaler, opt, p: scaler.load_state_dict({}),
    "pickled between": _pickled_between,
    "nothing scaled, unscale_": lambda scaler, opt, p: type(scaler)("cpu").unscale_(opt),
    "nothing scaled, step": lambda scaler, opt, p: type(scaler)("cpu").step(opt),
    "nothing scaled, update": lambda scaler, opt, p: type(scaler)("cpu").update(),
    "growth factor": lambda scaler, opt, p: type(scaler)("cpu", growth_factor=1.0),
    "backoff factor": lambda scaler, opt, p: type(scaler)("cpu", backoff_factor=1.0),
}


@pytest.mark.parametrize("misuse", MISUSES.values(), ids=MISUSES)
def test_misuse_is_refused_in_torchs_words(misuse: Any) -> None:
    with pytest.raises(Exception) as theirs:
        misuse(*in_torch())
    with pytest.raises(theirs.type) as ours:
        misuse(*ready())
    assert str(ours.value) == str(theirs.value)


def test_a_closure_is_refused_by_position_too() -> None:
    scaler, opt, p = ready()
    before = exactly(p)
    with pytest.raises(RuntimeError, match="Closure use is not currently supported"):
        scaler.step(opt, lambda: 1.0)
    with pytest.raises(TypeError, match="takes no gradients"):
        scaler.step(opt, [np.ones(2, np.float32)])
    assert exactly(p) == before


def test_gradients_in_float16_are_refused() -> None:
    p = optim.Parameter(jnp.ones(2, jnp.float16))
    opt, scaler = optim.SGD([p], lr=1.0), optim.GradScaler()
    scaler.scale(jnp.ones(()))
    p.grad = jnp.ones(2, jnp.float16)
    before = exactly(p)
    with pytest.raises(ValueError, match="Attempting to unscale FP16 gradients"):
        scaler.step(opt)
    train_step = opt.make_step(lambda params: jnp.sum(params["p"]), {"p": p}, scaler=scaler)
    with pytest.raises(ValueError, match="Attempting to unscale FP16 gradients"):
        train_step()
    assert exactly(p) == before


@pytest.mark.parametrize("bad", ["8", jnp.ones(2), True, jnp.ones((), jnp.int32)])
def test_a_new_scale_that_is_none_is_refused(bad: Any) -> None:
    scaler, _, _ = ready()
    with pytest.raises(AssertionError, match="new_scale should be a float or a 1-element"):
        scaler.update(bad)
    assert scaler.get_scale() == 4.0


@pytest.mark.parametrize("given", [8.0, jnp.full((1,), 8.0), np.float32(8), jnp.bfloat16(8)])
def test_a_new_scale_is_taken_over(given: Any) -> None:
    scaler, opt, _ = ready()
    scaler.step(opt)
    scaler.update(given)
    assert scaler.get_scale() == 8.0
    assert float(scaler.scale(jnp.ones(()))) == 8.0
    scaler.step(opt)  # a new iteration has begun


def test_a_scale_does_not_grow_beyond_float32() -> None:
    scaler, opt, _ = ready()
    scaler.set_growth_interval(1)
    scaler.update(2.0**127)
    scaler.step(opt)
    scaler.update()
    assert scaler.get_scale() == 2.0**127


def test_numbers_can_be_read_and_set() -> None:
    scaler = optim.GradScaler()
    assert scaler.is_enabled()
    assert scaler.get_scale() == 65536.0
    assert (scaler.get_growth_factor(), scaler.get_backoff_factor()) == (2.0, 0.5)
    assert scaler.get_growth_interval() == 2000
    scaler.set_growth_factor(3.0)
    scaler.set_backoff_factor(0.25)
    scaler.set_growth_interval(7)
    assert scaler.state_dict() == {
        "scale": 65536.0,
        "growth_factor": 3.0,
        "backoff_factor": 0.25,
        "growth_interval": 7,
        "_growth_tracker": 0,
    }


def test_a_state_of_torch_is_taken_over() -> None:
    theirs, opt, _ = in_torch()
    theirs.step(opt)
    theirs.update()
    scaler = optim.GradScaler()
    scaler.load_state_dict(theirs.state_dict())
    assert scaler.state_dict() == theirs.state_dict()
    theirs.load_state_dict(scaler.state_dict())
    with pytest.raises(KeyError):
        scaler.load_state_dict({"scale": 3.0})
    assert scaler.state_dict() == theirs.state_dict()


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"]
)
def test_can_be_duplicated(duplicate: Any) -> None:
    scaler, opt, _ = ready()
    scaler.step(opt)
    scaler.update()
    twin = duplicate(scaler)
    assert twin.state_dict() == scaler.state_dict()
    twin.scale(jnp.ones(()))
    twin.update(2.0)
    assert (twin.get_scale(), scaler.get_scale()) == (2.0, 4.0)


def test_turned_off_it_does_nothing() -> None:
    model, opt, scaler = build(enabled=False)
    plain_model, plain_opt, _ = build()
    assert scaler.scale("anything") == "anything"
    assert (scaler.get_scale(), scaler.state_dict(), scaler.is_enabled()) == (1.0, {}, False)
    optim.backward(loss_fn, model, np.float32(1.0))
    scaler.unscale_(opt)
    scaler.step(opt)
    scaler.update()
    opt.make_step(loss_fn, model, scaler=scaler)(np.float32(1.0))
    scaler.load_state_dict({})
    for _ in range(2):
        plain_opt.make_step(loss_fn, plain_model)(np.float32(1.0))
    np.testing.assert_allclose(model["w"].data, plain_model["w"].data, rtol=1e-6)
    assert scaler.step(opt, lambda: 5.0) == 5.0


@pytest.mark.parametrize("factor", [1.0, math.inf])
@pytest.mark.slow
def test_an_interrupt_leaves_a_training_step_whole(factor: float) -> None:
    """A step and its count come together, and programs scale by what gradients are unscaled by."""
    model, opt, scaler = build(growth_interval=1)
    train_step = opt.make_step(loss_fn, model, scaler=scaler)
    for _ in range(2):
        train_step(np.float32(1.0))
    there = jax.jit(lambda: scaler.scale(jnp.ones(())))

    def call() -> None:
        train_step(np.float32(factor))

    outcomes = set()
    call()
    progress(opt)  # what was read is looked at before it is reused: these are instructions as well
    total = instructions(call, ours=True)
    # The last of them come behind the end: not every call has as many instructions.
    for i in [*range(1, total, 7), *range(total, total + 1000, 50)]:
        before = progress(opt)
        scaler.update(8.0)
        interrupted_at(i, call, ours=True)
        assert float(there()) == scaler.get_scale()
        steps = {float(entry["step"]) for entry in opt.state_dict()["state"].values()}
        assert len(steps) == 1
        outcomes.add((progress(opt) == before, scaler.get_scale() == 8.0))
    wanted = {(True, True)} if factor == 1.0 else {(True, True), (True, False)}
    assert outcomes >= wanted
    assert any(not same for same, _ in outcomes) == (factor == 1.0)


def test_parameters_on_a_mesh() -> None:
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("d",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    p = optim.Parameter(jax.device_put(jnp.ones(8), spread))
    opt, scaler = optim.SGD([p], lr=0.25), optim.GradScaler(everywhere, init_scale=4.0)
    optim.backward(lambda params: scaler.scale(jnp.sum(params["p"])), {"p": p})
    np.testing.assert_array_equal(p.grad, np.full(8, 4.0))
    scaler.step(opt)
    scaler.update()
    opt.make_step(lambda params: jnp.sum(params["p"]), {"p": p}, scaler=scaler)()
    np.testing.assert_array_equal(p.data, np.full(8, 0.5))
    assert p.sharding == spread


@pytest.mark.parametrize("bad", [65536.0, 3])
def test_what_is_no_device_is_refused(bad: Any) -> None:
    with pytest.raises(TypeError, match="device should be a device or a sharding"):
        optim.GradScaler(bad)


def test_a_training_step_refuses_what_is_no_scaler() -> None:
    model, opt, scaler = build()
    with pytest.raises(TypeError, match="scaler should be a GradScaler"):
        opt.make_step(loss_fn, model, scaler=2.0**16)
    with pytest.raises(ValueError, match="takes no GradScaler"):
        optim.LBFGS(model).make_step(loss_fn, model, scaler=scaler)
