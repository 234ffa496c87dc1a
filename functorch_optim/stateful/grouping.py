"""Parameter groups from the names of parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from functorch_optim.stateful.model import named_parameters


def group_by_path(
    model: Any,
    rules: Sequence[tuple[str, Mapping[str, Any]]],
    default: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups by regular expressions over the names of a model's Parameters.

    `group_by_path(model, [(r"bias$|norm", {"weight_decay": 0.0})])` keeps weight decay from biases
    and norms.

    Args:
      model: a tree of Parameters, named by their paths: `"base.dense.kernel"`.
      rules: `(pattern, options)`. A Parameter joins the group of the first pattern that is found
        anywhere in its name.
      default: options of the group of all other Parameters; none by default.

    Returns:
      The groups in the order of the rules, that of the others last, none of them empty; with the
      parameters' names. Every Parameter is in exactly one.

    Raises:
      ValueError: a pattern matches no name, or only names that earlier patterns took; it is named.
    """
    first_names = {p: name for name, p in reversed(list(named_parameters(model)))}
    named = [(name, p) for name, p in named_parameters(model) if first_names[p] == name]
    groups: list[dict[str, Any]] = [{"params": [], **options} for _, options in rules]
    rest: dict[str, Any] = {"params": [], **(default or {})}
    patterns = [re.compile(pattern) for pattern, _ in rules]
    for name, parameter in named:
        matching = (group for p, group in zip(patterns, groups, strict=True) if p.search(name))
        next(matching, rest)["params"].append((name, parameter))
    for pattern, group in zip(patterns, groups, strict=True):
        if group["params"]:
            continue
        taken = [name for name, _ in named if pattern.search(name)]
        raise ValueError(
            f"group_by_path: the pattern {pattern.pattern!r} matches "
            + (f"only names that earlier patterns took: {taken}" if taken else "no parameter. ")
            + ("" if taken else f"The names are {[name for name, _ in named]}")
        )
    return [*groups, rest] if rest["params"] else groups
