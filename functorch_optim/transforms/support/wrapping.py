"""How a wrapper runs the pair inside it: at some calls only, and with a state of constant types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functorch_optim.core import sparse_leaves, trees
from functorch_optim.core.pair import GradientTransformation, Params, State, Updates

# (run, grads, state, params, extra, number) -> (updates, state)
ConditionalUpdate = Callable[..., Any]
Prepare = Callable[[Updates, Any], Updates]


def update_if(
    inner: GradientTransformation, guards: bool = False, prepare: Prepare | None = None
) -> ConditionalUpdate:
    """`inner.update` that is computed only where a traced condition holds.

    Where it does not, the updates are zeros (`None` where the inner update is `None`) and the state
    stays as it is. The state's leaves keep their dtypes either way.

    Args:
      inner: the pair.
      guards: the gradients are not finite where the condition does not hold. Under `vmap` both
        sides are computed, and the derivative of the one that is not taken has to be finite: it
        then sees zeros.
      prepare: `prepare(grads, number)`, what the inner pair sees; computed in the branch too. (The
        flag depends on every gradient: outside of the branch, XLA computes it anew for each leaf.)
    """

    def update(
        run: Any,
        grads: Updates,
        state: State,
        params: Params | None,
        extra: dict[str, Any],
        number: Any = None,
    ) -> Any:
        # The branches are these same two functions at each call, unless an extra argument is no
        # array: outside of jit, that lets JAX compile them once.
        arrays = {name: value for name, value in extra.items() if _is_arrays(value)}
        rest = {name: value for name, value in extra.items() if name not in arrays}
        on, off = _branches(inner, rest, guards, prepare) if rest else plain
        given = _without_float0(grads)
        return jax.lax.cond(run, on, off, run, given, state, params, arrays, number)

    plain = _branches(inner, {}, guards, prepare)
    return update


def _branches(
    inner: GradientTransformation, fixed: dict[str, Any], guards: bool, prepare: Prepare | None
) -> tuple[Any, Any]:
    def on(
        run: Any, grads: Any, state: State, params: Any, extra: dict[str, Any], number: Any
    ) -> Any:
        if guards:
            grads = zeros_unless(run, grads)
        if prepare is not None:
            grads = prepare(grads, number)
        updates, new = inner.update(grads, state, params, **extra, **fixed)
        return updates, with_dtypes_of(state, new)

    def off(
        run: Any, grads: Any, state: State, params: Any, extra: dict[str, Any], number: Any
    ) -> Any:
        updates, _ = jax.eval_shape(on, run, grads, state, params, extra, number)
        us, treedef = trees.flatten(updates)
        return treedef.unflatten(map(_nothing, us)), state

    return on, off


def _nothing(update: Any) -> Any:
    """The update of these types that changes nothing."""
    if update is None:
        return None
    return sparse_leaves.unused(update) if trees.is_sparse(update) else jnp.zeros_like(update)


def zeros_unless(finite: jax.Array, grads: Updates) -> Updates:
    """The gradients, or zeros in their place."""
    return jax.tree.map(
        lambda g: g if trees.has_no_update(g) else jnp.where(finite, g, jnp.zeros_like(g)), grads
    )


def with_dtypes_of(old: State, new: State) -> State:
    """A new state whose leaves have the dtypes of the old one's.

    Other libraries' buffers take the dtype of the gradients: wider ones than at init would make
    another program of the next step.
    """
    return jax.tree.map(_cast, old, new)


def _cast(old: Any, new: Any) -> Any:
    dtype = jnp.result_type(old)
    return new if jnp.result_type(new) == dtype else jnp.asarray(new).astype(dtype)


def _is_arrays(value: Any) -> bool:
    kinds = (jax.Array, np.ndarray, np.generic, int, float)
    return all(isinstance(x, kinds) for x in jax.tree.leaves(value))


def _without_float0(grads: Updates) -> Updates:
    gs, treedef = trees.flatten(grads)
    return treedef.unflatten([None if trees.is_float0(g) else g for g in gs])
