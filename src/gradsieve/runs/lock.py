"""Only one process at a time works in a run folder, and nothing outside the folder is touched.

In: a folder that anybody may have prepared. Out: a lock that is released when its process ends.
Symbolic links that lead out of the folder are refused, and the lock file is never truncated. On
file systems without `flock` (some network ones), a file that names the holder is the lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

import psutil

from gradsieve.errors import RunError

LOCK = ".lock"
"""Lock file of the process that works in a run folder; its presence marks the folder as a run."""

HOLDER = ".lock-holder"
"""Without `flock`: file with the host and process that work in the folder."""

BUSY = (errno.EAGAIN, errno.EACCES)


def mark(folder: Path) -> None:
    """Mark a folder as a run."""
    os.close(_opened(folder / LOCK))


def _opened(file: Path) -> int:
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


@contextmanager
def locked(
    folder: Path, shared: bool = False, *, name: str = LOCK, wait: bool = False
) -> Iterator[None]:
    """Lock a run folder by the file `name`; refuse it, or `wait`, while another process has it.

    With `shared`, several processes can have it; without `flock` nothing is locked then.
    """
    file = _opened(folder / name)
    holder: AbstractContextManager[None] = nullcontext()
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        try:
            fcntl.flock(file, how)
        except OSError as error:
            if error.errno in BUSY:
                todo = "Wait for it or stop it; or give another --out."
                if os.fstat(file).st_nlink > 1:  # `cp -al`: the process may be in the other folder
                    todo += f" If this is a copy by hard links, delete its {folder / name}."
                raise _busy(folder, todo) from None
            if not shared and not wait:
                holder = _held_by_name(folder)
        with holder:
            yield
    finally:
        os.close(file)


@contextmanager
def _held_by_name(folder: Path) -> Iterator[None]:
    file, own = folder / HOLDER, f"{socket.gethostname()} {os.getpid()}"
    _remove_stale(file)
    try:
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        todo = f"Wait for it or stop it. If none is, delete {file} (there is no flock here)."
        raise _busy(folder, todo) from None
    try:
        os.write(opened, own.encode())
        os.close(opened)
        yield
    finally:
        file.unlink(missing_ok=True)


def _remove_stale(file: Path) -> None:
    """Remove the holder's file if its process was on this host and has ended."""
    with suppress(OSError, ValueError):
        host, number = file.read_text().split()
        if host == socket.gethostname() and not psutil.pid_exists(int(number)):
            file.unlink()


def _busy(folder: Path, todo: str) -> RunError:
    what = "Another gradsieve process is working in this run folder."
    return RunError(what, str(folder), todo)


def refuse_links(folder: Path) -> None:
    """Refuse a folder with symbolic links that lead out of it: writing would change other files."""
    home = folder.resolve()
    for below, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(below, name)
            if path.is_symlink() and not path.resolve().is_relative_to(home):
                raise RunError(
                    "The run folder holds a symbolic link that leads out of it.",
                    f"{path} -> {path.resolve()}",
                    "Replace it by what it links to, or give another --out. The run folder itself "
                    "may be a link.",
                )
