"""What goes where between torch's state_dict and ours, worked out before anything moves.

`planned` gives a `Preview`: a row for each parameter, and all that does not fit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from functorch_optim.core import trees
from functorch_optim.interop.torch import layouts, vectors
from functorch_optim.interop.torch.layouts import LayoutChange, Shape

Names = Mapping[Any, str | None] | Sequence[str]
Transforms = Sequence[tuple[str, Any]] | Mapping[Any, Any]
StateDict = dict[str, Any]


class PreviewRow(NamedTuple):
    """What becomes of one parameter (or buffer of a model).

    Attributes:
      key: its key in the state_dict.
      theirs: torch's name, or the position where torch's optimizer has no names.
      ours: our name.
      transform: how its layout changes.
      shape: in torch's layout; `None` where the state_dict does not tell.
      our_shape: in ours.
      entries: what the optimizer's state has of it.
    """

    key: Any
    theirs: Any
    ours: str
    transform: LayoutChange
    shape: Shape | None
    our_shape: Shape | None
    entries: tuple[str, ...]


class Preview(NamedTuple):
    """What goes where, and what does not fit. `str()` is a table.

    Attributes:
      rows: a row for each parameter, in torch's order.
      problems: what is missing, or of another shape, in words.
      unused: keys of `names` that this state_dict has nothing for. No error: an optimizer has less
        than its model.
    """

    rows: tuple[PreviewRow, ...]
    problems: tuple[str, ...]
    unused: tuple[Any, ...]

    def __str__(self) -> str:
        table = [("torch", "shape", "transform", "here", "shape", "state")]
        for row in self.rows:
            table.append(
                (
                    str(row.theirs),
                    "?" if row.shape is None else str(row.shape),
                    row.transform.name,
                    row.ours,
                    "?" if row.our_shape is None else str(row.our_shape),
                    " ".join(row.entries),
                )
            )
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
            for line in table
        ]
        unused = [f"unused: {name!r}" for name in self.unused]
        return "\n".join([*lines, *unused, *(f"PROBLEM: {text}" for text in self.problems)])


class Wanted(NamedTuple):
    """What our side has: the names in order, each with shape and dtype."""

    items: dict[str, tuple[Shape, Any]]


def wanted_by(like: Any) -> Wanted | None:
    """The names, shapes and dtypes of an optimizer's parameters, or of a tree's arrays.

    Raises:
      ValueError: a parameter of the optimizer has no name.
    """
    if like is None:
        return None
    if not hasattr(like, "param_groups"):
        flat = jax.tree_util.tree_flatten_with_path(like)[0]
        named = [(trees.dotted(path), x) for path, x in flat if hasattr(x, "shape")]
    else:
        named = []
        for group in like.param_groups:
            names = group.get("param_names") or [p.name for p in group["params"]]
            named += zip(names, group["params"], strict=True)
        if any(name is None for name, _ in named):
            raise ValueError("like: a parameter of the optimizer has no name")
    return Wanted({name: (tuple(x.shape), x.dtype) for name, x in named})


class SavedParameter(NamedTuple):
    """What a state_dict tells of one of its parameters."""

    key: Any
    name: Any
    shape: Shape | None
    entries: tuple[str, ...]


def is_of_optimizer(state_dict: Any) -> bool:
    """Whether this is the state_dict of an optimizer."""
    return isinstance(state_dict, Mapping) and {"state", "param_groups"} <= state_dict.keys()


def saved_parameters(state_dict: Mapping[Any, Any]) -> list[SavedParameter]:
    """The parameters of an optimizer's state_dict, or the entries of a model's."""
    if not is_of_optimizer(state_dict):
        return [
            SavedParameter(name, name, tuple(np.shape(x)), ()) for name, x in state_dict.items()
        ]
    found = []
    named = all("param_names" in group for group in state_dict["param_groups"])
    for group in state_dict["param_groups"]:
        names = group["param_names"] if named else [None] * len(group["params"])
        for key, name in zip(group["params"], names, strict=True):
            entries = state_dict["state"].get(key, {})
            shape = None if vectors.is_flat(entries) else layouts.entries_shape(entries)
            found.append(SavedParameter(key, name, shape, tuple(map(str, entries))))
    return found


def planned(
    state_dict: Mapping[Any, Any], names: Names | None, transforms: Transforms, like: Any
) -> Preview:
    """What goes where on the way from torch to here."""
    problems: list[str] = []
    wanted = wanted_by(like)
    rules = _Rules(transforms)
    rows = []
    items = saved_parameters(state_dict)
    for position, item in enumerate(items):
        theirs = position if item.name is None else item.name
        known, ours = _our_name(position, item.name, names)
        if not known:
            problems.append(
                f"torch's {theirs!r} has no name here: `names` lacks it"
                if names is not None
                else f"torch's parameter {theirs!r} has no name (its optimizer was built without "
                "names): give `names`, ours in torch's order"
            )
        elif ours is None:
            if is_of_optimizer(state_dict):
                problems.append(f"torch's {theirs!r} is trained, and cannot be left behind")
        else:
            rows.append(_row(item, theirs, ours, rules, wanted, problems))
    seen: dict[str, Any] = {}
    for row in rows:
        if row.ours in seen:
            problems.append(f"torch's {seen[row.ours]!r} and {row.theirs!r} are both {row.ours!r}")
        seen.setdefault(row.ours, row.theirs)
    if wanted is not None:
        problems += [f"nothing comes for {name!r}" for name in wanted.items if name not in seen]
    return Preview(tuple(rows), (*problems, *rules.unused()), _unused(names, items))


def _unused(names: Names | None, items: Sequence[SavedParameter]) -> tuple[Any, ...]:
    if not isinstance(names, Mapping):
        return () if names is None else tuple(names[len(items) :])
    known = {item.name for item in items} | set(range(len(items)))
    return tuple(name for name in names if name not in known)


def _our_name(position: int, name: Any, names: Names | None) -> tuple[bool, str | None]:
    """Whether there is a name of ours, and which; `None` is left behind."""
    if names is None:
        return name is not None, name
    if isinstance(names, Mapping):
        for key in (name, position):
            if key is not None and key in names:
                return True, names[key]
        return False, None
    return (True, names[position]) if position < len(names) else (False, None)


def _row(
    item: SavedParameter,
    theirs: Any,
    ours: str,
    rules: _Rules,
    wanted: Wanted | None,
    problems: list[str],
) -> PreviewRow:
    transform = rules.of(theirs, ours)
    shape, our_shape = item.shape, None
    expected = None if wanted is None else wanted.items.get(ours, (None,))[0]
    where = f"{theirs} -> {ours}"
    try:
        if shape is not None:
            our_shape = layouts.shape_after(transform.forward, shape, where)
        elif expected is not None:
            our_shape = expected
            shape = layouts.shape_after(transform.inverse, expected, where)
    except (ValueError, TypeError) as error:
        problems.append(str(error))
    if wanted is not None and expected is None:
        problems.append(f"torch's {theirs!r} goes to {ours!r}, which is not there")
    elif None not in (our_shape, expected) and our_shape != expected:
        problems.append(
            f"torch's {theirs!r} of shape {shape} becomes {our_shape} ({transform.name}), but "
            f"{ours!r} has shape {expected}"
        )
    return PreviewRow(item.key, theirs, ours, transform, shape, our_shape, item.entries)


class _Rules:
    """Transforms by name: `(pattern, transform)`, the first that is found, or a mapping."""

    def __init__(self, transforms: Transforms):
        exact = isinstance(transforms, Mapping)
        pairs = transforms.items() if isinstance(transforms, Mapping) else transforms
        self._rules = [
            (text, None if exact else re.compile(text), layouts.as_layout_change(value))
            for text, value in pairs
        ]
        self._used: set[int] = set()
        self._names: list[str] = []

    def of(self, theirs: Any, ours: str) -> LayoutChange:
        """The transform of a parameter, by either of its names."""
        self._names.append(f"{theirs} -> {ours}")
        for i, (text, pattern, transform) in enumerate(self._rules):
            if pattern is None:
                found = text in (theirs, ours)
            else:
                found = any(pattern.search(x) for x in (theirs, ours) if isinstance(x, str))
            if found:
                self._used.add(i)
                return transform
        return layouts.identity

    def unused(self) -> list[str]:
        """Rules that matched nothing, in words."""
        return [
            f"the transform for {text!r} is used for none of {self._names} (it matches no name, or "
            "earlier ones took what it matches)"
            for i, (text, _, _) in enumerate(self._rules)
            if i not in self._used
        ]


def checked(preview: Preview) -> tuple[PreviewRow, ...]:
    """The rows of a plan without problems.

    Raises:
      ValueError: the problems.
    """
    if preview.problems:
        raise ValueError("; ".join(preview.problems))
    return preview.rows


def names_for_torch(
    ours: Sequence[str], names: Names | None, transforms: Transforms
) -> dict[str, tuple[Any, int, LayoutChange]]:
    """For each of our names torch's name (or position), its rank in torch's order, its transform.

    Raises:
      ValueError: `names` lacks one of ours, or a transform is used for none.
    """
    table: dict[str, tuple[Any, int]] = {}
    if names is None:
        table = {name: (name, i) for i, name in enumerate(ours)}
    else:
        pairs = names.items() if isinstance(names, Mapping) else enumerate(names)
        for rank, (theirs, name) in enumerate(pairs):
            if name in table:
                raise ValueError(f"torch's {table[name][0]!r} and {theirs!r} are both {name!r}")
            if name is not None:
                table[name] = theirs, theirs if isinstance(theirs, int) else rank
    missing = [name for name in ours if name not in table]
    if missing:
        raise ValueError(f"`names` has no name of torch's for {missing}")
    rules = _Rules(transforms)
    found = {name: (*table[name], rules.of(table[name][0], name)) for name in ours}
    if problems := rules.unused():
        raise ValueError("; ".join(problems))
    return found
