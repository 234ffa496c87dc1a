"""A model's average over training: torch's `AveragedModel` for trees of Parameters."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functorch_optim.averages import weights
from functorch_optim.averages.weights import AverageState, WeightAverage
from functorch_optim.core import trees
from functorch_optim.core.counting import LAST
from functorch_optim.stateful.memory.cell import VALUES, Changes, alone
from functorch_optim.stateful.model import parameters, values
from functorch_optim.stateful.parameter import Parameter

Model = Any


class AveragedModel:
    """A copy of a model, whose parameters are an average of what the model's were.

    By default the mean of all parameters given to `update_parameters`, each with equal weight
    (stochastic weight averaging); with `get_ema_avg_fn` an exponential moving average::

        swa_model = AveragedModel(model)
        ...  # after each epoch of the last part of training
        swa_model.update_parameters(model)
        ...  # at the end
        update_bn(loader, swa_model, apply_fn)
        params = optim.values(swa_model.module)

    Args:
      model: a tree of Parameters. Its other arrays are its buffers (running statistics, say). In a
        tree without any Parameter every array is a parameter.
      device: where the average is kept, a jax device or sharding; the model's by default.
      avg_fn: `avg_fn(average, current, n_averaged) -> average`, of one array. Traced, so that it
        does not recompile when the count (a 0-d array) changes: use jnp in it, no `if`.
      multi_avg_fn: the same for lists of all arrays. It returns a list (torch's changes its first
        argument in place).
      use_buffers: average the buffers as well (integers are truncated, as in torch); by default
        they are copied from the model at each update.

    Attributes:
      module: the copy, a tree as the model is; a new tree after an update if it has buffers.
      n_averaged: how many models were averaged so far.

    Raises:
      AssertionError: both avg_fn and multi_avg_fn are given. TypeError: one of them is no function.
    """

    def __init__(
        self,
        model: Model,
        device: Any = None,
        avg_fn: Callable[[Any, Any, Any], Any] | None = None,
        multi_avg_fn: Callable[[list[Any], list[Any], Any], Sequence[Any]] | None = None,
        use_buffers: bool = False,
    ):
        if avg_fn is not None and multi_avg_fn is not None:
            raise AssertionError("Only one of avg_fn and multi_avg_fn should be provided")
        self.avg_fn = avg_fn
        self.multi_avg_fn = multi_avg_fn
        self.use_buffers = use_buffers
        self.n_averaged = 0
        self._last_kind: Any = None
        _ = self._average  # raises for what is no function
        if not any(isinstance(x, Parameter) for x in jax.tree.leaves(model)):
            model = parameters(model)
        self.module = copy.deepcopy(model)
        flat, _, places = parts(self.module)
        for x in flat:
            if isinstance(x, Parameter):
                x.grad = None
                if device is not None:
                    x.data = jax.device_put(x.data, device, may_alias=False)
        if device is not None:
            self.set_buffers([jax.device_put(flat[i], device, may_alias=False) for i in places])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the averaged model, with values in the place of its Parameters.

        Raises:
          TypeError: the model is a tree that cannot be called. Hand `optim.values(self.module)` to
            the function that you have for it.
        """
        module = values(self.module)
        if not callable(module):
            raise TypeError(
                f"a {type(module).__name__} cannot be called; hand optim.values(averaged.module) "
                "to the function that computes the model"
            )
        return module(*args, **kwargs)

    def update_parameters(self, model: Model) -> None:
        """Takes the current parameters of the model into the average. The first ones are copied.

        One compiled program for all of them, whatever `n_averaged` is.

        Args:
          model: a tree as the one given at construction, with its Parameters or their values.

        Raises:
          TypeError, ValueError: it differs in structure or shape; nothing is changed then.
        """
        own, treedef, places = parts(self.module)
        given = trees.flatten_like(model, treedef, "model", "the averaged model")
        given = values(given)
        trees.check_shapes(given, own, treedef, "model", "the averaged model")
        current = {
            x: _placed_like(x, y)
            for x, y in zip(own, given, strict=True)
            if isinstance(x, Parameter)
        }
        buffers = [jnp.asarray(own[i]) for i in places]
        new_buffers = [_placed_like(own[i], given[i]) for i in places]
        kind = [(x.aval, x.sharding) for x in (*current.values(), *buffers, *new_buffers)]
        if kind != self._last_kind:  # it may compile
            self._take_in(current, buffers, new_buffers, kind, copies=True)
        else:
            alone(VALUES, self._take_in, current, buffers, new_buffers, kind, copies=False)

    def _take_in(
        self,
        current: Mapping[Parameter, jax.Array],
        buffers: Sequence[jax.Array],
        new_buffers: Sequence[jax.Array],
        kind: Any,
        copies: bool,
    ) -> None:
        """The next averages, in the memory of those before them, as a step does (step/run.py)."""
        cells, before = [p._cell for p in current], self.n_averaged
        averages = [cell.release(copies) for cell in cells]
        inputs = averages, list(current.values()), buffers, new_buffers
        count = np.int32(min(before, LAST))
        done: list[Any] = []

        def keep() -> None:
            ((new, new_module_buffers),) = done
            module = filled(self.module, new_module_buffers) if buffers else self.module
            changes = Changes()
            changes.put(cells, new)
            own = {"module": module, "n_averaged": before + 1, "_last_kind": kind}
            changes.update(self.__dict__, own)
            changes.make()

        chosen = self._average, self.use_buffers
        try:
            done.extend(map(_updated, *[(x,) for x in (*chosen, *inputs, count)]))
            keep()
        except BaseException:
            if done:  # an interrupt
                keep()
            raise

    def set_buffers(self, buffers: Sequence[jax.Array]) -> None:
        """Puts in all buffers, in the order of the tree: `module` is a new tree then."""
        if buffers:
            self.module = filled(self.module, buffers)

    def state_dict(self) -> dict[str, Any]:
        """`n_averaged`, and every array of the module as `module.<name>`; not the functions."""
        named = {
            name: x.data if isinstance(x, Parameter) else jnp.asarray(x)
            for name, x in self._named().items()
        }
        return {"n_averaged": jnp.asarray(min(self.n_averaged, LAST), jnp.int32), **named}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over a `state_dict()`, of this class or of torch's for a model of these names.

        Arrays are copied, in the dtypes and on the devices of this model.

        Raises:
          RuntimeError: keys are missing or unknown, or an entry cannot be the model's. The message
            names all of them; nothing is changed then.
        """
        named = self._named()
        known = ["n_averaged", *named]
        problems = [f"missing key {key!r}" for key in known if key not in state_dict]
        problems += [f"unexpected key {key!r}" for key in state_dict if key not in known]
        saved = {key: np.asarray(state_dict[key]) for key in known if key in state_dict}
        for key, array in saved.items():
            wanted = np.int64(0) if key == "n_averaged" else named[key]
            if array.shape != wanted.shape:
                problems.append(f"{key} has shape {array.shape}, but should have {wanted.shape}")
            elif not _fits(array.dtype, wanted.dtype):
                problems.append(f"{key} has dtype {array.dtype}, but should have {wanted.dtype}")
        if problems:
            raise RuntimeError(
                "Error(s) in loading state_dict for AveragedModel: " + "; ".join(problems)
            )
        loaded = {key: _placed_like(x, jnp.array(saved[key], x.dtype)) for key, x in named.items()}
        cells = {key: x._cell for key, x in named.items() if isinstance(x, Parameter)}
        buffers = [loaded[key] for key in named if key not in cells]
        changes = Changes()
        changes.put(list(cells.values()), [loaded[key] for key in cells])
        module = filled(self.module, buffers) if buffers else self.module
        changes.update(self.__dict__, {"module": module, "n_averaged": int(saved["n_averaged"])})
        changes.make()

    def _named(self) -> dict[str, Any]:
        """The arrays by their keys in a state_dict: parameters, then buffers."""
        named = {
            "module." + trees.dotted(path): x
            for path, x in jax.tree_util.tree_flatten_with_path(self.module)[0]
        }
        cells = {key: x for key, x in named.items() if isinstance(x, Parameter)}
        return cells | {key: x for key, x in named.items() if _is_array(x)}

    @functools.cached_property
    def _average(self) -> WeightAverage:
        if self.multi_avg_fn is not None:
            return weights.joint_average(self.multi_avg_fn)
        if self.avg_fn is not None:
            return weights.average(self.avg_fn)
        return weights.swa_average()

    def __getstate__(self) -> dict[str, Any]:
        # The pair consists of closures, which cannot be pickled; it is made anew when needed.
        left_out = {"_average": None, "_last_kind": None}
        return {n: x for n, x in self.__dict__.items() if n not in left_out} | {"_last_kind": None}


def parts(model: Model) -> tuple[list[Any], jax.tree_util.PyTreeDef, list[int]]:
    """A model's leaves, its structure, and which of the leaves are buffers."""
    flat, treedef = trees.flatten(model)
    return flat, treedef, [i for i, x in enumerate(flat) if _is_array(x)]


def filled(model: Model, buffers: Sequence[Any]) -> Model:
    """The same tree with other buffers."""
    flat, treedef, places = parts(model)
    for i, buffer in zip(places, buffers, strict=True):
        flat[i] = buffer
    return treedef.unflatten(flat)


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray | np.generic)


def _placed_like(x: Any, array: Any) -> jax.Array:
    cell = x if isinstance(x, Parameter) else Parameter(x)
    return cell.placed(jnp.asarray(array))


def _fits(saved: np.dtype, wanted: np.dtype) -> bool:
    """Whether a saved array may be cast: not to a kind of number that holds less."""
    if not jnp.issubdtype(saved, jnp.number) or not jnp.issubdtype(wanted, jnp.number):
        return saved == wanted
    kinds = jnp.integer, jnp.floating, jnp.complexfloating
    of = [
        next(i for i, kind in enumerate(kinds) if jnp.issubdtype(d, kind)) for d in (saved, wanted)
    ]
    return of[0] <= of[1]


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _updated(
    average: WeightAverage,
    use_buffers: bool,
    averages: list[jax.Array],
    current: list[jax.Array],
    buffers: list[jax.Array],
    new_buffers: list[jax.Array],
    n_averaged: Any,
) -> tuple[list[jax.Array], list[jax.Array]]:
    """The next averages, and the next buffers: averaged as well, or copies of the model's."""
    count = len(averages)
    copied = []
    if use_buffers:
        averages, current = averages + buffers, current + new_buffers
    else:
        copied = [
            jnp.copy(new).astype(old.dtype) for old, new in zip(buffers, new_buffers, strict=True)
        ]
    # Integers are averaged in float32 and truncated, as torch does with its counters.
    state = AverageState(n_averaged, [_in_float(x) for x in averages])
    _, after = average.update([_in_float(x) for x in current], state)
    new = [
        x
        if x.dtype == old.dtype
        else jnp.where(n_averaged == 0, y.astype(old.dtype), x.astype(old.dtype))
        for x, old, y in zip(after.average, averages, current, strict=True)
    ]
    return new[:count], new[count:] + copied


def _in_float(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.integer) else x
