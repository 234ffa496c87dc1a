"""state_dicts from torch and to torch as they are, and `.pt` files."""

from __future__ import annotations

import collections
import importlib
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functorch_optim.stateful as optim
from tests.support.lr_scheduler import ALL, OURS, Build, assert_same, over, torchs
from tests.support.lr_scheduler import optimizer as build_optimizer
from tests.support.stateful import exactly

torch = pytest.importorskip("torch")
interop = importlib.import_module("functorch_optim.interop.torch")

DTYPES = [
    "float32",
    "float16",
    "bfloat16",
    "float8_e5m2",
    "float8_e4m3fn",
    "bool",
    "uint8",
    "int8",
    "int16",
    "int32",
    "complex64",
]
WIDE = ["float64", "int64", "complex128"]


class Pair(NamedTuple):
    first: Any
    second: Any


def tensor_of(dtype: str, *shape: int) -> Any:
    numbers = torch.arange(1, 1 + int(np.prod(shape))).reshape(shape).float()
    return numbers.to(getattr(torch, dtype))


@pytest.mark.parametrize("dtype", DTYPES + WIDE)
def test_dtypes_and_numbers_are_kept(dtype: str, x64: None) -> None:
    for shape in (), (3,), (2, 3), (0, 2):
        tensor = tensor_of(dtype, *shape)
        array = interop.from_torch({"x": tensor})["x"]
        assert isinstance(array, jax.Array)
        assert (array.dtype.name, array.shape) == (dtype, shape)
        plain = tensor.to(torch.complex64 if tensor.is_complex() else torch.float32)
        np.testing.assert_array_equal(np.asarray(array).astype(plain.numpy().dtype), plain)
        back = interop.to_torch({"x": array})["x"]
        assert back.dtype == tensor.dtype
        assert torch.equal(back.to(plain.dtype), plain)


@pytest.mark.parametrize("dtype", WIDE)
def test_without_x64_nothing_is_narrowed(dtype: str) -> None:
    tensor = tensor_of(dtype, 3)
    array = interop.from_torch(tensor)
    assert isinstance(array, np.ndarray)
    assert array.dtype == dtype
    assert torch.equal(interop.to_torch(array), tensor)


def test_what_is_no_tensor_stays_and_containers_keep_their_types() -> None:
    state = {
        "state": {2: {"step": 3, "step_size": 0.5}, 0: {"al": [None, 1], "flag": True}},
        "tuple": (1, (2.0, "x")),
        "pair": Pair(None, [torch.ones(2)]),
        "counter": collections.Counter({3: 2}),
        "ordered": collections.OrderedDict(b=1, a=torch.ones(())),
        "size": torch.ones(2, 3).shape,
    }
    there = interop.from_torch(state)
    assert list(there) == list(state)
    assert list(there["state"]) == [2, 0]
    assert there["state"] == state["state"]
    assert type(there["state"][2]["step"]) is int
    assert there["tuple"] == (1, (2.0, "x"))
    assert type(there["pair"]) is Pair
    assert isinstance(there["pair"].second[0], jax.Array)
    assert type(there["counter"]) is collections.Counter
    assert list(there["ordered"]) == ["b", "a"]
    assert there["ordered"]["a"].shape == ()
    back = interop.to_torch(there)
    assert back["pair"].second[0].equal(torch.ones(2))
    assert back["ordered"]["a"].dtype == torch.float32


def test_numpy_arrays_scalars_and_parameters_become_tensors() -> None:
    got = interop.to_torch([np.ones(2), np.float64(0.5), optim.Parameter(jnp.ones(1))])
    assert got[0].dtype == torch.float64
    assert type(got[1]) is float
    assert got[2].equal(torch.ones(1))


def test_nothing_is_aliased() -> None:
    tensor = torch.ones(64)
    array = interop.from_torch(tensor)
    tensor.zero_()
    assert np.asarray(array).all()
    again = interop.to_torch(array)
    again.zero_()
    assert np.asarray(array).all()
    wide = torch.ones(4, dtype=torch.float64)
    kept = interop.from_torch(wide)  # numpy, without x64
    wide.zero_()
    assert kept.all()


def test_history_conjugation_and_strides_are_resolved() -> None:
    leaf = torch.arange(6.0).reshape(2, 3).requires_grad_()
    np.testing.assert_array_equal(interop.from_torch(leaf.T), leaf.detach().numpy().T)
    z = torch.tensor([1 + 2j, 3 - 1j])
    np.testing.assert_array_equal(interop.from_torch(z.conj()), [1 - 2j, 3 + 1j])
    np.testing.assert_array_equal(interop.from_torch(z.conj().imag), [-2.0, 1.0])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torch.eye(3).to_sparse(), r"sparse.* is no array: make it dense"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "quantized"),
    ],
    ids=["sparse", "quantized"],
)
@pytest.mark.filterwarnings("ignore")
def test_a_tensor_that_is_no_array_is_refused(make: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        interop.from_torch([make()])


def test_an_array_without_a_dtype_in_torch_is_refused() -> None:
    with pytest.raises(TypeError, match="no dtype for an array of int4"):
        interop.to_torch(jnp.ones(2, jnp.int4))
    with pytest.raises(TypeError, match="random key"):
        interop.to_torch({"key": jax.random.key(0)})


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "functorch_optim.interop.torch")
    with pytest.raises(ImportError, match=r'pip install "functorch_optim\[torch\]"'):
        importlib.import_module("functorch_optim.interop.torch")


# Files.


def full_state() -> dict[str, Any]:
    return {
        "state": {0: {"step": jnp.float32(3), "exp_avg": jnp.arange(4, dtype=jnp.bfloat16)}},
        "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "foreach": None, "params": [0]}],
        "best": float("inf"),
        "counter": collections.Counter({2: 1}),
    }


def test_a_file_holds_what_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    interop.save(path, full_state())
    assert exactly(interop.load(path)) == exactly(full_state())
    theirs = torch.load(path, weights_only=True)
    assert theirs["state"][0]["exp_avg"].dtype == torch.bfloat16
    torch.save(theirs, path)
    assert exactly(interop.load(str(path))) == exactly(full_state())


def test_a_file_of_a_torch_module_and_its_optimizer_is_read(tmp_path: Path) -> None:
    module = torch.nn.Linear(2, 3)
    reference = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 2)).sum().backward()
    reference.step()
    torch.save({"model": module.state_dict(), "opt": reference.state_dict()}, tmp_path / "x.pt")
    loaded = interop.load(tmp_path / "x.pt")
    assert type(loaded["model"]) is collections.OrderedDict
    np.testing.assert_array_equal(loaded["model"]["weight"], module.weight.detach().numpy())
    assert loaded["opt"]["state"][0]["step"] == 1


class Bomb:
    """Its unpickling leaves a trace."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("forced", [False, True])
def test_nothing_of_a_file_is_executed(
    tmp_path: Path, legacy: bool, forced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where an environment variable tells torch to unpickle by default."""
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path, trace = tmp_path / "bomb.pt", tmp_path / "trace"
    torch.save({"x": Bomb(trace)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"bomb\.pt was not loaded: .*whose loading could run"):
        interop.load(path)
    assert not trace.exists()


def test_a_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(1, 1), tmp_path / "module.pt")
    with pytest.raises(ValueError, match=r"Linear"):
        interop.load(tmp_path / "module.pt")


@pytest.mark.parametrize("kept", [0, 10, 300])
def test_a_damaged_file_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "cut.pt"
    interop.save(path, full_state())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"cut\.pt"):
        interop.load(path)


def test_a_missing_file_is_pythons_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        interop.load(tmp_path / "nothing.pt")


@pytest.mark.parametrize(
    ("state", "where"),
    [
        ({"a": [1, len]}, r"the state_dict\['a'\]\[1\] is a builtins\.builtin_function"),
        ({Pair(1, 2): 3}, r"a key of the state_dict is a tests\.interop\.test_torch\.Pair"),
        ({"x": Path("x")}, r"is a pathlib\.PosixPath"),
    ],
)
def test_what_load_would_refuse_is_not_saved(tmp_path: Path, state: Any, where: str) -> None:
    with pytest.raises(TypeError, match=where):
        interop.save(tmp_path / "x.pt", state)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("moment", ["write", "replace"])
def test_an_interrupted_save_leaves_the_old_file(
    tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.pt"
    interop.save(path, full_state())

    def interrupted(*args: Any) -> None:
        if moment == "write":
            args[1].write(b"half of it")
        raise KeyboardInterrupt

    owner, name = (torch, "save") if moment == "write" else (os, "replace")
    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        interop.save(path, {"new": jnp.ones(3)})
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == [path]
    assert exactly(interop.load(path)) == exactly(full_state())


def test_a_save_is_on_the_disk_before_it_has_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("replace"), replace(a, b)))
    interop.save(tmp_path / "x.pt", {"x": 1})
    assert order == ["fsync", "replace", "fsync"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target.pt", tmp_path / "link.pt"
    target.write_bytes(b"old")
    link.symlink_to(target)
    interop.save(link, {"x": 1})
    assert link.is_symlink()
    assert interop.load(target) == {"x": 1}


# Schedulers: there, here, and back through files.


def plateau(lib: Any, opt: Any) -> Any:
    return lib.ReduceLROnPlateau(opt, patience=1, cooldown=1, factor=0.5)


def metric(step: int) -> float:
    return float(np.sin(step) + 2)


def go(pair: Any, start: int, count: int) -> None:
    opt, scheduler = pair
    for step in range(start, start + count):
        opt.step()
        scheduler.step(*([metric(step)] if hasattr(scheduler, "patience") else []))


def rates(pair: Any) -> list[float]:
    return [x for group in pair[0].param_groups for x in (group["lr"], group["momentum"])]


def fresh(lib: Any, build: Build) -> Any:
    opt = build_optimizer(lib, momentum=0.5)
    return opt, build(lib, opt)


@over({**ALL, "Plateau": plateau})
def test_a_scheduler_moves_here_and_back_through_files(build: Build, tmp_path: Path) -> None:
    lib = torchs()
    stays, there = fresh(lib, build), fresh(lib, build)
    go(stays, 0, 6)
    go(there, 0, 6)
    torch.save([x.state_dict() for x in there], tmp_path / "1.pt")
    here = fresh(OURS, build)
    for x, saved in zip(here, interop.load(tmp_path / "1.pt"), strict=True):
        x.load_state_dict(saved)
    go(stays, 6, 6)
    go(here, 6, 6)
    assert_same(rates(here), rates(stays))
    interop.save(tmp_path / "2.pt", [x.state_dict() for x in here])
    back = fresh(lib, build)
    for x, saved in zip(back, torch.load(tmp_path / "2.pt", weights_only=True), strict=True):
        x.load_state_dict(saved)
    for _ in range(6):
        go(stays, 12, 1)
        go(back, 12, 1)
        assert_same(rates(back), rates(stays))
