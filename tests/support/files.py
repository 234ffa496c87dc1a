"""What the tests of files share: limits of the system, and files of torch put together by hand."""

from __future__ import annotations

import contextlib
import io
import resource
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

# What the memory of a test may grow by where nothing large is to be taken.
SPACE = 2**30


@contextlib.contextmanager
def limited(kind: int, most: int) -> Iterator[None]:
    """A limit of this process, for as long as the block runs."""
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """Whatever takes a GiB more memory than there is now fails."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    with limited(resource.RLIMIT_AS, pages * resource.getpagesize() + SPACE):
        yield


def zip_of(records: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """An archive as torch.save makes them, with these records."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method, compresslevel=1) as archive:
        for name, data in records.items():
            archive.writestr(f"archive/{name}", data)
    return file.getvalue()


def text(x: str) -> bytes:
    """The code of a string in a pickle."""
    data = x.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def integer(n: int) -> bytes:
    """The code of a number in a pickle."""
    data = n.to_bytes(16, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def numbers(*items: int) -> bytes:
    """The code of a tuple of numbers."""
    return b"(" + b"".join(map(integer, items)) + b"t"


def tensor_code(
    shape: tuple[int, ...], strides: tuple[int, ...], size: int, offset: int = 0, key: str = "0"
) -> bytes:
    """The code of a float32 tensor over a storage of so many numbers."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu")
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + integer(size) + b"tQ" + integer(offset)
        + numbers(*shape) + numbers(*strides) + b"\x89N" + b"tR"
    )  # fmt: skip


def pickle_of(code: bytes) -> bytes:
    """A whole pickle."""
    return b"\x80\x02" + code + b"."
