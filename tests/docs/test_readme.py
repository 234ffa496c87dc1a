"""The README's snippets run as they stand, one after the other, and do what they say."""

import re
from pathlib import Path

import jax.numpy as jnp
import pytest

README = Path(__file__).parents[2] / "README.md"


def run_snippets() -> dict:
    snippets = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    assert len(snippets) == 3
    names: dict = {}
    for number, snippet in enumerate(snippets):
        exec(compile(snippet, f"README.md, snippet {number}", "exec"), names)
        names[f"loss {number}"] = names["loss"]
    return names


@pytest.fixture(scope="module")
def names() -> dict:
    return run_snippets()


def test_the_jitted_loop_fits_the_line(names: dict) -> None:
    assert names["loss 0"] < 0.01
    assert jnp.allclose(names["params"]["w"], jnp.array([1.0, -2.0, 0.5]), atol=0.1)


def test_the_chain_is_a_pair(names: dict) -> None:
    updates, state = names["tx"].update(names["params"], names["state"], names["params"])
    assert state[1].step == 1
    assert updates["w"].shape == (3,)


def test_the_stateful_loop_lowers_the_loss_at_two_learning_rates(names: dict) -> None:
    assert names["loss 2"] < 0.01
    assert [group["initial_lr"] for group in names["opt"].param_groups] == [1e-2, 1e-1]


def test_the_two_commands_are_in_the_first_screen() -> None:
    first_screen = README.read_text().splitlines()[:30]
    assert any(
        'python -m pip install -e ".[examples]" && python docs/examples/train_digits.py' in line
        for line in first_screen
    )
    assert any(
        'python -m pip install -e ".[test]" && python -m pytest' in line for line in first_screen
    )
