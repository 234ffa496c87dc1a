"""Docstrings of the algorithms, completed.

Most arguments mean the same in every algorithm. Their description stands here once; a factory's own
docstring describes what is its own, and `help(adam)` shows all of it, in the signature's order.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

COMMON = {
    "lr": "learning rate. Every numeric argument may be a number, an array or a schedule.",
    "betas": "coefficients of the running averages of the gradient and of its square, in [0, 1).",
    "eps": "added to the root in the denominator; at least 0.",
    "weight_decay": "L2 penalty: `weight_decay * p` is added to the gradient; at least 0.",
    "momentum": "coefficient of the momentum buffer; the number 0 means no buffer.",
    "decoupled_weight_decay": "decay the parameters directly, by `lr * weight_decay * p`, instead "
    "of through the gradient.",
    "amsgrad": "divide by the largest second moment so far.",
    "maximize": "ascend instead of descend.",
}


def completed(function: Callable[..., Any], state_name: str) -> str | None:
    """A factory's docstring with every argument described, `Returns` and `Raises`.

    Raises:
      ValueError: an argument is described neither there nor here.
    """
    if function.__doc__ is None:  # python -OO
        return None
    head, _, rest = inspect.cleandoc(function.__doc__).partition("\n\nArgs:\n")
    own, _, raises = rest.partition("\n\nRaises:\n")
    described = dict(re.findall(r"^  (\w+): (.*(?:\n    .*)*)", own, re.MULTILINE))
    lines = [head, "", "Args:"]
    for name, parameter in inspect.signature(function).parameters.items():
        text = described.pop(name, COMMON.get(name))
        if text is None:
            raise ValueError(f"{function.__name__}: the argument {name} has no description")
        lines.append(f"  {name}: {text} Default: {parameter.default!r}.")
    if described:
        raise ValueError(f"{function.__name__} has no arguments {[*described]}")
    lines += ["", "Returns:", f"  A `GradientTransformation` whose state is `{state_name}`."]
    lines += [
        "",
        "Raises:",
        raises or "  ValueError: a value that torch refuses, in torch's words.",
    ]
    return "\n".join(lines)
