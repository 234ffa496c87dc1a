"""A class with a value as an argument of jax's functions: `jnp.sum(p)`, `jax.jit(f)(p)`.

`__jax_array__` alone is asked for by operators and by few functions, and jax has no public way to
say what else an argument may be. It registers its own kinds of arrays in three tables, and so does
this file. Should they move in a later jax, such a call is refused in jax's words, which say what to
do: convert it, by `p.data`.
"""

from __future__ import annotations

import operator
from typing import Any

import jax


def accept(kind: type) -> None:
    """Lets instances of a class be arguments: `x.data` is then taken for `x`."""
    try:
        from jax._src import core, dtypes
        from jax._src.interpreters import pxla

        types, values, shards = (
            core.pytype_aval_mappings,
            dtypes.canonicalize_value_handlers,
            pxla.shard_arg_handlers,
        )
    except (ImportError, AttributeError):
        return

    def on_devices(xs: Any, *how: Any) -> Any:
        return pxla.shard_args(*how, [x.data for x in xs])

    types[kind] = lambda x: jax.typeof(x.data)
    values[kind] = operator.attrgetter("data")
    shards[kind] = on_devices
