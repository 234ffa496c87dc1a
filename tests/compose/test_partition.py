"""partition, masked, freeze: which leaves a pair sees, and what the others get."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import functorch_optim as fo
from tests.support.problems import assert_trees_close, at, loop, one_step

FLOAT0 = np.zeros(2, jax.dtypes.float0)
CONSTANT = optax.GradientTransformationExtraArgs(
    lambda params: (), lambda g, state, params=None, *, value, **extra: (value, state)
)


def model(steps: int = 3) -> tuple[Any, Any]:
    """Parameters with a nested head, and gradients of several steps."""
    random = np.random.RandomState(11)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(random.standard_normal(shape), jnp.float32)

    shapes = {"base": {"kernel": (2, 3), "bias": (3,)}, "head": [(3, 2), (2,)]}
    is_shape = {"is_leaf": lambda x: isinstance(x, tuple)}
    params = jax.tree.map(lambda shape: draw(*shape), shapes, **is_shape)
    grads = jax.tree.map(lambda shape: draw(steps, *shape), shapes, **is_shape)
    return params, grads


def by_hand(transforms: dict[str, Any], labels: list[str]) -> Any:
    """Each leaf with a pair of its own."""
    params, grads = model()
    ps, treedef = jax.tree.flatten(params)
    new = [
        loop(transforms[label], p, g)[0]
        for label, p, g in zip(labels, ps, jax.tree.leaves(grads), strict=True)
    ]
    return treedef.unflatten(new)


TREE = {"base": {"kernel": "slow", "bias": "fast"}, "head": ["slow", "slow"]}


class TestPartition:
    transforms: ClassVar = {"slow": fo.sgd(0.01, momentum=0.5), "fast": fo.sgd(0.1, momentum=0.9)}

    @pytest.mark.parametrize(
        ("labels", "said"),
        [
            (TREE, ["fast", "slow", "slow", "slow"]),
            (lambda params: TREE, ["fast", "slow", "slow", "slow"]),
            (fo.by_path([("bias", "fast")], "slow"), ["fast", "slow", "slow", "slow"]),
            (fo.by_path([(r"^head\.1", "fast"), ("head|base", "slow")]), ["slow"] * 3 + ["fast"]),
            ({"base": "slow", "head": ["fast", "slow"]}, ["slow", "slow", "fast", "slow"]),
            ({"base": {"kernel": "slow", "bias": "fast"}, "head": "fast"},
             ["fast", "slow", "fast", "fast"]),
            ("slow", ["slow"] * 4),
        ],
        ids=["tree", "function", "paths", "first pattern", "top", "top of a part", "one for all"],
    )  # fmt: skip
    def test_every_leaf_has_the_pair_of_its_label(self, labels: Any, said: list[str]) -> None:
        tx = fo.partition(self.transforms, labels)
        actual, _ = loop(tx, *model())
        assert_trees_close(actual, by_hand(self.transforms, said), 1e-6)

    @pytest.mark.parametrize("library", [optax.partition, optax.multi_transform])
    def test_it_is_optaxs_partition(self, library: Any) -> None:
        transforms: ClassVar = {
            "slow": optax.sgd(0.01, momentum=0.5),
            "fast": optax.sgd(0.1, momentum=0.9),
        }
        wanted, _ = loop(library(transforms, TREE), *model())
        for members in (transforms, self.transforms):  # theirs in ours, and ours in ours
            actual, _ = loop(fo.partition(members, TREE), *model())
            assert_trees_close(actual, wanted, 1e-6)
        ours_in_theirs, _ = loop(library(self.transforms, TREE), *model())
        assert_trees_close(ours_in_theirs, wanted, 1e-6)

    def test_a_member_has_state_for_its_own_leaves_only(self) -> None:
        params, _ = model()
        for transforms in (
            {"slow": fo.adam(), "fast": fo.sgd(1.0)},
            {"slow": optax.adam(0.01), "fast": optax.sgd(1.0)},
        ):
            state = fo.partition(transforms, TREE).init(params)
            assert list(state) == ["slow", "fast"]
            shapes = [x.shape for x in jax.tree.leaves(state["slow"]) if x.ndim]
            assert shapes == [(2, 3), (3, 2), (2,)] * 2
        assert fo.partition(self.transforms, TREE).init(params)["fast"].momentum_buffer == {
            "base": {"kernel": None, "bias": pytest.approx(0)},
            "head": [None, None],
        }

    def test_extra_arguments_reach_the_members_that_take_them(self) -> None:
        g = {"a": jnp.ones(2), "b": jnp.ones(2)}
        tx = fo.partition(
            {"x": fo.sgd(1.0), "y": CONSTANT, "z": optax.scale(2.0)}, {"a": "x", "b": "y"}
        )
        marked = {"a": None, "b": jnp.full(2, 7.0)}
        updates, _ = tx.update(g, tx.init(g), g, value=marked)
        np.testing.assert_array_equal(updates["a"], [-1.0, -1.0])
        np.testing.assert_array_equal(updates["b"], [7.0, 7.0])

    def test_params_may_be_left_out(self) -> None:
        params, grads = model()
        tx = fo.partition(self.transforms, TREE)
        g = at(grads, 0)
        state = tx.init(params)
        assert_trees_close(tx.update(g, state)[0], tx.update(g, state, params)[0], 0.0)

    def test_wrong_labels_are_named(self) -> None:
        params, _ = model()
        with pytest.raises(ValueError, match=r"label 'quick' of \['head'\]\[1\].*'slow', 'fast'"):
            fo.partition(self.transforms, {"base": "slow", "head": ["slow", "quick"]}).init(params)
        with pytest.raises(TypeError, match=r"labels and params differ in structure.*\['head'\]"):
            fo.partition(self.transforms, {"base": "slow"}).init(params)
        with pytest.raises(TypeError, match=r"transforms\['slow'\] should be .* Call the factory"):
            fo.partition({"slow": fo.adam}, TREE)
        with pytest.raises(ValueError, match=r"pattern 'norm' matches no leaf.*'base\.bias'"):
            fo.by_path([("norm", "slow")])(params)

    def test_every_label_needs_a_transform_even_the_absent_one(self) -> None:
        """A leaf that no pattern matches has the label None."""
        params, _ = model()
        tx = fo.partition({"fast": fo.sgd(0.1), None: fo.freeze()}, fo.by_path([("bias", "fast")]))
        updates, _ = tx.update(params, tx.init(params), params)
        assert not np.any(updates["head"][0])
        assert np.any(updates["base"]["bias"])


class TestMasked:
    mask: ClassVar = {"base": {"kernel": True, "bias": False}, "head": True}

    def test_a_leaf_that_is_left_out_gets_zero(self) -> None:
        params, grads = model()
        tx = fo.masked(fo.sgd(0.1), self.mask)
        updates, _ = tx.update(at(grads, 0), tx.init(params), params)
        assert not np.any(updates["base"]["bias"])
        np.testing.assert_allclose(updates["base"]["kernel"], -0.1 * grads["base"]["kernel"][0])
        new, _ = one_step(tx, params, tx.init(params), at(grads, 0))
        np.testing.assert_array_equal(new["base"]["bias"], params["base"]["bias"])

    def test_pass_through_is_optaxs_masked(self) -> None:
        params, grads = model()
        whole = {"base": {"kernel": True, "bias": False}, "head": [True, True]}
        wanted = loop(optax.masked(optax.sgd(0.1, momentum=0.9), whole), params, grads)[0]
        for member in (fo.sgd(0.1, momentum=0.9), optax.sgd(0.1, momentum=0.9)):
            actual = loop(fo.masked(member, self.mask, pass_through=True), params, grads)[0]
            assert_trees_close(actual, wanted, 1e-6)
        ours_in_theirs = loop(optax.masked(fo.sgd(0.1, momentum=0.9), whole), params, grads)[0]
        assert_trees_close(ours_in_theirs, wanted, 1e-6)

    def test_decay_for_matrices_only_is_a_masked_member(self) -> None:
        params, grads = model()
        matrices = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)  # noqa: E731
        decay = fo.masked(fo.add_decayed_weights(0.1), matrices, pass_through=True)
        actual, _ = loop(fo.chain(decay, fo.sgd(0.1)), params, grads)
        wanted, _ = loop(
            fo.chain(fo.add_decayed_weights(0.1, matrices), fo.sgd(0.1)), params, grads
        )
        assert_trees_close(actual, wanted, 0.0)

    def test_the_state_is_the_members(self) -> None:
        params, _ = model()
        state = fo.masked(fo.adam(0.1), self.mask).init(params)
        assert isinstance(state, fo.AdamState)
        assert state.exp_avg["base"]["bias"] is None

    def test_a_mask_of_something_else_is_refused(self) -> None:
        params, _ = model()
        with pytest.raises(TypeError, match=r"True and False, but has 1 for \['base'\]\['bias'\]"):
            fo.masked(fo.sgd(0.1), {"base": 1, "head": True}).init(params)
        with pytest.raises(TypeError, match="mask and params differ in structure"):
            fo.masked(fo.sgd(0.1), [True]).init(params)
        with pytest.raises(TypeError, match=r"transform of masked should be an .* pair, but is 3"):
            fo.masked(3, True)  # type: ignore[arg-type]


class TestFreeze:
    def test_all_leaves_or_those_of_the_mask(self) -> None:
        params, grads = model()
        g = at(grads, 0)
        assert not any(np.any(x) for x in jax.tree.leaves(fo.freeze().update(g, (), params)[0]))
        updates, _ = fo.freeze(fo.by_path([("^base", True)], False)).update(g, (), params)
        assert_trees_close(updates["head"], g["head"], 0.0)
        assert not any(np.any(x) for x in jax.tree.leaves(updates["base"]))
        assert fo.freeze() is fo.freeze(True)


EVERY = {
    "partition": lambda tx: fo.partition({1: tx, 2: fo.freeze()}, fo.by_path([("a", 1)], 2)),
    "masked": lambda tx: fo.masked(tx, fo.by_path([("a", True)], False)),
    "frozen": lambda tx: fo.chain(
        fo.masked(tx, fo.by_path([("a", True)], False), pass_through=True),
        fo.freeze(fo.by_path([("a", False)], True)),
    ),
}


@pytest.mark.parametrize("build", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize("member", [fo.adam(0.1), optax.sgd(0.1, 0.5)], ids=["ours", "optax"])
class TestLeaves:
    def test_none_and_integers_are_left_alone(self, build: Any, member: Any) -> None:
        params = {"a": [jnp.ones(2), jnp.ones(2)], "b": [jnp.ones(2), jnp.arange(2)]}
        grads = {"a": [jnp.ones(2), None], "b": [None, FLOAT0]}
        tx = build(member)
        if not isinstance(member, fo.GradientTransformation):  # optax takes no None for an array
            params["a"][1] = None
        state = tx.init(params)
        updates, after = tx.update(grads, state, params)
        assert updates["a"][1] is None
        assert updates["b"] == [None, None]
        np.testing.assert_allclose(updates["a"][0], [-0.1, -0.1], rtol=1e-6)
        assert jax.tree.structure(after) == jax.tree.structure(state)

    def test_it_is_traced_once_and_scans(self, build: Any, member: Any) -> None:
        params = {"a": jnp.ones(2), "b": jnp.ones(3)}
        tx = build(member)
        traces = []

        def body(carry: Any, g: Any) -> tuple[Any, None]:
            traces.append(1)
            return one_step(tx, *carry, g), None

        grads = {"a": jnp.ones((3, 2)), "b": jnp.ones((3, 3))}
        carry, _ = jax.lax.scan(body, (params, tx.init(params)), grads)
        traces.clear()
        step = jax.jit(lambda carry, g: body(carry, g)[0], donate_argnums=0)
        by_jit = jax.tree.map(jnp.copy, (params, tx.init(params)))
        for i in range(3):
            by_jit = step(by_jit, at(grads, i))
        assert len(traces) == 1
        assert_trees_close(carry, by_jit, 1e-6)


@pytest.mark.parametrize("tree", [{}, [], None, {"a": [None]}], ids=str)
@pytest.mark.parametrize("member", [fo.adam(0.1), optax.sgd(0.1, 0.5)], ids=["ours", "optax"])
def test_nothing_to_do(member: Any, tree: Any) -> None:
    """Labels and masks that are mapped over a tree have None where it has."""
    same = lambda tree: jax.tree.map(lambda p: True, tree)  # noqa: E731
    for tx in (fo.partition({True: member}, same), fo.masked(member, same), fo.freeze(same)):
        updates, _ = tx.update(tree, tx.init(tree), tree)
        assert updates == tree


@st.composite
def trees(draw: Any) -> tuple[Any, Any]:
    """A tree of arrays (some of them None) and a tree of labels for its top."""
    label = st.sampled_from(["double", "negate", "freeze"])
    leaf = st.sampled_from([None, 1.0, 2.0]).map(lambda x: None if x is None else jnp.full(2, x))
    tree = draw(
        st.recursive(
            leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner)
        )
    )

    def labelled(tree: Any) -> Any:
        if not isinstance(tree, list | dict) or draw(st.booleans()):
            return draw(label)
        if isinstance(tree, list):
            return [labelled(x) for x in tree]
        return {k: labelled(x) for k, x in tree.items()}

    return tree, labelled(tree)


@hypothesis.given(trees())
@hypothesis.settings(max_examples=50)
def test_any_tree_with_any_labels(case: Any) -> None:
    factors = {"double": 2.0, "negate": -1.0, "freeze": 0.0}
    tree, labels = case
    tx = fo.partition({name: fo.scale(factor) for name, factor in factors.items()}, labels)

    def wanted(tree: Any, label: Any) -> Any:
        if isinstance(tree, list):
            said = label if isinstance(label, list) else [label] * len(tree)
            return [wanted(x, y) for x, y in zip(tree, said, strict=True)]
        if isinstance(tree, dict):
            said = label if isinstance(label, dict) else dict.fromkeys(tree, label)
            return {k: wanted(x, said[k]) for k, x in tree.items()}
        return None if tree is None else factors[label] * np.asarray(tree)

    updates, _ = tx.update(tree, tx.init(tree), tree)
    jax.tree.map(
        lambda x, y: None if x is None else np.testing.assert_array_equal(x, y),
        updates,
        wanted(tree, labels),
        is_leaf=lambda x: x is None,
    )


class TestWhatUsersDo:
    """Cases that a trial of the library brought up."""

    def test_a_mask_that_can_be_called_is_a_tree_all_the_same(self) -> None:
        @jax.tree_util.register_dataclass
        @dataclasses.dataclass
        class Layer:
            kernel: Any
            bias: Any

            def __call__(self, x: Any) -> Any:
                return x @ self.kernel

        params = Layer(jnp.ones((2, 2)), jnp.ones(2))
        mask = jax.tree.map(lambda p: p.ndim > 1, params)
        for tx in (
            fo.masked(fo.sgd(1.0), mask),
            fo.partition({True: fo.sgd(1.0), False: fo.freeze()}, mask),
            fo.chain(fo.sgd(1.0), fo.freeze(Layer(False, True))),
        ):
            updates, _ = tx.update(params, tx.init(params), params)
            assert (np.all(updates.kernel == -1), np.any(updates.bias)) == (True, False)

    def test_masks_of_arrays(self) -> None:
        g = {"a": jnp.ones(2), "b": jnp.ones(2)}
        tx = fo.masked(fo.sgd(1.0), {"a": np.array(True), "b": jnp.array(False)})
        updates, _ = tx.update(g, tx.init(g))
        assert (np.all(updates["a"] == -1), np.any(updates["b"])) == (True, False)

    def test_labels_of_several_kinds_work_in_jit(self) -> None:
        """jax sorts the keys of a dict, and cannot sort None and strings."""
        g = {"bias": jnp.ones(2), "kernel": jnp.ones(2)}
        tx = fo.partition({"b": fo.sgd(1.0), None: fo.freeze()}, fo.by_path([("bias", "b")]))
        updates, state = jax.jit(tx.update)(g, tx.init(g))
        assert (np.all(updates["bias"] == -1), np.any(updates["kernel"])) == (True, False)
        assert sorted(state) == ["None", "b"]
        with pytest.raises(ValueError, match="two labels have the same name"):
            fo.partition({"1": fo.sgd(1.0), 1: fo.sgd(1.0)}, 1)

    def test_a_variable_has_the_name_of_its_module_and_not_of_its_value(self) -> None:
        @jax.tree_util.register_dataclass
        @dataclasses.dataclass
        class Variable:
            value: Any

        params = {"bias": Variable(jnp.ones(2)), "value": jnp.ones(2)}
        labels = fo.by_path([("bias$", "b"), ("^value$", "v")])(params)
        assert labels == {"bias": Variable("b"), "value": "v"}

    def test_the_errors_say_what_is_wrong(self) -> None:
        g = {"a": jnp.ones(2)}
        with pytest.raises(TypeError, match="transforms should be pairs by label, a dict"):
            fo.partition([fo.sgd(1.0)], "a")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"rules should be \(pattern, label\) pairs"):
            fo.by_path("bias")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"state should be a dict with the keys \['a'\]"):
            fo.partition({"a": fo.sgd(1.0)}, "a").update(g, (), g)
        with pytest.raises(TypeError, match="argument 0 of chain is a list of pairs"):
            fo.chain([fo.sgd(1.0)])  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="1 members, but the state given has AdamState"):
            fo.chain(fo.adam()).update(g, fo.adam().init(g), g)
        with pytest.raises(TypeError, match="last member of a chain"):
            fo.lookahead(fo.adam())  # type: ignore[arg-type]
        with pytest.raises(
            TypeError, match=r"adam: state should be the AdamState .* is a SGDState"
        ):
            fo.adam().update(g, fo.sgd(1.0).init(g), g)
        for tx in (fo.accumulate(fo.sgd(1.0), 2), fo.lookahead(), fo.skip_nonfinite(fo.sgd(1.0))):
            with pytest.raises(TypeError, match=r"state should be the .*State that init returned"):
                tx.update(g, fo.adam().init(g), g)
        average = fo.swa_average()
        with pytest.raises(TypeError, match=r"update\(params, state\) .* AverageState"):
            average.update(average.init(g), g)


def test_inject_hyperparams_leaves_what_is_no_number() -> None:
    g = {"a": jnp.ones((2, 2)), "b": jnp.ones(2)}
    matrices = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)  # noqa: E731
    for tx, names in (
        (fo.inject_hyperparams(fo.adaptive_grad_clip)(), {"clipping", "eps"}),
        (fo.inject_hyperparams(fo.add_noise)(0.1, 0.5, 0), {"eta", "gamma"}),
        (fo.inject_hyperparams(fo.add_decayed_weights)(0.1, matrices), {"weight_decay"}),
        (fo.inject_hyperparams(fo.lookahead)(), {"slow_step_size"}),
        (fo.inject_hyperparams(fo.centralize)(), set()),
    ):
        state = tx.init(g)
        assert set(state.hyperparams) == names
        jax.jit(tx.update)(g, state, g)


def test_a_wrapped_state_keeps_its_dtypes_around_optax() -> None:
    """Its buffers take the dtype of the gradients: another program at the second step."""
    params, g = {"a": jnp.ones(2, jnp.bfloat16)}, {"a": jnp.ones(2, jnp.float32)}
    inner = optax.trace(0.9)
    for tx in (
        fo.schedule_free(inner, 0.1),
        fo.inject_hyperparams(lambda decay: optax.trace(decay))(0.9),
        fo.accumulate(inner, 2),
    ):
        state = tx.init(params)
        with jax.numpy_dtype_promotion("standard"):
            after = jax.eval_shape(tx.update, g, state, params)[1]
        assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, state)
