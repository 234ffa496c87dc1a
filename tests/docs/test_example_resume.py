"""The example that moves from torch to flax runs from the command line, and the losses agree."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("flax")
SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "resume_from_torch.py"


def test_resume_from_torch(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--epochs", "2", "--seed", "1", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (largest,) = re.findall(r"largest difference of 22 losses: (\S+) \(float64\)", done.stdout)
    assert float(largest) < 1e-12
    accuracies = re.findall(r"(\d+\.\d+) %", done.stdout)
    assert len(accuracies) == 2
    assert accuracies[0] == accuracies[1]
    assert re.search(r"hidden\.weight +\(32, 256\) +flattened_linear", done.stdout)
    figure = tmp_path / "resume_from_torch.png"
    assert str(figure) in done.stdout.replace("\n", "")
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_resume_from_torch_refuses_one_epoch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--epochs", "1"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert ended.value.code == 2
    assert "--epochs should be at least 2" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["torch", "flax"])
def test_the_extras_are_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SystemExit, match=r'pip install "functorch_optim\[examples,torch,flax\]"'):
        runpy.run_path(str(SCRIPT), run_name="__main__")
