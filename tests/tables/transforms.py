"""The table of transforms and wrappers: one row each. The contract suite for them runs over it.

What a transform cannot do is a field of its row, never an `if` in a test.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import functorch_optim as fo

Pair = fo.GradientTransformation


@dataclasses.dataclass(frozen=True)
class Transform:
    """A row.

    Attributes:
      name: what it is called.
      build: makes the pair; of a wrapper, from the pair that it wraps.
      wraps: whether it is a wrapper.
      behind: whether it stands behind an algorithm in a chain, and not in front.
      extra: extra arguments that its update needs.
      needs_params: whether its update reads params, even around a pair that does not.
      equal_is_same: whether building it twice gives one pair.
      complex: whether leaves may be complex.
      update_dtype: the dtype of an update for a parameter's dtype.
      smooth: whether finite differences agree with its derivatives.
      rtol: how far two ways to compile the same step may be apart in float32.
    """

    name: str
    build: Callable[..., Pair]
    wraps: bool = False
    behind: bool = False
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    needs_params: bool = False
    equal_is_same: bool = True
    complex: bool = True
    update_dtype: Callable[[str], str] = lambda dtype: dtype
    smooth: bool = True
    rtol: float = 5e-6

    def pair(self, inner: Pair | None = None) -> Pair:
        """The pair, a wrapper around `inner`."""
        return self.build(inner or fo.adam(0.1)) if self.wraps else self.build()

    def around(self, algorithm: Pair) -> Pair:
        """A chain in which the algorithm works with it."""
        if self.wraps:
            return fo.chain(fo.clip_by_global_norm(10.0), self.build(algorithm))
        return fo.chain(*([algorithm, self.build()] if self.behind else [self.build(), algorithm]))


def rising(step: Any) -> Any:
    """A schedule."""
    return 1.0 + 0.5 * jnp.asarray(step, jnp.float32)


def every_other(tree: Any) -> Any:
    """A mask for any tree: True for its first leaf, False for the next."""
    leaves, treedef = jax.tree.flatten(tree, is_leaf=lambda x: x is None)
    return treedef.unflatten([i % 2 == 0 for i in range(len(leaves))])


def widened(dtype: str) -> str:
    """The dtype of an update that leads to a rounded parameter."""
    return "float32" if dtype in ("bfloat16", "float16") else dtype


TABLE = (
    Transform("adaptive_grad_clip", lambda: fo.adaptive_grad_clip(0.5), needs_params=True),
    Transform("add_noise", lambda: fo.add_noise(0.1, 0.55, 0)),
    Transform("add_decayed_weights", lambda: fo.add_decayed_weights(0.5), needs_params=True),
    Transform("cautious", lambda tx: fo.cautious(tx), wraps=True),
    Transform("centralize", lambda: fo.centralize()),
    Transform("clip_by_leaf_norm", lambda: fo.clip_by_leaf_norm(1.0)),
    Transform("clip_by_value", lambda: fo.clip_by_value(0.5)),
    Transform("ema", lambda: fo.ema(0.9)),
    Transform("lookahead", lambda: fo.lookahead(2), behind=True, needs_params=True),
    Transform("sign", lambda: fo.sign(), smooth=False),
    Transform("trace", lambda: fo.trace(0.9)),
    Transform("trust_ratio", lambda: fo.trust_ratio(0.1), needs_params=True),
    Transform(
        "schedule_free",
        lambda tx: fo.schedule_free(tx, 0.1),
        wraps=True,
        needs_params=True,
    ),
    Transform("clip_by_global_norm", lambda: fo.clip_by_global_norm(1.0)),
    Transform("scale", lambda: fo.scale(2.0)),
    Transform("scale_by_schedule", lambda: fo.scale_by_schedule(rising)),
    Transform(
        "scale_by_plateau",
        lambda: fo.scale_by_plateau(patience=0, factor=0.5),
        extra={"value": 1.0},
        behind=True,
    ),
    Transform("chain", lambda tx: fo.chain(fo.scale(0.5), tx), wraps=True),
    Transform(
        "named_chain", lambda tx: fo.named_chain(("half", fo.scale(0.5)), ("tx", tx)), wraps=True
    ),
    Transform(
        "partition",
        lambda tx: fo.partition({True: tx, False: fo.sgd(0.1)}, every_other),
        wraps=True,
        equal_is_same=False,  # a dict is not hashable
    ),
    Transform("masked", lambda tx: fo.masked(tx, every_other), wraps=True),
    Transform("freeze", lambda: fo.freeze(every_other), behind=True),
    Transform("accumulate", lambda tx: fo.accumulate(tx, 2), wraps=True),
    Transform("skip_nonfinite", lambda tx: fo.skip_nonfinite(tx), wraps=True),
    Transform("dynamic_loss_scale", lambda tx: fo.dynamic_loss_scale(tx, 4.0), wraps=True),
    Transform(
        "master_weights",
        lambda tx: fo.master_weights(tx),
        wraps=True,
        needs_params=True,
        update_dtype=widened,
    ),
    Transform(
        "stochastic_rounding",
        lambda tx: fo.stochastic_rounding(tx, 0),
        wraps=True,
        needs_params=True,
        update_dtype=widened,
    ),
    Transform(
        "inject_hyperparams",
        lambda: fo.inject_hyperparams(fo.sgd)(lr=rising, momentum=0.9),
        needs_params=True,  # a weight decay of 0 is a number in the state, which may change
    ),
    Transform("float32_state", lambda tx: fo.float32_state(tx), wraps=True),
)

over_transforms = pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
