"""Files that are whole or absent: written beside their place, then renamed; opened only when they
are files; and locked."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from rwm_fast.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PARTIAL = ".partial"  # ends the name of a file that is being written
_writers = itertools.count()


def write_whole(path: str | Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary path)`, flush it to the disk, then give it its name at once.

    A link stays, and what it leads to is replaced. A file that is replaced keeps its mode.
    UserError where `path` is something else than a regular file: a device is never replaced.
    Errors of writing leave what was there, and come as they are, but for a disk's: whatever a
    writer makes of it, it comes as the OSError that it was, with the file's name.
    """
    path = writable(path)
    # of this writer alone, for two may write one file; and names have a limit
    beside = f"{path.name[:50]}.{os.getpid()}-{next(_writers)}{PARTIAL}"
    temporary = path.with_name(beside)
    try:
        temporary.touch()
        mode = (path if path.exists() else temporary).stat().st_mode
        with _disk_errors(path, temporary):
            write(temporary)
        temporary.chmod(stat.S_IMODE(mode))  # some writers make a file of their own
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if hasattr(os, "O_DIRECTORY"):  # the rename itself reaches the disk with its folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def _disk_errors(path: Path, temporary: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        told = isinstance(error, OSError) and error.errno is not None
        reason = error if told else _trouble(temporary)
        if not isinstance(reason, OSError):
            raise
        raise OSError(reason.errno, reason.strerror, str(path)) from error


def _trouble(path: Path) -> OSError | None:
    """What writing more to a file gives: libraries make anything of a full disk, so it is tried."""
    try:
        with open(path, "ab") as file:
            file.write(bytes(1 << 20))
        return None
    except OSError as error:
        return error


def remove_partials(folder: Path) -> None:
    """Remove what writers that were killed have left in a folder that nobody writes to now."""
    for path in folder.glob("*" + PARTIAL) if folder.is_dir() else ():
        if path.is_file():
            path.unlink()


def write_file(path: str | Path, write: Callable[[Path], object]) -> None:
    """`write_whole` for a file that the user named: whatever goes wrong is a UserError."""
    try:
        write_whole(path, write)
    except UserError:
        raise
    except Exception as error:  # a picture's writer raises anything
        reason = getattr(error, "strerror", None) or error or type(error).__name__
        raise UserError(f"{path} cannot be written: {reason}") from None


def writable(path: str | Path) -> Path:
    """The file that `path` leads to, absent or regular; UserError for anything else."""
    real = Path(os.path.realpath(path))
    try:
        mode = real.stat().st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be written: {reason}") from None
    if not stat.S_ISREG(mode):
        raise UserError(f"{path} cannot be written: it is {kind_of(mode)}, not a file")
    if not real.parent.is_dir():
        raise UserError(f"{path} cannot be written: expected a path in a folder that exists")
    return real


def open_file(path: str | Path) -> BinaryIO:
    """A regular file, open for reading; OSError for a pipe or a device, which may never end."""
    # without O_NONBLOCK the open itself waits for a pipe's other end
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise OSError(errno.EINVAL, f"it is {kind_of(mode)}, not a file", str(path))
    return open(handle, "rb")


def lock(file: IO[Any]) -> bool:
    """Have an open file to oneself until it is closed or the process ends, however it ends; False
    if another one has it. Always true on systems and disks that know no locks."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a network disk without locks
            pass
    return True


def this_process() -> str:
    """What others are told of who has a lock."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def kind_of(mode: int) -> str:
    """What a mode other than a regular file's is, in words."""
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISFIFO(mode):
        return "a pipe"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"
