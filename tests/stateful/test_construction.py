"""Construction: what torch.optim accepts and refuses, in its words."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim.stateful as optim
from tests.support.stateful import cells

CLASSES = ("SGD", "Adam", "AdamW")


def ours() -> optim.Parameter:
    return optim.Parameter(np.ones(2, np.float32))


# What is given for "params", made of parameters from `P()`; the error; its words. Where the words
# end in "is" or "got", the name of a type follows.
Refused = tuple[Callable[[Callable[[], Any]], Any], type[Exception], str]
NAMES_MIXED = (
    "all optimizer param groups should be with/without names. cannot add param group {} names to "
    "the optimizer"
)
NOT_A_TENSOR = "optimizer can only optimize Tensors, but one of the params is"
REFUSED: dict[str, Refused] = {
    "a bare parameter": (
        lambda P: P(),
        TypeError,
        "params argument given to the optimizer should be an iterable of Tensors or dicts, but got",
    ),
    "an empty list": (lambda P: [], ValueError, "optimizer got an empty parameter list"),
    "an empty tuple": (lambda P: (), ValueError, "optimizer got an empty parameter list"),
    "an empty generator": (
        lambda P: (p for p in ()),
        ValueError,
        "optimizer got an empty parameter list",
    ),
    "None": (lambda P: None, TypeError, "'NoneType' object is not iterable"),
    "a string in the list": (lambda P: [P(), "w"], TypeError, f"{NOT_A_TENSOR} str"),
    "a number in the list": (lambda P: [P(), 1.0], TypeError, f"{NOT_A_TENSOR} float"),
    "a list of a name and a parameter": (lambda P: [["w", P()]], TypeError, NOT_A_TENSOR),
    "a group behind a parameter": (
        lambda P: [P(), {"params": [P()]}],
        TypeError,
        f"{NOT_A_TENSOR} dict",
    ),
    "a parameter behind a group": (
        lambda P: [{"params": [P()]}, P()],
        TypeError,
        "param_group must be a dict, but got",
    ),
    "a group without params": (
        lambda P: [{"params": [P()]}, {"lr": 0.1}],
        KeyError,
        "'params'",
    ),
    "a set in a group": (
        lambda P: [{"params": {P()}}],
        TypeError,
        "optimizer parameters need to be organized in ordered collections, but the ordering of "
        "tensors in sets will change between runs. Please use a list instead.",
    ),
    "a string in a group": (lambda P: [{"params": ["w"]}], TypeError, f"{NOT_A_TENSOR} str"),
    "one parameter in two groups": (
        lambda P: [{"params": [p := P(), P()]}, {"params": [P(), p]}],
        ValueError,
        "some parameters appear in more than one parameter group",
    ),
    "a name missing at the end": (
        lambda P: [("w", P()), P()],
        ValueError,
        "all optimizer params should be with/without names. Some param names are missing",
    ),
    "a name missing at the start": (
        lambda P: [P(), ("w", P())],
        ValueError,
        "all optimizer params should be with/without names. Some param names are missing",
    ),
    "a named group behind an unnamed one": (
        lambda P: [{"params": [P()]}, {"params": [("w", P())]}],
        ValueError,
        NAMES_MIXED.format("with"),
    ),
    "an unnamed group behind a named one": (
        lambda P: [{"params": [("w", P())]}, {"params": [P()]}],
        ValueError,
        NAMES_MIXED.format("without"),
    ),
}
over_refused = pytest.mark.parametrize("what", REFUSED)


@over_refused
def test_refuses(what: str) -> None:
    build, error, words = REFUSED[what]
    with pytest.raises(error, match=re.escape(words)) as caught:
        optim.SGD(build(ours), lr=0.1)
    assert type(caught.value) is error


@over_refused
def test_torch_refuses_in_the_same_words(what: str) -> None:
    torch = pytest.importorskip("torch", reason="compares with torch's own errors")
    build, error, words = REFUSED[what]
    with pytest.raises(error, match=re.escape(words)):
        torch.optim.SGD(build(lambda: torch.ones(2)), lr=0.1)


@pytest.mark.parametrize("array", [jnp.ones(2), np.ones(2)], ids=["jax", "numpy"])
def test_refuses_a_bare_array(array: Any) -> None:
    with pytest.raises(TypeError, match="should be an iterable of Tensors or dicts, but got"):
        optim.SGD(array)


def test_refuses_an_empty_tree() -> None:
    with pytest.raises(ValueError, match="optimizer got an empty parameter list"):
        optim.SGD({"layer": {}})


ACCEPTED: dict[str, Callable[[Callable[[], Any]], Any]] = {
    "a list": lambda P: [P(), P()],
    "a tuple": lambda P: (P(), P()),
    "a set": lambda P: {P(), P()},
    "a generator": lambda P: (P() for _ in range(2)),
    "an iterator": lambda P: iter([P(), P()]),
    "dict values": lambda P: {"a": P(), "b": P()}.values(),
    "named": lambda P: [("a", P()), ("b", P())],
    "named in a tuple": lambda P: (("a", P()), ("b", P())),
    "dict items": lambda P: {"a": P(), "b": P()}.items(),
    "a generator of named": lambda P: ((name, P()) for name in "ab"),
    "equal names": lambda P: [("a", P()), ("a", P())],
    "a group": lambda P: [{"params": [P(), P()]}],
    "a group with a tuple": lambda P: [{"params": (P(), P())}],
    "a group with a generator": lambda P: [{"params": (P() for _ in range(2))}],
    "a group with named": lambda P: [{"params": [("a", P()), ("b", P())]}],
    "a group with named in a tuple": lambda P: [{"params": (("a", P()), ("b", P()))}],
    "a group with a generator of named": lambda P: [{"params": ((n, P()) for n in "ab")}],
    "groups of one": lambda P: [{"params": P()}, {"params": [P()]}],
    "a generator of groups": lambda P: ({"params": [P()]} for _ in range(2)),
    "a tuple of groups": lambda P: ({"params": [P()]}, {"params": [P()]}),
    "an empty group": lambda P: [{"params": []}, {"params": [P(), P()]}],
}


def shape_of_groups(opt: Any) -> Any:
    return [(len(group["params"]), group.get("param_names")) for group in opt.param_groups]


@pytest.mark.parametrize("what", ACCEPTED)
def test_accepts(what: str) -> None:
    opt = optim.SGD(ACCEPTED[what](ours), lr=0.1)
    groups = shape_of_groups(opt)
    assert sum(size for size, _ in groups) == 2
    named = ["a", "a"] if what == "equal names" else ["a", "b"]
    wanted = named if "name" in what or what == "dict items" else None
    assert all(names == wanted for _, names in groups)
    for group in opt.param_groups:
        assert type(group["params"]) is list
        assert all(isinstance(p, optim.Parameter) for p in group["params"])


@pytest.mark.parametrize("what", ACCEPTED)
def test_torch_accepts_it_too(what: str) -> None:
    torch = pytest.importorskip("torch", reason="compares with torch's groups")
    reference = torch.optim.SGD(ACCEPTED[what](lambda: torch.ones(2)), lr=0.1)
    assert shape_of_groups(optim.SGD(ACCEPTED[what](ours), lr=0.1)) == shape_of_groups(reference)


def test_warns_of_a_parameter_that_is_twice_in_a_group() -> None:
    (p,) = cells((2,))
    words = (
        "optimizer contains a parameter group with duplicate parameters; in future, this will "
        "cause an error; see github.com/pytorch/pytorch/issues/40967 for more information"
    )
    with pytest.warns(UserWarning, match=re.escape(words)):
        optim.SGD([p, p], lr=0.1)


def test_accepts_what_requires_no_gradient_and_integers() -> None:
    p = optim.Parameter(np.ones(2), requires_grad=False)
    q = optim.Parameter(np.arange(2))
    assert optim.SGD([p, q]).param_groups[0]["params"] == [p, q]


def test_keeps_the_group_that_was_given() -> None:
    group = {"note": ["kept"], "params": (p for p in cells((2,))), "lr": 0.5}
    opt = optim.SGD([group], lr=0.1, momentum=0.9)
    assert opt.param_groups[0] is group
    assert list(group)[:3] == ["note", "params", "lr"]
    added = "momentum, dampening, weight_decay, nesterov, maximize, foreach, differentiable, fused"
    assert list(group)[3:] == added.split(", ")
    assert (group["note"], group["lr"], group["momentum"]) == (["kept"], 0.5, 0.9)
    assert type(group["params"]) is list


def test_values_of_a_group_are_not_checked_as_in_torch() -> None:
    opt = optim.Adam([{"params": cells((2,)), "lr": -1.0, "eps": -1.0}])
    assert opt.param_groups[0]["lr"] == -1.0


def test_defaults_are_the_constructors_values() -> None:
    opt = optim.Adam([{"params": cells((2,)), "lr": 0.5}], betas=[0.5, 0.6])
    assert "params" not in opt.defaults
    assert opt.defaults["lr"] == 1e-3
    assert opt.defaults["betas"] == (0.5, 0.6)
    assert opt.param_groups[0]["betas"] == (0.5, 0.6)
    opt.param_groups[0]["lr"] = 0.7
    assert opt.defaults["lr"] == 1e-3


@pytest.mark.parametrize("name", CLASSES)
def test_signature_groups_and_defaults_are_torchs(name: str) -> None:
    torch = pytest.importorskip("torch", reason="compares signatures with torch's")
    cls, reference = getattr(optim, name), getattr(torch.optim, name)

    def described(cls: Any) -> Any:
        return [(p.name, p.kind, p.default) for p in inspect.signature(cls).parameters.values()]

    assert described(cls) == described(reference)
    group = {"lr": 0.5, "x": 1}
    opt = cls([{**group, "params": ours()}, {"params": ours()}], lr=0.1, foreach=True)
    wanted = reference(
        [{**group, "params": torch.ones(2)}, {"params": torch.ones(2)}], lr=0.1, foreach=True
    )
    assert list(opt.defaults.items()) == list(wanted.defaults.items())
    for own, other in zip(opt.param_groups, wanted.param_groups, strict=True):
        assert list(own) == list(other)
        del own["params"], other["params"]
        assert own == other


def test_arguments_can_be_positional() -> None:
    opt = optim.Adam(cells((2,)), 0.1, (0.5, 0.6), 1e-3, 0.2, True)
    group = opt.param_groups[0]
    assert [group[k] for k in ("lr", "betas", "eps", "weight_decay", "amsgrad")] == [
        0.1,
        (0.5, 0.6),
        1e-3,
        0.2,
        True,
    ]
    with pytest.raises(TypeError, match=r"Adam\.__init__\(\) too many positional arguments"):
        optim.Adam(cells((2,)), 0.1, (0.5, 0.6), 1e-3, 0.2, True, True)


@pytest.mark.parametrize("name", CLASSES)
def test_an_unknown_argument_is_refused(name: str) -> None:
    words = f"{name}.__init__() got an unexpected keyword argument 'learning_rate'"
    with pytest.raises(TypeError, match=re.escape(words)):
        getattr(optim, name)(cells((2,)), learning_rate=0.1)


def test_adamw_has_no_argument_for_what_it_fixes() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'decoupled_weight_decay'"):
        optim.AdamW(cells((2,)), decoupled_weight_decay=False)
    assert optim.AdamW(cells((2,))).param_groups[0]["decoupled_weight_decay"] is True


def test_the_parameters_are_required() -> None:
    with pytest.raises(TypeError, match=r"SGD\.__init__\(\) missing .*'params'"):
        optim.SGD()


@pytest.mark.parametrize(
    ("name", "kwargs", "words"),
    [
        ("SGD", {"lr": -0.1}, "Invalid learning rate: -0.1"),
        ("SGD", {"momentum": -0.9}, "Invalid momentum value: -0.9"),
        ("SGD", {"nesterov": True}, "Nesterov momentum requires a momentum and zero dampening"),
        ("Adam", {"lr": float("nan")}, "Invalid learning rate: nan"),
        ("Adam", {"eps": -1.0}, "Invalid epsilon value: -1.0"),
        ("Adam", {"betas": (0.9, 1.0)}, "Invalid beta parameter at index 1: 1.0"),
        ("AdamW", {"weight_decay": -0.1}, "Invalid weight_decay value: -0.1"),
        ("AdamW", {"betas": (0, 0.9)}, "betas must be either both floats or both Tensors"),
    ],
)
def test_bad_hyperparameters_are_refused(name: str, kwargs: Any, words: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        getattr(optim, name)(cells((2,)), **kwargs)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(
    ("other", "words"),
    [
        ("differentiable", "`fused` does not support `differentiable`"),
        ("foreach", "`fused` and `foreach` cannot be `True` together."),
    ],
)
def test_flags_that_exclude_each_other_are_refused(name: str, other: str, words: str) -> None:
    with pytest.raises(RuntimeError, match=f"^{re.escape(words)}$"):
        getattr(optim, name)(cells((2,)), fused=True, **{other: True})


@pytest.mark.parametrize("name", CLASSES)
def test_flags_alone_are_kept_and_select_nothing(name: str) -> None:
    results = []
    for flags in ({}, {"foreach": True}, {"fused": True}, {"differentiable": True}):
        (p,) = cells((2,))
        opt = getattr(optim, name)([p], lr=0.1, **flags)
        assert opt.param_groups[0].items() >= flags.items()
        p.grad = np.ones(2, np.float32)
        opt.step()
        results.append(np.asarray(p.data).tolist())
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("lr", [np.array(0.1), np.array([0.1]), jnp.array(0.1), jnp.array([0.1])])
@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_a_learning_rate_of_one_element_is_a_learning_rate(name: str, lr: Any) -> None:
    """torch accepts 1-element tensors of any shape."""
    results = []
    for value in (0.1, lr):
        (p,) = cells((2,))
        opt = getattr(optim, name)([p], lr=value)
        p.grad = np.ones(2, np.float32)
        opt.step()
        results.append(np.asarray(p.data))
    np.testing.assert_allclose(results[0], results[1], rtol=1e-6)


def test_a_learning_rate_of_two_elements_is_refused() -> None:
    with pytest.raises(ValueError, match="Tensor lr must be 1-element"):
        optim.SGD(cells((2,)), lr=jnp.ones(2))
