"""What reading a file of unknown origin holds to: one kind of error, memory and depth in bounds."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import os
from collections.abc import Iterator

# A file's arrays may take this many times its size, and this much whatever its size. (Tied weights
# are saved once and loaded twice.)
TIMES = 4
FLOOR = 64 * 2**20

# What an item of a container takes, generously: its place, and the container's own share.
BYTES_OF_AN_ITEM = 128

# No state of an optimizer is nested as deep; Python's stack ends a little further on.
LEVELS = 100


@dataclasses.dataclass(frozen=True)
class ByteLimit:
    """How much memory the arrays of one file may take.

    Attributes:
      file_size: in bytes.
      most: the limit in bytes.
    """

    file_size: int
    most: int

    @classmethod
    def of(cls, file_size: int, max_bytes: int | None) -> ByteLimit:
        """The limit for a file: what the user said, or else in proportion to its size."""
        return cls(file_size, max(FLOOR, TIMES * file_size) if max_bytes is None else max_bytes)

    def check(self, needed: int, what: str) -> None:
        """Raises ValueError where so many bytes are too many."""
        if needed > self.most:
            raise ValueError(
                f"{what} would take {_counted(needed)} of memory, but the limit for this file of "
                f"{_counted(self.file_size)} is {_counted(self.most)}. If you trust it, give more "
                "as `max_bytes`"
            )


def check_max_bytes(max_bytes: int | None) -> None:
    """Raises unless this is a number of bytes, or `None`."""
    if max_bytes is None:
        return
    if isinstance(max_bytes, bool) or not isinstance(max_bytes, int):
        raise TypeError(f"max_bytes is an int or None, but got {max_bytes!r}")
    if max_bytes < 0:
        raise ValueError(f"max_bytes is a number of bytes, but got {max_bytes}")


def check_level(level: int, what: str) -> None:
    """Raises ValueError for a container inside so many others."""
    if level > LEVELS:
        raise ValueError(f"{what} is nested deeper than {LEVELS} levels, or contains itself")


class ClippedReader(io.BufferedReader):
    """A file for reading that makes no room for more bytes than it has, whatever is asked for.

    Attributes:
      size: in bytes.
    """

    def __init__(self, path: str | bytes):
        raw = io.FileIO(path)
        super().__init__(raw)
        self.size = os.fstat(raw.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """So many bytes, or as many as there are."""
        if size is not None and size > io.DEFAULT_BUFFER_SIZE:
            size = min(size, max(0, self.size - self.tell()))
        return super().read(size)


@contextlib.contextmanager
def told_as(words: str) -> Iterator[None]:
    """Turns whatever a damaged file makes of its reader into a ValueError.

    A reader assumes a well-formed file in many places, and libraries of others do. What the system
    says while the file is read stays as it is, and so does a lack of memory.

    Args:
      words: the file's name and what was not done with it; the message begins with them.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        # A damaged position may ask for a place before the beginning of the file.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        cause = str(error) if isinstance(error, ValueError) else repr(error)
        raise ValueError(f"{words}: {cause}") from error


def _counted(count: int) -> str:
    for size, unit in ((2**60, "EiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= size:
            return f"more than an {unit}" if unit == "EiB" else f"{count / size:.1f} {unit}"
    return f"{count} bytes"
