"""Parameters in half precision that are trained in full precision.

    master_t = master_{t-1} + u(master_{t-1}, g_t);     p_t = master_t, rounded

Micikevicius et al., "Mixed Precision Training", ICLR 2018.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from functorch_optim.core import checks, trees, updating
from functorch_optim.core.abstract import abstract_aware
from functorch_optim.core.equal_pairs import value_equal
from functorch_optim.core.pair import (
    GradientTransformation,
    Pair,
    Params,
    PerParam,
    State,
    Updates,
    member,
)
from functorch_optim.transforms.support.rounding import cast, narrowed, step_to, wider


class MasterWeightsState(NamedTuple):
    """The wide copies (`None` where the parameter is as wide itself), and the inner state."""

    master: PerParam
    inner_state: State


@value_equal
def master_weights(tx: Pair, dtype: Any = jnp.float32) -> GradientTransformation:
    """Trains a wide copy of each narrow parameter; the parameter is the copy, rounded.

    bfloat16 has 8 bits: a step below a 256th of a parameter is lost when it is added. The inner
    pair starts from, and sees, the wide copies and gradients in their dtype; so its buffers are
    wide too. Parameters that are as wide already are given to it as they are.

    The update of a narrow parameter has the wide dtype: it is what takes the parameter to its
    rounded copy. `apply_updates` (optax's too) adds it in that dtype and rounds once, which is
    exact, except where a step makes a parameter more than 2**13 times smaller: then up to a
    rounding of the old value, and the next step makes up for it. What is written to a parameter
    from elsewhere is undone by the next step: init again.

    Args:
      tx: the inner pair.
      dtype: the wide dtype, float32 or float64. Complex parameters have the complex one of that
        precision.

    Returns:
      A pair whose state is `MasterWeightsState`. Its update needs `params`.

    Raises:
      TypeError: tx is not a pair, or dtype is not a real floating-point one. ValueError: from
        update, params are missing, or a parameter was wider at init.
    """
    inner = member(tx, "the transform of master_weights")
    _check_dtype(dtype)

    @abstract_aware
    def init(params: Params) -> MasterWeightsState:
        ps, treedef = trees.flatten(params)
        wide = [wider(p, dtype) for p in ps]
        masters = [
            None if kind is None else cast(p, kind) for p, kind in zip(ps, wide, strict=True)
        ]
        return MasterWeightsState(
            treedef.unflatten(masters), inner.init(treedef.unflatten(_either(masters, ps)))
        )

    def update(
        grads: Updates, state: MasterWeightsState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, MasterWeightsState]:
        checks.state("master_weights", MasterWeightsState, state)
        checks.given(
            "master_weights", "params", params, "the update leads from it to the rounded copy"
        )
        ps, treedef = trees.flatten(params)
        masters = trees.flatten_like(state.master, treedef, "master_weights: state.master")
        trees.check_shapes(masters, ps, treedef, "master_weights: state.master")
        for i, (master, p) in enumerate(zip(masters, ps, strict=True)):
            if master is None and wider(p, dtype) is not None:
                raise ValueError(
                    f"master_weights: the state has no copy of the {jnp.result_type(p)} parameter "
                    f"at {trees.path_of(treedef, i)}: it was wider at init (float32_state widens "
                    "it, and has no use around master_weights)"
                )
        gs = trees.flatten_like(grads, treedef, "grads")
        trees.check_shapes(gs, ps, treedef, "grads")
        seen = [
            cast(g, None if master is None else master.dtype)
            for g, master in zip(gs, masters, strict=True)
        ]
        new, inner_state = inner.update(
            treedef.unflatten(seen),
            state.inner_state,
            treedef.unflatten(_either(masters, ps)),
            **extra,
        )
        updates = trees.flatten_like(new, treedef, "updates")
        for i, (u, master, p) in enumerate(zip(updates, masters, ps, strict=True)):
            if master is None or trees.has_no_update(u):
                continue
            p = jnp.asarray(p)
            masters[i] = updating.add(master, u)
            updates[i] = step_to(narrowed(masters[i], p.dtype), p, master.dtype)
        return treedef.unflatten(updates), MasterWeightsState(
            treedef.unflatten(masters), inner_state
        )

    return GradientTransformation(init, update)


def _check_dtype(dtype: Any) -> None:
    try:
        is_real = jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        is_real = False
    if dtype is None or not is_real:
        raise TypeError(f"dtype should be a real floating-point dtype, but got {dtype!r}")


def _either(masters: trees.Leaves, ps: trees.Leaves) -> trees.Leaves:
    return [p if master is None else master for master, p in zip(masters, ps, strict=True)]
