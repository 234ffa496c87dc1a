"""A pair shows the call that made it, and is pickled as that call."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim as fo
from functorch_optim.core.pair import GradientTransformation
from functorch_optim.rules import Rule, StepNumbers, per_leaf
from tests.tables.algorithms import TABLE as ALGORITHMS
from tests.tables.transforms import TABLE as TRANSFORMS

MASK = {"w": True, "b": False}


def halved(step: Any) -> Any:
    """A schedule of a user's, with a name in a module."""
    return 0.1 * 0.5**step


def first_leaves(params: Any) -> Any:
    """A mask of a user's."""
    return jax.tree.map(lambda p: p.ndim > 0, params)


class HalfState(NamedTuple):
    """The state of an algorithm of a user's."""

    step: Any


def small(*pairs: Any) -> Any:
    return fo.chain(fo.clip_by_global_norm(1.0), *pairs)


# What can be pickled, and is the same object afterwards.
SAME: dict[str, Callable[[], Any]] = {
    **{row.name: row.factory for row in ALGORITHMS},
    "lbfgs": fo.lbfgs,
    "numbers": lambda: fo.adamw(3e-4, betas=(0.8, 0.99), amsgrad=True, maximize=True),
    "a schedule": lambda: fo.adam(fo.warmup(fo.cosine_annealing_lr(0.1, 50), 5)),
    "a schedule of one's own": lambda: fo.adam(halved),
    "a chain": lambda: small(fo.adam(1e-3)),
    "an empty chain": fo.chain,
    "a named chain": lambda: fo.named_chain(("clip", small()), ("adam", fo.adam())),
    "a chain of chains": lambda: small(small(fo.sgd(0.1)), fo.scale(2.0)),
    "masked by a function": lambda: fo.masked(fo.adam(), first_leaves),
    "wrappers": lambda: fo.accumulate(fo.master_weights(fo.skip_nonfinite(fo.adam())), 3),
    "injected": lambda: fo.inject_hyperparams(fo.adam)(lr=1e-3),
    "injected in a chain": lambda: small(fo.inject_hyperparams(fo.sgd)(halved, momentum=0.9)),
    "an average": lambda: fo.ema_average(0.99, debias=True),
    "the mean": fo.swa_average,
    "an average of one's own": lambda: fo.average(np.maximum),
    "a plateau": lambda: fo.reduce_lr_on_plateau(0.1, patience=3),
    "a dtype": lambda: fo.master_weights(fo.adam(), dtype=jnp.float32),
}

# What can be pickled, and is built anew: of dicts, which have no hash, and of arrays.
EQUAL: dict[str, Callable[[], Any]] = {
    "partition": lambda: fo.partition({"a": fo.adam(), "b": fo.freeze()}, {"w": "a", "b": "b"}),
    "partition by path": lambda: fo.partition(
        {"a": fo.adam(), None: fo.sgd(0.1)}, fo.by_path([("w", "a")])
    ),
    "masked": lambda: fo.masked(fo.adam(), MASK),
    "freeze": lambda: small(fo.freeze(MASK)),
    "an array": lambda: fo.adam(jnp.float32(0.1)),
}


def steps(tx: Any) -> list[Any]:
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(3)}
    updates, state = tx.update(params, tx.init(params), params)
    return jax.tree.leaves((updates, state))


@pytest.mark.parametrize("name", SAME)
def test_a_pair_is_pickled_as_its_call_and_comes_back_as_itself(name: str) -> None:
    tx = SAME[name]()
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(tx, protocol)) is tx


@pytest.mark.parametrize("row", TRANSFORMS, ids=lambda row: row.name)
def test_a_transform_is_pickled_as_its_call(row: Any) -> None:
    tx = row.pair()
    if not row.equal_is_same:
        assert repr(pickle.loads(pickle.dumps(tx))) == repr(tx)
    else:
        assert pickle.loads(pickle.dumps(tx)) is tx
    assert repr(tx).startswith(("chain(", f"{row.name.split('[')[0].split(' ')[0]}("))


@pytest.mark.parametrize("name", EQUAL)
def test_what_is_built_anew_makes_the_same_step(name: str) -> None:
    tx = EQUAL[name]()
    again = pickle.loads(pickle.dumps(tx))
    assert repr(again) == repr(tx)
    for ours, theirs in zip(steps(tx), steps(again), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", [*SAME, *EQUAL])
def test_a_copy_of_a_pair_is_the_pair(name: str) -> None:
    tx = {**SAME, **EQUAL}[name]()
    assert copy.copy(tx) is tx and copy.deepcopy({"tx": [tx]})["tx"][0] is tx


@pytest.mark.slow
def test_a_pickle_is_read_by_another_process() -> None:
    tx = small(fo.masked(fo.adam(fo.step_lr(0.1, 3)), fo.by_path([("w", True)], default=False)))
    code = "import pickle, sys; print(repr(pickle.load(sys.stdin.buffer)), end='')"
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(tx), capture_output=True, timeout=300
    )
    assert done.stdout.decode() == repr(tx), done.stderr.decode()


@pytest.mark.parametrize(
    "build",
    [
        lambda: fo.adam(lambda step: 0.1),
        lambda: small(fo.sgd(lambda step: 0.1)),
        lambda: fo.masked(fo.adam(), lambda params: MASK),
        lambda: fo.adam(fo.lambda_lr(0.1, lambda step: 1.0)),
        lambda: fo.partition({"a": fo.adam(lambda step: 0.1)}, "a"),
        lambda: fo.inject_hyperparams(lambda lr: fo.sgd(lr))(0.1),
        lambda: fo.average(lambda average, p, n: p),
    ],
)
def test_a_pair_of_a_nameless_function_says_that_it_cannot_be_pickled(
    build: Callable[[], Any],
) -> None:
    with pytest.raises(pickle.PicklingError, match=r"cannot be pickled.*<lambda>.*Define it by"):
        pickle.dumps(build())


def test_what_takes_nameless_functions_is_not_hindered() -> None:
    cloudpickle = pytest.importorskip("cloudpickle", reason="it pickles functions by value")
    tx = fo.adam(lambda step: 0.1)
    again = pickle.loads(cloudpickle.dumps(tx))
    for ours, theirs in zip(steps(tx), steps(again), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_pair_of_another_library_cannot_be_pickled_and_shows_itself() -> None:
    optax = pytest.importorskip("optax", reason="the pair is one of optax's")
    theirs = optax.sgd(0.1)
    tx = small(theirs)
    with pytest.raises(pickle.PicklingError, match=r"chain.* cannot be pickled"):
        pickle.dumps(tx)
    assert f"    {theirs!r},\n" in repr(tx)


def test_a_pair_of_numbers_in_one_line() -> None:
    assert repr(fo.adamw()) == ("adamw(lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01)")
    assert repr(fo.sgd(0.1, momentum=0.9, nesterov=True)) == (
        "sgd(lr=0.1, momentum=0.9, nesterov=True)"
    )
    assert repr(fo.sgd(np.float32(0.5))) == "sgd(lr=0.5)"
    assert repr(fo.sgd(fo.step_lr(0.1, 3))) == "sgd(lr=step_lr(0.1, step_size=3))"
    assert repr(fo.sgd(halved)) == "sgd(lr=halved)"
    assert repr(fo.muon(nesterov=False)).startswith("muon(lr=0.001, weight_decay=0.1, momentum")
    assert "nesterov=False" in repr(fo.muon(nesterov=False))
    assert repr(fo.ema_average()) == "ema_average(decay=0.999)"
    assert repr(fo.sign()) == "sign()"


def test_an_array_is_its_dtype_and_shape_traced_or_not() -> None:
    assert repr(fo.sgd(jnp.float32(0.1))) == "sgd(lr=float32[])"
    seen: list[str] = []
    jax.jit(lambda lr: seen.append(repr(fo.adam(lr, betas=(lr, 0.9)))))(0.1)
    assert seen == ["adam(lr=float32[], betas=(float32[], 0.9), eps=1e-08)"]


def test_pairs_of_pairs_have_a_line_for_each() -> None:
    tx = fo.chain(
        fo.clip_by_global_norm(1.0),
        fo.partition(
            {"slow": fo.masked(fo.sgd(0.1), MASK), "fast": fo.inject_hyperparams(fo.sgd)(0.2)},
            fo.by_path([("w", "slow")], default="fast"),
        ),
        fo.named_chain(("clip", fo.clip_by_value(2.0)), ("rest", fo.accumulate(fo.sign(), 2))),
    )
    assert repr(tx) == textwrap.dedent(
        """\
        chain(
            clip_by_global_norm(max_norm=1.0),
            partition(
                transforms={
                    'slow': masked(
                        sgd(lr=0.1),
                        mask={'w': True, 'b': False},
                    ),
                    'fast': inject_hyperparams(factory=sgd)(lr=0.2),
                },
                labels=by_path([('w', 'slow')], default='fast'),
            ),
            named_chain(
                ('clip', clip_by_value(max_value=2.0)),
                ('rest', accumulate(
                    sign(),
                    every_k=2,
                    average=True,
                )),
            ),
        )"""
    )


def test_a_mask_of_a_large_model_is_cut() -> None:
    mask = {f"layer{i}": True for i in range(1000)}
    assert len(repr(fo.masked(fo.adam(), mask))) < 400


def test_a_user_may_change_what_a_pair_was_built_from() -> None:
    transforms = {"a": fo.adam(), "b": fo.sgd(0.1)}
    tx = fo.partition(transforms, {"w": "a", "b": "b"})
    shown = repr(tx)
    transforms.clear()
    assert repr(tx) == shown


def test_other_functions_of_a_pair_are_another_pair() -> None:
    """What a user makes of a pair's functions says nothing of the call."""
    tx = fo.adam(1e-3)
    for other in (GradientTransformation(*tx), tx._replace(update=jax.jit(tx.update))):
        assert repr(other).startswith("GradientTransformation(init=<function")
    assert "adam(lr=0.001" in repr(tx)


def test_wrapping_a_pair_does_not_change_what_equal_calls_return() -> None:
    """float32_state shares the update of the pair inside."""
    tx = fo.adam(halved)
    wrapped = fo.float32_state(tx)
    assert fo.adam(halved) is tx and fo.float32_state(tx) is wrapped
    assert repr(wrapped).startswith("float32_state(\n    adam(lr=halved")


@per_leaf(
    Rule(
        "half",
        HalfState,
        lambda p, h: (),
        lambda t, h: StepNumbers(step_size=h.lr / 2),
        lambda g, p, buffers, s: (-s.step_size * g, ()),
    )
)
def half(lr: float = 0.1) -> None:
    """An algorithm of a user's.

    Args:
      lr: twice the step.
    """


def test_an_algorithm_of_ones_own_is_shown_and_pickled_by_its_name() -> None:
    assert repr(half(0.3)) == "half(lr=0.3)"
    assert pickle.loads(pickle.dumps(half(0.3))) is half(0.3)
    updates, _ = half(0.3).update(jnp.ones(2), half(0.3).init(jnp.ones(2)))
    np.testing.assert_allclose(updates, -0.15, rtol=1e-6)
