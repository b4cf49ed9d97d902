"""Where each stage's output lives, and how it is known to be whole.

A stage writes `inputs.json` before it starts and `meta.json` last; both appear atomically. So
`meta.json` means done, and `inputs.json` alone means that the same command may go on. Each stage's
inputs hold the outputs' fingerprints of the stages before it: a change anywhere is seen by all that
follow. Nothing that took time is deleted: outputs of other settings move to `RUN/old/`.

Rejected: file times (a copy changes them), and a database (a folder can be read with `ls`).
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gradsieve.errors import RunError
from gradsieve.io import atomic, fingerprint, write_json

SCHEMA = 1
STAGES = ("warmup", "features", "score", "select", "train", "evaluate", "report")
"""The stages' names in order: file, command, recipe section and run folder."""

LOCK = ".lock"
"""Held while a process works in a run's folder; that it is there marks the folder as a run's."""


@dataclass(frozen=True)
class State:
    """What a stage of a run is, before it is run.

    Attributes:
        kind: `done`; `new`; `going on` in its folder where it was stopped; `completing` what was
            made for fewer rows, targets, methods or seeds; `again`, in a new folder; `later`:
            another stage comes first, and only then it shows what is kept.
        why: What has changed, or what comes first.
    """

    kind: Literal["done", "new", "going on", "completing", "again", "later"]
    why: str = ""


class RunDir:
    """A run's folder.

    Args:
        path: The folder; made when the first stage writes.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def recipe(self) -> Path:
        """The recipe of the last command that ended well or has made something, defaults filled in.

        It is written when a stage starts, and again at the end also where all was done already. A
        stage that fails before it has made anything takes it back.
        """
        return self.path / "recipe.yaml"

    def stage(self, name: str) -> Path:
        """The folder of a stage, e.g. `RUN/01-warmup`."""
        return self.path / f"{STAGES.index(name) + 1:02d}-{name}"

    def meta(self, name: str) -> dict[str, Any] | None:
        """What a finished stage wrote of itself; None if it is not finished."""
        return _read_json(self.stage(name) / "meta.json")

    def started(self, name: str) -> dict[str, Any] | None:
        """The inputs with which a stage was last started; None if it never was."""
        return _read_json(self.stage(name) / "inputs.json")

    @property
    def checkpoints(self) -> list[Path]:
        """The warm-up's checkpoints in order: its own, or those that the recipe gave.

        Raises:
            RunError: If it isn't done.
        """
        names = self.done("warmup")["checkpoints"]  # relative to the stage's folder, if they can be
        return [self.stage("warmup") / name for name in names]

    def done(self, name: str) -> dict[str, Any]:
        """A finished stage's meta.

        Raises:
            RunError: If the stage is not finished.
        """
        meta = self.meta(name)
        if meta is None:
            todo = f"Run `gradsieve {name}` with the same recipe and --out first."
            raise RunError(f"The stage {name} is not finished.", str(self.stage(name)), todo)
        return meta

    def begin(self, name: str, inputs: Mapping[str, Any]) -> Path:
        """Note that a stage starts with these inputs; returns its folder."""
        folder = self.stage(name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "meta.json").unlink(missing_ok=True)
        write_json(folder / "inputs.json", inputs)
        return folder

    def finish(self, name: str, meta: Mapping[str, Any]) -> None:
        """Declare a stage done."""
        write_json(self.stage(name) / "meta.json", {"schema": SCHEMA, "stage": name, **meta})

    def set_aside(self, name: str) -> Path | None:
        """Move a stage's folder to `RUN/old/`; returns where it went, None if there was none."""
        folder = self.stage(name)
        if not folder.exists():
            return None
        return self._to_old(folder, f"{folder.name}-{fingerprint(self.started(name))[:8]}")

    def keep_old(self, part: Path) -> None:
        """Move a part of a stage's folder to the same place in `RUN/old/`."""
        self._to_old(part, str(part.relative_to(self.path)))

    def _to_old(self, folder: Path, name: str) -> Path:
        """Move a folder to `RUN/old/NAME`, or beside what is there; returns where it went."""
        kept = self.path / "old" / name
        while kept.exists():
            kept = kept.with_name(kept.name + "x")
        kept.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(kept)
        return kept

    def notes(self, name: str) -> dict[Path, bytes]:
        """The bytes of what says how far a stage is, and of the recipe, for `take_back`."""
        files = [self.stage(name) / "inputs.json", self.stage(name) / "meta.json", self.recipe]
        return {file: file.read_bytes() for file in files if file.is_file()}

    def take_back(self, name: str, notes: Mapping[Path, bytes], kept: Path | None) -> None:
        """Undo `begin` of a stage that has made nothing since.

        Args:
            name: The stage.
            notes: Its `notes` before.
            kept: Where `set_aside` had moved it.
        """
        folder = self.stage(name)
        (folder / "inputs.json").unlink()
        with suppress(OSError):  # files that it had before
            folder.rmdir()
        if kept is not None:
            kept.rename(folder)
            with suppress(OSError):  # other stages' folders
                kept.parent.rmdir()
        for file, content in notes.items():
            with atomic(file) as temporary:
                temporary.write_bytes(content)

    def claim(self) -> None:
        """Make the folder, or see that it is a run's or empty, and mark it as a run's.

        Raises:
            RunError: If it holds something else, or can't be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.check_ours()
            (self.path / LOCK).touch()
        except OSError as error:
            raise RunError(
                f"The run folder cannot be written: {error.strerror}.",
                str(self.path),
                "Give --out a folder that you may write to, on a disk with space left.",
            ) from None

    def check_ours(self) -> None:
        """See that the folder, if there is one, is a run's or empty.

        Raises:
            RunError: If it holds something else.
        """
        there = sorted(item.name for item in self.path.iterdir()) if self.path.is_dir() else []
        ours = {LOCK, *(self.stage(name).name for name in STAGES)}
        if there and ours.isdisjoint(there):
            raise RunError(
                "The run folder holds something else.",
                f"--out {self.path}: {', '.join(there[:3])}"
                + (f" and {len(there) - 3} more" if there[3:] else ""),
                "Give --out a new folder, an empty one, or one that gradsieve has made.",
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one process.

        Raises:
            RunError: If another process holds it, or as `claim`.
        """
        self.claim()
        with (self.path / LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunError(
                    "Another gradsieve process is working in this run folder.",
                    str(self.path),
                    "Wait for it or stop it; or give another --out.",
                ) from None
            for left in self.path.rglob(".*.tmp"):  # half a file, of a process that was killed
                left.unlink()
            yield


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        said = error.strerror if isinstance(error, OSError) else f"it is not JSON ({error})"
        raise RunError(
            f"A file of the run cannot be read: {said}.",
            str(path),
            f"Delete {path.parent} to have that stage made again.",
        ) from None
    if not isinstance(value, dict) or (path.name == "meta.json" and value.get("schema") != SCHEMA):
        raise RunError(
            f"This was not written by this version of gradsieve (schema {SCHEMA}).",
            str(path),
            f"Give another --out, or delete {path.parent} to have that stage made again.",
        )
    return value
