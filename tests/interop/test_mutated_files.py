"""Damaged files, by the hundred: each is loaded, or refused by a ValueError that names it."""

from __future__ import annotations

import collections
import importlib
import io
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.files import little_memory, zip_of

FAST, MANY = 150, 2500


def state() -> dict[str, Any]:
    return {
        "state": {0: {"step": jnp.float32(3), "exp_avg": jnp.arange(4, dtype=jnp.bfloat16)}},
        "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "foreach": None, "params": [0]}],
        "z": jnp.ones((2, 2), jnp.complex64),
        "counter": collections.Counter({2: 1}),
        "others": [b"ab", 2**70, 1j, collections.OrderedDict(b="text", a=True)],
    }


class Format(NamedTuple):
    """A small file of a format, and how it is loaded."""

    data: bytes
    load: Callable[[Path], Any]


def torch_format(legacy: bool) -> Format:
    torch = pytest.importorskip("torch")
    interop = importlib.import_module("functorch_optim.interop.torch")
    file = io.BytesIO()
    torch.save(interop.to_torch(state()), file, _use_new_zipfile_serialization=not legacy)
    return Format(file.getvalue(), interop.load)


def safetensors_format(folder: Path) -> Format:
    pytest.importorskip("safetensors")
    interop = importlib.import_module("functorch_optim.interop.safetensors")
    value = {**state(), "others": [2**70, 1j, (None, "text"), jax.random.key(0), np.float32(1)]}
    interop.save_state(folder / "whole", value)
    return Format((folder / "whole").read_bytes(), interop.load_state)


def cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))]


def flipped(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 8))):
        changed[draw.randrange(len(data))] = draw.choice(
            (0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256), ord("]"), ord("R"), ord("h"))
        )
    return bytes(changed)


def shuffled(data: bytes, draw: random.Random) -> bytes:
    """A piece of the file in another place: left out, twice, or over something else."""
    start, end = sorted(draw.randrange(len(data)) for _ in range(2))
    place = draw.randrange(len(data))
    piece = data[start : min(end, start + 64)]
    return draw.choice(
        (
            data[:start] + data[start + len(piece) :],
            data[:place] + piece + data[place:],
            data[:place] + piece + data[place + len(piece) :],
        )
    )


DAMAGES = (cut, flipped, flipped, shuffled)


def damaged(data: bytes, seed: str, count: int) -> Iterator[bytes]:
    draw = random.Random(seed)
    for _ in range(count):
        yield draw.choice(DAMAGES)(data, draw)


def damaged_pickles(data: bytes, seed: str, count: int) -> Iterator[bytes]:
    """Archives whose checksums are right, and whose pickles are not."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    for pickle in damaged(records["data.pkl"], seed, count):
        yield zip_of(records | {"data.pkl": pickle})


FORMATS: dict[str, tuple[Callable[[Path], Format], Callable[..., Iterator[bytes]]]] = {
    "zip": (lambda folder: torch_format(False), damaged),
    "pickle in a zip": (lambda folder: torch_format(False), damaged_pickles),
    "legacy": (lambda folder: torch_format(True), damaged),
    "safetensors": (safetensors_format, damaged),
}


@pytest.mark.parametrize("count", [FAST, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_is_loaded_or_refused_by_name(name: str, count: int, tmp_path: Path) -> None:
    build, damages = FORMATS[name]
    data, load = build(tmp_path)
    path = tmp_path / "damaged"
    path.write_bytes(data)
    assert load(path).keys() == state().keys()
    refused = 0
    with little_memory():
        for mutation in damages(data, name, count):
            path.write_bytes(mutation)
            try:
                load(path)
            except ValueError as error:
                assert str(path) in str(error)
                refused += 1
    assert refused > count // 3


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_is_cut_is_refused_at_every_length(name: str, tmp_path: Path) -> None:
    """What is behind the last storage of the old format is nothing."""
    data, load = FORMATS[name][0](tmp_path)
    path = tmp_path / "cut"
    for length in range(0, len(data) - 1, max(1, len(data) // 60)):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match="cut"):
            load(path)
