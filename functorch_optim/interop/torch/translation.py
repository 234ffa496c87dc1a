"""A state_dict from torch's names and layouts to ours, and back. Arrays are numpy's.

What goes where is worked out as a whole (`planned`) before anything moves; `Preview` shows it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from functorch_optim.core import trees
from functorch_optim.interop.torch import layouts as layout
from functorch_optim.interop.torch.layouts import Piece, Shape, Transform
from functorch_optim.stateful.parameter import Parameter

Names = Mapping[Any, str | None] | Sequence[str]
Transforms = Sequence[tuple[str, Any]] | Mapping[Any, Any]
StateDict = dict[str, Any]


class Row(NamedTuple):
    """One parameter (or buffer of a model) on its way.

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
    transform: Transform
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

    rows: tuple[Row, ...]
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


class Like(NamedTuple):
    """What our side has: the names in order, each with shape and dtype."""

    items: dict[str, tuple[Shape, Any]]


def like_of(like: Any) -> Like | None:
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
    return Like({name: (tuple(x.shape), x.dtype) for name, x in named})


class Item(NamedTuple):
    """What a state_dict tells of one of its parameters."""

    key: Any
    name: Any
    shape: Shape | None
    entries: tuple[str, ...]


def is_optimizers(state_dict: Any) -> bool:
    """Whether this is the state_dict of an optimizer."""
    return isinstance(state_dict, Mapping) and {"state", "param_groups"} <= state_dict.keys()


def items_of(state_dict: Mapping[Any, Any]) -> list[Item]:
    """The parameters of an optimizer's state_dict, or the entries of a model's."""
    if not is_optimizers(state_dict):
        return [Item(name, name, tuple(np.shape(x)), ()) for name, x in state_dict.items()]
    found = []
    named = all("param_names" in group for group in state_dict["param_groups"])
    for group in state_dict["param_groups"]:
        names = group["param_names"] if named else [None] * len(group["params"])
        for key, name in zip(group["params"], names, strict=True):
            entries = state_dict["state"].get(key, {})
            shape = None if layout.is_flat(entries) else layout.entries_shape(entries)
            found.append(Item(key, name, shape, tuple(map(str, entries))))
    return found


def planned(
    state_dict: Mapping[Any, Any], names: Names | None, transforms: Transforms, like: Any
) -> Preview:
    """What goes where on the way from torch to here."""
    problems: list[str] = []
    wanted = like_of(like)
    rules = _Rules(transforms)
    rows = []
    items = items_of(state_dict)
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
            if is_optimizers(state_dict):
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


def _unused(names: Names | None, items: Sequence[Item]) -> tuple[Any, ...]:
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
    item: Item, theirs: Any, ours: str, rules: _Rules, wanted: Like | None, problems: list[str]
) -> Row:
    transform = rules.of(theirs, ours)
    shape, our_shape = item.shape, None
    expected = None if wanted is None else wanted.items.get(ours, (None,))[0]
    where = f"{theirs} -> {ours}"
    try:
        if shape is not None:
            our_shape = layout.shape_after(transform.forward, shape, where)
        elif expected is not None:
            our_shape = expected
            shape = layout.shape_after(transform.inverse, expected, where)
    except (ValueError, TypeError) as error:
        problems.append(str(error))
    if wanted is not None and expected is None:
        problems.append(f"torch's {theirs!r} goes to {ours!r}, which is not there")
    elif None not in (our_shape, expected) and our_shape != expected:
        problems.append(
            f"torch's {theirs!r} of shape {shape} becomes {our_shape} ({transform.name}), but "
            f"{ours!r} has shape {expected}"
        )
    return Row(item.key, theirs, ours, transform, shape, our_shape, item.entries)


class _Rules:
    """Transforms by name: `(pattern, transform)`, the first that is found, or a mapping."""

    def __init__(self, transforms: Transforms):
        exact = isinstance(transforms, Mapping)
        pairs = transforms.items() if isinstance(transforms, Mapping) else transforms
        self._rules = [
            (text, None if exact else re.compile(text), layout.as_transform(value))
            for text, value in pairs
        ]
        self._used: set[int] = set()
        self._names: list[str] = []

    def of(self, theirs: Any, ours: str) -> Transform:
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
        return layout.identity

    def unused(self) -> list[str]:
        """Rules that matched nothing, in words."""
        return [
            f"the transform for {text!r} is used for none of {self._names} (it matches no name, or "
            "earlier ones took what it matches)"
            for i, (text, _, _) in enumerate(self._rules)
            if i not in self._used
        ]


def checked(preview: Preview) -> tuple[Row, ...]:
    """The rows of a plan without problems.

    Raises:
      ValueError: the problems.
    """
    if preview.problems:
        raise ValueError("; ".join(preview.problems))
    return preview.rows


def back(
    ours: Sequence[str], names: Names | None, transforms: Transforms
) -> dict[str, tuple[Any, int, Transform]]:
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


# An optimizer's state_dict.


class Way(NamedTuple):
    """How one parameter's state goes: by key of the old dict.

    Attributes:
      name: its name on the other side; a position where that side has no names.
      rank: its place in the other side's order.
      transform: of its layout.
      ours: our name.
    """

    name: Any
    rank: int
    transform: Transform
    ours: str


def optimizer_to_ours(
    state_dict: Mapping[str, Any], names: Names | None, transforms: Transforms, like: Any
) -> StateDict:
    """torch's optimizer state_dict in our names, layouts and (as far as `like` tells) order.

    Raises:
      ValueError: something does not fit; all of it is told.
    """
    _check_optimizers(state_dict)
    rows = checked(planned(state_dict, names, transforms, like))
    wanted = like_of(like)
    order = {row.ours: i for i, row in enumerate(rows)}
    if wanted is not None:
        order = {name: i for i, name in enumerate(wanted.items)}
    ways = {row.key: Way(row.ours, order[row.ours], row.transform, row.ours) for row in rows}
    return _rebuilt(state_dict, ways, True, wanted)


def optimizer_to_torch(
    state_dict: Mapping[str, Any], names: Names | None, transforms: Transforms, like: Any
) -> StateDict:
    """Our optimizer state_dict in torch's names, layouts and order.

    Raises:
      ValueError: something does not fit.
    """
    _check_optimizers(state_dict)
    wanted = like_of(like)
    items = items_of(state_dict)
    ours = [item.name for item in items]
    if None in ours:
        if wanted is None or len(wanted.items) != len(items):
            raise ValueError(
                "the state_dict has no param_names: build the optimizer with names (of "
                "`named_parameters(model)`), or give it as `like`"
            )
        ours = list(wanted.items)
    table = back(ours, names, transforms)
    ways = {item.key: Way(*table[name], name) for item, name in zip(items, ours, strict=True)}
    return _rebuilt(state_dict, ways, False, wanted)


def _check_optimizers(state_dict: Any) -> None:
    if not is_optimizers(state_dict):
        raise TypeError(
            "names and transforms are for an optimizer's state_dict; weights_from_torch and "
            "weights_to_torch take them for a model's"
        )


def _rebuilt(
    state_dict: Mapping[str, Any], ways: Mapping[Any, Way], to_ours: bool, wanted: Like | None
) -> StateDict:
    old_groups = state_dict["param_groups"]
    source = [key for group in old_groups for key in group["params"]]
    ordered = [sorted(group["params"], key=lambda key: ways[key].rank) for group in old_groups]
    target = [key for keys in ordered for key in keys]
    ids = {key: i for i, key in enumerate(target)}
    named = all(isinstance(way.name, str) for way in ways.values())
    groups = []
    for old, keys in zip(old_groups, ordered, strict=True):
        options = {k: v for k, v in old.items() if k not in ("params", "param_names")}
        own_names = {"param_names": [ways[key].name for key in keys]} if named else {}
        groups.append({**options, **own_names, "params": [ids[key] for key in keys]})
    state: dict[Any, Any] = {}
    for key, entries in state_dict["state"].items():
        if key not in ways:
            state.setdefault(key, entries)
        elif layout.is_flat(entries):
            state[0] = _moved_flat(entries, ways, source, target, to_ours, wanted)
        else:
            where = f"the state of {ways[key].ours}"
            state[ids[key]] = layout.moved_entries(entries, ways[key].transform, to_ours, where)
    for group in groups:
        _warn_of_muon(group, state_dict["state"], state, ways, target)
    return {**state_dict, "state": state, "param_groups": groups}


def _moved_flat(
    entries: Mapping[str, Any],
    ways: Mapping[Any, Way],
    source: Sequence[Any],
    target: Sequence[Any],
    to_ours: bool,
    wanted: Like | None,
) -> dict[str, Any]:
    if source == target and all(way.transform is layout.identity for way in ways.values()):
        return dict(entries)
    if wanted is None:
        raise ValueError(
            "L-BFGS keeps vectors of all parameters: to cut them the shapes and the order here are "
            "needed. Give `like`: the optimizer here, or its parameters"
        )
    pieces = {}
    for key, way in ways.items():
        shape, dtype = wanted.items[way.ours]
        if to_ours:
            shape = layout.shape_after(way.transform.inverse, shape, way.ours)
        function = way.transform.forward if to_ours else way.transform.inverse
        is_complex = np.issubdtype(dtype, np.complexfloating)
        pieces[key] = Piece(shape, function, is_complex, way.ours)
    return layout.moved_vectors(entries, layout.places(source, target, pieces))


def _warn_of_muon(
    group: Mapping[str, Any],
    old: Mapping[Any, Any],
    new: Mapping[Any, Any],
    ways: Mapping[Any, Way],
    order: Sequence[Any],
) -> None:
    """Warns where a matrix of Muon's changes its proportions, and with them the size of its steps.

    Args:
      group: of the new state_dict.
      old: the state before.
      new: the state after.
      ways: by the old keys.
      order: the old keys in the order of the new ids.
    """
    if "ns_coefficients" not in group or group.get("adjust_lr_fn") == "match_rms_adamw":
        return
    for i in group["params"]:
        shapes = [layout.entries_shape(x) for x in (old.get(order[i], {}), new.get(i, {}))]
        if shapes[0] != shapes[1]:
            warnings.warn(
                f"Muon's step of {ways[order[i]].ours} has the factor "
                "sqrt(max(1, rows / columns)), which changes where rows and columns change places; "
                "with adjust_lr_fn='match_rms_adamw' it does not",
                stacklevel=5,
            )
            return


# A model's weights.


def weights_to_ours(
    state_dict: Mapping[str, Any], names: Names | None, transforms: Transforms, like: Any
) -> dict[str, Any]:
    """A torch model's state_dict as arrays by our names.

    Raises:
      ValueError: something does not fit; all of it is told.
    """
    return {
        row.ours: layout.applied(row.transform.forward, state_dict[row.key], row.ours)
        for row in checked(planned(state_dict, names, transforms, like))
    }


def weights_to_torch(
    weights: Any, names: Names | None, transforms: Transforms
) -> dict[str, np.ndarray]:
    """A tree (or dict by name) of arrays as a torch model's state_dict, in torch's order."""
    flat = jax.tree_util.tree_flatten_with_path(weights)[0]
    arrays = {
        trees.dotted(path): np.asarray(x.data if isinstance(x, Parameter) else x)
        for path, x in flat
    }
    table = back(list(arrays), names, transforms)
    return {
        str(theirs): layout.applied(transform.inverse, arrays[name], name)
        for name, (theirs, _, transform) in sorted(table.items(), key=lambda item: item[1][1])
    }
