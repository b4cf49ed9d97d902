"""A run in a fork: killed, traced operation by operation, or left alone."""

from __future__ import annotations

import builtins
import io
import json
import os
import signal
import stat
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradsieve.console import Progress
from gradsieve.errors import GradsieveError
from gradsieve.pipeline.run import run
from gradsieve.recipe.schema import Recipe

OPERATIONS = ("replace", "rename", "unlink", "remove", "mkdir", "rmdir", "link", "fsync")


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        status: The exit status; None if it was killed.
        said: Its standard error.
    """

    status: int | None
    said: str


@dataclass(frozen=True)
class Kill:
    """When a child is killed.

    Attributes:
        after_seconds: Seconds from the start to the kill; None means kill at `operation`.
        operation: The file operation at which it is killed, counted from 1.
        before: Whether it is killed just before that operation rather than just after it.
    """

    after_seconds: float | None = None
    operation: int = 0
    before: bool = True


def run_child(
    recipe: Recipe,
    folder: Path,
    log: Path,
    kill: Kill | None = None,
    first: str | None = None,
    last: str | None = None,
) -> Ended:
    """Run a recipe in a forked child process.

    Args:
        recipe: The recipe to run.
        folder: The run folder.
        log: Prefix of files with the child's standard error (.err), its number of file operations
            (.ops), the operation that starts each stage (.stages), and what it synced (.synced).
        kill: When the child is killed; None means never.
        first: As in `run`.
        last: As in `run`.
    """
    child = os.fork()
    if not child:
        _redirect(log)
        os._exit(_status_of(recipe, folder, log, kill, first, last))
    limit = kill.after_seconds if kill and kill.after_seconds is not None else 900.0
    began, ended = time.monotonic(), 0
    while not ended and time.monotonic() - began < limit:
        ended, code = os.waitpid(child, os.WNOHANG)
        time.sleep(0.005)
    if not ended:
        os.kill(child, signal.SIGKILL)
        _, code = os.waitpid(child, 0)
    said = log.with_suffix(".err").read_text(encoding="utf-8", errors="replace")
    return Ended(os.WEXITSTATUS(code) if os.WIFEXITED(code) else None, said)


def _redirect(log: Path) -> None:
    errors = os.open(log.with_suffix(".err"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(errors, 2)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)


def _status_of(
    recipe: Recipe, folder: Path, log: Path, kill: Kill | None, first: Any, last: Any
) -> int:
    os.chdir(log.parent)
    _follow(log, kill)
    try:
        run(recipe, folder, first=first, last=last, progress=Progress())
    except GradsieveError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except BaseException:
        traceback.print_exc()
        return 99
    return 0


def _synced(opened: int) -> dict[str, Any]:
    """The state of a file or folder that a sync guarantees to be on disk."""
    found = os.fstat(opened)
    record: dict[str, Any] = {"number": found.st_ino, "time": found.st_mtime_ns}
    if stat.S_ISDIR(found.st_mode):
        with os.scandir(opened) as entries:
            record["entries"] = {entry.name: entry.inode() for entry in entries}
    return record


def _follow(log: Path, kill: Kill | None) -> None:
    """Count this process's file operations, log what is synced, and die at the given operation."""
    own, count = os.getpid(), [0]
    operations = os.open(log.with_suffix(".ops"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    synced = os.open(log.with_suffix(".synced"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    stages = os.open(log.with_suffix(".stages"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    wanted = kill.operation if kill else 0

    def followed(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if os.getpid() != own:
                return real(*args, **kwargs)
            count[0] += 1
            os.pwrite(operations, str(count[0]).encode(), 0)
            now = count[0] == wanted
            if now and kill is not None and kill.before:
                os.kill(own, signal.SIGKILL)
            result = real(*args, **kwargs)
            if name == "replace" and Path(args[1]).name == "inputs.json":
                os.write(stages, f"{count[0]} {Path(args[1]).parent.name}\n".encode())
            if name == "fsync":
                os.write(synced, json.dumps(_synced(args[0])).encode() + b"\n")
            if now:
                os.kill(own, signal.SIGKILL)
            return result

        return call

    for name in OPERATIONS:
        setattr(os, name, followed(getattr(os, name), name))
    opening = followed(open, "open")

    def open_(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        writes = set(mode) & set("wax+")
        return (opening if writes else real_open)(file, mode, *args, **kwargs)

    real_open = builtins.open
    builtins.open = io.open = open_  # type: ignore[assignment]
