"""flax's nnx modules in the stateful layer: `interop.flax.parameters`.

An nnx module holds its weights in Variables, which are cells as a `Parameter` is one. Here a
Parameter is a view of a Variable: there is one place for the value, the module's own.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functorch_optim.stateful.memory.cell import OUTSIDE, READ, Cell
from functorch_optim.stateful.parameter import Parameter

try:
    from flax import nnx
except ImportError as error:
    raise ImportError(
        'functorch_optim.interop.flax needs flax: pip install "functorch_optim[flax]"'
    ) from error


_Path = tuple[Any, ...]
_Flat = list[tuple[_Path, Any]]


def parameters(module: Any, wrt: Any = nnx.Param) -> ModuleParameters:
    """An nnx module as a model of the stateful layer: what a step writes, the module has.

    `model = parameters(module)`, `opt = optim.Adam(optim.named_parameters(model))`, then
    `optim.backward(loss_fn, model, batch)` or `opt.make_step(loss_fn, model)`, whose loss function
    is `loss_fn(module, *args)`. It gets a copy of the module: what the forward pass writes to other
    Variables (the statistics of batch norm, counts of random streams) is lost, unless loss_fn
    returns it (`has_aux=True`) and you put it in by `nnx.update`.

    Args:
      module: an nnx module, or any other node of an nnx graph.
      wrt: a filter of nnx: which Variables are Parameters. All others are constants, read at each
        call. Default: `nnx.Param`.

    Returns:
      A tree for the functions that take models (`optim.values` makes a plain copy of the module of
      it). Parameters are named by their paths, `"layers.0.kernel"`; a Variable in two places is
      one.

    Raises:
      TypeError: a Variable to train holds something else than an array.
      ValueError: there is none.
    """
    return ModuleParameters(module, wrt)


class VariableCell(Cell):
    """A Variable as the place of an array. The module can be read and written beside it.

    So the references are counted at every step, and what no step wrote is somebody's.
    """

    __slots__ = ("_written", "variable")

    def __init__(self, variable: Any):
        self.variable = variable
        self._written: Any = None  # what was put in last, weakly

    @property
    def array(self) -> Any:  # in place of Cell's slot
        """The Variable's value."""
        return self.variable.get_raw_value()

    @array.setter
    def array(self, value: Any) -> None:
        if value is not self.array:
            self.variable.set_raw_value(value)
        self._written = weakref.ref(value)

    @property
    def held(self) -> int:  # in place of Cell's slot
        """Never `NOBODY`, for the module may be looked at."""
        own = self._written is not None and self._written() is self.array
        return READ if own else OUTSIDE

    @held.setter
    def held(self, value: int) -> None:
        if value == OUTSIDE:
            self._written = None

    def _alone(self) -> int:
        return _ALONE

    def __getstate__(self) -> Any:
        return self.variable

    def __setstate__(self, variable: Any) -> None:
        self.variable = variable
        self._written = None


class VariableParameter(Parameter):
    """A Parameter whose value is that of an nnx Variable.

    Args:
      variable: the Variable.
      name: shown in messages and by `named_parameters`.
    """

    __slots__ = ("variable",)

    def __init__(self, variable: Any, name: str):
        self.variable = variable
        data = variable.get_raw_value()
        if not isinstance(data, jax.Array | np.ndarray | np.generic):
            raise TypeError(f"the Variable {name!r} should hold an array, but holds {data!r}")
        super().__init__(data, name=name)
        self._cell = VariableCell(variable)

    def __deepcopy__(self, memo: Any) -> Parameter:
        """A plain Parameter: what a copied optimizer does is nothing to the module."""
        copied = Parameter(jnp.copy(self._data), self.requires_grad, self.name)
        copied.grad = self.grad
        return copied


class ModuleParameters:
    """A module as a tree: its leaves are Parameters and the arrays of all other Variables.

    Put together again from values, the leaves are a copy of the module: of its class, with what it
    shares.
    """

    def __init__(self, module: Any, wrt: Any):
        self._module = module
        self._wrt = tuple(wrt) if isinstance(wrt, list) else wrt  # hashable, for jit
        _, chosen, _ = self._split()
        self._keep(VariableParameter(variable, _dotted(path)) for path, variable in chosen)
        if not chosen:
            raise ValueError(f"parameters: the module has no Variable of the kind {wrt}")

    def _keep(self, cells: Iterable[VariableParameter]) -> None:
        # By identity, as in the graph. A Parameter keeps its Variable alive, and so the id.
        self._cells = {id(cell.variable): cell for cell in cells}

    def __getstate__(self) -> Any:
        return self._module, self._wrt, list(self._cells.values())

    def __setstate__(self, state: Any) -> None:
        self._module, self._wrt, cells = state
        self._keep(cells)

    def __deepcopy__(self, memo: Any) -> ModuleParameters:
        copied = ModuleParameters(copy.deepcopy(self._module, memo), self._wrt)
        for new, old in zip(jax.tree.leaves(copied), jax.tree.leaves(self), strict=True):
            if isinstance(old, Parameter):
                new.requires_grad, new.grad = old.requires_grad, old.grad
        return copied

    def _split(self) -> tuple[Any, _Flat, _Flat]:
        """The module as it is now: its graph, the Variables to train and all others, by path."""
        graphdef, *states = nnx.split(self._module, self._wrt, ..., graph=True)
        chosen, rest = (list(nnx.to_flat_state(state)) for state in states)
        return graphdef, chosen, rest

    def _cell(self, path: _Path, variable: Any) -> VariableParameter:
        if id(variable) not in self._cells:
            raise RuntimeError(
                f"the module has got another Variable {_dotted(path)!r} since `parameters` was "
                "called: call it again, and give what it returns to an optimizer"
            )
        return self._cells[id(variable)]

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, Any], ...], Any]:
        """jax's protocol. The module is read each time, so that what is set there counts."""
        graphdef, chosen, rest = self._split()
        children: _Flat = [(path, self._cell(path, variable)) for path, variable in chosen]
        children += [(path, _value(leaf)) for path, leaf in rest]
        keyed = tuple([(jax.tree_util.DictKey(_dotted(path)), child) for path, child in children])
        return keyed, (graphdef, tuple([path for path, _ in children]), self._wrt)

    @classmethod
    def tree_unflatten(cls, aux: Any, children: Iterable[Any]) -> Any:
        """jax's protocol: of Parameters of a module this class again, of values a module."""
        graphdef, paths, wrt = aux
        children = list(children)
        cells = [child for child in children if isinstance(child, VariableParameter)]
        if not cells:
            return nnx.merge(graphdef, nnx.from_flat_state(zip(paths, children, strict=True)))
        if any(type(child) is Parameter for child in children):
            raise TypeError(
                "an optimizer takes the Parameters of a module that has other Variables, too: "
                "give it optim.named_parameters(model)"
            )
        model = cls.__new__(cls)
        model.__setstate__((_around(graphdef, paths, children), wrt, cells))
        return model


jax.tree_util.register_pytree_with_keys_class(ModuleParameters)


def _value(leaf: Any) -> Any:
    return leaf.get_raw_value() if isinstance(leaf, nnx.Variable) else leaf


def _around(graphdef: Any, paths: Sequence[_Path], children: Sequence[Any]) -> Any:
    """A module with the Variables of these Parameters."""
    values = [c.data if isinstance(c, VariableParameter) else c for c in children]
    module = nnx.merge(graphdef, nnx.from_flat_state(zip(paths, values, strict=True)))
    variables = dict(nnx.to_flat_state(nnx.split(module, graph=True)[1]))
    for path, child in zip(paths, children, strict=True):
        if isinstance(child, VariableParameter):
            variables[path] = child.variable
    state = nnx.from_flat_state(list(variables.items()))
    return nnx.merge(graphdef, state, recreate_variables=False)


def _dotted(path: _Path) -> str:
    return ".".join(map(str, path))


def _references_when_alone() -> int:
    variable = nnx.Variable(object())  # any object: no backend is started for it
    return VariableCell(variable)._references()


# What `_references` counts when the Variable alone holds its array: measured, as in `Cell`.
_ALONE = _references_when_alone()
