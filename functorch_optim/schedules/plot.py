"""A picture of schedules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from functorch_optim.core.pair import Schedule
from functorch_optim.schedules.factory import check_length

POINTS = 2000  # at most, on a curve


def plot_schedule(
    schedules: Schedule | Sequence[Schedule] | Mapping[str, Schedule],
    steps: int,
    *,
    labels: Sequence[str] | None = None,
    axes: Any = None,
    **style: Any,
) -> Any:
    """Draws the first values of one schedule or of several with matplotlib.

    Args:
      schedules: a function of the step count, several, or several by label.
      steps: counts 0 to `steps - 1` are drawn, of very many every n-th.
      labels: one for each schedule; several have a legend. By default their names.
      axes: matplotlib axes to draw on. By default those of a new figure.
      **style: options of matplotlib's `plot`, such as `color`.

    Returns:
      The matplotlib axes.

    Raises:
      ImportError: matplotlib is not installed.
      ValueError: steps is not a positive integer, or labels and schedules differ in number.
    """
    check_length("steps", steps)
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "plot_schedule draws with matplotlib, which is not installed: "
            "pip install functorch_optim[examples]"
        ) from error
    named = _by_label(schedules, labels)
    axes = plt.subplots(layout="constrained")[1] if axes is None else axes
    counts = range(0, steps, -(-steps // POINTS))
    for label, schedule in named:
        axes.plot(counts, [float(schedule(n)) for n in counts], label=label, **style)
    axes.set(xlabel="step", ylabel="value", xlim=(0, max(steps - 1, 1)))
    if len(named) > 1:
        axes.legend(frameon=False)
    return axes


def _by_label(schedules: Any, labels: Sequence[str] | None) -> list[tuple[str, Schedule]]:
    if isinstance(schedules, Mapping):
        schedules, labels = list(schedules.values()), labels or list(schedules)
    elif callable(schedules):
        schedules = [schedules]
    if labels is None:
        labels = [getattr(schedule, "__name__", "schedule") for schedule in schedules]
    if len(labels) != len(schedules):
        raise ValueError(f"Expected {len(schedules)} labels, but got {len(labels)}")
    return list(zip(labels, schedules, strict=True))
