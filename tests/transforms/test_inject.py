"""inject_hyperparams: numbers in the state, where they can be read and overwritten."""

from __future__ import annotations

from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import functorch_optim as fo
from functorch_optim.transforms.inject import InjectState, inject_hyperparams, set_hyperparams
from tests.support.problems import assert_trees_close, at, loop, problem, types

SCHEDULE = fo.linear_lr(0.1, start_factor=0.5, end_factor=1.0, total_iters=4)


def my_optimizer(lr: Any, decay: Any = 0.1, *, steps: int = 2, **more: Any) -> Any:
    """A user's function: a chain of its own, a flag, a number that selects code."""
    parts = [optax.scale(1.0) for _ in range(steps)]
    return optax.chain(optax.add_decayed_weights(decay), *parts, optax.sgd(lr, **more))


def learning_rates(tx: Any, edit: Any, calls: int = 6) -> list[float]:
    """The lr of every update, `edit(call, state)` being applied before it."""
    g, used = jnp.ones(()), []
    state = tx.init(g)
    step = jax.jit(tx.update)
    for i in range(calls):
        state = edit(i, state)
        said = float(state.hyperparams["lr"])
        updates, state = step(g, state, g)
        used.append(-float(updates))
        assert used[-1] == pytest.approx(said)  # the rule: what the state says, the update uses
    assert step._cache_size() == 1
    return used


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(
    ("factory", "kwargs"),
    [
        (fo.adam, {"lr": SCHEDULE, "betas": (0.8, 0.99), "amsgrad": True}),
        (fo.adamw, {"weight_decay": 0.1}),
        (fo.sgd, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        (fo.sgd, {"lr": 0.1}),
        (fo.muon, {"lr": SCHEDULE, "ns_steps": 2}),
        (fo.adafactor, {}),
        (my_optimizer, {"lr": SCHEDULE, "steps": 1, "momentum": 0.9}),
        (optax.lion, {"learning_rate": optax.linear_schedule(0.5, 0.9, 3), "b1": 0.8}),
    ],
)
def test_numbers_are_those_of_the_plain_factory(factory: Any, kwargs: Any, wide: bool) -> None:
    with jax.enable_x64(wide):
        params, grads = problem("float64" if wide else "float32", steps=5)
        tx = inject_hyperparams(factory, "steps" if factory is my_optimizer else ())(**kwargs)
        state = tx.init(params)
        assert {x.dtype for x in jax.tree.leaves(state.hyperparams)} == {
            np.dtype("float64" if wide else "float32")
        }
        mine, after = loop(fo.GradientTransformation(tx.init, jax.jit(tx.update)), params, grads)
        wanted, inner = loop(factory(**kwargs), params, grads)
        assert_trees_close(mine, wanted, 1e-12 if wide else 1e-5)
        if wide and hasattr(factory, "rule"):  # optax keeps a count of its own for a schedule
            # In float32, 1 - 0.999 is off by 1.3e-5, in the buffers and their bias correction.
            assert_trees_close(after.inner_state, inner, 1e-12)
        assert types(after) == types(state)
        assert int(after.step) == 5


def test_what_is_an_input_and_what_a_constant() -> None:
    p = jnp.ones((2, 2))

    def names(factory: Any, static: Any = (), **kwargs: Any) -> set[str]:
        return set(inject_hyperparams(factory, static)(**kwargs).init(p).hyperparams)

    assert names(fo.adam) == {"lr", "betas", "eps", "weight_decay"}
    assert names(fo.adam, lr=0, maximize=True) == {"lr", "betas", "eps", "weight_decay"}
    assert names(fo.adam, ("lr", "betas")) == {"eps", "weight_decay"}
    assert names(fo.muon) == {"lr", "weight_decay", "momentum", "ns_coefficients", "eps"}
    assert names(fo.sgd) == {"lr", "weight_decay"}
    assert names(fo.sgd, momentum=0.9, dampening=0.5) >= {"momentum", "dampening"}
    assert names(my_optimizer, "steps", lr=0.1, momentum=0.5) == {"lr", "decay", "momentum"}
    half = optax.adamw
    with jax.numpy_dtype_promotion("standard"):
        found = names(half, learning_rate=0.1, mu_dtype=jnp.bfloat16)
    assert found == {"learning_rate", "b1", "b2", "eps", "eps_root", "weight_decay"}
    state = inject_hyperparams(fo.adafactor)(eps=[None, SCHEDULE]).init(p)
    assert state.hyperparams["eps"][0] is None
    assert set(state.scheduled) == {"eps"}
    # No array, no buffer: the same inner state as the plain pair's.
    assert types(inject_hyperparams(fo.sgd)().init(p).inner_state) == types(fo.sgd().init(p))


def test_a_plain_one_holds_once_it_is_overwritten() -> None:
    def edit(i: int, state: Any) -> Any:
        return set_hyperparams(state, lr=0.25) if i == 2 else state

    np.testing.assert_allclose(
        learning_rates(inject_hyperparams(fo.sgd)(lr=0.5), edit), [0.5] * 2 + [0.25] * 4
    )


def test_a_scheduled_one_holds_for_one_update() -> None:
    def edit(i: int, state: Any) -> Any:
        if i != 2:
            return state
        return state._replace(hyperparams={**state.hyperparams, "lr": jnp.float32(7.0)})

    plain = [SCHEDULE(i) for i in range(6)]
    seen = learning_rates(inject_hyperparams(fo.sgd)(lr=SCHEDULE), edit)
    np.testing.assert_allclose(seen, [*plain[:2], 7.0, *plain[3:]], rtol=1e-6)


def test_a_schedule_is_taken_over_for_good_and_given_back() -> None:
    def edit(i: int, state: Any) -> Any:
        if i == 1:
            return set_hyperparams(state, lr=7.0)
        if i == 3:  # on again: from the next update on it goes on at the true count
            return state._replace(scheduled={"lr": jnp.asarray(True)})
        return state

    plain = [SCHEDULE(i) for i in range(6)]
    seen = learning_rates(inject_hyperparams(fo.sgd)(lr=SCHEDULE), edit)
    np.testing.assert_allclose(seen, [plain[0], 7, 7, 7, plain[4], plain[5]], rtol=1e-6)


def test_parts_of_a_tuple_are_scheduled_apart() -> None:
    tx = inject_hyperparams(fo.adam)(betas=(0.9, lambda step: 0.5 + 0.1 * step.astype(np.float32)))
    p = jnp.ones(2)
    state = tx.init(p)
    state = state._replace(
        hyperparams={**state.hyperparams, "betas": (0.75, state.hyperparams["betas"][1])}
    )
    for _ in range(2):
        _, state = tx.update(p, state, p)
    np.testing.assert_allclose(state.hyperparams["betas"], [0.75, 0.7], rtol=1e-6)
    state = set_hyperparams(state, betas=(0.1, 0.2))
    _, state = tx.update(p, state, p)
    np.testing.assert_allclose(state.hyperparams["betas"], [0.1, 0.2], rtol=1e-6)


def test_weight_decay_of_zero_can_be_switched_on() -> None:
    p = jnp.ones(2)
    tx = inject_hyperparams(fo.sgd)(lr=1.0)
    state = set_hyperparams(tx.init(p), weight_decay=0.5)
    np.testing.assert_allclose(tx.update(p, state, p)[0], [-1.5, -1.5])


def test_set_hyperparams_finds_the_state_wherever_it_is() -> None:
    p = {"w": jnp.ones(2)}
    inner = inject_hyperparams(fo.adam)(lr=SCHEDULE)
    outer = inject_hyperparams(lambda factor: fo.chain(fo.scale(factor), inner))
    tx = fo.named_chain(("clip", fo.clip_by_global_norm(1.0)), ("all", fo.masked(outer(2.0), True)))
    before = tx.init(p)
    state = set_hyperparams(before, lr=jnp.asarray([7.0]), factor=3, betas=[0.5, 0.75])
    assert types(state) == types(before)
    found = state["all"].inner_state[1]
    assert isinstance(found, InjectState)
    assert float(found.hyperparams["lr"]) == 7.0
    assert not found.scheduled["lr"]
    assert [float(x) for x in found.hyperparams["betas"]] == [0.5, 0.75]
    assert float(state["all"].hyperparams["factor"]) == 3.0
    assert float(before["all"].inner_state[1].hyperparams["lr"]) == np.float32(0.05)
    assert before["all"].inner_state[1].scheduled["lr"]


def test_what_set_hyperparams_refuses() -> None:
    p = jnp.ones((2, 2))
    state = inject_hyperparams(fo.adafactor)().init(p)
    with pytest.raises(KeyError, match=r"no hyperparameter is called 'rate'; there are .*'lr'"):
        set_hyperparams(state, rate=1.0)
    with pytest.raises(KeyError, match="no hyperparameter is called 'lr'"):
        set_hyperparams(fo.adam().init(p), lr=1.0)
    with pytest.raises(ValueError, match="2 parts of the state have a hyperparameter 'lr'"):
        set_hyperparams((state, {"more": state}), lr=1.0)
    with pytest.raises(ValueError, match=r"eps should be a tuple of 2, but got 0\.1"):
        set_hyperparams(state, eps=0.1)
    with pytest.raises(ValueError, match="eps: None stays None"):
        set_hyperparams(state, eps=(0.1, 0.2))
    with pytest.raises(ValueError, match=r"lr has shape \(\), but got \(2,\)"):
        set_hyperparams(state, lr=[0.1, 0.2])


def test_optax_keeps_the_dtypes_that_it_has_with_numbers(x64: None) -> None:
    """Strong float64 arrays would widen every buffer; bfloat16 ones would make 0.999 a 1."""
    for dtype in ("bfloat16", "float32"):
        params = jax.tree.map(lambda x, to=dtype: x.astype(to), problem("float64")[0])
        tx = inject_hyperparams(optax.lion)(learning_rate=1e-3, b2=0.999)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = tx.update(params, tx.init(params), params)
            wanted, _ = optax.lion(1e-3, b2=0.999).update(
                params, optax.lion(1e-3).init(params), params
            )
        assert types(state) == types(tx.init(params))
        assert_trees_close(updates, wanted, 1e-6)


def test_scans_batches_differentiates_donates_and_leaks_nothing() -> None:
    params, grads = problem()
    lr = jnp.float32(0.1)
    tx = inject_hyperparams(fo.adam)(lr=lr, betas=(lr, lr))

    def body(carry: Any, g: Any) -> Any:
        params, state = carry
        updates, state = tx.update(g, state, params)
        return (fo.apply_updates(params, updates), state), None

    with jax.checking_leaks():
        (last, state), _ = jax.jit(lambda: jax.lax.scan(body, (params, tx.init(params)), grads))()
    assert types(state) == types(tx.init(params))
    step, carry = jax.jit(body, donate_argnums=0), (jax.tree.map(jnp.copy, params), tx.init(params))
    for i in range(3):
        carry, _ = step(carry, at(grads, i))
    assert_trees_close(carry[0], last, 1e-5)
    assert lr == np.float32(0.1)  # not given away
    fresh = set_hyperparams(tx.init(params), lr=lr, betas=(lr, lr))
    step((jax.tree.map(jnp.copy, params), fresh), at(grads, 0))
    assert lr == np.float32(0.1)

    def first(lr: Any) -> Any:
        state = set_hyperparams(tx.init(params), lr=lr)
        return tx.update(at(grads, 0), state, params)[0]["kernel"]

    rates = jnp.asarray([0.1, 0.2])
    batched = jax.vmap(first)(rates)
    np.testing.assert_allclose(batched[1], 2 * np.asarray(batched[0]), rtol=1e-6)
    slope = jax.grad(lambda lr: first(lr)[0, 0])(lr)
    np.testing.assert_allclose(slope, batched[0, 0, 0] / 0.1, rtol=1e-5)

    # One state for each member of a batch, all set at once.
    states = jax.vmap(lambda lr: inject_hyperparams(fo.sgd)(lr=lr).init(params))(rates)
    np.testing.assert_array_equal(set_hyperparams(states, lr=0.5).hyperparams["lr"], [0.5, 0.5])


def test_pairs_that_are_built_of_traced_numbers_are_not_kept() -> None:
    """By the caches of chains and wrappers, which know pairs by identity."""
    g = {"w": jnp.ones(2)}

    def factory(lr: Any) -> fo.GradientTransformation:
        return fo.chain(fo.masked(fo.sgd(lr), True), fo.scale_by_schedule(fo.linear_lr(lr)))

    tx = inject_hyperparams(factory)(lr=0.1)
    state = tx.init(g)
    with jax.checking_leaks():
        updates, _ = jax.jit(tx.update)(g, state, g)
    np.testing.assert_allclose(updates["w"], -0.1 * 0.1 / 3, rtol=1e-6)


def test_extra_arguments_none_and_empty_trees() -> None:
    tx = inject_hyperparams(fo.scale_by_plateau, ("mode", "threshold_mode", "epoch_size"))(
        factor=0.5, patience=0
    )
    g = {"a": jnp.ones(2), "b": None}
    state = tx.init(g)
    for _ in range(2):
        updates, state = tx.update(g, state, g, value=jnp.float32(1.0))
    np.testing.assert_array_equal(updates["a"], [0.5, 0.5])
    assert updates["b"] is None
    tx = inject_hyperparams(fo.adam)()
    assert tx.update({}, tx.init({}), {})[0] == {}


def test_exports() -> None:
    p = jnp.ones(3)
    tx = inject_hyperparams(fo.adam)(lr=SCHEDULE)
    exported = jax.export.export(jax.jit(tx.update), platforms=("cpu", "cuda", "tpu"))(
        p, tx.init(p), p
    )
    updates, _ = exported.call(p, set_hyperparams(tx.init(p), lr=2.0), p)
    np.testing.assert_allclose(updates, [-2, -2, -2], rtol=1e-5)


def test_equal_pairs_and_what_is_refused() -> None:
    factory = inject_hyperparams(fo.adam)
    assert factory is inject_hyperparams(fo.adam, static_args=())
    assert factory(0.1) is factory(lr=0.1)
    assert factory.__name__ == "adam" and not hasattr(factory, "rule")
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        factory(lr=-1)
    with pytest.raises(ValueError, match="Nesterov momentum requires"):
        inject_hyperparams(fo.sgd)(nesterov=True)
    with pytest.raises(TypeError, match="factory should be a function"):
        inject_hyperparams(fo.adam())
    with pytest.raises(TypeError, match="what the factory returns should be an"):
        inject_hyperparams(lambda lr: lr)(0.1)
    with pytest.raises(ValueError, match="static_args: the factory has no argument 'rate'"):
        inject_hyperparams(fo.adam, "rate")
    with pytest.raises(TypeError, match="unexpected keyword argument 'rate'"):
        factory(rate=0.1)
