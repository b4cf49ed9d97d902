"""The base class of stage artifacts: folder, metadata, missing and damaged files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from gradsieve.errors import RunError
from gradsieve.runs.files import Fault, Read
from gradsieve.runs.folder import RunFolder

FOUND_BY_PATTERN = (".safetensors", ".parquet", ".bin", ".pt", ".arrow")
LOSSES, TENSORBOARD, TRAINING = "loss.jsonl", "tensorboard", "training.json"


def is_display(file: Path) -> bool:
    """Whether a training's file is a loss curve, on which no other output depends."""
    return file.name == LOSSES or TENSORBOARD in file.parts


class Below:
    """A descriptor for a file or folder in its owner's folder."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, owner: Any, _: type) -> Path:
        folder: Path = owner.folder
        return folder / self.name


@dataclass(frozen=True)
class StageArtifact:
    """A stage's folder in a run."""

    stage: ClassVar[str]
    trains: ClassVar[bool] = False  # whether some of its files are loss curves

    run: RunFolder

    @property
    def folder(self) -> Path:
        return self.run.stage(self.stage)

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata of the stage, which must be finished."""
        return self.run.require(self.stage)

    def faults(self, read: Read = "all") -> list[Fault]:
        """The finished stage's files that differ from what was written."""
        return self.run.faults(self.stage, read=read)

    def made_with(self, file: Path) -> list[Path]:
        """What has to be made again if a file is damaged: by default only that file."""
        return [file]

    def is_dispensable(self, file: Path) -> bool:
        """Whether a file is only for display, but takes long to make again."""
        return self.trains and is_display(file)

    def matters(self, fault: Fault) -> bool:
        """Whether a fault changes results. Foreign files of types that are found by pattern do."""
        if fault.what == "foreign":
            return fault.file.suffix in FOUND_BY_PATTERN
        return not self.is_dispensable(fault.file)

    def verified(self, path: Path) -> Path:
        """A file or folder, refused if it is not what the finished stage wrote."""
        if faults := [*filter(self.matters, self.run.faults(self.stage, path, "unnamed"))]:
            raise damaged_error(faults, self.stage)
        return path


def damaged_error(faults: Sequence[Fault], stage: str) -> RunError:
    """The error for files of a finished stage that differ from what it wrote."""
    first, more = faults[0], f"; and {len(faults) - 1} more" if faults[1:] else ""
    return RunError(
        "A file in the run was not written by gradsieve."
        if first.what == "foreign"
        else f"A file of the run is {first.what}.",
        f"{stage}: {first.file}{more}",
        "Run `gradsieve run` with the run's recipe and --out: it makes again what is damaged or "
        "missing, archives what is foreign, and keeps the rest.",
    )
