"""Files that are either written as a whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable
from typing import BinaryIO

FilePath = str | bytes | os.PathLike[str] | os.PathLike[bytes]

# What a system says that cannot put a folder on the disk, or does not let this user.
_NO_SYNC = (errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOTSUP)


def write_atomically(path: FilePath, write: Callable[[BinaryIO], object]) -> None:
    """Calls `write(file)` on a new file in the folder of `path`, which then takes its place.

    The data is on the disk before the name is. Whatever goes wrong, what was at `path` before is
    still there, and an exception leaves no other file behind. The mode of an existing file is kept;
    a new one has what the umask leaves.

    Args:
      path: the file. Where it is a symbolic link, the file it points to is replaced.
      write: takes a binary file.

    Raises:
      OSError: of the kind and with the path that `open(path, "wb")` would tell, also for a full
        disk: no folder, no permission, a folder or a device in place of the file, a loop of links.
    """
    name = os.fsdecode(path)
    mode = _mode_of_old(name)
    target = os.path.realpath(name)
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, f"there is no folder {folder!r}", name)
    # Without the file's own name, which may be as long as a name can be.
    temporary = os.path.join(folder, f".saving-{secrets.token_hex(8)}.tmp")
    try:
        with _created(temporary, mode) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, error.strerror, name) from error
        raise
    _sync_folder(folder, name)


def _mode_of_old(name: str) -> int | None:
    """The mode of the file at this path; `None` where there is none yet.

    Raises:
      OSError: no file can be there, or it may not be replaced.
    """
    if os.path.basename(name) in ("", os.curdir, os.pardir):
        code = errno.EISDIR if name else errno.ENOENT
        raise OSError(code, os.strerror(code), name)
    try:
        mode = os.stat(name).st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file, which alone can be replaced", name)
    if not os.access(name, os.W_OK):
        raise PermissionError(errno.EACCES, "the file is write-protected", name)
    return stat.S_IMODE(mode)


def _created(temporary: str, mode: int | None) -> BinaryIO:
    """A new file, which nobody may read who could not read the old one."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(temporary, flags, 0o666 if mode is None else 0o600), "wb")
    if mode is not None:
        try:
            os.chmod(temporary, mode)
        except BaseException:
            file.close()
            raise
    return file


def _sync_folder(folder: str, name: str) -> None:
    """Puts a folder's list of names on the disk, where the system can."""
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise OSError(error.errno, error.strerror, name) from error
