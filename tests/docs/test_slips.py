"""What users get wrong most often: an error that says what was given and what to write.

One table: a new slip is one row. It also says which slips nobody can see.
"""

from __future__ import annotations

import collections
import dataclasses
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim as fo
import functorch_optim.stateful as optim
from functorch_optim.core import slips
from functorch_optim.stateful import lr_scheduler, swa_utils

PAGE = Path(__file__).parents[2] / "docs" / "coming_from_optax.md"
PARAMS = {"b": jnp.zeros(3), "w": jnp.ones((2, 3))}
GRADS = jax.tree.map(jnp.ones_like, PARAMS)
TX = fo.adam(1e-3)
SEE = "see docs/coming_from_optax"


def loss_fn(params: Any) -> jax.Array:
    return sum(jnp.sum(p**2) for p in jax.tree.leaves(params))


def model() -> Any:
    return optim.parameters(PARAMS)


def opt() -> optim.Optimizer:
    return optim.Adam(model(), lr=0.1)


def state() -> Any:
    return TX.init(PARAMS)


def on(index: int, tree: Any) -> Any:
    return jax.device_put(tree, jax.devices()[index])


def wrong_hyperparameter() -> Any:
    tx = fo.inject_hyperparams(fo.adam)(lr=1e-3)
    injected = tx.init(PARAMS)
    injected.hyperparams["learning_rate"] = 0.1
    return tx.update(GRADS, injected, PARAMS)


@dataclasses.dataclass(frozen=True)
class Slip:
    """A row.

    Attributes:
      name: what is done.
      call: does it.
      error: what it raises.
      says: what the message has in it, each of them.
    """

    name: str
    call: Callable[[], Any]
    error: type[Exception]
    says: tuple[str, ...]


def slip(name: str, call: Callable[[], Any], error: type[Exception], *says: str) -> Slip:
    return Slip(name, call, error, says)


def argument(name: str, call: Callable[[], Any], *says: str) -> Slip:
    return Slip(name, call, TypeError, ("unexpected keyword argument", *says))


def attribute(name: str, call: Callable[[], Any], *says: str) -> Slip:
    return Slip(name, call, AttributeError, ("has no attribute", *says))


CALLS = "updates, state = tx.update(grads, state, params)"
IN_ORDER = "Call update(grads, state, params), in this order"
TABLE = (
    # Gradients.
    slip(
        "backward of a value",
        lambda: optim.backward(jnp.ones(()), model()),
        *(TypeError, "an array", "Write backward(loss_fn, model, ...)"),
    ),
    slip(
        "backward of the model first",
        lambda: optim.backward(model(), loss_fn),
        *(TypeError, "of type dict", "Write backward(loss_fn, model, ...)"),
    ),
    slip(
        "backward of a plain tree",
        lambda: optim.backward(loss_fn, PARAMS),
        *(ValueError, "The dict given has none: wrap it, model = optim.parameters(tree)"),
    ),
    slip(
        "make_step of a plain tree",
        lambda: opt().make_step(loss_fn, PARAMS)(),
        *(ValueError, "The dict given has none: wrap it, model = optim.parameters(tree)"),
    ),
    slip(
        "make_step of a value",
        lambda: opt().make_step(jnp.ones(()), model()),
        *(TypeError, "an array", "Write make_step(loss_fn, model, ...)"),
    ),
    # JAX refuses a Parameter before it looks at anything of ours, in words of its own, which differ
    # between releases. `optim.values(model)` is the plain tree; backward and make_step take models.
    slip("jit of a model", lambda: jax.jit(loss_fn)(model()), Exception),
    slip("grad of a model", lambda: jax.grad(loss_fn)(model()), Exception),
    # Names of torch, and near misses.
    attribute("torch's class", lambda: fo.Adam, "fo.adam", "functorch_optim.stateful.Adam?"),
    attribute("torch's class", lambda: fo.SGD, "fo.sgd", "functorch_optim.stateful.SGD?"),
    attribute("a capital", lambda: fo.Adamw, "fo.adamw", "functorch_optim.stateful.AdamW?"),
    attribute("letters", lambda: fo.cosine_anealing_lr, "fo.cosine_annealing_lr?"),
    attribute("torch's schedule", lambda: fo.StepLR, "fo.step_lr"),
    attribute("no capital", lambda: optim.adam, "functorch_optim.stateful.Adam", "fo.adam?"),
    attribute("a capital", lambda: optim.Adamw, "functorch_optim.stateful.AdamW"),
    attribute("a pure one", lambda: optim.chain, "fo.chain?"),
    attribute("a class to make", lambda: optim.Lion, "from_transformation(functorch_optim.lion)"),
    attribute("a scheduler", lambda: optim.StepLR, "stateful.lr_scheduler.StepLR"),
    attribute("an average", lambda: optim.AveragedModel, "stateful.swa_utils.AveragedModel"),
    attribute("torch's clipping", lambda: fo.clip_grad_norm_, "write clip_by_global_norm("),
    # Names of optax.
    attribute("MultiSteps", lambda: fo.MultiSteps, "write accumulate(tx, every_k)", SEE),
    attribute("multi_transform", lambda: fo.multi_transform, "write partition(", SEE),
    attribute("a capital", lambda: fo.MultiTransform, "write partition(", SEE),
    attribute("join_schedules", lambda: fo.join_schedules, "write sequential_lr(", SEE),
    attribute("a cosine", lambda: fo.cosine_decay_schedule, "cosine_annealing_lr(", SEE),
    attribute("scale_by_adam", lambda: fo.scale_by_adam, "chain(adam(lr=1.0), scale(-1.0))", SEE),
    attribute("a state", lambda: fo.ScaleByAdamState, "functorch_optim.AdamState?"),
    # What is called on torch's optimizers.
    *(
        attribute(name, lambda name=name: getattr(TX, name), "a pair is pure", CALLS, "stateful")
        for name in ("step", "zero_grad", "state_dict", "param_groups")
    ),
    # Arguments of torch, optax and keras.
    argument("learning_rate", lambda: fo.adam(learning_rate=1e-3), "adam()", "write lr (", SEE),
    argument("of a class", lambda: optim.Adam(model(), learning_rate=1e-3), "write lr (", SEE),
    argument("b1", lambda: fo.adam(1e-3, b1=0.8), "write betas=(0.8, 0.999)", SEE),
    argument("b2", lambda: fo.adam(1e-3, b1=0.8, b2=0.9), "write betas=(0.8, 0.9)", SEE),
    argument("beta1", lambda: fo.lion(beta1=0.8), "write betas=(0.8, 0.99)", SEE),
    argument("beta_2", lambda: fo.adam(beta_2=0.9), "write betas=(0.9, 0.9)", SEE),
    argument("eps_root", lambda: fo.adam(eps_root=0.0), "outside of the root", SEE),
    argument("epsilon", lambda: fo.adam(epsilon=1e-7), "write eps (", SEE),
    argument("mask", lambda: fo.adamw(mask=PARAMS), "partition", SEE),
    argument("mu_dtype", lambda: fo.adam(mu_dtype="float32"), "float32_state(pair)", SEE),
    argument("nesterov", lambda: fo.adam(nesterov=True), "nadam", SEE),
    argument("decay", lambda: fo.rmsprop(decay=0.9), "write alpha (", SEE),
    argument("weight_decay_rate", lambda: fo.adamw(weight_decay_rate=0.1), "weight_decay (", SEE),
    argument("fused", lambda: fo.adam(fused=True), "XLA always fuses", SEE),
    argument("letters", lambda: fo.adam(weight_deacy=0.1), "did you mean weight_decay?"),
    argument("norm", lambda: fo.clip_by_global_norm(norm=1.0), "write max_norm (", SEE),
    argument("k", lambda: fo.accumulate(TX, every_k_schedule=3), "write every_k (", SEE),
    argument("labels", lambda: fo.partition({}, param_labels={}), "write labels (", SEE),
    argument("T_max", lambda: fo.cosine_annealing_lr(0.1, decay_steps=9), "write T_max (", SEE),
    # Arguments in wrong places.
    slip(
        "parameters first",
        lambda: fo.adam(PARAMS, lr=1e-3),
        *(TypeError, "takes no parameters", "of type dict", "state = tx.init(params)"),
    ),
    slip("parameters only", lambda: fo.sgd(PARAMS), TypeError, "takes no parameters", "tx.init"),
    slip("parameters as lr", lambda: fo.sgd(lr=PARAMS), TypeError, "takes no parameters"),
    slip("parameters of lbfgs", lambda: fo.lbfgs(PARAMS), TypeError, "takes no parameters"),
    slip("torch's iterator", lambda: fo.sgd(iter([1])), TypeError, "takes no parameters"),
    slip(
        "an optimizer for a schedule",
        lambda: fo.step_lr(opt(), 30),
        *(TypeError, "takes no optimizer", "functorch_optim.stateful.lr_scheduler"),
    ),
    slip(
        "betas one by one",
        lambda: fo.adam(1e-3, 0.9, 0.98),
        *(TypeError, "betas should be a tuple of 2 values", "Write betas=(0.9, 0.98)", SEE),
    ),
    slip(
        "betas of a class one by one",
        lambda: optim.Adam(model(), 1e-3, 0.9, 0.98),
        *(TypeError, "betas should be a tuple of 2 values", "Write betas=(0.9, 0.98)", SEE),
    ),
    slip(
        "one beta",
        lambda: fo.lion(1e-3, 0.8),
        *(TypeError, "betas should be a tuple of 2 values", "Write betas=(0.8, 0.99)"),
    ),
    slip("three betas", lambda: fo.adam(betas=(0.9, 0.9, 0.9)), ValueError, "exactly 2 values"),
    slip("no state", lambda: TX.update(GRADS), TypeError, "adam: update", "'state'", CALLS),
    slip("no params", lambda: TX.init(), TypeError, "adam: init", "state = tx.init(params)"),
    slip(
        "no state, of a wrapper",
        lambda: fo.chain(fo.clip_by_value(1.0), TX).update(GRADS),
        *(TypeError, "chain: update", "'state'", CALLS),
    ),
    slip(
        "the state first",
        lambda: TX.update(state(), GRADS, PARAMS),
        *(TypeError, "adam: state should be the AdamState", "but is a dict", IN_ORDER),
    ),
    *(
        slip(
            f"the state first, {name}",
            lambda tx=tx: tx.update(tx.init(PARAMS), GRADS, PARAMS),
            *(error, IN_ORDER),
        )
        for name, tx, error in [
            ("of a chain", fo.chain(TX), TypeError),
            ("of a named chain", fo.named_chain(("a", TX)), ValueError),
            ("of a partition", fo.partition({"a": TX}, "a"), ValueError),
            ("of what has no state", fo.sign(), TypeError),
            ("of a transform", fo.ema(), TypeError),
        ]
    ),
    slip("params for the state", lambda: TX.update(GRADS, PARAMS), TypeError, IN_ORDER),
    slip(
        "another hyperparameter",
        wrong_hyperparameter,
        *(ValueError, "should have the names", "'lr'", "'learning_rate'"),
    ),
    # Composition.
    slip("an uncalled factory", lambda: fo.chain(fo.adam), TypeError, "Call the factory first"),
    slip("a list of pairs", lambda: fo.chain([TX, TX]), TypeError, "give them one by one"),
    slip(
        "a mask of another mapping",
        lambda: fo.masked(TX, {"b": True, "w": True}).init(collections.OrderedDict(PARAMS)),
        *(TypeError, "At the root params is of OrderedDict, mask of dict", "by_path(...)"),
    ),
    slip(
        "labels of another mapping, below",
        lambda: fo.partition({1: TX}, [{"b": 1, "w": 1}]).init([collections.OrderedDict(PARAMS)]),
        *(TypeError, "At [0] params is of OrderedDict, labels of dict"),
    ),
    slip(
        "gradients of another mapping",
        lambda: TX.update(GRADS, state(), collections.OrderedDict(PARAMS)),
        *(TypeError, "At the root params is of OrderedDict, grads of dict"),
    ),
    # Parameters.
    slip(
        "numbers for parameters",
        lambda: optim.SGD({"w": 1.0}, lr=0.1),
        *(TypeError, "one of the params is float", "make it an array, jnp.asarray(x)"),
    ),
    slip(
        "a learning rate for parameters",
        lambda: optim.SGD(0.1),
        *(TypeError, "one of the params is float"),
    ),
)
DEVICES = (
    slip(
        "gradients elsewhere",
        lambda: TX.update(on(1, GRADS), TX.init(on(0, PARAMS)), on(0, PARAMS)),
        *(ValueError, "grads and params are on different devices at ['b']", "jax.device_put"),
    ),
    slip(
        "gradients elsewhere, of a transform",
        lambda: fo.add_decayed_weights(0.1).update(on(1, GRADS), fo.EmptyState(), on(0, PARAMS)),
        *(ValueError, "on different devices at ['b']"),
    ),
    slip(
        "updates elsewhere",
        lambda: fo.apply_updates(on(0, PARAMS), on(1, GRADS)),
        *(ValueError, "updates and params are on different devices at ['b']"),
    ),
    slip(
        "gradients of an optimizer elsewhere",
        lambda: optim.Adam(optim.parameters(on(0, PARAMS))).step(on(1, GRADS)),
        *(ValueError, "a gradient on", "parameter 'b'", "jax.device_put(grad, p.data.sharding)"),
    ),
)


def check(row: Slip) -> None:
    with pytest.raises(row.error) as caught:
        row.call()
    message = str(caught.value)
    for words in row.says:
        words = re.sub(r"^fo\.", "functorch_optim.", words)
        assert words in message, message


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_a_slip_is_an_error_that_says_what_to_write(row: Slip) -> None:
    check(row)


@pytest.mark.skipif(jax.device_count() < 2, reason="needs 2 devices")
@pytest.mark.parametrize("row", DEVICES, ids=lambda row: row.name)
def test_arrays_on_other_devices_are_named(row: Slip) -> None:
    check(row)


@pytest.mark.skipif(jax.device_count() < 2, reason="needs 2 devices")
def test_an_optimizer_steps_on_after_gradients_on_another_device() -> None:
    optimizer = optim.SGD(optim.parameters(on(0, PARAMS)), lr=1.0, momentum=0.9)
    for i in range(2):
        with pytest.raises(ValueError, match="parameter 'b'"):
            optimizer.step(on(1, GRADS))
        np.testing.assert_array_equal(optimizer.params["w"], 1.0 - (0.0, 1.0)[i])
        optimizer.step(on(0, GRADS))


@pytest.mark.skipif(jax.device_count() < 2, reason="needs 2 devices")
def test_an_array_that_jax_may_move_is_no_slip() -> None:
    params = on(1, PARAMS)
    updates, _ = TX.update(GRADS, TX.init(params), params)
    assert fo.apply_updates(params, updates)["w"].devices() == {jax.devices()[1]}


def test_what_looks_like_a_slip_and_is_none() -> None:
    assert fo.adam(lr=lambda step: 0.1).init(PARAMS).step == 0
    assert fo.adam(1e-3, [0.9, 0.99]) is fo.adam(1e-3, (0.9, 0.99))
    assert not hasattr(fo, "__no_such_name__") and not hasattr(TX, "stepp")
    assert jnp.isfinite(jax.jit(loss_fn)(optim.values(model())))


def test_nobody_can_see_that_trees_of_one_structure_are_swapped() -> None:
    """So docs/coming_from_optax.md says it."""
    TX.update(PARAMS, state(), GRADS)
    fo.apply_updates(GRADS, PARAMS)
    assert "What no library can see" in PAGE.read_text()


def test_every_name_that_is_advised_exists() -> None:
    public = {*fo.__all__, *optim.__all__, *lr_scheduler.__all__, *swa_utils.__all__}
    calls = {word for text in slips.NAMES.values() for word in re.findall(r"(\w+)\(", text)}
    assert calls - {"schedule"} <= public | {"here"}, calls - public
    assert not set(slips.NAMES) & set(fo.__all__)


def test_every_argument_that_is_advised_exists() -> None:
    factories = [getattr(fo, name) for name in fo.__all__]
    arguments = {
        name
        for factory in factories
        if inspect.isfunction(factory)
        for name in inspect.signature(factory).parameters
    }
    advised = {name for names in slips._ARGUMENTS.values() for name in names}
    assert advised <= arguments, advised - arguments


# The page's tables, held against both libraries.


def rows(title: str) -> list[list[str]]:
    text = PAGE.read_text().split(f"## {title}\n")[1].split("\n## ")[0]
    lines = re.findall(r"^\| (.*) \|$", text, re.MULTILINE)
    return [[cell.strip().strip("`") for cell in line.split(" | ")] for line in lines[1:]]


def theirs(name: str) -> Any:
    optax = pytest.importorskip("optax", reason="the page is about it")
    return getattr(optax, name, None) or getattr(optax.contrib, name, None)


# Their name of an argument of ours; of a tuple, the names of its elements.
RENAMED: dict[str, Any] = {
    "betas": ("b1", "b2", "b3"),
    "etas": ("eta_minus", "eta_plus"),
    "step_sizes": ("min_step_size", "max_step_size"),
    "ns_coefficients": "ns_coeffs",
    "d0": "estim_lr0",
    "d_coef": "estim_lr_coef",
    "d": "clipping_threshold",
    "history_size": "memory_size",
    ("rmsprop", "alpha"): "decay",
    ("muon", "momentum"): "beta",
}
# A number that switches something off is the same as None; eps of adafactor is something else.
OTHER = {("adafactor", "eps"), ("adafactor", "weight_decay")}


def differing() -> set[tuple[str, str, str, str]]:
    found = set()
    for name in fo.__all__:
        factory, other = getattr(fo, name), None
        if hasattr(factory, "rule") or name == "lbfgs":
            other = theirs(name)
        if other is None:
            continue
        defaults = inspect.signature(other).parameters
        for argument, parameter in inspect.signature(factory).parameters.items():
            words = RENAMED.get((name, argument), RENAMED.get(argument, argument))
            ours = parameter.default
            if isinstance(words, tuple) and words[0] in defaults:
                value: Any = tuple(defaults[word].default for word in words[: len(ours)])
            elif words in defaults and (name, argument) not in OTHER:
                value = defaults[words].default
            else:
                continue
            if value != ours and not (value is None and not ours):
                found.add((name, argument, repr(ours), repr(value)))
    return found


def test_the_pages_table_of_defaults_is_whole_and_true() -> None:
    assert {tuple(cells) for cells in rows("Defaults that differ")} == differing()


def test_the_names_of_the_page_are_names_of_both_libraries() -> None:
    for left, right in rows("Functions"):
        for name in re.findall(r"`?(?:contrib\.)?(\w+)(?:`|\(|$)", left):
            assert theirs(name.removeprefix("contrib.")) is not None or name in "k n a b", name
        for name in re.findall(r"(\w+)\(", right):
            assert name in fo.__all__, name


def test_the_fields_of_the_page_are_fields_of_the_states() -> None:
    optax = pytest.importorskip("optax", reason="the page is about it")
    params = {"w": jnp.ones((2, 2))}
    checked = 0
    for left, right in rows("Fields of states"):
        words = left.replace("`", "").split(" of ")
        algorithm = words[1] if len(words) == 2 else "adam"
        options = {"momentum": 0.9} if algorithm == "sgd" else {}
        ours = getattr(fo, algorithm)(0.1, **options).init(params)
        other = getattr(optax, algorithm)(0.1, **options).init(params)
        fields = {field for part in jax.tree.leaves(other, is_leaf=_is_part) for field in _of(part)}
        assert set(words[0].split(", ")) <= fields
        assert set(right.replace("`", "").split(", ")) <= set(ours._fields)
        checked += 1
    assert checked == 7


def _is_part(x: Any) -> bool:
    return hasattr(x, "_fields")


def _of(x: Any) -> tuple[str, ...]:
    return getattr(x, "_fields", ())
