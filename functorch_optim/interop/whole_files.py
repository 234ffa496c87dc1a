"""Files that are either written as a whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from typing import BinaryIO

Path = str | os.PathLike[str]


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Calls `write(file)` on a new file in the folder of `path`, which then takes its place.

    The data is on the disk before the name is. Whatever goes wrong, what was at `path` before is
    still there, and an exception leaves no other file behind.

    Args:
      path: the file. Where it is a symbolic link, the file it points to is replaced.
      write: takes a binary file.
    """
    target = os.path.realpath(path)
    folder, name = os.path.split(target)
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise
    _sync_folder(folder)


def _sync_folder(folder: str) -> None:
    """Puts a folder's list of names on the disk, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
