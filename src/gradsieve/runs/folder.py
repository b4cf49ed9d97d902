"""Where each stage lives in a run folder, and how it is known to be complete.

A stage writes `inputs.json` before it starts and `meta.json` last; both appear atomically. So
`meta.json` means done, and `inputs.json` alone means that the same command resumes. Each stage's
fingerprint inputs hold the output fingerprints of the stages before it: a change anywhere is seen
by all that follow. Nothing that took time is deleted: outputs of other settings move to
`RUN/archive/`.

Rejected: file times (a copy changes them), and a database (a folder can be read with `ls`).
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from gradsieve.errors import RunError
from gradsieve.io import atomic, fingerprint, write_json

SCHEMA = 2
"""Of `meta.json`; 1 was written before the pool was a stage."""


class StageEntry(NamedTuple):
    """A stage as the command line, the run folder and the pipeline list it.

    Attributes:
        name: File, command, recipe section, report heading.
        folder: Name of its folder in a run.
        summary: One line of help.
    """

    name: str
    folder: str
    summary: str


STAGES = (
    StageEntry("pool", "00-pool", "Read the sources into one memory-mapped, tokenized data set."),
    StageEntry("warmup", "01-warmup", "Train LoRA on a random share of the pool."),
    StageEntry("features", "02-features", "Build the gradient datastore and target gradients."),
    StageEntry("score", "03-score", "Score each example's influence on each target."),
    StageEntry("select", "04-select", "Select the best examples."),
    StageEntry("train", "05-train", "Train on the selections."),
    StageEntry("evaluate", "06-evaluate", "Evaluate the trained models on held-out examples."),
    StageEntry("report", "08-report", "Write an HTML report of what was selected and why."),
)
"""All stages in order. Each is a class in `gradsieve.stages.NAME`; a new stage is that file and one
entry here."""

STAGE_NAMES = tuple(entry.name for entry in STAGES)
_FOLDERS = {entry.name: entry.folder for entry in STAGES}

ARCHIVE = "archive"
"""Folder of a run that keeps the outputs of other settings."""

LOCK = ".lock"
"""Held while a process works in a run folder; its presence marks the folder as a run."""


@dataclass(frozen=True)
class State:
    """The state of a stage before it runs.

    Attributes:
        kind: `done`; `new`; `resume` in its folder where it stopped; `extend` what was made for
            fewer examples, targets, methods or seeds; `redo`, in a new folder; `wait`: another
            stage comes first, and only then is it known what can be kept.
        why: What has changed, or what comes first.
    """

    kind: Literal["done", "new", "resume", "extend", "redo", "wait"]
    why: str = ""


class RunFolder:
    """A run folder.

    Args:
        path: The folder; created when the first stage writes.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def recipe(self) -> Path:
        """The resolved recipe of the last command that succeeded or made something.

        It is written when a stage starts, and again at the end, also where everything was up to
        date. A stage that fails before it has made anything restores the one before.
        """
        return self.path / "recipe.yaml"

    @property
    def log(self) -> Path:
        """The log of all commands."""
        return self.path / "log.txt"

    def stage(self, name: str) -> Path:
        """The folder of a stage, e.g. `RUN/01-warmup`."""
        return self.path / _FOLDERS[name]

    def metadata(self, name: str) -> dict[str, Any] | None:
        """The `meta.json` of a finished stage; None if it is not finished."""
        return _read_json(self.stage(name) / "meta.json")

    def started_with(self, name: str) -> dict[str, Any] | None:
        """The fingerprint inputs with which a stage last started; None if it never did."""
        return _read_json(self.stage(name) / "inputs.json")

    def require(self, name: str) -> dict[str, Any]:
        """The metadata of a finished stage.

        Raises:
            RunError: If the stage is not finished.
        """
        found = self.metadata(name)
        if found is None:
            todo = f"Run `gradsieve {name}` with the same recipe and --out first."
            raise RunError(f"The stage {name} is not finished.", str(self.stage(name)), todo)
        return found

    def begin(self, name: str, inputs: Mapping[str, Any]) -> Path:
        """Record that a stage starts with these fingerprint inputs; returns its folder."""
        folder = self.stage(name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "meta.json").unlink(missing_ok=True)
        write_json(folder / "inputs.json", inputs)
        return folder

    def finish(self, name: str, metadata: Mapping[str, Any]) -> None:
        """Mark a stage as done."""
        write_json(self.stage(name) / "meta.json", {"schema": SCHEMA, "stage": name, **metadata})

    def archive(self, name: str) -> Path | None:
        """Move a stage's folder to the archive; returns where it went, None if there was none."""
        folder = self.stage(name)
        if not folder.exists():
            return None
        return self._to_archive(folder, f"{folder.name}-{fingerprint(self.started_with(name))[:8]}")

    def archive_part(self, part: Path) -> None:
        """Move a part of a stage's folder to the same place in the archive."""
        self._to_archive(part, str(part.relative_to(self.path)))

    def _to_archive(self, folder: Path, name: str) -> Path:
        kept = self.path / ARCHIVE / name
        while kept.exists():
            kept = kept.with_name(kept.name + "x")
        kept.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(kept)
        return kept

    def snapshot(self, name: str) -> dict[Path, bytes]:
        """The bytes of the files that record a stage's progress, and of the recipe."""
        files = [self.stage(name) / "inputs.json", self.stage(name) / "meta.json", self.recipe]
        return {file: file.read_bytes() for file in files if file.is_file()}

    def clear(self, name: str) -> None:
        """Delete what a stage has made since `begin`."""
        for item in self.stage(name).iterdir():
            if item.is_dir():
                shutil.rmtree(item)
            elif item.name != "inputs.json":
                item.unlink()

    def restore(self, name: str, snapshot: Mapping[Path, bytes], archived: Path | None) -> None:
        """Undo `begin` of a stage that has made nothing since.

        Args:
            name: The stage.
            snapshot: Its `snapshot` before.
            archived: Where `archive` had moved it.
        """
        folder = self.stage(name)
        (folder / "inputs.json").unlink()
        with suppress(OSError):  # files that it had before
            folder.rmdir()
        if archived is not None:
            archived.rename(folder)
            with suppress(OSError):  # other stages' folders
                archived.parent.rmdir()
        for file, content in snapshot.items():
            with atomic(file) as temporary:
                temporary.write_bytes(content)

    def claim(self) -> None:
        """Create the folder, or see that it is a run or empty, and mark it as a run.

        Raises:
            RunError: If it holds something else, or can't be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.check_is_run()
            (self.path / LOCK).touch()
        except OSError as error:
            raise RunError(
                f"The run folder cannot be written: {error.strerror}.",
                str(self.path),
                "Give --out a folder that you may write to, on a disk with space left.",
            ) from None

    def check_is_run(self) -> None:
        """See that the folder, if there is one, is a run or empty.

        Raises:
            RunError: If it holds something else.
        """
        there = sorted(item.name for item in self.path.iterdir()) if self.path.is_dir() else []
        ours = {LOCK, *_FOLDERS.values()}
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
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, OSError) as error:
        found = error.strerror if isinstance(error, OSError) else f"it is not JSON ({error})"
        raise RunError(
            f"A file of the run cannot be read: {found}.",
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
