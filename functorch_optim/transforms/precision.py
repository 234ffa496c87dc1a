"""The precision in which a transform keeps its state."""

from __future__ import annotations

from typing import Any

from functorch_optim.averages.weights import WeightAverage
from functorch_optim.core import trees
from functorch_optim.core.abstract import abstract_aware
from functorch_optim.core.equal_pairs import value_equal
from functorch_optim.core.pair import GradientTransformation, Pair, Params, State, member
from functorch_optim.core.sums import in_sum_dtype


@value_equal
def float32_state(tx: Pair) -> GradientTransformation:
    """Keeps the state of a transform in float32 where parameters are float16 or bfloat16.

    By default the buffers of algorithms have their parameter's dtype, as in torch, and a bfloat16
    second moment stops following small gradients: its 8 bits do not hold `0.999 * v + 0.001 * g *
    g`. Updates are computed in float32 either way, and are in the parameter's dtype either way.

    An average of weights (`swa_average()`, ...) keeps its sums in float32 anyway; wrapped, what its
    update returns is float32 too.

    Args:
      tx: a pair of this library (each keeps the dtype that a buffer has), or a chain of them.

    Raises:
      TypeError: tx is not a pair.
    """
    member(tx, "the transform of float32_state")

    @abstract_aware
    def init(params: Params) -> State:
        return tx.init(_widened(params))

    if isinstance(tx, WeightAverage):
        return GradientTransformation(
            init, lambda params, state: tx.update(_widened(params), state)
        )
    return GradientTransformation(init, tx.update)


def _widened(params: Params) -> Any:
    ps, treedef = trees.flatten(params)
    return treedef.unflatten([in_sum_dtype(p, None) for p in ps])
