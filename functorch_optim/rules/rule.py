"""What an algorithm says: the math of one leaf, and the facts that surround it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from functorch_optim.core import trees
from functorch_optim.rules.numbers import Decay, StepNumbers

Buffers = tuple[Any, ...]
"""A leaf's arrays between two steps, in the order of the state's fields; `None` where absent."""

Leaf = Callable[[jax.Array, Any, Buffers, StepNumbers], tuple[jax.Array, Buffers]]


class WholeTree(NamedTuple):
    """Numbers that depend on every leaf: sums over the tree, taken before the leaf function.

    Attributes:
      measure: `measure(g, p, buffers, s) -> {name: 0-d array}`, a leaf's shares. It gets what the
        leaf function gets.
      settle: `settle(s, totals) -> StepNumbers`, the numbers for the leaf function. `totals` has
        the sums of the shares over all leaves that are trained, in the widest float in use.
    """

    measure: Callable[[jax.Array, Any, Buffers, StepNumbers], Mapping[str, jax.Array]]
    settle: Callable[[StepNumbers, Mapping[str, jax.Array]], StepNumbers]


class Carried(NamedTuple):
    """Numbers besides `step` that pass from step to step, each a field of the state.

    Attributes:
      names: of the fields. The step's numbers hold the new values under the same names.
      start: `start(h)` gives the first values; `None` for one that is not kept.
      in_float32: they are kept in float32 whatever the parameters are, as torch does; else in the
        widest dtype of the parameters. Integers are kept in int32.
    """

    names: tuple[str, ...] = ()
    start: Callable[[SimpleNamespace], tuple[Any, ...]] = lambda h: ()
    in_float32: bool = True


class SparseGradients(NamedTuple):
    """What an algorithm does with a sparse gradient.

    Attributes:
      entrywise: `entrywise(h)`, whether a step leaves everything as it is where the gradient has no
        entry. It is then computed on the entries alone, and has a sparse update; else the gradient
        is made dense. `None` where sparse gradients are refused.
      hint: what torch adds to the message where they are refused.
      with_decay: weight decay may go with them.
      dense_error: torch's words for a dense gradient, where only sparse ones are taken.
    """

    entrywise: Callable[[SimpleNamespace], bool] | None = None
    hint: str = ""
    with_decay: bool = True
    dense_error: str | None = None


class TorchFacts(NamedTuple):
    """What is so in torch's class of the algorithm, and nowhere else.

    Attributes:
      has_step: its state has a `step`.
      step_is_int: which is a Python number.
      eager: it creates the state at construction, not at the first step.
      lists_complex: it lists the complex parameters that it cannot train.
      takes_nan: hyperparameters for which it takes NaN.
    """

    has_step: bool = True
    step_is_int: bool = False
    eager: bool = False
    lists_complex: bool = False
    takes_nan: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Rule:
    """The math of an algorithm, for one leaf. Equal only to itself: it selects compiled programs.

    Attributes:
      name: the class's, for messages.
      state: the NamedTuple of the pair's state: `step`, the `carried` numbers, and the buffers.
      init: `init(p, h) -> buffers`, in the order of `state`. A buffer may have any shape. `p` is
        real: a complex leaf comes as `(..., 2)`, and a buffer of that shape is kept as a complex
        one, every other as a real one.
      scalars: `scalars(t, h, *carried) -> StepNumbers` for update number t = 1, 2, ...: arithmetic
        on numbers with the helpers of `core/arithmetic.py`. `h` has the hyperparameters by name.
      leaf: `leaf(g, p, buffers, s) -> (update, buffers)`, all real arrays of one dtype. `g` has
        `maximize` and coupled weight decay in it already. `p` is `None` where the caller has none.
        `s.machine_epsilon` is that of the parameter's own dtype.
      whole_tree: numbers that depend on all leaves, if there are any.
      carried: numbers that pass from step to step.
      decay: who applies weight decay.
      needs_params: why the leaf reads the parameter, for the error when it is missing.
      accepts: `accepts(p)` raises for a parameter that the algorithm cannot train.
      sparse: what it does with sparse gradients.
      torch: what is so in torch's class alone.
    """

    name: str
    state: Any
    init: Callable[[jax.Array, SimpleNamespace], Buffers]
    scalars: Callable[..., StepNumbers]
    leaf: Leaf
    whole_tree: WholeTree | None = None
    carried: Carried = dataclasses.field(default_factory=Carried)
    decay: Decay = Decay.COUPLED
    needs_params: str | None = None
    accepts: Callable[[Any], None] = lambda p: None
    sparse: SparseGradients = dataclasses.field(default_factory=SparseGradients)
    torch: TorchFacts = dataclasses.field(default_factory=TorchFacts)

    @property
    def buffers(self) -> tuple[str, ...]:
        """The names of the per-parameter buffers."""
        others = ("step", *self.carried.names)
        return tuple(name for name in self.state._fields if name not in others)

    def gradient(self, g: Any, h: SimpleNamespace, decays: bool) -> Any:
        """A gradient as the step takes it: an array, or a sparse one for a step on its entries.

        Raises:
          RuntimeError: torch's, for a gradient that is refused.
        """
        if not trees.is_sparse(g):
            self.check_dense()
            return g if isinstance(g, jax.Array) else jnp.asarray(g)
        if self.sparse.entrywise is None:
            raise RuntimeError(f"{self.name} does not support sparse gradients{self.sparse.hint}")
        if decays and not self.sparse.with_decay:
            raise RuntimeError("weight_decay option is not compatible with sparse gradients")
        return g.todense() if decays or not self.sparse.entrywise(h) else g

    def check_dense(self) -> None:
        """Raises torch's RuntimeError if dense gradients are refused."""
        if self.sparse.dense_error is not None:
            raise RuntimeError(self.sparse.dense_error)


def zeros(count: int) -> Callable[[jax.Array, SimpleNamespace], Buffers]:
    """An `init` of so many buffers that start at 0."""
    return lambda p, h: tuple(jnp.zeros_like(p) for _ in range(count))
