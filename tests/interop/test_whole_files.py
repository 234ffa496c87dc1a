"""How files are written: the mode, links, names, and what is told when it cannot be done."""

from __future__ import annotations

import errno
import importlib
import os
import resource
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from functorch_optim.interop import whole_files
from tests.support.files import limited

SAVERS = {
    "torch": ("torch", "save", "load"),
    "safetensors": ("safetensors", "save_state", "load_state"),
}


class Format:
    """One of the ways to save."""

    def __init__(self, name: str):
        module, save, load = SAVERS[name]
        pytest.importorskip(module)
        interop = importlib.import_module(f"functorch_optim.interop.{module}")
        self.save: Callable[..., Any] = getattr(interop, save)
        self.load: Callable[..., Any] = getattr(interop, load)


@pytest.fixture(params=SAVERS)
def fmt(request: pytest.FixtureRequest) -> Format:
    return Format(request.param)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask() -> Iterator[None]:
    old = os.umask(0o027)
    yield
    os.umask(old)


@pytest.mark.parametrize("old", [0o600, 0o640, 0o664, 0o777])
def test_an_old_files_mode_is_kept(fmt: Format, path: Path, old: int, umask: None) -> None:
    path.write_bytes(b"old")
    path.chmod(old)
    fmt.save(path, {"x": 1})
    assert mode(path) == old
    assert fmt.load(path) == {"x": 1}


def test_a_new_file_has_what_the_umask_leaves(fmt: Format, path: Path, umask: None) -> None:
    fmt.save(path, {"x": 1})
    assert mode(path) == 0o640


def test_nobody_reads_the_new_file_who_could_not_read_the_old_one(path: Path) -> None:
    path.write_bytes(b"old")
    path.chmod(0o600)
    seen = []

    def write(file: Any) -> None:
        seen.extend(mode(x) for x in path.parent.iterdir())

    whole_files.write_atomically(path, write)
    assert seen == [0o600, 0o600]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write all")
def test_a_write_protected_file_is_not_replaced(fmt: Format, path: Path) -> None:
    path.write_bytes(b"old")
    path.chmod(0o400)
    with pytest.raises(PermissionError, match="state"):
        fmt.save(path, {"x": 1})
    assert path.read_bytes() == b"old"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write all")
def test_a_folder_that_may_not_be_written_to_is_told(fmt: Format, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError) as error:
        fmt.save(tmp_path / "state", {"x": 1})
    tmp_path.chmod(0o700)
    assert error.value.filename == str(tmp_path / "state")


# Paths.


class Where:
    """A path of another library."""

    def __init__(self, path: Any):
        self._path = path

    def __fspath__(self) -> Any:
        return self._path


KINDS: dict[str, Callable[[Path], Any]] = {
    "str": str,
    "bytes": os.fsencode,
    "a path": lambda path: path,
    "a path of str": lambda path: Where(str(path)),
    "a path of bytes": lambda path: Where(os.fsencode(path)),
    "relative": lambda path: os.path.relpath(path),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_path_is_taken(fmt: Format, path: Path, kind: str) -> None:
    given = KINDS[kind](path)
    fmt.save(given, {"x": 1})
    assert path.is_file()
    assert fmt.load(given) == {"x": 1}
    path.write_bytes(b"no file of this kind")
    with pytest.raises(ValueError, match="state"):
        fmt.load(given)


def test_a_name_that_is_no_text_is_taken(fmt: Format, path: Path) -> None:
    given = os.fsencode(path) + b"\xff"
    fmt.save(given, {"x": 1})
    assert os.listdir(os.fsencode(path.parent)) == [b"state\xff"]
    assert fmt.load(given) == {"x": 1}


@pytest.mark.parametrize("length", [1, 250, 255])
def test_a_name_may_be_as_long_as_a_name_can_be(fmt: Format, tmp_path: Path, length: int) -> None:
    path = tmp_path / ("x" * length)
    for x in 1, 2:
        fmt.save(path, {"x": x})
    assert fmt.load(path) == {"x": 2}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("links", [1, 3])
@pytest.mark.parametrize("dangling", [False, True])
def test_the_file_behind_a_link_is_replaced(
    fmt: Format, tmp_path: Path, links: int, dangling: bool
) -> None:
    (tmp_path / "folder").mkdir()
    target = tmp_path / "folder" / "target"
    if not dangling:
        target.write_bytes(b"old")
        target.chmod(0o600)
    names = [tmp_path / f"link{i}" for i in range(links)]
    names[0].symlink_to(Path("folder") / "target")
    for name, other in zip(names[1:], names, strict=False):
        name.symlink_to(other.name)
    fmt.save(names[-1], {"x": 1})
    assert all(name.is_symlink() for name in names)
    assert fmt.load(target) == {"x": 1}
    assert dangling or mode(target) == 0o600
    assert list(target.parent.iterdir()) == [target]


def unusable(tmp_path: Path) -> dict[str, tuple[str, int]]:
    """Paths where nothing can be saved, and the system's number for why."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"a file")
    (tmp_path / "loop1").symlink_to("loop2")
    (tmp_path / "loop2").symlink_to("loop1")
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "nowhere").symlink_to("missing/target")
    (tmp_path / "linked").symlink_to("folder")
    os.mkfifo(tmp_path / "pipe")
    return {
        "a loop of links": ("loop1", errno.ELOOP),
        "a link to itself": ("self", errno.ELOOP),
        "a link into a missing folder": ("nowhere", errno.ENOENT),
        "a missing folder": ("missing/state", errno.ENOENT),
        "a folder": ("folder", errno.EISDIR),
        "a folder with a slash": ("folder/", errno.EISDIR),
        "a new name with a slash": ("new/", errno.EISDIR),
        "the folder itself": (".", errno.EISDIR),
        "a link to a folder": ("linked", errno.EISDIR),
        "a file for a folder": ("file/state", errno.ENOTDIR),
        "a name too long": ("x" * 256, errno.ENAMETOOLONG),
        "a pipe": ("pipe", errno.EINVAL),
    }


def everything(folder: Path) -> Any:
    return sorted(
        (str(x), x.is_symlink(), x.read_bytes() if x.is_file() else None) for x in folder.rglob("*")
    )


def test_where_nothing_can_be_saved_the_path_and_the_reason_are_told(
    fmt: Format, tmp_path: Path
) -> None:
    cases = unusable(tmp_path)
    before = everything(tmp_path)
    for case, (name, number) in cases.items():
        path = f"{tmp_path}/{name}"
        with pytest.raises(OSError) as error:
            fmt.save(path, {"x": jnp.ones(2)})
        assert error.value.errno == number, case
        assert path in str(error.value), case
    with pytest.raises(FileNotFoundError):
        fmt.save("", {"x": 1})
    assert everything(tmp_path) == before


def test_a_missing_file_and_a_folder_are_the_systems_errors(fmt: Format, tmp_path: Path) -> None:
    for given in tmp_path / "x", os.fsencode(tmp_path / "x"):
        with pytest.raises(FileNotFoundError):
            fmt.load(given)
    with pytest.raises(IsADirectoryError):
        fmt.load(tmp_path)


# What goes wrong on the way.


def test_a_file_that_is_larger_than_allowed(fmt: Format, path: Path) -> None:
    fmt.save(path, {"x": jnp.ones(3)})
    before = path.read_bytes()
    with limited(resource.RLIMIT_FSIZE, 20_000), pytest.raises(OSError) as error:
        fmt.save(path, {"x": jnp.ones(100_000)})
    assert error.value.errno == errno.EFBIG
    assert error.value.filename == str(path)
    assert list(path.parent.iterdir()) == [path]
    assert path.read_bytes() == before


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_full_disk(fmt: Format, path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fmt.save(path, {"x": 1})

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, where, full)
    with pytest.raises(OSError, match="No space left") as error:
        fmt.save(path, {"x": 2})
    monkeypatch.undo()
    assert error.value.filename == str(path)
    assert list(path.parent.iterdir()) == [path]
    assert fmt.load(path) == {"x": 1}


class Broken:
    """A file that fails at the n-th write."""

    def __init__(self, file: Any, error: BaseException, at: int):
        self._file, self._error, self._left = file, error, at

    def write(self, data: Any) -> int:
        self._left -= 1
        if self._left <= 0:
            raise self._error
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Broken:
        return self

    def __exit__(self, *args: Any) -> None:
        self._file.close()


@pytest.mark.parametrize("at", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("kind", ["interrupt", "full"])
def test_torchs_writer_does_not_hide_what_happened(
    path: Path, at: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    interop = Format("torch")
    interop.save(path, {"x": 1})
    created = whole_files._created
    error = KeyboardInterrupt() if kind == "interrupt" else OSError(errno.ENOSPC, "it is full")
    monkeypatch.setattr(whole_files, "_created", lambda *args: Broken(created(*args), error, at))
    with pytest.raises(type(error)) as found:
        interop.save(path, {"x": jnp.ones(10_000), "y": jnp.ones(2)})
    monkeypatch.undo()
    if kind == "full":
        assert (found.value.errno, found.value.filename) == (errno.ENOSPC, str(path))
    assert list(path.parent.iterdir()) == [path]
    assert interop.load(path) == {"x": 1}


def test_a_folder_that_cannot_be_listed_is_saved_to(path: Path) -> None:
    """Its list of names cannot be put on the disk then; the file is."""
    if os.geteuid() == 0:
        pytest.skip("root may list all")
    path.parent.chmod(0o300)
    whole_files.write_atomically(path, lambda file: file.write(b"x"))
    path.parent.chmod(0o700)
    assert path.read_bytes() == b"x"


# What is refused before anything is written.


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("kind", ["deep", "itself"])
def test_a_value_without_end_is_refused(fmt: Format, path: Path, kind: str) -> None:
    value: Any = deep(5000)
    if kind == "itself":
        value = []
        value.append(value)
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="nested deeper than 100 levels, or contains itself"):
        fmt.save(path, value)
    assert path.read_bytes() == b"old"
    fmt.save(path, deep(100))
    assert fmt.load(path) == deep(100)


@pytest.mark.parametrize("dtype", ["longdouble", "clongdouble", "M8[s]", "S2", "object", "i4,f4"])
def test_numbers_that_no_format_has_are_refused(fmt: Format, path: Path, dtype: str) -> None:
    path.write_bytes(b"old")
    with pytest.raises(TypeError):
        fmt.save(path, {"x": np.zeros(2, dtype)})
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]
