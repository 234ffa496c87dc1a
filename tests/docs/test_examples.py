"""The example scripts run from the command line, at a small size."""

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def run(name: str, *arguments: str) -> str:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_train_digits(tmp_path: Path) -> None:
    printed = run("train_digits.py", "--epochs", "2", "--seed", "1", "--out", str(tmp_path))
    assert "it goes on identically" in printed
    assert printed.count("test accuracy") == 3
    figure = tmp_path / "train_digits.png"
    assert str(figure) in printed.replace("\n", "")
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_train_digits_refuses_zero_epochs() -> None:
    command = [sys.executable, str(EXAMPLES / "train_digits.py"), "--epochs", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "--epochs should be at least 1" in done.stderr
