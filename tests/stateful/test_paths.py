"""`group_by_path`: parameter groups from the names of parameters."""

from __future__ import annotations

import re
from typing import Any

import jax
import numpy as np
import pytest

import functorch_optim.stateful as optim
from tests.support.stateful import numbers


def build_model() -> dict[str, Any]:
    layer = {"kernel": numbers(0, (2, 2)), "bias": numbers(1, (2,))}
    tree = {
        "base": {"dense": layer, "norm": {"scale": numbers(2, (2,)), "shift": numbers(3, (2,))}},
        "head": [layer, layer],
        "activation": jax.nn.relu,
    }
    return optim.parameters(tree)


NAMES = [
    "base.dense.bias",
    "base.dense.kernel",
    "base.norm.scale",
    "base.norm.shift",
    "head.0.bias",
    "head.0.kernel",
    "head.1.bias",
    "head.1.kernel",
]


def names(groups: Any) -> list[list[str]]:
    return [[name for name, _ in group["params"]] for group in groups]


def test_every_parameter_is_in_exactly_one_group() -> None:
    model = build_model()
    rules = [("bias", {"lr": 1.0}), ("base", {"lr": 2.0}), (r"^head\.0", {})]
    groups = optim.group_by_path(model, rules)
    assert names(groups) == [
        ["base.dense.bias", "head.0.bias", "head.1.bias"],
        ["base.dense.kernel", "base.norm.scale", "base.norm.shift"],
        ["head.0.kernel"],
        ["head.1.kernel"],
    ]
    assert sorted(name for group in names(groups) for name in group) == NAMES
    found = dict(pair for group in groups for pair in group["params"])
    assert all(found[name] is p for name, p in optim.named_parameters(model))


def test_options_stay_with_their_group() -> None:
    rules = [("bias", {"lr": 1.0, "betas": (0.5, 0.6)}), ("base", {"weight_decay": 2.0})]
    groups = optim.group_by_path(build_model(), rules, default={"lr": 3.0})
    options = [{k: v for k, v in group.items() if k != "params"} for group in groups]
    assert options == [{"lr": 1.0, "betas": (0.5, 0.6)}, {"weight_decay": 2.0}, {"lr": 3.0}]
    assert rules[0][1] == {"lr": 1.0, "betas": (0.5, 0.6)}  # not changed


def test_the_first_pattern_wins() -> None:
    rules = [("norm", {}), (".", {})]
    assert names(optim.group_by_path(build_model(), rules))[0] == NAMES[2:4]
    with pytest.raises(ValueError, match="earlier patterns"):
        optim.group_by_path(build_model(), rules[::-1])


def test_no_group_is_empty() -> None:
    assert len(optim.group_by_path(build_model(), [(".", {})], default={"lr": 1.0})) == 1


def test_without_rules_all_are_in_the_default_group() -> None:
    (group,) = optim.group_by_path(build_model(), [], default={"lr": 1.0})
    assert names([group]) == [NAMES]
    assert group["lr"] == 1.0


def test_patterns_are_regular_expressions_found_anywhere() -> None:
    def chosen(pattern: str) -> list[str]:
        return names(optim.group_by_path(build_model(), [(pattern, {})]))[0]

    assert chosen(r"kernel$") == [NAMES[1], NAMES[5], NAMES[7]]
    assert chosen(r"^head\.\d\.b") == [NAMES[4], NAMES[6]]
    assert chosen("se.d") == ["base.dense.bias", "base.dense.kernel"]


def test_a_pattern_that_matches_nothing_is_named() -> None:
    with pytest.raises(ValueError) as caught:
        optim.group_by_path(build_model(), [("bias", {}), (r"^bais\d$", {})])
    assert repr(r"^bais\d$") in str(caught.value)
    assert "matches no parameter" in str(caught.value)
    assert all(name in str(caught.value) for name in NAMES)
    assert repr("bias") not in str(caught.value)


def test_a_pattern_whose_names_are_taken_is_named() -> None:
    with pytest.raises(ValueError) as caught:
        optim.group_by_path(build_model(), [("base", {}), ("norm", {})])
    words = re.escape(f"'norm' matches only names that earlier patterns took: {NAMES[2:4]}")
    assert re.search(words, str(caught.value))


def test_a_parameter_in_two_places_is_in_one_group() -> None:
    """Tied weights are one Parameter."""
    tied = optim.Parameter(np.ones(2, np.float32))
    model = {"embedding": tied, "head": {"kernel": tied, "bias": optim.Parameter(np.ones(2))}}
    groups = optim.group_by_path(model, [("head", {"lr": 1.0})])
    assert names(groups) == [["head.bias"], ["embedding"]]
    assert sum(p is tied for group in groups for _, p in group["params"]) == 1


def test_no_weight_decay_for_biases_and_norms() -> None:
    model = build_model()
    groups = optim.group_by_path(model, [(r"bias$|norm", {"weight_decay": 0.0})])
    opt = optim.AdamW(groups, lr=0.1, weight_decay=0.5)
    assert [group["weight_decay"] for group in opt.param_groups] == [0.0, 0.5]
    assert [group["param_names"] for group in opt.param_groups] == [
        ["base.dense.bias", "base.norm.scale", "base.norm.shift", "head.0.bias", "head.1.bias"],
        ["base.dense.kernel", "head.0.kernel", "head.1.kernel"],
    ]
    before = {name: np.array(p.data) for name, p in optim.named_parameters(model)}
    for _, p in optim.named_parameters(model):
        p.grad = np.zeros(p.shape, np.float32)
    opt.step()
    for name, p in optim.named_parameters(model):
        factor = 1 - 0.1 * 0.5 if name.endswith("kernel") else 1.0
        np.testing.assert_allclose(p.data, factor * before[name], rtol=1e-6)


def test_the_groups_are_saved_with_their_names() -> None:
    opt = optim.SGD(optim.group_by_path(build_model(), [("bias", {"lr": 1.0})]))
    saved = opt.state_dict()["param_groups"]
    assert [name for group in saved for name in group["param_names"]] == [
        *(name for name in NAMES if "bias" in name),
        *(name for name in NAMES if "bias" not in name),
    ]
