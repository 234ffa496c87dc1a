"""Draw every learning-rate schedule on one page.

    python docs/examples/schedule_gallery.py [--out FOLDER] [--steps 240]

Each panel is one call of the library, its arguments in the caption below the name. The schedules
that also move the momentum, and the one that follows a metric, come last.
"""

import argparse
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # the backend comes first

import functorch_optim as fo

INK, MUTED, BLUE, ORANGE = "#22303c", "#7a8794", "#2f6db3", "#e07b39"
Panel = tuple[str, str, Callable[[Any], Any]]


def panels(steps: int) -> list[Panel]:
    """Name, arguments and schedule; the highest learning rate is 1 everywhere."""
    part = steps // 6
    cosine = fo.cosine_annealing_lr(1.0, steps - part)
    ramp = fo.linear_lr(1.0, 0.1, 1.0, part)
    stair = fo.step_lr(1.0, part, 0.6)
    epochs = fo.exponential_lr(1.0, 0.7)
    wave = fo.lambda_lr(1.0, lambda n: (1 + math.cos(0.15 * n)) / (2 + 0.02 * n))
    return [
        ("constant_lr", f"factor=0.3, total_iters={part}", fo.constant_lr(1.0, 0.3, part)),
        (
            "linear_lr",
            f"start_factor=0.1, total_iters={3 * part}",
            fo.linear_lr(1, 0.1, 1, 3 * part),
        ),
        ("step_lr", f"step_size={part}, gamma=0.6", stair),
        (
            "multi_step_lr",
            f"milestones=[{2 * part}, {3 * part}, {5 * part}], gamma=0.5",
            fo.multi_step_lr(1.0, [2 * part, 3 * part, 5 * part], 0.5),
        ),
        ("exponential_lr", "gamma=0.985", fo.exponential_lr(1.0, 0.985)),
        ("polynomial_lr", f"total_iters={steps}, power=2", fo.polynomial_lr(1.0, steps, 2.0)),
        ("cosine_annealing_lr", f"T_max={steps}", fo.cosine_annealing_lr(1.0, steps)),
        (
            "cosine_annealing_warm_restarts",
            f"T_0={part}, T_mult=2",
            fo.cosine_annealing_warm_restarts(1.0, part, 2),
        ),
        (
            "cyclic_lr",
            f"step_size_up={part // 2}, mode='triangular2'",
            fo.cyclic_lr(0.1, 1.0, part // 2, mode="triangular2"),
        ),
        ("lambda_lr", "any function of the step", wave),
        (
            "multiplicative_lr",
            "a factor for each step",
            fo.multiplicative_lr(1.0, lambda n: 1 - 2 / (n + 40)),
        ),
        ("swa_lr", f"swa_lr=0.3, anneal_epochs={2 * part}", fo.swa_lr(1.0, 0.3, 2 * part)),
        (
            "sequential_lr",
            f"linear_lr, then step_lr at {part}",
            fo.sequential_lr([ramp, stair], [part]),
        ),
        ("chained", "cosine_annealing_lr times step_lr", fo.chained([cosine, stair])),
        ("warmup", f"{part} steps, then cosine_annealing_lr", fo.warmup(cosine, part)),
        ("per_epoch", f"exponential_lr, {part // 2} steps each", fo.per_epoch(epochs, part // 2)),
    ]


def falling_metric(count: int, steps: int) -> float:
    """A validation loss with two plateaus."""
    x = 3 * count / steps
    level = math.floor(x) + min(1.0, 2.5 * (x - math.floor(x)))
    return 0.95 * math.exp(-0.75 * level) + 0.006 * math.sin(2.1 * count)


def on_plateau(steps: int) -> tuple[list[float], list[float]]:
    tx = fo.reduce_lr_on_plateau(1.0, factor=0.4, patience=steps // 12, threshold=0.02)
    state, lrs, metrics = tx.init(), [], []
    for count in range(steps):
        metrics.append(falling_metric(count, steps))
        lr, state = tx.update(metrics[-1], state)
        lrs.append(float(lr))
    return metrics, lrs


def caption(axes: Any, name: str, arguments: str) -> None:
    axes.set_title(name, loc="left", fontsize=10, fontweight="bold", color=INK, pad=20)
    axes.text(0, 1.045, arguments, transform=axes.transAxes, fontsize=8, color=MUTED)
    axes.set(xlabel="", ylabel="")


def draw(steps: int, path: Path) -> None:
    figure, grid = plt.subplots(5, 4, figsize=(13, 13.5), sharex=True, sharey=True)
    places = iter(grid.flat)
    for name, arguments, schedule in panels(steps):
        axes = next(places)
        fo.plot_schedule(schedule, steps, axes=axes, color=BLUE, linewidth=1.8)
        axes.fill_between(
            axes.lines[0].get_xdata(), axes.lines[0].get_ydata(), color=BLUE, alpha=0.1
        )
        caption(axes, name, arguments)

    pairs: list[tuple[str, str, dict[str, Callable[[Any], Any]]]] = [
        (
            "one_cycle_lr and _momentum",
            f"total_steps={steps}",
            {"lr": fo.one_cycle_lr(1.0, steps), "momentum": fo.one_cycle_momentum(steps)},
        ),
        (
            "one_cycle_lr and _momentum",
            f"total_steps={steps}, three_phase=True",
            {
                "lr": fo.one_cycle_lr(1.0, steps, three_phase=True),
                "momentum": fo.one_cycle_momentum(steps, three_phase=True),
            },
        ),
        (
            "cyclic_lr and _momentum",
            f"step_size_up={steps // 6}",
            {
                "lr": fo.cyclic_lr(0.1, 1.0, steps // 6),
                "momentum": fo.cyclic_momentum(0.8, 0.95, steps // 6),
            },
        ),
    ]
    for name, arguments, lines in pairs:
        axes = next(places)
        for (label, schedule), color in zip(lines.items(), (BLUE, ORANGE), strict=True):
            fo.plot_schedule({label: schedule}, steps, axes=axes, color=color, linewidth=1.8)
        caption(axes, name, arguments)

    axes = next(places)
    metrics, lrs = on_plateau(steps)
    axes.plot(metrics, color=ORANGE, linewidth=1.2)
    axes.plot(lrs, color=BLUE, linewidth=1.8)
    caption(axes, "reduce_lr_on_plateau", f"factor=0.4, patience={steps // 12}")

    for axes in grid.flat:
        axes.set(xlim=(0, steps - 1), ylim=(0, 1.06), yticks=[0, 0.5, 1])
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#c5ccd3")
        axes.tick_params(colors=MUTED, labelsize=8, length=3)
    for axes in grid[-1]:
        axes.set_xlabel("step", fontsize=9, color=MUTED)
    for axes in grid[:, 0]:
        axes.set_ylabel("value", fontsize=9, color=MUTED)
    figure.suptitle(
        "functorch_optim: schedules", x=0.045, ha="left", fontsize=17, fontweight="bold", color=INK
    )
    key = [
        plt.Line2D([], [], color=BLUE, linewidth=1.8, label="learning rate"),
        plt.Line2D([], [], color=ORANGE, linewidth=1.8, label="momentum; in the last, the metric"),
    ]
    figure.legend(
        handles=key, loc="upper right", bbox_to_anchor=(0.985, 0.996), ncols=2, frameon=False
    )
    figure.tight_layout(rect=(0.02, 0, 1, 0.985), h_pad=1.6, w_pad=1.6)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw every learning-rate schedule on one page.")
    parser.add_argument("--out", type=Path, help="folder for the figure (default: a temporary one)")
    parser.add_argument("--steps", type=int, default=240, help="the counts to draw (default 240)")
    arguments = parser.parse_args()
    if arguments.steps < 24:
        parser.error("--steps should be at least 24")
    out = (arguments.out or Path(tempfile.mkdtemp(prefix="schedules-"))).resolve()
    out.mkdir(parents=True, exist_ok=True)
    figure = out / "schedules.png"
    draw(arguments.steps, figure)
    print(f"figure: {figure}")


if __name__ == "__main__":
    main()
