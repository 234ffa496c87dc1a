"""The memory of L-BFGS: one state for all parameters, as torch keeps it under the first of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from functorch_optim.algorithms.lbfgs import (
    FlatVector,
    LBFGSState,
    empty,
    search_numbers,
    uses_search,
)
from functorch_optim.rules.numbers import hyperparameters_at
from functorch_optim.stateful.parameter import Parameter
from functorch_optim.stateful.step import hyperparameters
from functorch_optim.stateful.step.program import Part, Prepared

# A group's entries, with torch's defaults.
DEFAULTS: Mapping[str, Any] = {
    "lr": 1,
    "max_iter": 20,
    "max_eval": 25,
    "tolerance_grad": 1e-7,
    "tolerance_change": 1e-9,
    "history_size": 100,
    "line_search_fn": None,
}


class SearchPlan(NamedTuple):
    """Selects the program of a step."""

    searches: bool
    stop_on_nan: bool


class LBFGSMemory:
    """What an L-BFGS optimizer remembers."""

    arguments: Collection[str] = tuple(DEFAULTS)
    fixed: Mapping[str, Any] = {}

    def __init__(self, stop_on_nan: bool):
        self.stop_on_nan = stop_on_nan
        self.owner: Parameter | None = None
        self.state: LBFGSState | None = None
        self.steps = 0
        self._read = False

    def begin(self, parameters: Collection[Parameter], parts: Sequence[Part]) -> None:
        """Nothing: state is created at the first step."""

    def prepare(self, parts: Sequence[Part]) -> Prepared:
        """The next step of all parameters.

        Raises:
          TypeError, ValueError: an unusable hyperparameter, or other parameters than before.
          RuntimeError: an unknown line search.
        """
        ((index, group, parameters),) = parts
        values = hyperparameters.checked(DEFAULTS, group, index)
        plan = SearchPlan(uses_search(values["line_search_fn"]), self.stop_on_nan)
        state = self.at_hand(parameters, values["history_size"])
        if self._read:
            state = jax.tree.map(jnp.copy, state)
        h = hyperparameters_at(values, self.steps)

        def commit(new: LBFGSState) -> None:
            self.owner, self.state, self._read = parameters[0], new, False
            self.steps += 1

        return Prepared(plan, state, search_numbers(h, state.d.dtype), commit)

    def at_hand(self, parameters: Sequence[Parameter], history_size: int) -> LBFGSState:
        """The state of these parameters, with a history of this size."""
        if not isinstance(history_size, int) or history_size < 1:
            raise ValueError(f"history_size should be a positive integer, but got {history_size!r}")
        if self.state is None:
            return _fresh(parameters, history_size)
        size = _layout(parameters).size
        if self.state.d.size != size:
            raise ValueError(
                f"the state is that of {self.state.d.size} numbers, the parameters have {size}: "
                "they changed after the first step"
            )
        if self.state.ro.size != history_size:
            return from_torch(to_torch(self.state), _fresh(parameters, history_size), 0)
        return self.state

    def held(self, parts: Sequence[Part]) -> list[jax.Array]:
        """The arrays of the state."""
        return jax.tree.leaves(self.state)

    def shown(self) -> LBFGSState | None:
        """The state, for somebody who may keep it."""
        self._read = True
        return self.state

    def view(self) -> dict[Parameter, dict[str, Any]]:
        """torch's dict, under the first parameter."""
        state = self.shown()
        return {} if state is None or self.owner is None else {self.owner: to_torch(state)}

    def loaded(
        self, entries: Mapping[Parameter, tuple[Any, Any]], parts: Sequence[Part]
    ) -> LBFGSMemory:
        """A new memory from torch's dicts, each with its key for messages.

        Raises:
          TypeError, ValueError: entries that cannot be these parameters'.
        """
        memory = LBFGSMemory(self.stop_on_nan)
        memory._read = True
        for _, group, parameters in parts:
            for p, (key, entry) in entries.items():
                if p is not parameters[0]:
                    raise ValueError(
                        f"state of parameter {key}: L-BFGS keeps its state under the first one"
                    )
                fresh = _fresh(parameters, group["history_size"])
                memory.owner, memory.state = p, from_torch(entry, fresh, key)
        return memory


def to_torch(state: LBFGSState) -> dict[str, Any]:
    """torch's per-parameter dict: the pairs as lists, the oldest first."""
    n_iter = int(state.n_iter)
    found: dict[str, Any] = {"func_evals": int(state.func_evals), "n_iter": n_iter}
    if n_iter == 0:
        return found
    size, pairs = state.ro.size, int(state.pairs)
    slots = [i % size for i in range(max(0, pairs - size), pairs)]
    if n_iter > 1:
        found["al"] = [None] * size  # torch's scratch
    return found | {
        "d": state.d,
        "t": state.t,
        "old_dirs": [state.old_dirs[i] for i in slots],
        "old_stps": [state.old_stps[i] for i in slots],
        "ro": [state.ro[i] for i in slots],
        "H_diag": state.H_diag,
        "prev_flat_grad": state.prev_flat_grad,
        "prev_loss": float(state.prev_loss),
    }


def from_torch(entry: Mapping[str, Any], fresh: LBFGSState, key: Any) -> LBFGSState:
    """A state from torch's per-parameter dict; of more pairs than fit, the newest.

    Args:
      entry: torch's dict.
      fresh: a state of the right sizes.
      key: of the entry, for messages.

    Raises:
      TypeError: a complex entry. ValueError: one that is missing, or has another shape.
    """

    def fitting(name: str, value: Any, like: jax.Array) -> jax.Array:
        array = np.asarray(value)
        if array.size != like.size or (like.ndim and array.shape != like.shape):
            raise ValueError(
                f"state of parameter {key}: {name} has shape {array.shape}, but should have shape "
                f"{like.shape}"
            )
        if np.iscomplexobj(array):
            raise TypeError(f"state of parameter {key}: {name} should not be complex")
        return jnp.array(array.reshape(like.shape), like.dtype)

    def of(name: str) -> Any:
        if name not in entry:
            raise ValueError(f"state of parameter {key} lacks {name!r}; it has {[*entry]}")
        return entry[name]

    counts = {name: fitting(name, of(name), fresh.n_iter) for name in ("func_evals", "n_iter")}
    state = fresh._replace(**counts)
    if entry.get("d") is None:
        return state
    rings = {name: list(of(name)) for name in ("old_dirs", "old_stps", "ro")}
    lengths = {name: len(ring) for name, ring in rings.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"state of parameter {key}: pairs of different number: {lengths}")
    filled = {}
    for name, ring in rings.items():
        target = getattr(fresh, name)
        rows = [fitting(name, row, target[0]) for row in ring[-target.shape[0] :]]
        filled[name] = target.at[: len(rows)].set(jnp.stack(rows)) if rows else target
    single = {
        name: fitting(name, of(name), getattr(fresh, name))
        for name in ("d", "t", "H_diag", "prev_flat_grad", "prev_loss")
    }
    kept = min(lengths["ro"], fresh.ro.size)
    return state._replace(**filled, **single, pairs=jnp.asarray(kept, jnp.int32))


def _fresh(parameters: Sequence[Parameter], history_size: int) -> LBFGSState:
    layout = _layout(parameters)
    return empty(layout.size, layout.dtype, history_size)


def _layout(parameters: Sequence[Parameter]) -> FlatVector:
    return FlatVector([p._data for p in parameters])
