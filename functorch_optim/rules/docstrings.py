"""Docstrings of the algorithms, completed.

Most arguments mean the same in every algorithm. Their description stands here once; a factory's own
docstring describes what is its own, and its module's docstring the math: the formula, the paper,
the departures. `help(adam)` shows all of it, the arguments in the signature's order, and so does
the site. `help(optim.Adam)` shows it in the words of a class.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

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

# Of a stateful class.
_RAISES = "  ValueError, TypeError, RuntimeError: as the factory, and as `Optimizer`."


def completed(
    function: Callable[..., Any], state_name: str, needs_params: bool = False
) -> str | None:
    """A factory's docstring with the math, every argument described, `Returns` and `Raises`.

    Raises:
      ValueError: an argument is described neither there nor here.
    """
    if function.__doc__ is None:  # python -OO
        return None
    text, sections = _sections(function.__doc__)
    described = dict(
        re.findall(r"^  (\w+): (.*(?:\n    .*)*)", sections.get("Args", ""), re.MULTILINE)
    )
    arguments = []
    for name, parameter in inspect.signature(function).parameters.items():
        description = described.pop(name, COMMON.get(name))
        if description is None:
            raise ValueError(f"{function.__name__}: the argument {name} has no description")
        arguments.append(f"  {name}: {description} Default: {parameter.default!r}.")
    if described:
        raise ValueError(f"{function.__name__} has no arguments {[*described]}")
    needed = "; its update needs `params`" if needs_params else ""
    return _joined(
        _with_math(text, function),
        {
            "Args": "\n".join(arguments),
            "Returns": f"  A `GradientTransformation` whose state is `{state_name}`{needed}.",
            "Raises": sections.get(
                "Raises", "  ValueError: a value that torch refuses, in torch's words."
            ),
        },
    )


def with_math(function: F) -> F:
    """Puts the math, which is its module's docstring, into a function's complete docstring."""
    if function.__doc__ is not None:
        text, sections = _sections(function.__doc__)
        function.__doc__ = _joined(_with_math(text, function), sections)
    return function


def completed_class(docstring: str | None, factory: Callable[..., Any]) -> str | None:
    """A stateful class's own docstring, with the math of the factory of its pairs, and `Raises`."""
    if docstring is None:  # python -OO
        return None
    text, sections = _sections(docstring)
    return _joined(_with_math(text, factory), {**sections, "Raises": _RAISES})


def of_class(title: str, factory: Callable[..., Any], params: str) -> str:
    """The docstring of a stateful class, from that of the factory of its pairs.

    Args:
      title: the first line.
      factory: its docstring speaks of a pair. What it says of what it returns is left out.
      params: the description of the argument that stands before the factory's.
    """
    text, sections = _sections(factory.__doc__ or "")
    described = [line for line in (params, sections.get("Args", "")) if line]
    return _joined(f"{title}\n\n{text}".strip(), {"Args": "\n".join(described), "Raises": _RAISES})


def _sections(docstring: str) -> tuple[str, dict[str, str]]:
    """The text of a docstring in Google style, and its sections by name."""
    text, *parts = re.split(r"(?:\A|\n\n)([A-Z]\w+):\n(?= +\S)", inspect.cleandoc(docstring))
    indented = (textwrap.indent(textwrap.dedent(part), "  ") for part in parts[1::2])
    return text, dict(zip(parts[::2], indented, strict=True))


def _joined(text: str, sections: dict[str, str]) -> str:
    return "\n\n".join([text, *(f"{name}:\n{section}" for name, section in sections.items())])


def _with_math(text: str, function: Callable[..., Any]) -> str:
    module = sys.modules.get(function.__module__)
    # A notebook's is not its author's, and that of a script is about the script.
    if module is None or module.__doc__ is None or module.__name__ == "__main__":
        return text
    # What is indented stands as it is: `::` says so to reStructuredText.
    math = re.sub(
        r"^(\S.*?)[.:]*\n\n(?=    )", r"\1::\n\n", inspect.cleandoc(module.__doc__), flags=re.M
    )
    return f"{text}\n\n{math}"
