"""chain: order, state, extra arguments, and pairs of other libraries."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim as fo
from tests.support.problems import assert_trees_close, loop, problem


def recorder(seen: list[Any], **named: Any) -> fo.GradientTransformation:
    """A pair that takes `value` and no other extra argument."""

    def update(
        updates: Any, state: Any, params: Any = None, *, value: Any = "absent"
    ) -> tuple[Any, Any]:
        seen.append((value, params))
        return updates, state + 1

    return fo.GradientTransformation(lambda params: 0, update)


def takes_everything(seen: list[Any]) -> fo.GradientTransformation:
    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        seen.append(extra)
        return updates, state

    return fo.GradientTransformation(lambda params: (), update)


def takes_nothing() -> fo.GradientTransformation:
    return fo.GradientTransformation(
        lambda params: (), lambda updates, state, params=None: (updates, state)
    )


def test_members_are_applied_first_to_last() -> None:
    """Clipping before the scale differs from clipping behind it."""
    g = {"w": jnp.asarray([3.0, 4.0])}
    clip, scale = fo.clip_by_global_norm(1.0), fo.scale(0.1)
    before, behind = fo.chain(clip, scale), fo.chain(scale, clip)
    updates, _ = before.update(g, before.init(g))
    np.testing.assert_allclose(updates["w"], [0.06, 0.08], rtol=1e-6)
    updates, _ = behind.update(g, behind.init(g))
    np.testing.assert_allclose(updates["w"], [0.3, 0.4], rtol=1e-6)


def test_the_state_is_the_tuple_of_the_members_states() -> None:
    params, grads = problem()
    tx = fo.chain(fo.clip_by_global_norm(1.0), fo.adam(0.1), fo.scale(2.0))
    _, state = loop(tx, params, grads)
    assert [type(member) for member in state] == [fo.EmptyState, fo.AdamState, fo.EmptyState]
    assert state[1].step == 3


def test_a_chain_equals_its_members_by_hand() -> None:
    params, grads = problem()
    clip, adam = fo.clip_by_global_norm(1.0), fo.adam(0.1, weight_decay=0.1)
    expected, state = params, adam.init(params)
    for i in range(3):
        clipped, _ = clip.update(jax.tree.map(lambda g, i=i: g[i], grads), fo.EmptyState())
        updates, state = adam.update(clipped, state, expected)
        expected = fo.apply_updates(expected, updates)
    actual, chained = loop(fo.chain(clip, adam), params, grads)
    assert_trees_close((actual, chained[1]), (expected, state), 0.0)


def test_coupled_decay_is_add_decayed_weights_in_front() -> None:
    params, grads = problem()
    actual, _ = loop(fo.chain(fo.add_decayed_weights(0.1), fo.sgd(0.2, 0.9)), params, grads)
    wanted, _ = loop(fo.sgd(0.2, 0.9, weight_decay=0.1), params, grads)
    assert_trees_close(actual, wanted, 1e-6)


def test_chains_nest() -> None:
    params, grads = problem()
    parts = fo.clip_by_global_norm(1.0), fo.scale(0.5), fo.sgd(0.1, momentum=0.9)
    flat, _ = loop(fo.chain(*parts), params, grads)
    nested, state = loop(fo.chain(parts[0], fo.chain(*parts[1:])), params, grads)
    assert_trees_close(nested, flat, 0.0)
    assert isinstance(state[1][1], fo.SGDState)


def test_the_empty_chain_changes_nothing() -> None:
    params, grads = problem()
    tx = fo.chain()
    assert tx.init(params) == ()
    assert tx.update(grads, (), params) == (grads, ())


def test_extra_arguments_reach_the_members_that_take_them() -> None:
    seen: list[Any] = []
    everything: list[Any] = []
    tx = fo.chain(fo.sgd(0.1), recorder(seen), takes_nothing(), takes_everything(everything))
    params = {"w": jnp.ones(2)}
    state = tx.init(params)
    _, state = tx.update(params, state, params, value=3.0, other="x")
    assert seen == [(3.0, params)]
    assert everything == [{"value": 3.0, "other": "x"}]
    assert state[1] == 1
    nested = fo.chain(tx)
    nested.update(params, (state,), params, value=4.0)
    assert [value for value, _ in seen] == [3.0, 4.0]


def test_equal_chains_are_one_pair() -> None:
    build = lambda: fo.chain(fo.clip_by_global_norm(1.0), fo.adam(1e-3))  # noqa: E731
    assert build() is build()
    assert build() is not fo.chain(fo.clip_by_global_norm(2.0), fo.adam(1e-3))


def test_params_may_be_left_out_where_no_member_needs_them() -> None:
    tx = fo.chain(fo.scale(2.0), fo.sgd(0.1))
    g = jnp.ones(3)
    updates, _ = tx.update(g, tx.init(g))
    np.testing.assert_allclose(updates, -0.2, rtol=1e-6)


def test_a_chain_is_traced_once_and_donated() -> None:
    params, grads = problem()
    tx = fo.chain(fo.clip_by_global_norm(1.0), fo.adam(0.1), fo.scale_by_schedule(lambda c: 0.5))
    wanted, _ = loop(tx, params, grads)
    traces = []

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        traces.append(1)
        updates, state = tx.update(grads, state, params)
        return fo.apply_updates(params, updates), state

    jitted = jax.jit(step, donate_argnums=(0, 1))
    state = tx.init(params)
    for i in range(3):
        params, state = jitted(params, state, jax.tree.map(lambda g, i=i: g[i], grads))
    assert len(traces) == 1
    assert_trees_close(params, wanted, 5e-6)


class TestWithOptax:
    """The protocol is optax's: its pairs work in our chains, and ours in its."""

    def test_its_pairs_work_in_our_chain(self) -> None:
        optax = pytest.importorskip("optax", reason="mixes pairs of both libraries")
        params, grads = problem()
        mixed = fo.chain(optax.clip_by_global_norm(1.0), fo.sgd(0.1, momentum=0.9))
        # The two clips differ by torch's 1e-6 under the fraction.
        ours = fo.chain(fo.clip_by_global_norm(1.0), fo.sgd(0.1, momentum=0.9))
        assert_trees_close(loop(mixed, params, grads)[0], loop(ours, params, grads)[0], 1e-5)

    def test_our_pairs_work_in_its_chain(self) -> None:
        optax = pytest.importorskip("optax", reason="mixes pairs of both libraries")
        params, grads = problem()
        mixed = optax.chain(fo.adam(0.1), optax.scale(0.5))
        ours = fo.chain(fo.adam(0.1), fo.scale(0.5))
        assert_trees_close(loop(mixed, params, grads)[0], loop(ours, params, grads)[0], 1e-6)
        state = mixed.init(params)
        updates, _ = mixed.update(params, state, params)
        assert_trees_close(
            optax.apply_updates(params, updates), fo.apply_updates(params, updates), 0.0
        )

    def test_extra_arguments_reach_its_pairs(self) -> None:
        optax = pytest.importorskip("optax", reason="mixes pairs of both libraries")
        seen = []

        def update(updates: Any, state: Any, params: Any = None, *, value: Any, **_: Any) -> Any:
            seen.append(value)
            return updates, state

        theirs = optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
        tx = fo.chain(optax.scale(1.0), theirs, fo.sgd(0.1))
        g = jnp.ones(2)
        tx.update(g, tx.init(g), g, value=1.5)
        assert seen == [1.5]

    def test_a_schedule_of_ours_drives_its_pair(self) -> None:
        optax = pytest.importorskip("optax", reason="mixes pairs of both libraries")
        params, grads = problem()
        schedule = fo.linear_lr(0.1, total_iters=2)
        theirs, _ = loop(optax.sgd(schedule), params, grads)
        ours, _ = loop(fo.sgd(schedule), params, grads)
        assert_trees_close(theirs, ours, 1e-6)


class TestNamedChain:
    def build(self, **changes: Any) -> Any:
        parts = {"clip": fo.clip_by_global_norm(1.0), "adam": fo.adam(0.1), "scale": fo.scale(2.0)}
        return fo.named_chain(*{**parts, **changes}.items())

    def test_it_computes_what_the_chain_does(self) -> None:
        params, grads = problem()
        tx = self.build()
        actual, state = loop(tx, params, grads)
        wanted, states = loop(fo.chain(*tx.parts.values()), params, grads)
        assert_trees_close(actual, wanted, 0.0)
        assert_trees_close(tuple(state[name] for name in ("clip", "adam", "scale")), states, 0.0)

    def test_parts_and_state_are_reachable_by_name(self) -> None:
        tx = self.build()
        assert list(tx.parts) == ["clip", "adam", "scale"]
        assert tx.parts["adam"] is fo.adam(0.1)
        assert isinstance(tx.init({"w": jnp.ones(2)})["adam"], fo.AdamState)
        assert self.build() is tx

    def test_it_is_optaxs_named_chain(self) -> None:
        optax = pytest.importorskip("optax", reason="mixes pairs of both libraries")
        params, grads = problem()
        theirs = optax.named_chain(("adam", optax.sgd(0.1, 0.9)), ("scale", optax.scale(2.0)))
        wanted, _ = loop(theirs, params, grads)
        for parts in (
            (("adam", fo.sgd(0.1, 0.9)), ("scale", fo.scale(2.0))),
            (("adam", optax.sgd(0.1, 0.9)), ("scale", fo.scale(2.0))),
        ):
            for library in (fo, optax):
                assert_trees_close(
                    loop(library.named_chain(*parts), params, grads)[0], wanted, 1e-6
                )

    def test_extra_arguments_reach_the_members(self) -> None:
        seen: list[Any] = []
        tx = self.build(scale=recorder(seen))
        g = jnp.ones(2)
        tx.update(g, tx.init(g), g, value=3.0)
        assert seen[0][0] == 3.0

    def test_what_it_cannot_use_is_refused(self) -> None:
        with pytest.raises(
            TypeError, match=r"argument 1 of named_chain should be a \(name, pair\)"
        ):
            fo.named_chain(("a", fo.sgd(0.1)), fo.sgd(0.1))  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"'a' in named_chain should be .* Call the factory"):
            fo.named_chain(("a", fo.sgd))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="two transforms are called 'a'"):
            fo.named_chain(("a", fo.sgd(0.1)), ("a", fo.sgd(0.2)))
        tx, g = self.build(), jnp.ones(2)
        with pytest.raises(ValueError, match=r"called \['clip', 'adam', 'scale'\], but .*\['adam'"):
            tx.update(g, {"adam": tx.init(g)["adam"]}, g)
