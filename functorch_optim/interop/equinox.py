"""equinox models as parameters: `interop.equinox.filtered`.

An equinox model is a tree whose leaves are arrays and anything else: activation functions, sizes.
"""

from __future__ import annotations

from typing import Any

from functorch_optim.core.equal_pairs import value_equal
from functorch_optim.core.pair import GradientTransformation, Params, State, Updates, member

try:
    import equinox as eqx
except ImportError as error:
    raise ImportError(
        'functorch_optim.interop.equinox needs equinox: pip install "functorch_optim[equinox]"'
    ) from error


@value_equal
def filtered(tx: GradientTransformation) -> GradientTransformation:
    """A pair for whole equinox models: it sees their floating point arrays, and `None` elsewhere.

    `init(model)` and `update(grads, state, model)` take the model as it is, `grads` being what
    `eqx.filter_grad` returns. Updates are `None` where the model has no such array, which both
    `eqx.apply_updates` and `functorch_optim.apply_updates` leave alone. The state holds arrays
    only. It is the same as calling the pair with `eqx.filter(model, eqx.is_inexact_array)`.

    Args:
      tx: a pair of this library, of optax, or of any other with its protocol.

    Raises:
      TypeError: tx is not a pair.
    """
    inner = member(tx, "the transform of filtered")

    def init(params: Params) -> State:
        return inner.init(_arrays(params))

    def update(
        grads: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        seen = None if params is None else _arrays(params)
        return inner.update(_arrays(grads), state, seen, **extra)

    return GradientTransformation(init, update)


def _arrays(tree: Any) -> Any:
    return eqx.filter(tree, eqx.is_inexact_array)
