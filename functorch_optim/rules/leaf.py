"""One leaf's compiled step, around the math of a rule: dtypes, complex numbers, weight decay."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp

from functorch_optim.core import sparse_leaves, trees
from functorch_optim.core.arithmetic import share
from functorch_optim.core.dtypes import from_real, real_dtype, to_real, widest
from functorch_optim.rules.numbers import StepNumbers
from functorch_optim.rules.rule import Buffers, Leaf, Rule


def init_leaf(rule: Rule, p: Any, h: SimpleNamespace) -> Buffers:
    """A leaf's first buffers, in the leaf's dtype; a skipped leaf has none."""
    if trees.has_no_update(p):
        return (None,) * len(rule.buffers)
    p = jnp.asarray(p)
    rule.accepts(p)
    if not jnp.iscomplexobj(p):
        return rule.init(p, h)
    real = to_real(p, real_dtype(p.dtype))

    def kept(buffer: Any) -> Any:
        is_like_p = buffer is not None and buffer.shape == real.shape
        return from_real(buffer, p.dtype) if is_like_p else buffer

    return tuple(map(kept, rule.init(real, h)))


def abstract_buffers(rule: Rule, h: SimpleNamespace, shape: tuple[int, ...], dtype: Any) -> Buffers:
    """What `init_leaf` gives for a leaf of this shape and dtype, as abstract arrays."""
    return jax.eval_shape(lambda p: init_leaf(rule, p, h), jax.ShapeDtypeStruct(shape, dtype))


@functools.partial(jax.jit, static_argnums=0)
def step_leaf(
    leaf: Leaf, g: Any, p: Any, buffers: Buffers, s: StepNumbers
) -> tuple[jax.Array, Buffers]:
    """One update of one leaf.

    Returns the update, not yet rounded to the parameter's dtype, and the buffers in theirs. It is
    compiled once per shape, dtype and structure, whatever the numbers are.
    """
    gradient, parameter, working, s = _working(g, p, buffers, s)
    update, new = leaf(gradient, parameter, working, s)
    if s.decay is not None and not s.leaf_decays:
        update = update - share(s.decay, parameter)
    like = g if p is None else p
    if jnp.iscomplexobj(like):
        update = from_real(update, like.dtype)
    return update, tuple(
        None if b is None else from_real(b, old.dtype) for b, old in zip(new, buffers, strict=True)
    )


@functools.partial(jax.jit, static_argnums=0)
def measure_leaf(
    measure: Any, g: Any, p: Any, buffers: Buffers, s: StepNumbers
) -> Mapping[str, jax.Array]:
    """A leaf's shares of the sums over the whole tree (`rule.WholeTree`)."""
    return measure(*_working(g, p, buffers, s))


@functools.partial(jax.jit, static_argnums=0)
def step_entries(
    leaf: Leaf, g: Any, p: Any, buffers: Buffers, s: StepNumbers
) -> tuple[Any, Buffers]:
    """`step_leaf` on the entries of a sparse gradient (see `Rule.gradient`), without weight decay.

    Returns a sparse update. All else of the buffers stays as it is: in place, if they are donated.
    """
    like = g if p is None else p
    g = sparse_leaves.coalesced(g, widest(g.dtype, like.dtype))
    entries = [None if x is None else sparse_leaves.entries(x, g) for x in (p, *buffers)]
    update, new = step_leaf(
        leaf, g.data, entries[0], tuple(entries[1:]), s.with_(l2=None, decay=None)
    )
    return sparse_leaves.on_coalesced(lambda _: update, g), tuple(
        None if b is None else sparse_leaves.with_entries(old, g, b)
        for b, old in zip(new, buffers, strict=True)
    )


def _working(
    g: Any, p: Any, buffers: Buffers, s: StepNumbers
) -> tuple[jax.Array, Any, Buffers, StepNumbers]:
    """What a rule's functions see: reals of one dtype; the gradient to descend along."""
    like = g if p is None else p
    if jnp.iscomplexobj(g) and not jnp.iscomplexobj(like):
        raise TypeError(f"a gradient of dtype {g.dtype} cannot update a parameter of {like.dtype}")
    dtype = real_dtype(like.dtype)
    gradient = to_real(g.astype(widest(g.dtype, like.dtype)), dtype)
    parameter = None if p is None else to_real(p, dtype)
    working = tuple(None if b is None else to_real(b, dtype) for b in buffers)
    s = jax.tree.map(lambda x: jnp.asarray(x).astype(dtype), s)
    s = s.with_({"machine_epsilon": float(jnp.finfo(like.dtype).eps)})
    if s.maximize:
        gradient = -gradient
    if s.l2 is not None:
        gradient = gradient + share(s.l2, parameter)
    return gradient, parameter, working, s
