"""Where each stage's outputs are in a run folder, and how their completeness is recorded.

A stage writes `inputs.json` before it starts and `meta.json` last, once all other files are on
disk; both are written atomically and contain a fingerprint of their content. So `meta.json` means
done, and `inputs.json` alone means that the same command resumes. `meta.json` lists the stage's
files with their hashes. Each stage's fingerprint inputs include the output fingerprints of earlier
stages, so all later stages detect a change. Nothing that took time is deleted: outputs of other
settings and damaged files move to `RUN/archive/`; outputs come back when their settings do.

Rejected: file times (a copy changes them), and a database (a folder can be read with `ls`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from gradsieve.errors import RunError, UsageError, first_few
from gradsieve.io import (
    MAKE_AGAIN,
    atomic,
    fingerprint,
    read_sealed,
    sync,
    sync_tree,
    write_sealed,
    write_text,
)
from gradsieve.runs.files import (
    INPUTS,
    META,
    Fault,
    FileList,
    Identity,
    Read,
    faults,
    identity,
    list_files,
)
from gradsieve.runs.lock import LOCK, locked, mark, refuse_links
from gradsieve.runs.notebook import html_table

SCHEMA = 2
"""Schema version of `meta.json`."""


STAGES = {
    "pool": "Read the sources into one memory-mapped, tokenized data set.",
    "warmup": "Train LoRA on a random share of the pool.",
    "features": "Build the gradient datastore and target gradients.",
    "score": "Score each example's influence on each target.",
    "select": "Select the best examples.",
    "train": "Train on the selections.",
    "evaluate": "Evaluate the trained models on held-out examples.",
    "validate": "Measure whether scores predict what training does.",
    "report": "Write an HTML report of what was selected and why.",
}
"""What each stage does, in order. Each is a class in `gradsieve.stages.NAME`; a new stage needs
that file and one line here."""

STAGE_NAMES = tuple(STAGES)
FOLDERS = {name: f"{number:02}-{name}" for number, name in enumerate(STAGES)}

ARCHIVE = "archive"
"""Folder of a run that keeps outputs made with other settings."""

SECONDS = ".seconds.json"
"""File with the seconds that an unfinished stage has taken so far."""

SEAL = "# gradsieve wrote this: "
"""Start of the first line of `recipe.yaml`, followed by a hash of the lines below."""

TURN = ".turn"
"""Lock file held by the process that starts or finishes a stage shared by several processes."""


def check_stage_names(names: Iterable[str | None], where: str) -> None:
    """Refuse names, given by the option `where`, that are not stages; None is ignored."""
    for name in names:
        if name is not None and name not in STAGE_NAMES:
            todo = f"One of {', '.join(STAGE_NAMES)}."
            raise UsageError(f"There is no stage {name}.", where, todo)


class RunFolder:
    """A run folder, created when the first stage writes."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    def _repr_html_(self) -> str:
        """Stages and selections as tables for notebooks; `compare` shows the results."""
        metas = {name: meta for name in STAGE_NAMES if (meta := self.metadata(name)) is not None}
        stages = [["stage", "seconds"], *([name, meta["seconds"]] for name, meta in metas.items())]
        rows = [["target", "method", "rows", "tokens"]]
        for target, methods in metas.get("select", {}).get("targets", {}).items():
            rows += [[target, name, its["rows"], its["tokens"]] for name, its in methods.items()]
        return html_table(f"Run {self.path}", stages) + html_table("Selections", rows)

    @property
    def recipe(self) -> Path:
        """The resolved recipe of the last command that succeeded or wrote outputs.

        It is written when a stage starts and again at the end of a run, even if everything was up
        to date. A stage that fails before it writes any output restores the previous recipe.
        """
        return self.path / "recipe.yaml"

    def write_recipe(self, text: str) -> None:
        """Write the resolved recipe, below a line with its hash."""
        write_text(self.recipe, f"{SEAL}{fingerprint(text)}\n{text}")

    def checked_recipe(self) -> Path:
        """The path of the resolved recipe, refused if it is damaged or was edited."""
        self.stages_there()  # otherwise it is another program's
        with suppress(OSError, ValueError):  # the parser reports these
            first, _, text = self.recipe.read_text(encoding="utf-8").partition("\n")
            if first != f"{SEAL}{fingerprint(text)}":
                what = "The run's recipe is not what was written: it is damaged, or was edited."
                raise RunError(what, str(self.recipe), MAKE_AGAIN)
        return self.recipe

    @property
    def log(self) -> Path:
        """The log of all commands."""
        return self.path / "log.txt"

    def stage(self, name: str) -> Path:
        """The folder of a stage, e.g. `RUN/01-warmup`."""
        return self.path / FOLDERS[name]

    def metadata(self, name: str) -> dict[str, Any] | None:
        """The metadata of a finished stage; None if it is not finished."""
        found = _read(self.stage(name) / META)
        return None if found is None else {k: v for k, v in found.items() if k != "files"}

    def files(self, name: str) -> FileList | None:
        """The file list of a finished stage; None if it is not finished."""
        try:
            return _listed(identity(self.stage(name) / META))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def faults(self, name: str, within: Path | None = None, read: Read = "all") -> list[Fault]:
        """Where a finished stage's folder differs from its file list, if any (`files.faults`)."""
        listed = self.files(name)
        return [] if listed is None else faults(self.stage(name), listed, within, read)

    def stages_there(self) -> list[str]:
        """Stages that have a folder, in order; a folder without any is refused: it is no run."""
        there = [name for name in STAGE_NAMES if self.stage(name).is_dir()]
        if not there:
            todo = "Give the folder that was --out of `gradsieve run`."
            raise RunError("This is not a run folder: it has no stage.", str(self.path), todo)
        return there

    def started_with(self, name: str) -> dict[str, Any] | None:
        """The fingerprint inputs with which a stage last started; None if it never started."""
        return _read(self.stage(name) / INPUTS)

    def require(self, name: str) -> dict[str, Any]:
        """The metadata of a stage, refused if it is not finished."""
        found = self.metadata(name)
        if found is None:
            todo = f"Run `gradsieve {name}` with the same recipe and --out first."
            raise RunError(f"The stage {name} is not finished.", str(self.stage(name)), todo)
        return found

    def begin(self, name: str, inputs: Mapping[str, Any]) -> Path:
        """Record that a stage starts with these fingerprint inputs; returns its folder.

        The seconds that its outputs have taken so far are kept.
        """
        folder, seconds = self.stage(name), self.seconds(name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / META).unlink(missing_ok=True)
        write_sealed(folder / INPUTS, inputs)
        self.keep_seconds(name, seconds)
        return folder

    def finish(self, name: str, metadata: Mapping[str, Any]) -> None:
        """Mark a stage as done, once all of its files are on disk."""
        folder = self.stage(name)
        listed = list_files(folder)
        sync_tree(folder)
        known = {"schema": SCHEMA, "stage": name, **metadata, "files": listed}
        (folder / SECONDS).unlink(missing_ok=True)  # before `meta.json`: a kill leaves none
        write_sealed(folder / META, known)
        sync(folder)
        sync(self.path)

    def seconds(self, name: str) -> float:
        """Seconds that a stage has taken so far, finished or interrupted."""
        with suppress(RunError, ValueError):
            found = self.metadata(name) or _read(self.stage(name) / SECONDS) or {}
            return float(found.get("seconds", 0.0))
        return 0.0

    def keep_seconds(self, name: str, seconds: float) -> None:
        """Record the seconds of an unfinished stage; not synced, since little depends on them."""
        file = self.stage(name) / SECONDS
        with suppress(OSError):
            file.write_text(json.dumps({"seconds": round(seconds, 3)}), encoding="utf-8")

    def repair(self, name: str) -> str | None:
        """Repair the files that record a stage's state; returns what was wrong, if anything was."""
        folder, found, damage = self.stage(name), None, None
        try:
            found = _read(folder / META)
        except _Damaged as error:
            self.archive_part(folder / META)
            checked = "what it lists is checked, and made if it is missing"
            damage = f"{error.where} is damaged: {checked}"
        try:
            self.started_with(name)
        except _Damaged as error:
            if found is None:  # no record of its outputs is left
                self._to_archive(folder, f"{folder.name}-damaged")
                return f"{error.where} is damaged: the stage starts again"
        self.restore_inputs(name)
        return damage

    def restore_inputs(self, name: str) -> None:
        """Rewrite a finished stage's `inputs.json` from `meta.json` if they differ."""
        inputs = (self.metadata(name) or {}).get("inputs")
        if inputs is None:
            return
        with suppress(_Damaged):
            if self.started_with(name) == inputs:
                return
        write_sealed(self.stage(name) / INPUTS, inputs)

    def archive(self, name: str) -> Path | None:
        """Move a stage's folder to the archive; returns its new path, None if it didn't exist."""
        folder = self.stage(name)
        if not folder.exists():
            return None
        return self._to_archive(folder, self._archived(name, self.started_with(name)))

    def _archived(self, name: str, inputs: Mapping[str, Any] | None) -> str:
        return f"{FOLDERS[name]}-{fingerprint(inputs)[:8]}"

    def take_back(self, name: str, inputs: Mapping[str, Any]) -> bool:
        """Restore a stage's folder made with these inputs from the archive, if it has one.

        The stage's current folder is archived.
        """
        kept = self._kept(name, inputs)
        if kept is None:
            return False
        self.archive(name)
        kept.rename(self.stage(name))
        return True

    def can_take_back(self, name: str, inputs: Mapping[str, Any]) -> bool:
        """Whether the archive has a stage's finished outputs for these inputs."""
        kept = self._kept(name, inputs)
        return kept is not None and (kept / META).is_file()

    def _kept(self, name: str, inputs: Mapping[str, Any]) -> Path | None:
        """A stage's folder in the archive that was made with these inputs, if any."""
        for kept in sorted((self.path / ARCHIVE).glob(self._archived(name, inputs) + "*")):
            with suppress(RunError):
                if fingerprint(_read(kept / INPUTS)) == fingerprint(inputs):
                    return kept
        return None

    def archive_part(self, part: Path) -> Path:
        """Move part of a stage's folder to the same relative path in the archive."""
        return self._to_archive(part, str(part.relative_to(self.path)))

    def _to_archive(self, folder: Path, name: str) -> Path:
        kept = self.path / ARCHIVE / name
        while kept.exists():
            kept = kept.with_name(kept.name + "x")
        kept.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(kept)
        return kept

    def snapshot(self, name: str) -> dict[Path, bytes]:
        """The contents of the recipe and of the files that record a stage's progress."""
        files = [*(self.stage(name) / own for own in (INPUTS, META, SECONDS)), self.recipe]
        return {file: file.read_bytes() for file in files if file.is_file()}

    def restore(self, name: str, snapshot: Mapping[Path, bytes], archived: Path | None) -> None:
        """Undo `archive` and `begin`; an archived folder replaces what was written since."""
        folder = self.stage(name)
        if archived is None:
            for file in (folder / INPUTS, folder / SECONDS):
                file.unlink(missing_ok=True)
            with suppress(OSError):  # not empty: it has earlier files
                folder.rmdir()
        else:
            shutil.rmtree(folder)  # files that it has reused are in the archive, too
            archived.rename(folder)
            with suppress(OSError):  # not empty: it has other stages' folders
                archived.parent.rmdir()
        for file, content in snapshot.items():
            with atomic(file) as temporary:
                temporary.write_bytes(content)

    def claim(self) -> None:
        """Create the folder, or check that it is a run or empty, and mark it as a run.

        Raises:
            RunError: If it holds something else, or can't be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.check_is_run()
            refuse_links(self.path)
            mark(self.path)
        except OSError as error:
            raise RunError(
                f"The run folder cannot be written: {error.strerror}.",
                str(self.path),
                "Give --out a folder that you may write to, on a disk with space left.",
            ) from None

    def check_is_run(self) -> None:
        """Check that the folder, if any, is a run or empty, and that libraries can write to it.

        Raises:
            RunError: If it holds something else, or its path is not UTF-8.
        """
        try:
            str(self.path.absolute()).encode()
        except UnicodeEncodeError:
            todo = "Give --out a folder whose path is UTF-8: some libraries can write no other."
            where = str(self.path.absolute()).encode(errors="backslashreplace").decode()
            raise RunError("The run folder's path is not UTF-8.", where, todo) from None
        there = sorted(item.name for item in self.path.iterdir()) if self.path.is_dir() else []
        ours = {LOCK, *FOLDERS.values()}
        if there and ours.isdisjoint(there):
            raise RunError(
                "The run folder holds something else.",
                f"--out {self.path}: {first_few(there)}",
                "Give --out a new folder, an empty one, or one that gradsieve has made.",
            )

    @contextmanager
    def locked(self, shared: bool = False) -> Iterator[None]:
        """Lock the folder for one process, or for several processes that share a stage.

        Raises:
            RunError: If another process holds the lock, or as in `claim`.
        """
        self.claim()
        with locked(self.path, shared):
            if not shared:  # if shared, other processes may be using them
                self.clear_temporary(self.path)
            yield

    def clear_temporary(self, folder: Path) -> None:
        """Remove partial files left by killed processes: ours, or those of other libraries."""
        for left in (*folder.rglob(".*.tmp"), *folder.rglob(".tmp*")):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)

    def turn(self) -> AbstractContextManager[None]:
        """A lock for one of the processes that share the folder; waits until it is free."""
        return locked(self.path, name=TURN, wait=True)


class _Damaged(RunError):
    """A file that records a stage's state differs from what was written."""


def _read(path: Path) -> dict[str, Any] | None:
    """Read a sealed file; None if it does not exist."""
    try:
        value = read_sealed(path)
    except (OSError, ValueError) as error:
        found = error.strerror if isinstance(error, OSError) else f"it is damaged ({error})"
        what = f"A file of the run cannot be read: {found}."
        raise _Damaged(what, str(path), MAKE_AGAIN) from None
    made_here = value is None or (value.get("schema") == SCHEMA and "files" in value)
    if path.name == META and not made_here:
        raise RunError(
            f"This was not written by this version of gradsieve (schema {SCHEMA}).",
            str(path),
            f"Give another --out, or delete {path.parent} to have that stage made again.",
        )
    return value


@lru_cache(maxsize=len(STAGES))
def _listed(meta: Identity) -> FileList | None:
    """The file list in a stage's metadata, read once as long as the file does not change."""
    return (_read(Path(meta[0])) or {}).get("files")
