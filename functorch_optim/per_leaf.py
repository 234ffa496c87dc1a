"""From the math of one leaf to a pair over pytrees.

An algorithm is a `Rule`: how a leaf's buffers start, which numbers a step needs, and what a step
does to one leaf. All that is common to algorithms lives here and nowhere else: walking the tree,
schedules, `maximize`, weight decay, dtypes, complex numbers, and the cache of equal pairs.

The numbers reach the leaf as arguments (`Scalars`), never as constants, so that the leaf function
of an algorithm is traced once per shape for every configuration, and so that the stateful layer
can compute them on the host in double and change them without recompiling.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple, ParamSpec, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np

from functorch_optim import checks, leaves, sparse_leaf
from functorch_optim.base import GradientTransformation, Params, Scalar, State, value_equal
from functorch_optim.docstrings import completed
from functorch_optim.scalars import as_float, is_number

P = ParamSpec("P")
Buffers = tuple[Any, ...]


@jax.tree_util.register_pytree_node_class
class Scalars:
    """The numbers of one step, by name.

    A pytree whose leaves are the numbers. A number that is `None` is absent, and `flags` are part
    of the structure: both select code when a leaf is traced.
    """

    def __init__(self, flags: Mapping[str, Any] | None = None, **numbers: Any):
        self._flags = dict(flags or {})
        self._numbers = numbers
        self.__dict__.update(self._flags, **numbers)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"no scalar is called {name!r}; there are {[*self._numbers]}")

    def with_(self, flags: Mapping[str, Any], **numbers: Any) -> Scalars:
        return Scalars({**self._flags, **flags}, **{**self._numbers, **numbers})

    def tree_flatten(self) -> tuple[tuple[Any, ...], Any]:
        return tuple(self._numbers.values()), (
            tuple(self._numbers),
            tuple(self._flags.items()),
        )

    @classmethod
    def tree_unflatten(cls, aux: Any, numbers: tuple[Any, ...]) -> Scalars:
        names, flags = aux
        return cls(dict(flags), **dict(zip(names, numbers, strict=True)))


class Rule(NamedTuple):
    """The math of an algorithm, for one leaf.

    Attributes:
      name: torch's, for messages.
      state: the NamedTuple of the pair's state: `step`, then the `carried` numbers, then the
        buffers, under torch's names.
      init: `init(p, h) -> buffers`, a tuple in the order of `state`, `None` where not needed.
      scalars: `scalars(t, h, *carried) -> Scalars` for update number t = 1, 2, ...; arithmetic on
        numbers with the helpers of `scalars.py`. `h` holds the hyperparameters by name.
      leaf: `leaf(g, p, buffers, s) -> (update, buffers)`, all real arrays of one dtype. `g` has
        `maximize` and coupled weight decay in it already. `p` is `None` where the caller has none.
        `s.machine_epsilon` is that of the parameter's own dtype.
      sparse: `sparse(h)`, whether a step leaves everything as it is where a sparse gradient has no
        entry (it is computed on the entries alone then, and has a sparse update) or computes as
        with a dense one. `None` where sparse gradients are refused.
      sparse_hint: what torch adds to the message where they are refused.
      sparse_decay: weight decay may go with sparse gradients.
      dense_error: torch's words for a dense gradient, where only sparse ones are taken.
      torch_has_step: whether torch's state has a `step`.
      torch_step_is_int: whether it is a Python number there.
      needs_params: why the leaf reads the parameter, for the error when it is missing.
      decoupled: decay is decoupled unless `h.decoupled_weight_decay` says otherwise.
      applies_decay: the leaf itself applies `s.decay`, decoupled decay, where it is not `None`.
      carried: numbers besides `step` that pass from step to step; `Scalars` holds the new ones
        under the same names.
      start: `start(h)` gives the first values of the carried numbers.
      static: hyperparameters that are numbers and yet select code.
      eager: torch creates the state at construction, not at the first step.
      accepts: `accepts(p)` raises for a parameter that the algorithm cannot train.
      lists_complex: torch's optimizer lists the complex parameters that it cannot train.
    """

    name: str
    state: Any
    init: Callable[[jax.Array, SimpleNamespace], Buffers]
    scalars: Callable[..., Scalars]
    leaf: Callable[[jax.Array, jax.Array | None, Buffers, Scalars], tuple[jax.Array, Buffers]]
    sparse: Callable[[SimpleNamespace], bool] | None = None
    sparse_hint: str = ""
    sparse_decay: bool = True
    dense_error: str | None = None
    torch_has_step: bool = True
    torch_step_is_int: bool = False
    needs_params: str | None = None
    decoupled: bool = False
    applies_decay: bool = False
    carried: tuple[str, ...] = ()
    start: Callable[[SimpleNamespace], tuple[Any, ...]] = lambda h: ()
    static: tuple[str, ...] = ()
    eager: bool = False
    accepts: Callable[[Any], None] = lambda p: None
    lists_complex: bool = False

    def gradient(self, g: Any, h: SimpleNamespace, decays: bool) -> Any:
        """A gradient as the step takes it: an array, or a sparse one for a step on its entries.

        Raises:
          RuntimeError: torch's, for a gradient that is refused.
        """
        if not leaves.is_sparse(g):
            self.check_dense()
            return g if isinstance(g, jax.Array) else jnp.asarray(g)
        if self.sparse is None:
            raise RuntimeError(f"{self.name} does not support sparse gradients{self.sparse_hint}")
        if decays and not self.sparse_decay:
            raise RuntimeError("weight_decay option is not compatible with sparse gradients")
        return g.todense() if decays or not self.sparse(h) else g

    def check_dense(self) -> None:
        """Raises torch's RuntimeError if dense gradients are refused."""
        if self.dense_error is not None:
            raise RuntimeError(self.dense_error)

    @property
    def buffers(self) -> tuple[str, ...]:
        """The names of the per-parameter buffers."""
        return self.state._fields[1 + len(self.carried) :]


class Factory(Protocol[P]):
    """A lower-case algorithm: `adam(lr=1e-3, ...) -> GradientTransformation`."""

    rule: Rule
    defaults: Mapping[str, Any]
    fixed: Mapping[str, Any]
    __name__: str

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> GradientTransformation: ...


def per_leaf(rule: Rule, **fixed: Any) -> Callable[[Callable[P, None]], Factory[P]]:
    """Makes a factory of pairs from a rule and a function that checks hyperparameters.

    The decorated function gives the factory its name, signature and docstring; its body raises
    for bad values. `fixed` are hyperparameters that the factory does not let the user choose.
    """

    def decorate(check: Callable[P, None]) -> Factory[P]:
        signature = inspect.signature(check)
        build = value_equal(functools.partial(_build, rule, check.__name__))

        @functools.wraps(check)
        def factory(*args: P.args, **kwargs: P.kwargs) -> GradientTransformation:
            check(*args, **kwargs)
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return build(**{k: _frozen(v) for k, v in bound.arguments.items()}, **fixed)

        # What the check returns is nothing; what the factory returns is a pair.
        factory.__signature__ = signature.replace(  # type: ignore[attr-defined]  # for help()
            return_annotation="GradientTransformation"
        )
        factory.__doc__ = completed(check, rule.state.__name__)
        factory.rule = rule  # type: ignore[attr-defined]  # a function with the Factory's fields
        arguments = {name: p.default for name, p in signature.parameters.items()}
        factory.defaults = {**arguments, **fixed}  # type: ignore[attr-defined]
        factory.fixed = fixed  # type: ignore[attr-defined]
        return cast(Factory[P], factory)

    return decorate


def zeros(count: int) -> Callable[[jax.Array, SimpleNamespace], Buffers]:
    """An `init` of so many buffers that start at 0."""
    return lambda p, h: tuple(jnp.zeros_like(p) for _ in range(count))


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _build(rule: Rule, name: str, **hyperparameters: Any) -> GradientTransformation:
    def init(params: Params) -> State:
        h = hyperparameters_at(hyperparameters, jnp.zeros((), jnp.int32))
        ps, treedef = leaves.flatten(params)
        leaves.check_arrays(ps, treedef, "params")
        buffers = [init_leaf(rule, p, h) for p in ps]
        carried = [jnp.array(x, jnp.float32) for x in rule.start(h)]  # copies of arrays given
        state = pair_state(rule, jnp.zeros((), jnp.float32), carried, buffers, treedef)
        if ps:
            return state
        # Of no leaves none says which buffers there are: a matrix does, which any algorithm takes.
        kept = zip(rule.buffers, init_leaf(rule, jnp.zeros((1, 1)), h), strict=True)
        return state._replace(**{name: params for name, b in kept if b is not None})

    def update(
        grads: Params, state: Any, params: Params | None = None, **extra: Any
    ) -> tuple[Params, State]:
        checks.state(name, rule.state, state)
        step = jnp.asarray(state.step, jnp.float32)
        h = hyperparameters_at(hyperparameters, step.astype(jnp.int32))
        carried = state[1 : 1 + len(rule.carried)]
        s = step_scalars(rule, h, as_float(step) + 1, carried)
        if params is None:
            _check_params_not_needed(rule, name, s)
        gs, ps, buffers, treedef = _aligned(rule, grads, state, params)
        updates: list[Any] = [None] * len(gs)
        for i, g in enumerate(gs):
            if leaves.has_no_update(g) or (params is not None and leaves.has_no_update(ps[i])):
                continue
            g = rule.gradient(g, h, s.l2 is not None or s.decay is not None)
            dtype = g.dtype if ps[i] is None else jnp.result_type(ps[i])
            if leaves.is_sparse(g):
                like_g = tuple(None if buffer is None else g for buffer in buffers[i])
                _check_buffers(rule, like_g, buffers[i], treedef, i)
                update, new = step_entries(rule.leaf, g, ps[i], buffers[i], s)
                updates[i] = sparse_leaf.cast(update, dtype)
            else:
                update, new = step_leaf(rule.leaf, g, ps[i], buffers[i], s)
                _check_buffers(rule, new, buffers[i], treedef, i)
                updates[i] = update.astype(dtype)
            buffers[i] = new
        carried = [jnp.asarray(getattr(s, name)).astype(jnp.float32) for name in rule.carried]
        new_state = pair_state(rule, step + 1, carried, buffers, treedef)
        if not gs:
            new_state = new_state._replace(**{name: getattr(state, name) for name in rule.buffers})
        return treedef.unflatten(updates), new_state

    return GradientTransformation(init, update)


def pair_state(
    rule: Rule, step: Scalar, carried: list[Any], buffers: list[Buffers], treedef: Any
) -> State:
    """One tree of the params' structure per buffer; `None` for a buffer that no leaf has."""
    trees = []
    for column in range(len(rule.buffers)):
        values = [leaf[column] for leaf in buffers]
        absent = all(value is None for value in values)
        trees.append(None if absent else treedef.unflatten(values))
    return rule.state(step, *carried, *trees)


def _aligned(rule: Rule, grads: Any, state: Any, params: Any) -> tuple[Any, Any, Any, Any]:
    """Gradients, parameters and buffers, leaf by leaf in one order, and that order's treedef."""
    columns = [getattr(state, name) for name in rule.buffers]
    known = [column for column in columns if column is not None]
    reference, name = (params, "params") if params is not None else ((known or [grads])[0], "state")
    references, treedef = leaves.flatten(reference)
    gs = leaves.flatten_like(grads, treedef, "grads", name)
    leaves.check_shapes(gs, references, treedef, "grads", name)
    rows = [
        [None] * len(gs) if column is None else leaves.flatten_like(column, treedef, "state", name)
        for column in columns
    ]
    buffers = list(zip(*rows, strict=True)) if rows else [()] * len(gs)
    return gs, references if params is not None else [None] * len(gs), buffers, treedef


def _check_buffers(rule: Rule, new: Buffers, old: Buffers, treedef: Any, index: int) -> None:
    """Raises ValueError if a buffer had another parameter's shape and was broadcast."""
    for name, after, before in zip(rule.buffers, new, old, strict=True):
        if after is not None and after.shape != before.shape:
            raise ValueError(
                f"state and params differ in shape at {leaves.path_of(treedef, index)}: "
                f"{name} has shape {before.shape}, and its update {after.shape}"
            )


def _check_params_not_needed(rule: Rule, name: str, s: Scalars) -> None:
    reason = rule.needs_params
    if s.l2 is not None or s.decay is not None:
        reason = "weight decay pulls the parameters towards zero"
    if reason is not None:
        checks.given(name, "params", None, reason)


def hyperparameters_at(values: Mapping[str, Any], count: Any) -> SimpleNamespace:
    """The hyperparameters of the update that follows `count` updates: schedules are called."""

    def at(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(at(v) for v in value)
        if callable(value):
            value = value(count)
        if isinstance(value, np.ndarray | np.generic):
            return value.item()
        if isinstance(value, jax.Array):
            return as_float(value.reshape(()))
        return value

    return SimpleNamespace(**{name: at(value) for name, value in values.items()})


def step_scalars(
    rule: Rule, h: SimpleNamespace, t: Any, carried: Any = (), keep_zero_decay: bool = False
) -> Scalars:
    """The rule's numbers, and those of the prologue that all algorithms share.

    A weight decay that is the number 0 is left out, unless `keep_zero_decay` (then a caller may
    change it later without a change of structure).
    """
    weight_decay = getattr(h, "weight_decay", None)
    if is_number(weight_decay) and weight_decay == 0 and not keep_zero_decay:
        weight_decay = None
    decoupled = getattr(h, "decoupled_weight_decay", rule.decoupled)
    l2 = None if decoupled else weight_decay
    decay = h.lr * weight_decay if decoupled and weight_decay is not None else None
    maximize = bool(getattr(h, "maximize", False))
    return rule.scalars(t, h, *map(as_float, carried)).with_(
        {"maximize": maximize, "applies_decay": rule.applies_decay}, l2=l2, decay=decay
    )


def init_leaf(rule: Rule, p: Any, h: SimpleNamespace) -> Buffers:
    """A leaf's first buffers, in the leaf's dtype; a skipped leaf has none."""
    if leaves.has_no_update(p):
        return (None,) * len(rule.buffers)
    p = jnp.asarray(p)
    rule.accepts(p)
    if not jnp.iscomplexobj(p):
        return rule.init(p, h)
    real = rule.init(leaves.to_real(p, leaves.real_dtype(p.dtype)), h)
    return tuple(None if b is None else leaves.from_real(b, p.dtype) for b in real)


@functools.partial(jax.jit, static_argnums=0)
def step_leaf(
    leaf: Callable[..., tuple[jax.Array, Buffers]], g: Any, p: Any, buffers: Buffers, s: Scalars
) -> tuple[jax.Array, Buffers]:
    """One update of one leaf, around the rule's math: dtypes, complex numbers, weight decay.

    Returns the update, not yet rounded to the parameter's dtype, and the buffers in theirs. It is
    compiled once per shape, dtype and structure, whatever the numbers are.
    """
    like = g if p is None else p
    if jnp.iscomplexobj(g) and not jnp.iscomplexobj(like):
        raise TypeError(f"a gradient of dtype {g.dtype} cannot update a parameter of {like.dtype}")
    dtype = leaves.real_dtype(like.dtype)
    gradient = leaves.to_real(g.astype(leaves.widest(g.dtype, like.dtype)), dtype)
    parameter = None if p is None else leaves.to_real(p, dtype)
    working = tuple(None if b is None else leaves.to_real(b, dtype) for b in buffers)
    s = jax.tree.map(lambda x: jnp.asarray(x).astype(dtype), s)
    s = s.with_({"machine_epsilon": float(jnp.finfo(like.dtype).eps)})

    if s.maximize:
        gradient = -gradient
    if s.l2 is not None:
        gradient = gradient + s.l2 * parameter
    update, new = leaf(gradient, parameter, working, s)
    if s.decay is not None and not s.applies_decay:
        update = update - s.decay * parameter

    if jnp.iscomplexobj(like):
        update = leaves.from_real(update, like.dtype)
    return update, tuple(
        None if b is None else leaves.from_real(b, old.dtype)
        for b, old in zip(new, buffers, strict=True)
    )


@functools.partial(jax.jit, static_argnums=0)
def step_entries(
    leaf: Callable[..., tuple[jax.Array, Buffers]], g: Any, p: Any, buffers: Buffers, s: Scalars
) -> tuple[Any, Buffers]:
    """`step_leaf` on the entries of a sparse gradient (see `Rule.gradient`), without weight decay.

    Returns a sparse update. All else of the buffers stays as it is: in place, if they are donated.
    """
    like = g if p is None else p
    g = sparse_leaf.coalesced(g, leaves.widest(g.dtype, like.dtype))
    entries = [None if x is None else sparse_leaf.entries(x, g) for x in (p, *buffers)]
    update, new = step_leaf(
        leaf, g.data, entries[0], tuple(entries[1:]), s.with_({}, l2=None, decay=None)
    )
    return sparse_leaf.on_coalesced(lambda _: update, g), tuple(
        None if b is None else sparse_leaf.with_entries(old, g, b)
        for b, old in zip(new, buffers, strict=True)
    )
