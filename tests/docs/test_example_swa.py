"""The example of weight averaging runs from the command line, and the average is worth it."""

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "swa_digits.py"


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_swa_digits(tmp_path: Path) -> None:
    done = run("--epochs", "12", "--seed", "0", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = dict(re.findall(r"│ (last|averaged) +│ (.*) │", done.stdout))
    numbers = {name: [float(x) for x in re.findall(r"\d+\.\d+", row)] for name, row in rows.items()}
    (last_accuracy, last_loss), (accuracy, loss) = numbers["last"], numbers["averaged"]
    assert accuracy >= last_accuracy > 90
    assert loss < last_loss < 0.5
    assert "3 epochs were averaged" in done.stdout
    figure = tmp_path / "swa_digits.png"
    assert str(figure) in done.stdout.replace("\n", "")
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_swa_digits_refuses_one_epoch() -> None:
    done = run("--epochs", "1")
    assert done.returncode == 2
    assert "--epochs should be at least 2" in done.stderr
