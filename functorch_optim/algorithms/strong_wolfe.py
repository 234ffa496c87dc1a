"""The line search of L-BFGS: a step t for which the function falls enough and its slope flattens.

    f(t) <= f(0) + c1 * t * f'(0)     and     |f'(t)| <= -c2 * f'(0)          (strong Wolfe)

One evaluation at a time: `begin` gives the first trial, `advance` takes the function's value and
slope there and either gives the next trial or ends the search. First the trials grow until two
points bracket a step (extrapolation), then the bracket shrinks (zoom); both interpolate by a cubic.
These are torch's rules to the comparison, ties and all, so that counts of evaluations are torch's.
All is arithmetic on scalars: no branch, so that many searches can run under one `vmap`.

Nocedal, Wright, "Numerical Optimization", 2nd edition, algorithms 3.5 and 3.6.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

ARMIJO = 1e-4
CURVATURE = 0.9
SMALLEST_CHANGE = 1e-9  # of the parameters across a bracket; torch's, whatever the optimizer's


class Point(NamedTuple):
    """A step, and the function's value and slope there."""

    t: jax.Array
    f: jax.Array
    slope: jax.Array


class Search(NamedTuple):
    """A search that waits for the function at `t`.

    Attributes:
      t: the trial.
      start: the point at t = 0.
      low: while the trials grow, the trial before; in the zoom, the best end of the bracket.
      high: in the zoom, the other end.
      low_is_first: whether the best end was found first, which decides ties.
      zooming: whether there is a bracket.
      slow: whether the trial before came too near to an end of the bracket.
      trials: how many trials have been evaluated.
      limit: at most one more trial than this.
      size: the largest component of the direction.
    """

    t: jax.Array
    start: Point
    low: Point
    high: Point
    low_is_first: jax.Array
    zooming: jax.Array
    slow: jax.Array
    trials: jax.Array
    limit: jax.Array
    size: jax.Array


class Outcome(NamedTuple):
    """What became of a trial.

    Attributes:
      ended: whether the search is over; its result is `search.low`.
      trial_is_low: whether the trial became `search.low`.
      start_is_low: whether the start did.
    """

    ended: jax.Array
    trial_is_low: jax.Array
    start_is_low: jax.Array


def begin(t: Any, f: Any, slope: Any, size: Any, limit: Any) -> Search:
    """The search from t = 0 whose first trial is t."""
    start = Point(jnp.zeros_like(f), f, slope)
    no = jnp.zeros((), bool)
    return Search(t, start, start, start, ~no, no, no, jnp.zeros((), jnp.int32), limit, size)


def advance(s: Search, f: jax.Array, slope: jax.Array) -> tuple[Search, Outcome]:
    """The search after the function at `s.t` turned out to have this value and slope."""
    new = Point(s.t, f, slope)
    too_high = f > s.start.f + ARMIJO * s.t * s.start.slope
    flat = jnp.abs(slope) <= -CURVATURE * s.start.slope
    exhausted = s.trials >= s.limit

    # While the trials grow. The last one that is allowed is compared with the start alone.
    passed = too_high | ((s.trials > 1) & (f >= s.low.f))
    found = ~passed & flat
    brackets = passed | (~flat & (slope >= 0))
    first = _choose(exhausted, s.start, s.low)
    first_is_low = (first.f <= f) & (exhausted | (brackets & ~found))
    grown_low = _choose(first_is_low, first, new)
    grown_high = _choose(first_is_low, new, first)
    grown_ended = exhausted | found

    # In the zoom.
    rises = too_high | (f >= s.low.f)
    becomes_low = ~rises | jnp.where(s.low_is_first, f < s.low.f, f <= s.low.f)
    turns = ~rises & ~flat & (slope * (s.high.t - s.low.t) >= 0)
    zoomed_low = _choose(becomes_low, new, s.low)
    zoomed_high = _choose(rises & ~becomes_low, new, _choose(rises | turns, s.low, s.high))
    zoomed_low_is_first = s.low_is_first ^ (rises & becomes_low)

    z = s.zooming
    low, high = _choose(z, zoomed_low, grown_low), _choose(z, zoomed_high, grown_high)
    zooming = z | brackets
    small = jnp.abs(high.t - low.t) * s.size < SMALLEST_CHANGE
    ended = jnp.where(z, exhausted | (~rises & flat), grown_ended) | (zooming & small)

    grown_t = _cubic(s.low, new, s.t + 0.01 * (s.t - s.low.t), 10 * s.t)
    zoomed_t, slow = _inside(low, high, s.slow & z)
    after = s._replace(
        t=jnp.where(zooming, zoomed_t, grown_t),
        low=low,
        high=high,
        low_is_first=jnp.where(z, zoomed_low_is_first, first_is_low),
        zooming=zooming,
        slow=slow & zooming,
        trials=s.trials + 1,
    )
    trial_is_low = jnp.where(z, becomes_low, ~first_is_low)
    return after, Outcome(ended, trial_is_low, ~z & exhausted & first_is_low)


def _inside(low: Point, high: Point, was_slow: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The next trial in a bracket: a tenth of it away from its ends at every second time."""
    left, right = jnp.minimum(low.t, high.t), jnp.maximum(low.t, high.t)
    t = _cubic(low, high, left, right)
    margin = 0.1 * (right - left)
    near = jnp.minimum(right - t, t - left) < margin
    move = near & (was_slow | (t >= right) | (t <= left))
    moved = jnp.where(jnp.abs(t - right) < jnp.abs(t - left), right - margin, left + margin)
    return jnp.where(move, moved, t), near & ~move


def _cubic(p: Point, q: Point, least: jax.Array, most: jax.Array) -> jax.Array:
    """Where the cubic through two points has its minimum, within bounds; else their middle."""
    d1 = p.slope + q.slope - 3 * (p.f - q.f) / (p.t - q.t)
    square = d1 * d1 - p.slope * q.slope
    d2 = jnp.sqrt(jnp.maximum(square, 0))
    (a, b) = _choose(p.t <= q.t, (p, q), (q, p))
    t = b.t - (b.t - a.t) * ((b.slope + d2 - d1) / (b.slope - a.slope + 2 * d2))
    known = (square >= 0) & ~jnp.isnan(t)  # NaN: an end is infinitely high
    return jnp.where(known, jnp.clip(t, least, most), (least + most) / 2)


def _choose(condition: jax.Array, x: Any, y: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), x, y)
