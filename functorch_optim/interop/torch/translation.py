"""A state_dict from torch's names and layouts to ours, and back. Arrays are numpy's.

What goes where is worked out as a whole (`plan.planned`) before anything moves.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from functorch_optim.core import trees
from functorch_optim.interop.torch import layouts, vectors
from functorch_optim.interop.torch.layouts import LayoutChange
from functorch_optim.interop.torch.plan import (
    Names,
    StateDict,
    Transforms,
    Wanted,
    checked,
    is_of_optimizer,
    names_for_torch,
    planned,
    saved_parameters,
    wanted_by,
)
from functorch_optim.interop.torch.vectors import VectorPart
from functorch_optim.stateful.parameter import Parameter

# An optimizer's state_dict.


class Destination(NamedTuple):
    """Where the state of one parameter goes.

    Attributes:
      name: its name on the other side; a position where that side has no names.
      rank: its place in the other side's order.
      transform: of its layout.
      ours: our name.
    """

    name: Any
    rank: int
    transform: LayoutChange
    ours: str


def optimizer_to_ours(
    state_dict: Mapping[str, Any], names: Names | None, transforms: Transforms, like: Any
) -> StateDict:
    """torch's optimizer state_dict in our names, layouts and (as far as `like` tells) order.

    Raises:
      ValueError: something does not fit; all of it is told.
    """
    _check_is_of_optimizer(state_dict)
    rows = checked(planned(state_dict, names, transforms, like))
    wanted = wanted_by(like)
    order = {row.ours: i for i, row in enumerate(rows)}
    if wanted is not None:
        order = {name: i for i, name in enumerate(wanted.items)}
    destinations = {
        row.key: Destination(row.ours, order[row.ours], row.transform, row.ours) for row in rows
    }
    return _rebuilt(state_dict, destinations, True, wanted)


def optimizer_to_torch(
    state_dict: Mapping[str, Any], names: Names | None, transforms: Transforms, like: Any
) -> StateDict:
    """Our optimizer state_dict in torch's names, layouts and order.

    Raises:
      ValueError: something does not fit.
    """
    _check_is_of_optimizer(state_dict)
    wanted = wanted_by(like)
    items = saved_parameters(state_dict)
    ours = [item.name for item in items]
    if None in ours:
        if wanted is None or len(wanted.items) != len(items):
            raise ValueError(
                "the state_dict has no param_names: build the optimizer with names (of "
                "`named_parameters(model)`), or give it as `like`"
            )
        ours = list(wanted.items)
    table = names_for_torch(ours, names, transforms)
    destinations = {
        item.key: Destination(*table[name], name) for item, name in zip(items, ours, strict=True)
    }
    return _rebuilt(state_dict, destinations, False, wanted)


def _check_is_of_optimizer(state_dict: Any) -> None:
    if not is_of_optimizer(state_dict):
        raise TypeError(
            "names and transforms are for an optimizer's state_dict; weights_from_torch and "
            "weights_to_torch take them for a model's"
        )


def _rebuilt(
    state_dict: Mapping[str, Any],
    destinations: Mapping[Any, Destination],
    to_ours: bool,
    wanted: Wanted | None,
) -> StateDict:
    old_groups = state_dict["param_groups"]
    source = [key for group in old_groups for key in group["params"]]
    ordered = [
        sorted(group["params"], key=lambda key: destinations[key].rank) for group in old_groups
    ]
    target = [key for keys in ordered for key in keys]
    ids = {key: i for i, key in enumerate(target)}
    named = all(isinstance(destination.name, str) for destination in destinations.values())
    groups = []
    for old, keys in zip(old_groups, ordered, strict=True):
        options = {k: v for k, v in old.items() if k not in ("params", "param_names")}
        own_names = {"param_names": [destinations[key].name for key in keys]} if named else {}
        groups.append({**options, **own_names, "params": [ids[key] for key in keys]})
    state: dict[Any, Any] = {}
    for key, entries in state_dict["state"].items():
        if key not in destinations:
            state.setdefault(key, entries)
        elif vectors.is_flat(entries):
            state[0] = _moved_flat(entries, destinations, source, target, to_ours, wanted)
        else:
            where = f"the state of {destinations[key].ours}"
            state[ids[key]] = layouts.moved_entries(
                entries, destinations[key].transform, to_ours, where
            )
    for group in groups:
        _warn_of_muon(group, state_dict["state"], state, destinations, target)
    return {**state_dict, "state": state, "param_groups": groups}


def _moved_flat(
    entries: Mapping[str, Any],
    destinations: Mapping[Any, Destination],
    source: Sequence[Any],
    target: Sequence[Any],
    to_ours: bool,
    wanted: Wanted | None,
) -> dict[str, Any]:
    if source == target and all(
        destination.transform is layouts.identity for destination in destinations.values()
    ):
        return dict(entries)
    if wanted is None:
        raise ValueError(
            "L-BFGS keeps vectors of all parameters: to cut them the shapes and the order here are "
            "needed. Give `like`: the optimizer here, or its parameters"
        )
    parts = {}
    for key, destination in destinations.items():
        shape, dtype = wanted.items[destination.ours]
        if to_ours:
            shape = layouts.shape_after(destination.transform.inverse, shape, destination.ours)
        function = destination.transform.forward if to_ours else destination.transform.inverse
        is_complex = np.issubdtype(dtype, np.complexfloating)
        parts[key] = VectorPart(shape, function, is_complex, destination.ours)
    return vectors.moved_vectors(entries, vectors.vector_index(source, target, parts))


def _warn_of_muon(
    group: Mapping[str, Any],
    old: Mapping[Any, Any],
    new: Mapping[Any, Any],
    destinations: Mapping[Any, Destination],
    order: Sequence[Any],
) -> None:
    """Warns where a matrix of Muon's changes its proportions, and with them the size of its steps.

    Args:
      group: of the new state_dict.
      old: the state before.
      new: the state after.
      destinations: by the old keys.
      order: the old keys in the order of the new ids.
    """
    if "ns_coefficients" not in group or group.get("adjust_lr_fn") == "match_rms_adamw":
        return
    for i in group["params"]:
        shapes = [layouts.entries_shape(x) for x in (old.get(order[i], {}), new.get(i, {}))]
        if shapes[0] != shapes[1]:
            warnings.warn(
                f"Muon's step of {destinations[order[i]].ours} has the factor "
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
        row.ours: layouts.applied(row.transform.forward, state_dict[row.key], row.ours)
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
    table = names_for_torch(list(arrays), names, transforms)
    return {
        str(theirs): layouts.applied(transform.inverse, arrays[name], name)
        for name, (theirs, _, transform) in sorted(table.items(), key=lambda item: item[1][1])
    }
