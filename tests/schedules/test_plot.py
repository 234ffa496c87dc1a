"""The picture of a schedule, and the page of them all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import functorch_optim as fo

GALLERY = Path(__file__).parents[2] / "docs" / "examples" / "schedule_gallery.py"


@pytest.fixture
def plt() -> Any:
    matplotlib = pytest.importorskip("matplotlib", reason="draws")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    yield plt
    plt.close("all")


def test_one_schedule_is_one_line(plt: Any) -> None:
    schedule = fo.step_lr(0.1, 3)
    axes = fo.plot_schedule(schedule, 10, color="red")
    (line,) = axes.lines
    np.testing.assert_array_equal(line.get_xdata(), np.arange(10))
    np.testing.assert_array_equal(line.get_ydata(), [schedule(n) for n in range(10)])
    assert line.get_color() == "red"
    assert axes.get_legend() is None
    assert axes.get_xlabel() == "step"


@pytest.mark.parametrize("kind", ["names", "labels", "mapping"])
def test_several_schedules_have_a_legend(plt: Any, kind: str) -> None:
    schedules = [fo.step_lr(0.1, 3), fo.exponential_lr(0.1, 0.9)]
    axes = plt.figure().gca()
    labels = ["step_lr", "exponential_lr"] if kind == "names" else ["a", "b"]
    if kind == "names":
        drawn = fo.plot_schedule(schedules, 5, axes=axes)
    elif kind == "labels":
        drawn = fo.plot_schedule(schedules, 5, axes=axes, labels=labels)
    else:
        drawn = fo.plot_schedule(dict(zip(labels, schedules, strict=True)), 5, axes=axes)
    assert drawn is axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == labels


def test_a_long_schedule_is_drawn_at_some_counts(plt: Any) -> None:
    (line,) = fo.plot_schedule(fo.cosine_annealing_lr(0.1, 10**7), 10**7).lines
    assert len(line.get_xdata()) == 2000
    (line,) = fo.plot_schedule(lambda count: 0.5, 1).lines
    assert line.get_ydata() == [0.5]


def test_errors(plt: Any) -> None:
    schedule = fo.step_lr(0.1, 3)
    with pytest.raises(ValueError, match=r"^Expected positive integer steps, but got 0$"):
        fo.plot_schedule(schedule, 0)
    with pytest.raises(ValueError, match=r"^Expected 1 labels, but got 2$"):
        fo.plot_schedule(schedule, 5, labels=["a", "b"])


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"pip install functorch_optim\[examples\]"):
        fo.plot_schedule(fo.step_lr(0.1, 3), 5)


def test_the_gallery(plt: Any, tmp_path: Path) -> None:
    out = tmp_path / "made"
    command = [sys.executable, str(GALLERY), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    figure = out / "schedules.png"
    assert done.stdout.strip() == f"figure: {figure}"
    assert figure.read_bytes().startswith(b"\x89PNG")
