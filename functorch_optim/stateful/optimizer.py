"""torch's Optimizer over compiled pure pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from functorch_optim import leaves
from functorch_optim.per_leaf import Factory, Rule, hyperparameters_at
from functorch_optim.scalars import is_number
from functorch_optim.stateful import checkpoint, groups, program
from functorch_optim.stateful.model import arrays, split, values
from functorch_optim.stateful.numbers import numbers_of
from functorch_optim.stateful.parameter import Parameter
from functorch_optim.stateful.storage import Record, StateView, prepared


class Part(NamedTuple):
    """The part of one group that takes part in a step."""

    hyperparameters: Mapping[str, Any]
    parameters: list[Parameter]
    records: list[Record]


class Optimizer:
    """An optimizer with torch's interface; the classes of this package derive from it.

    Attributes:
      param_groups: list of dicts. A changed hyperparameter takes effect at the next step without
        a recompile; a changed flag (`amsgrad`, `nesterov`, `maximize`) selects another program.
      defaults: the constructor's hyperparameters.
      compile_count: how many programs this optimizer's steps have caused to be traced.
    """

    _factory: Factory[Any]

    def __init__(self, params: Any, defaults: Mapping[str, Any]):
        self.defaults: dict[str, Any] = dict(defaults)
        self.param_groups: list[dict[str, Any]] = []
        self.compile_count = 0
        self._opt_called = False  # for the schedulers' warning about the order of calls
        self._records: dict[Parameter, Record] = {}
        given, self._tree = groups.normalized(params)
        for group in given:
            self._append(group)
        every = {p for group in self.param_groups for p in group["params"]}
        for p in every:
            self._rule.accepts(p._data)
        if self._rule.eager:
            for part in self._parts(every):
                self._records.update(zip(part.parameters, part.records, strict=True))

    @property
    def state(self) -> StateView:
        """torch's state of each parameter, `opt.state[p]["exp_avg"]`, to read."""
        return StateView(self._records, self._rule)

    @property
    def params(self) -> Any:
        """The current values, in the tree (or list) that was given at construction."""
        return values(self._tree)

    @property
    def _rule(self) -> Rule:
        return self._factory.rule

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, `{"params": ..., **options}`; missing options are the defaults.

        Raises:
          TypeError, ValueError: as at construction; nothing is added then.
        """
        group, _ = groups.normalized_group(param_group)
        self._append(group)

    def _append(self, group: dict[str, Any]) -> None:
        groups.check_against(group, self.param_groups)
        for name, default in self.defaults.items():
            group.setdefault(name, default)
        self.param_groups.append(group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Sets every gradient to `None`, or to zeros."""
        for group in self.param_groups:
            for p in group["params"]:
                keep = not set_to_none and p.grad is not None
                p.grad = jnp.zeros_like(p.grad) if keep else None

    def step(self, closure: Any = None) -> Any:
        """Updates every parameter that has a gradient, all in one compiled call.

        Args:
          closure: a function that computes gradients and returns the loss, called once; or a tree
            of gradients that matches `params`, used instead of `.grad`.

        Returns:
          What the closure returned, else `None`.

        Raises:
          TypeError: gradients that do not match, a gradient of an integer parameter, a
            hyperparameter that is no number. ValueError: a gradient's shape, a hyperparameter that
            is NaN. KeyError: a flag was set that needs a buffer from the first step on. Nothing is
            changed then.
        """
        result = closure() if callable(closure) else None
        if closure is None or callable(closure):
            grads = {p: p.grad for group in self.param_groups for p in group["params"]}
        else:
            grads = self._matched(closure)
        parts = self._parts({p for p, grad in grads.items() if grad is not None})
        if parts:
            dense = self._rule.dense
            ordered = [[dense(grads[p]) for p in part.parameters] for part in parts]
            self._run(
                parts,
                lambda rule, layouts, data, buffers, numbers: (
                    None,
                    *program.compiled_update(rule, layouts, data, buffers, ordered, numbers),
                ),
            )
        return result

    def make_step(
        self, loss_fn: Callable[..., Any], model: Any, has_aux: bool = False
    ) -> Callable[..., Any]:
        """A training step as ONE compiled program: forward, backward and update.

        Args:
          loss_fn: `loss_fn(params, *args) -> loss`, where params is the model's plain tree.
          model: a tree with Parameters. Those that this optimizer holds and that require a
            gradient are trained; all else is constant.
          has_aux: loss_fn returns `(loss, aux)`.

        Returns:
          `train_step(*args)`: updates the parameters and returns the loss (or `(loss, aux)`)
          without waiting for it. Hyperparameters stay live: they are read from `param_groups` at
          every call. `.grad` is neither read nor written.

        Raises:
          ValueError: no Parameter of the model is held by this optimizer (from `train_step`).
        """
        train = program.compiled_train_step(loss_fn, has_aux)

        def train_step(*args: Any) -> Any:
            held = {p for group in self.param_groups for p in group["params"]}
            skeleton, trained, constant = split(model, held)
            if not trained:
                raise ValueError("make_step: no Parameter of the model is held by this optimizer")
            parts = self._parts(set(trained))
            place = {p: (i, j) for i, part in enumerate(parts) for j, p in enumerate(part[1])}
            places = tuple(place[p] for p in trained)
            self._opt_called = True
            return self._run(
                parts,
                lambda rule, layouts, data, buffers, numbers: train(
                    rule, layouts, skeleton, places, data, buffers, arrays(constant), numbers, args
                ),
            )

        return train_step

    def state_dict(self) -> dict[str, Any]:
        """torch's layout: `{"state": {id: {...}}, "param_groups": [...]}`.

        The arrays stay as they are when the optimizer goes on.
        """
        return checkpoint.packed(self.param_groups, self.state)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over hyperparameters and state, matched by position as in torch.

        Floating-point buffers are cast to their parameter's dtype. Hyperparameters that the saved
        groups lack stay as they are (torch drops them).

        Raises:
          ValueError: a wrong number of groups or parameters, a wrong shape, an invalid step.
          TypeError: a wrong dtype or structure. The optimizer is unchanged then.
        """
        new_groups, records = checkpoint.unpacked(
            state_dict, self.param_groups, self._rule, self._factory.fixed
        )
        self.param_groups, self._records = new_groups, records

    def __repr__(self) -> str:
        text = f"{type(self).__name__} ("
        for index, group in enumerate(self.param_groups):
            text += f"\nParameter Group {index}\n"
            for key in sorted(group):
                if key != "params":
                    text += f"    {key}: {group[key]}\n"
        return text + ")"

    def __getstate__(self) -> dict[str, Any]:
        # As torch: what was put on this object from outside (a scheduler's step) stays behind.
        names = ("defaults", "param_groups", "compile_count", "_opt_called", "_records", "_tree")
        return {name: getattr(self, name) for name in names}

    def _matched(self, grads: Any) -> dict[Parameter, Any]:
        """A tree of gradients, by Parameter."""
        cells, treedef = leaves.flatten(self._tree)
        given = leaves.flatten_like(grads, treedef, "grads")
        return {
            p: None if grad is None or leaves.is_float0(grad) else p.checked_gradient(grad)
            for p, grad in zip(cells, given, strict=True)
        }

    def _parts(self, members: Collection[Parameter]) -> list[Part]:
        """The parts of the groups that are among these members, checked and ready."""
        parts = []
        for index, group in enumerate(self.param_groups):
            chosen = [p for p in dict.fromkeys(group["params"]) if p in members]
            if not chosen:
                continue
            hyperparameters = self._hyperparameters(index, group)
            flags = _flags(self._rule, hyperparameters)
            records = []
            for p in chosen:
                record = self._records.get(p)
                if record is None or record.flags is not flags:
                    h = hyperparameters_at(hyperparameters, 0)
                    record = prepared(record, self._rule, p, h, flags)
                records.append(record)
            parts.append(Part(hyperparameters, chosen, records))
        return parts

    def _hyperparameters(self, index: int, group: Mapping[str, Any]) -> dict[str, Any]:
        """A group's values of the factory's arguments, checked to be usable."""
        found = {}
        for name, default in self._factory.defaults.items():
            value = group.get(name, default)
            value = tuple(value) if isinstance(value, list) else value
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, str) and not (default is None or isinstance(default, str)):
                    raise TypeError(
                        f"param_groups[{index}][{name!r}] should be a number, an array or a "
                        f"schedule, but is {value!r}"
                    )
                if isinstance(item, float) and math.isnan(item):
                    raise ValueError(f"param_groups[{index}][{name!r}] is {value!r}")
            found[name] = value
        return found

    def _run(self, parts: Sequence[Part], compute: Callable[..., Any]) -> Any:
        """Runs a compiled program on the parts' values and buffers, and keeps its results."""
        rule = self._rule
        layouts, numbers, carried = numbers_of(rule, [(part[0], part[2]) for part in parts])
        buffers = [[record.release() for record in part.records] for part in parts]
        data = [[p.release() for p in part.parameters] for part in parts]
        traced = program.trace_count()
        try:
            result, new_data, new_buffers = compute(rule, layouts, data, buffers, numbers)
        except Exception as error:
            if any(x.is_deleted() for x in jax.tree.leaves((data, buffers))):
                raise RuntimeError(
                    "the step failed after its parameters and state were given to the device: "
                    "they are lost. Restore them from a checkpoint."
                ) from error
            raise
        self.compile_count += program.trace_count() - traced
        for part, *columns in zip(parts, new_data, new_buffers, carried, strict=True):
            for p, record, *new in zip(part.parameters, part.records, *columns, strict=True):
                p.replace(new[0])
                record.replace(new[1], new[2])
                self._records[p] = record
        return result


def _flags(rule: Rule, hyperparameters: Mapping[str, Any]) -> Hashable:
    """What of the hyperparameters decides which buffers there are: all but the size of numbers.

    The same object for equal flags, so that a comparison is `is`.
    """
    flags: list[Hashable] = []
    for name, value in hyperparameters.items():
        if isinstance(value, bool | str | None) or name in rule.static:
            flags.append(value)
        else:
            flags.append((type(value), is_number(value) and value == 0))
    return _unique.setdefault(tuple(flags), tuple(flags))


_unique: dict[Hashable, Hashable] = {}
