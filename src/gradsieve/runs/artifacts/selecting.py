"""Outputs of the stages up to selection: pool, checkpoints, features, scores, selections."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gradsieve.data.pool import Pool
from gradsieve.io import (
    atomic,
    file_fingerprint,
    fingerprint,
    hash_of,
    link_files,
    read_lines,
    read_sealed,
    reading,
    write_sealed,
)
from gradsieve.methods.base import ExampleScores
from gradsieve.recipe.schema import TOGETHER, Recipe
from gradsieve.runs.artifacts.base import LOSSES, Below, StageArtifact
from gradsieve.runs.files import Fault, Read
from gradsieve.runs.score_table import ScoreTable, read_example_scores, read_scores
from gradsieve.selection import ANSWERS, MESSAGES, ROWS
from gradsieve.store import Store, open_store
from gradsieve.store.targets import TargetGradients, read_target_gradients, target_file


class PoolArtifact(StageArtifact):
    """The candidate pool, and a list of the rows that can't be used: source, where, reason."""

    stage = "pool"
    skipped = Below("skipped.jsonl")

    @property
    def bad_rows(self) -> str | None:
        """A fingerprint of the rows that can't be read; None if there are none."""
        file = self.skipped
        return file_fingerprint(file) if file.is_file() and file.stat().st_size else None

    def read(self) -> Pool:
        """Open the finished pool, memory-mapped."""
        self.run.require(self.stage)
        return Pool(self.verified(self.folder))

    def made_with(self, file: Path) -> list[Path]:
        """Includes `state.json`: without it, the files that all sources share are made again."""
        return [file, self.folder / "dataset" / "state.json"]


class WarmupArtifact(StageArtifact):
    """Checkpoints of the warm-up: trained by it, or named by the recipe."""

    stage = "warmup"
    trains = True

    def own_checkpoint(self, number: int) -> Path:
        """The folder of the warm-up's own checkpoint after an epoch, counted from 1."""
        return self.folder / f"checkpoint-{number}"

    def is_trained(self, epochs: int) -> bool:
        """Whether a training of this many epochs is complete: its losses are written last."""
        last = self.own_checkpoint(epochs)
        return (self.folder / LOSSES).is_file() and last.is_dir()

    @property
    def checkpoints(self) -> list[Path]:
        """The folders in order; relative names are in the stage's folder, so a run can be moved."""
        return [self.verified(f) if f.parent == self.folder else f for f in self._named()]

    def _named(self) -> list[Path]:
        return [self.folder / name for name in self.metadata["checkpoints"]]

    @property
    def learning_rates(self) -> list[float]:
        """Mean learning rate of each checkpoint's epoch."""
        return list(self.metadata["learning_rates"])

    @property
    def weights(self) -> NDArray[np.float64]:
        """Learning rates normalized to sum to 1: eta_i of the method [N]."""
        rates = np.array(self.learning_rates, dtype=np.float64)
        return np.asarray(rates / rates.sum())

    def losses(self) -> list[dict[str, Any]]:
        """One record per logged step; empty if the run trained nothing or the file is damaged."""
        file = self.folder / LOSSES
        if not file.is_file() or self.run.faults(self.stage, file):
            return []
        return list(read_lines(file))

    def faults(self, read: Read = "all") -> list[Fault]:
        """As for any stage, plus checkpoints named by the recipe that no longer exist."""
        moved = [path for path in self._named() if path.parent != self.folder and not path.exists()]
        return super().faults(read) + [Fault(path, "missing") for path in moved]

    def made_with(self, file: Path) -> list[Path]:
        """The training is repeated as a whole."""
        return [self.folder]


@dataclass(frozen=True)
class CheckpointFeatures:
    """Features at one checkpoint, `RUN/02-features/checkpoint-i`."""

    folder: Path

    def store_folder(self, kind: str) -> Path:
        """Folder of the datastore `pool` (Adam's updates), `pool-sgd` (gradients) or `exact`."""
        return self.folder / kind

    def store(self, kind: str) -> Store:
        return open_store(self.store_folder(kind))

    def directions(self, share: tuple[int, int] | None) -> Path:
        """Temporary folder of exact mode's directions; a process with a share has its own."""
        return self.folder / ("directions" if share is None else f"directions-{share[0]}")

    def target_file(self, kind: str, target: str) -> Path:
        """The file with a target's gradients for a datastore."""
        return target_file(self.folder, kind, target)

    def target_gradients(self, kind: str, target: str) -> TargetGradients:
        return read_target_gradients(self.target_file(kind, target))


class FeaturesArtifact(StageArtifact):
    """The datastores and target gradients of every checkpoint."""

    stage = "features"
    skipped_file = Below("skipped.parquet")

    def checkpoint(self, number: int) -> CheckpointFeatures:
        """Features at a checkpoint, counted from 1."""
        return CheckpointFeatures(self.folder / f"checkpoint-{number}")

    @property
    def checkpoints(self) -> list[CheckpointFeatures]:
        """Features at each checkpoint of a finished stage."""
        found = [self.checkpoint(n + 1) for n in range(len(self.metadata["checkpoints"]))]
        for checkpoint in found:
            self.verified(checkpoint.folder)
        return found

    def skipped(self) -> pa.Table:
        """Source, id and `skip_reason` of examples whose features are not finite, in key order."""
        with reading(self.skipped_file):
            return pq.read_table(self.verified(self.skipped_file))

    def write_skipped(self, skipped: pa.Table) -> None:
        with atomic(self.skipped_file) as temporary:
            pq.write_table(skipped, temporary)

    @property
    def kinds(self) -> list[str]:
        """The datastores that the stage was last asked for.

        Datastores left over from methods that the recipe no longer has may lack examples.
        """
        return list(self.metadata["inputs"]["stores"])

    @property
    def exact_targets(self) -> list[str]:
        """Targets whose exact cosines are stored."""
        return list(self.metadata["exact_targets"])

    def last_store(self) -> Store | None:
        """The first datastore of gradients at the last checkpoint; None in exact mode."""
        last, kinds = self.checkpoints[-1], [kind for kind in self.kinds if kind != "exact"]
        return last.store(kinds[0]) if kinds else None


class ScoresArtifact(StageArtifact):
    """A table of scores per target and method; facts about each method; temporary files."""

    stage = "score"
    work = Below("work")
    FACTS = "seconds.json"
    _facts = Below(FACTS)

    def skipped(self, pool: Pool, method: str) -> pa.Table:
        """Source, id and `skip_reason` of examples that a method can't score, in key order."""
        reasons = pc.is_valid(pool.skip_reasons).to_numpy()
        numbers = pool.order[reasons[pool.order]]
        found = pool.take(numbers, ["source", "id", "skip_reason"])
        if self.reads_gradients(method):
            features = FeaturesArtifact(self.run).skipped()
            found = pa.concat_tables([found, features.cast(found.schema)])
        return found.sort_by([("source", "ascending"), ("id", "ascending")])

    def reads_gradients(self, method: str) -> bool:
        """Whether a method's scores use gradients, found without running the method's code."""
        return bool(self.metadata["methods"][method]["gradients"])

    def table_file(self, target: str, method: str) -> Path:
        """The file with a target's scores by a method."""
        return self.folder / target / f"{method}.parquet"

    def table(self, target: str, method: str) -> ScoreTable:
        file = self.table_file(target, method)
        with reading(file):
            return read_scores(self.verified(file))

    def examples(self, target: str, method: str) -> ExampleScores | None:
        """Read a method's scores for each target example, if they were stored."""
        file = self.table_file(target, method)
        with reading(file):
            return read_example_scores(self.verified(file))

    def facts(self) -> dict[str, dict[str, Any]]:
        """`seconds`, `own` parts and `noise` of each method, as the score stage recorded them."""
        try:
            return read_sealed(self._facts) or {}
        except (OSError, ValueError):  # unreadable: nothing else depends on it
            return {}

    def add_facts(self, method: str, facts: Mapping[str, Any]) -> None:
        """Record facts about a method's scores."""
        write_sealed(self._facts, {**self.facts(), method: facts})


def link_tables(old: Path, new: Path, targets: Iterable[str]) -> None:
    """Hard-link some targets' tables, and the facts, from a stage's old folder to its new one."""
    files = [old / ScoresArtifact.FACTS]
    for target in sorted(targets):
        for table in sorted((old / target).glob("*.parquet")):
            if hash_of(table).is_file():  # needed to detect damage
                files += [hash_of(table), table]
    link_files(old, new, filter(Path.is_file, files))


@dataclass(frozen=True)
class SelectionFiles:
    """One selection, `RUN/04-select/TARGET/METHOD` (docs/run-folder.md).

    Attributes:
        selected: The original rows in rank order, plus rank, score, subtask and source.
        messages: The same rows as chat messages, whatever their original format.
        answers: A prompt and its completion for each supervised answer in the same rows.
        dropped: Examples that have no score or were passed over, with the reason.
    """

    folder: Path
    selected = Below(ROWS)
    messages = Below(MESSAGES)
    answers = Below(ANSWERS)
    dropped = Below("dropped.jsonl")
    card = Below("README.md")

    @property
    def fingerprint(self) -> str:
        """A fingerprint of the rows, which users take, and the messages, which training reads."""
        return fingerprint([file_fingerprint(file) for file in (self.selected, self.messages)])


class SelectionsArtifact(StageArtifact):
    """The selections, and the pool's examples that share text with test questions."""

    stage = "select"

    def selection(self, target: str, method: str) -> SelectionFiles:
        """A selection's files, for a target or `together`."""
        return SelectionFiles(self.verified(self.folder / target / method))

    def of(self, recipe: Recipe, target: str, method: str) -> SelectionFiles:
        """The selection for a target: its own, or the one for all targets together."""
        return self.selection(TOGETHER if recipe.select.together else target, method)

    @property
    def fingerprints(self) -> dict[str, str]:
        """The fingerprint of each selection, by TARGET/METHOD."""
        return dict(self.metadata["selections"])

    @property
    def leaks(self) -> Path:
        """The file of examples that share 13 consecutive words with a test question."""
        return self.verified(self.folder / "leaks.jsonl")
