"""From a rule to a pair over pytrees.

All that is common to algorithms and concerns the tree is here and nowhere else: walking it,
schedules, what is skipped, sums over the whole tree, the cache of equal pairs. What concerns one
leaf is in `leaf.py`.
"""

from __future__ import annotations

import collections
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, Protocol, cast

import jax
import jax.numpy as jnp

from functorch_optim.core import checks, slips, sparse_leaves, trees
from functorch_optim.core.abstract import abstract_aware
from functorch_optim.core.arguments import Kinds, selects_code
from functorch_optim.core.arithmetic import as_float, float_dtype
from functorch_optim.core.counting import increment
from functorch_optim.core.dtypes import real_dtype, widest
from functorch_optim.core.equal_pairs import value_equal
from functorch_optim.core.pair import GradientTransformation, Params, Scalar, State
from functorch_optim.rules.docstrings import completed
from functorch_optim.rules.expected import ExpectedState
from functorch_optim.rules.leaf import init_leaf, measure_leaf, step_entries, step_leaf
from functorch_optim.rules.numbers import (
    StepNumbers,
    has_decay,
    hyperparameters_at,
    step_numbers,
)
from functorch_optim.rules.rule import Buffers, Rule, WholeTree

P = ParamSpec("P")


class Factory(Protocol[P]):
    """A lower-case algorithm: `adam(lr=1e-3, ...) -> GradientTransformation`.

    Attributes:
      rule: its math.
      defaults: its hyperparameters, those that the user cannot choose among them.
      fixed: those that the user cannot choose.
      selects_code: the names of those that select code; all others are numbers.
    """

    rule: Rule
    defaults: Mapping[str, Any]
    fixed: Mapping[str, Any]
    selects_code: frozenset[str]
    __name__: str

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> GradientTransformation:
        """The pair with these hyperparameters."""


def per_leaf(rule: Rule, **fixed: Any) -> Callable[[Callable[P, None]], Factory[P]]:
    """Makes a factory of pairs from a rule and a function that checks hyperparameters.

    The decorated function gives the factory its name, signature and docstring; its body raises
    for bad values. An argument whose type has no `float` in it selects code; every other is a
    number, an array or a schedule. That each argument is of the kind that its type says is checked
    here, behind the body, whose errors about values come first.

    Args:
      rule: the math.
      **fixed: hyperparameters that the factory does not let the user choose.
    """

    def decorate(check: Callable[P, None]) -> Factory[P]:
        signature = inspect.signature(check)
        kinds = Kinds(check, rule.torch.takes_nan)

        @functools.wraps(check)
        def factory(*args: P.args, **kwargs: P.kwargs) -> GradientTransformation:
            slips.check_first(check.__name__, signature, args, kwargs)
            bound = slips.bound_arguments(check.__name__, signature, args, kwargs)
            slips.check_coefficients(check.__name__, signature, args)
            bound.apply_defaults()
            values = kinds.plain(bound.arguments)
            try:
                check(**values)  # type: ignore[call-arg]  # what bind() gave back
            except (TypeError, LookupError):
                kinds.check(values)  # names what the body stumbled over
                raise
            kinds.check(values)
            return build(**values, **fixed)

        build = value_equal(functools.partial(_build, rule, check.__name__), public=factory)
        # What the check returns is nothing; what the factory returns is a pair.
        factory.__signature__ = signature.replace(  # type: ignore[attr-defined]  # for help()
            return_annotation="GradientTransformation"
        )
        factory.__doc__ = completed(check, rule.state.__name__, bool(rule.needs_params))
        arguments = {name: p.default for name, p in signature.parameters.items()}
        made = cast(Factory[P], factory)
        made.rule, made.fixed, made.defaults = rule, fixed, {**arguments, **fixed}
        made.selects_code = selects_code(check) | fixed.keys()
        return made

    return decorate


def _build(rule: Rule, name: str, **hyperparameters: Any) -> GradientTransformation:
    expected = ExpectedState(rule, name)

    @abstract_aware
    def init(params: Params) -> State:
        h = hyperparameters_at(hyperparameters, jnp.zeros((), jnp.int32))
        ps, treedef = trees.flatten(params)
        trees.check_arrays(ps, treedef, "params")
        buffers = [init_leaf(rule, p, h) for p in ps]
        state = pair_state(
            rule, jnp.zeros((), jnp.int32), _first_carried(rule, h, ps), buffers, treedef
        )
        if ps:
            return state
        return state._replace(**dict.fromkeys(_possible_buffers(rule, h), params))

    def update(
        grads: Params, state: Any, params: Params | None = None, **extra: Any
    ) -> tuple[Params, State]:
        checks.state(name, rule.state, state)
        expected.check_numbers(state)
        step = jnp.asarray(state.step).astype(jnp.int32)
        h = hyperparameters_at(hyperparameters, step)
        carried = [getattr(state, field) for field in rule.carried.names]
        s = step_numbers(rule, h, as_float(step) + 1, carried)
        if params is None:
            _check_params_not_needed(rule, name, s)
        gs, ps, buffers, treedef = _aligned(rule, grads, state, params)
        for i, g in enumerate(gs):
            skipped = trees.has_no_update(g) or (params is not None and trees.has_no_update(ps[i]))
            gs[i] = None if skipped else rule.gradient(g, h, has_decay(h))
            if gs[i] is not None:
                expected.check(h, g if params is None else ps[i], buffers[i], treedef, i)
        if rule.whole_tree is not None:
            s = rule.whole_tree.settle(s, _totals(rule.whole_tree, gs, ps, buffers, s))
        updates: list[Any] = [None] * len(gs)
        for i, g in enumerate(gs):
            if g is None:
                continue
            dtype = g.dtype if ps[i] is None else jnp.result_type(ps[i])
            if trees.is_sparse(g):
                update, new = step_entries(rule.leaf, g, ps[i], buffers[i], s)
                updates[i] = sparse_leaves.cast(update, dtype)
            else:
                update, new = step_leaf(rule.leaf, g, ps[i], buffers[i], s)
                updates[i] = update.astype(dtype)
            buffers[i] = new
        new_carried = _next_carried(rule, s, carried)
        new_state = pair_state(rule, increment(step), new_carried, buffers, treedef)
        if not gs:
            new_state = new_state._replace(**{name: getattr(state, name) for name in rule.buffers})
        return treedef.unflatten(updates), new_state

    return GradientTransformation(init, update)


def pair_state(
    rule: Rule, step: Scalar, carried: list[Any], buffers: list[Buffers], treedef: Any
) -> State:
    """One tree of the params' structure per buffer; `None` for a buffer that no leaf has."""
    fields = dict(zip(rule.carried.names, carried, strict=True))
    for column, name in enumerate(rule.buffers):
        values = [leaf[column] for leaf in buffers]
        absent = all(value is None for value in values)
        fields[name] = None if absent else treedef.unflatten(values)
    return rule.state(step=step, **fields)


def _possible_buffers(rule: Rule, h: Any) -> set[str]:
    """The buffers that some leaf would have: a matrix, which any algorithm takes, or a vector."""
    found = set()
    for shape in ((1, 1), (1,)):
        p = jnp.zeros(shape)
        try:
            rule.accepts(p)
        except (ValueError, RuntimeError):
            continue
        buffers = zip(rule.buffers, init_leaf(rule, p, h), strict=True)
        found |= {name for name, buffer in buffers if buffer is not None}
    return found


def _first_carried(rule: Rule, h: Any, ps: trees.Leaves) -> list[Any]:
    """The carried numbers at the start: copies of arrays that were given, no two in one buffer."""
    dtype: Any = jnp.float32
    if not rule.carried.in_float32:
        dtypes = [jnp.result_type(p) for p in ps if not trees.has_no_update(p)]
        dtype = real_dtype(widest(dtype, *dtypes))

    def kept(x: Any) -> Any:
        return None if x is None else jnp.array(x, jnp.int32 if isinstance(x, int) else dtype)

    return [kept(x) for x in rule.carried.start(h)]


def _next_carried(rule: Rule, s: StepNumbers, carried: list[Any]) -> list[Any]:
    """The carried numbers after a step, in the dtypes that they are kept in."""

    def kept(name: str, old: Any) -> Any:
        dtype = jnp.float32 if rule.carried.in_float32 else jnp.result_type(old)
        return jnp.asarray(getattr(s, name)).astype(dtype)

    named = zip(rule.carried.names, carried, strict=True)
    return [None if old is None else kept(name, old) for name, old in named]


def _totals(
    whole_tree: WholeTree, gs: Any, ps: Any, buffers: Any, s: StepNumbers
) -> Mapping[str, jax.Array]:
    """The sums over all leaves that `settle` takes; 0 where there is no leaf."""
    totals: dict[str, Any] = collections.defaultdict(lambda: jnp.zeros((), float_dtype()))
    for g, p, of_leaf in zip(gs, ps, buffers, strict=True):
        if g is not None:
            for name, share in measure_leaf(whole_tree.measure, g, p, of_leaf, s).items():
                totals[name] = totals[name] + as_float(share)
    return totals


def _aligned(rule: Rule, grads: Any, state: Any, params: Any) -> tuple[Any, Any, Any, Any]:
    """Gradients, parameters and buffers, leaf by leaf in one order, and that order's treedef."""
    columns = [getattr(state, name) for name in rule.buffers]
    known = [column for column in columns if column is not None]
    reference, name = (params, "params") if params is not None else ((known or [grads])[0], "state")
    references, treedef = trees.flatten(reference)
    gs = trees.flatten_like(grads, treedef, "grads", name)
    trees.check_shapes(gs, references, treedef, "grads", name)
    rows = [
        [None] * len(gs) if column is None else trees.flatten_like(column, treedef, "state", name)
        for column in columns
    ]
    buffers = list(zip(*rows, strict=True)) if rows else [()] * len(gs)
    return gs, references if params is not None else [None] * len(gs), buffers, treedef


def _check_params_not_needed(rule: Rule, name: str, s: StepNumbers) -> None:
    reason = rule.needs_params
    if s.l2 is not None or s.decay is not None:
        reason = "weight decay pulls the parameters towards zero"
    if reason is not None:
        checks.given(name, "params", None, reason)
