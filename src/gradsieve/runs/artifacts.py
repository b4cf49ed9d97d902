"""What each stage leaves in its folder: the only place that knows a path below a stage's folder.

In: a run folder. Out: one typed artifact per stage, with `paths`, `missing`, and methods that read
and write. Stages, analysis and report open each other's results through these types alone, which
verify what a finished stage left before it is used.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch import Tensor

from gradsieve.data.pool import Pool, open_pool
from gradsieve.errors import RunError
from gradsieve.io import (
    atomic,
    file_fingerprint,
    fingerprint,
    folder_fingerprint,
    publish,
    read_lines,
    reading,
    write_json,
)
from gradsieve.methods import uses_gradients
from gradsieve.recipe.schema import TOGETHER, Recipe
from gradsieve.runs.files import Fault
from gradsieve.runs.folder import RunFolder
from gradsieve.runs.score_table import ScoreTable, read_scores, write_scores
from gradsieve.selection.export import MESSAGES, ROWS
from gradsieve.store import Store, StoreWriter, create_store, open_store, store_files
from gradsieve.store.targets import TargetGradients, read_target_gradients, write_target_gradients

LOSSES, TENSORBOARD, TRAINING = "loss.jsonl", "tensorboard", "training.json"


@dataclass(frozen=True)
class StageArtifact:
    """A stage's folder in a run.

    Attributes:
        run: The run folder.
        stage: The stage's name.
    """

    run: RunFolder
    stage: str

    @property
    def folder(self) -> Path:
        """The stage's folder."""
        return self.run.stage(self.stage)

    @property
    def metadata(self) -> dict[str, Any]:
        """Of the finished stage.

        Raises:
            RunError: If it is not finished.
        """
        return self.run.require(self.stage)

    def paths(self) -> list[Path]:
        """The files and folders that a finished stage has left."""
        raise NotImplementedError

    def missing(self) -> list[str]:
        """Those of `paths` that are not there any more."""
        return [str(path) for path in self.paths() if not path.exists()]

    def faults(self, contents: bool = True) -> list[Fault]:
        """Where the finished stage's folder is not what was written.

        Args:
            contents: Read all files; otherwise their sizes alone are compared.
        """
        if self.run.files(self.stage) is None:  # of an earlier version
            return [Fault(Path(path), "missing") for path in self.missing()]
        return self.run.faults(self.stage, contents=contents)

    def made_with(self, file: Path) -> list[Path]:
        """What is made again if a file is damaged: by default that file alone."""
        return [file]

    def is_dispensable(self, file: Path) -> bool:
        """Whether nothing but a display is lost with a file that takes long to make again."""
        return False

    def verified(self, path: Path, contents: bool = True) -> Path:
        """A file or folder, once it is known to be what the finished stage wrote.

        Raises:
            RunError: If it is not; it says what makes it again.
        """
        faults = self.run.faults(self.stage, path, contents)
        for fault in faults:
            if not self.is_dispensable(fault.file):
                raise damaged_error([fault], self.stage)
        return path


def _is_curve(file: Path) -> bool:
    return file.name == LOSSES or TENSORBOARD in file.parts


def damaged_error(faults: Sequence[Fault], stage: str) -> RunError:
    """What a finished stage left is not what it wrote."""
    first, more = faults[0], f"; and {len(faults) - 1} more" if faults[1:] else ""
    return RunError(
        "A file in the run was not written by gradsieve."
        if first.what == "foreign"
        else f"A file of the run is {first.what}.",
        f"{stage}: {first.file}{more}",
        "Run `gradsieve run` with the run's recipe and --out: it makes again what is damaged or "
        "missing, archives what is foreign, and keeps the rest.",
    )


@dataclass(frozen=True)
class PoolArtifact(StageArtifact):
    """The candidate pool."""

    stage: str = "pool"

    def read(self) -> Pool:
        """Map the finished pool."""
        self.run.require(self.stage)
        return open_pool(self.verified(self.folder))

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of each source's rows, whatever their order and the path and format of their file."""
        return dict(self.metadata["output"])

    @property
    def skipped(self) -> Path:
        """Rows that can't be used: source, where, reason."""
        return self.folder / "skipped.jsonl"

    def paths(self) -> list[Path]:
        """The data set's files."""
        parts = [self.folder / "dataset" / f"{name}.arrow" for name in self.metadata["sources"]]
        return [self.skipped, self.folder / "order.npy", *parts]

    def made_with(self, file: Path) -> list[Path]:
        """The files of all sources together are made again if `state.json` is missing."""
        return [file, self.folder / "dataset" / "state.json"]


@dataclass(frozen=True)
class WarmupArtifact(StageArtifact):
    """Checkpoints of the warm-up, its own or those that the recipe names."""

    stage: str = "warmup"

    def own_checkpoint(self, number: int) -> Path:
        """Where the warm-up's checkpoint of an epoch is, from 1."""
        return self.folder / f"checkpoint-{number}"

    def is_trained(self, epochs: int) -> bool:
        """Whether a training of so many epochs has ended: its losses are written last."""
        last = self.own_checkpoint(epochs)
        return (self.folder / LOSSES).is_file() and last.is_dir()

    @property
    def checkpoints(self) -> list[Path]:
        """In order; relative names are below the stage's folder, so that a run may be moved."""
        folders = [self.folder / name for name in self.metadata["checkpoints"]]
        return [self.verified(f) if f.parent == self.folder else f for f in folders]

    @property
    def learning_rates(self) -> list[float]:
        """Mean learning rate of each checkpoint's epoch."""
        return list(self.metadata["learning_rates"])

    @property
    def weights(self) -> NDArray[np.float64]:
        """Learning rates that sum to 1: eta_i of the method [N]."""
        rates = np.array(self.learning_rates, dtype=np.float64)
        return np.asarray(rates / rates.sum())

    def losses(self) -> list[dict[str, Any]]:
        """One record per logged step; empty where nothing was trained here."""
        file = self.folder / LOSSES
        if not file.is_file() or self.run.faults(self.stage, file):
            return []
        return list(read_lines(file))

    def paths(self) -> list[Path]:
        """The checkpoints."""
        return [self.folder / name for name in self.metadata["checkpoints"]]

    def faults(self, contents: bool = True) -> list[Fault]:
        """As of any stage; and checkpoints that the recipe named and that have moved."""
        moved = [path for path in self.paths() if path.parent != self.folder and not path.exists()]
        return super().faults(contents) + [Fault(path, "missing") for path in moved]

    def made_with(self, file: Path) -> list[Path]:
        """A training is made again as a whole."""
        return [self.folder]

    def is_dispensable(self, file: Path) -> bool:
        """Curves."""
        return _is_curve(file)


@dataclass(frozen=True)
class CheckpointFeatures:
    """Features at one checkpoint.

    Attributes:
        folder: `RUN/02-features/checkpoint-i`.
    """

    folder: Path

    def store_folder(self, kind: str) -> Path:
        """Of the datastore `pool` (Adam's updates), `pool-sgd` (plain gradients) or `exact`."""
        return self.folder / kind

    def store(self, kind: str) -> Store:
        """Open a datastore."""
        return open_store(self.store_folder(kind))

    def create_store(self, kind: str, settings: dict[str, Any]) -> StoreWriter:
        """Create a datastore, or continue one that was made with the same settings."""
        return create_store(self.store_folder(kind), settings)

    @property
    def directions(self) -> Path:
        """Exact mode's directions, while the stage runs."""
        return self.folder / "directions"

    def direction_file(self, number: int) -> Path:
        """Where the direction of a subtask is, by its number."""
        return self.directions / f"{number}.safetensors"

    @property
    def targets(self) -> Path:
        """The folder of the targets' gradients."""
        return self.folder / "targets"

    def target_file(self, target: str) -> Path:
        """Where a target's gradients are."""
        return self.targets / f"{target}.safetensors"

    def target_gradients(self, target: str) -> TargetGradients:
        """Read a target's gradients."""
        return read_target_gradients(self.target_file(target))

    def write_target_gradients(
        self, target: str, gradients: TargetGradients, norms: Tensor
    ) -> None:
        """Write a target's gradients and their unprojected norms."""
        write_target_gradients(self.target_file(target), gradients, norms)


@dataclass(frozen=True)
class FeaturesArtifact(StageArtifact):
    """The datastores and target gradients of every checkpoint."""

    stage: str = "features"

    def checkpoint(self, number: int) -> CheckpointFeatures:
        """Features at a checkpoint, from 1."""
        return CheckpointFeatures(self.folder / f"checkpoint-{number}")

    @property
    def checkpoints(self) -> list[CheckpointFeatures]:
        """Features at each checkpoint of a finished stage."""
        found = [self.checkpoint(n + 1) for n in range(len(self.metadata["checkpoints"]))]
        for checkpoint in found:
            self.verified(checkpoint.folder, contents=False)  # a datastore verifies what it reads
            self.verified(checkpoint.targets)
        return found

    @property
    def skipped_file(self) -> Path:
        """Examples whose features are not finite."""
        return self.folder / "skipped.parquet"

    def skipped(self) -> pa.Table:
        """Source, id and `skip_reason` of the examples whose features are not finite, by key."""
        with reading(self.skipped_file):
            return pq.read_table(self.verified(self.skipped_file))

    def write_skipped(self, skipped: pa.Table) -> None:
        """Write what `skipped` reads."""
        with atomic(self.skipped_file) as temporary:
            pq.write_table(skipped, temporary)

    @property
    def kinds(self) -> list[str]:
        """The datastores that the stage was last asked for.

        What is left of a method that the recipe no longer has may lack examples.
        """
        return list(self.metadata["inputs"]["stores"])

    def last_stores(self) -> list[Path]:
        """Folders of the datastores of gradients at the last checkpoint; none in exact mode."""
        last = self.checkpoints[-1]
        return [last.store_folder(kind) for kind in self.kinds if kind != "exact"]

    def paths(self) -> list[Path]:
        """Tables, target gradients, and every file of the datastores."""
        inputs = self.metadata["inputs"]
        targets = inputs["targets"] if inputs["features"]["mode"] == "store" else ()
        found = [self.skipped_file]
        for checkpoint in self.checkpoints:
            found += [checkpoint.target_file(target) for target in targets]
            for kind in self.kinds:
                found += store_files(checkpoint.store_folder(kind))
        return found


@dataclass(frozen=True)
class ScoresArtifact(StageArtifact):
    """A table of scores per target and method, and what each method took."""

    stage: str = "score"

    def skipped(self, pool: Pool, method: str) -> pa.Table:
        """Source, id and `skip_reason` of the pool's examples that a method can't score, by key."""
        reasons = pc.is_valid(pool.skip_reasons).to_numpy()
        numbers = pool.order[reasons[pool.order]]
        found = pool.take(numbers, ["source", "id", "skip_reason"])
        if uses_gradients(method):
            features = FeaturesArtifact(self.run).skipped()
            found = pa.concat_tables([found, features.cast(found.schema)])
        return found.sort_by([("source", "ascending"), ("id", "ascending")])

    def table_file(self, target: str, method: str) -> Path:
        """Where a target's scores by a method are."""
        return self.folder / target / f"{method}.parquet"

    def table(self, target: str, method: str) -> ScoreTable:
        """Read a target's scores by a method."""
        file = self.table_file(target, method)
        with reading(file):
            return read_scores(self.verified(file))

    def write_table(self, target: str, method: str, table: ScoreTable) -> None:
        """Write a target's scores by a method."""
        write_scores(self.table_file(target, method), table)

    def seconds(self) -> dict[str, float]:
        """What each method has taken."""
        file = self.folder / "seconds.json"
        try:
            return dict(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError):  # of a run that lost it: nothing else depends on it
            return {}

    def add_seconds(self, method: str, seconds: float) -> None:
        """Record what a method has taken."""
        write_json(self.folder / "seconds.json", {**self.seconds(), method: seconds})

    def paths(self) -> list[Path]:
        """The tables."""
        names = (name.split("/") for name in self.metadata["tables"])
        return [self.table_file(target, method) for target, method in names]


@dataclass(frozen=True)
class SelectionFiles:
    """One selection.

    Attributes:
        folder: `RUN/04-select/TARGET/METHOD`.
    """

    folder: Path

    @property
    def selected(self) -> Path:
        """The rows as they came in, in rank order, plus rank, score, subtask and source."""
        return self.folder / ROWS

    @property
    def messages(self) -> Path:
        """The same rows as chat messages, whatever format they came in."""
        return self.folder / MESSAGES

    @property
    def dropped(self) -> Path:
        """Examples that have no score or were passed over, with the reason."""
        return self.folder / "dropped.jsonl"

    @property
    def card(self) -> Path:
        """The data set card."""
        return self.folder / "README.md"

    @property
    def fingerprint(self) -> str:
        """Of the rows, which users take, and of the messages, which training reads."""
        return fingerprint([file_fingerprint(file) for file in (self.selected, self.messages)])


@dataclass(frozen=True)
class SelectionsArtifact(StageArtifact):
    """The selections, and the pool's examples that share text with test questions."""

    stage: str = "select"

    def selection(self, target: str, method: str) -> SelectionFiles:
        """A selection's files, for a target or `together`."""
        return SelectionFiles(self.verified(self.folder / target / method))

    def of(self, recipe: Recipe, target: str, method: str) -> SelectionFiles:
        """The selection that serves a target: its own, or the one for all targets."""
        return self.selection(TOGETHER if recipe.select.together else target, method)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of the selected rows, by TARGET/METHOD."""
        return dict(self.metadata["selections"])

    @property
    def leaks(self) -> Path:
        """Examples that share 13 words in a row with a test question."""
        return self.verified(self.folder / "leaks.jsonl")

    def paths(self) -> list[Path]:
        """Rows and messages of each selection."""
        names = (name.split("/") for name in self.metadata["selections"])
        files = [self.selection(target, method) for target, method in names]
        return [path for file in files for path in (file.selected, file.messages)]


@dataclass(frozen=True)
class TrainedModel:
    """A trained adapter, or a full model.

    Attributes:
        folder: `RUN/05-train/TARGET/METHOD/seed-S`.
    """

    folder: Path

    @property
    def partial(self) -> Path:
        """Where it is trained, before its folder appears."""
        return self.folder.with_name(f"{self.folder.name}.tmp")

    def exists(self) -> bool:
        """Whether its weights are there."""
        return any(self.folder.glob("*.safetensors")) and (self.folder / TRAINING).is_file()

    @property
    def fingerprint(self) -> str:
        """Of the weights."""
        return folder_fingerprint(self.folder, ("*.safetensors",))

    def training(self) -> dict[str, Any]:
        """Seconds, rows and the fingerprint of the selection that it was trained on."""
        file = self.folder / TRAINING
        with reading(file):
            found: dict[str, Any] = json.loads(file.read_bytes())
        return found

    def publish(self, training: Mapping[str, Any]) -> None:
        """Make what is in `partial` the model."""
        write_json(self.partial / TRAINING, training)
        publish(self.partial, self.folder)

    def copy_from(self, other: TrainedModel) -> None:
        """Take the weights of a model that was trained on the same rows with the same seed."""
        shutil.rmtree(self.partial, ignore_errors=True)
        shutil.copytree(other.folder, self.partial)
        publish(self.partial, self.folder)


@dataclass(frozen=True)
class ModelsArtifact(StageArtifact):
    """The models trained on selections."""

    stage: str = "train"

    def model(self, name: str) -> TrainedModel:
        """A model by its name, TARGET/METHOD/seed-S."""
        return TrainedModel(self.verified(self.folder / name))

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of each model, by name."""
        return dict(self.metadata["models"])

    def paths(self) -> list[Path]:
        """The models' folders."""
        return [self.folder / name for name in self.metadata["models"]]

    def missing(self) -> list[str]:
        """Models without weights."""
        return [str(path) for path in self.paths() if not TrainedModel(path).exists()]

    def made_with(self, file: Path) -> list[Path]:
        """A model is made again as a whole."""
        return [self.folder.joinpath(*file.relative_to(self.folder).parts[:3])]

    def is_dispensable(self, file: Path) -> bool:
        """Curves."""
        return _is_curve(file)


@dataclass(frozen=True)
class ResultsArtifact(StageArtifact):
    """Metrics of each model, question by question and on average."""

    stage: str = "evaluate"

    @property
    def summary(self) -> Path:
        """Averages, standard errors and subtasks of every model and metric."""
        return self.folder / "results.json"

    def result_file(self, name: str) -> Path:
        """Of one model on one target: TARGET/METHOD/seed-S."""
        return self.folder / f"{name}.json"

    def samples_file(self, name: str) -> Path:
        """Generated answers of one model on one target: TARGET/METHOD/seed-S."""
        return self.folder / f"{name}.samples.jsonl"

    def samples(self, name: str) -> list[dict[str, Any]]:
        """Prompt, references, answer and metrics of each question; empty if none was answered."""
        file = self.verified(self.samples_file(name))
        return list(read_lines(file)) if file.is_file() else []

    def is_complete(self, name: str, of: str) -> bool:
        """Whether the result is there, of this model and these questions, with its answers."""
        try:
            found = self.result(name)
        except RunError:  # half a file, of a run that is not finished
            return False
        lost = found.get("samples") and not self.samples_file(name).is_file()
        return found.get("of") == of and not lost

    def result(self, name: str) -> dict[str, Any]:
        """A number per question and metric; empty if it is not there yet."""
        file = self.verified(self.result_file(name))
        with reading(file):
            return json.loads(file.read_bytes()) if file.is_file() else {}

    def rows(self) -> list[dict[str, Any]]:
        """The summary: a record per model and metric."""
        with reading(self.verified(self.summary)):
            return list(json.loads(self.summary.read_bytes())["rows"])

    def write_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the summary."""
        write_json(self.summary, {"rows": rows})

    @staticmethod
    def name(row: Mapping[str, Any]) -> str:
        """Of the result that a row of the summary is an average of."""
        return f"{row['target']}/{row['method']}/seed-{row['seed']}"

    def paths(self) -> list[Path]:
        """The summary, which all is made for; the stage's list has the others."""
        return [self.summary]


@dataclass(frozen=True)
class ReportArtifact(StageArtifact):
    """The page."""

    stage: str = "report"

    @property
    def page(self) -> Path:
        """One HTML file."""
        return self.folder / "index.html"

    def paths(self) -> list[Path]:
        """The page."""
        return [self.page]


@dataclass(frozen=True)
class Artifacts:
    """What every stage of a run leaves.

    Attributes:
        run: The run folder.
    """

    run: RunFolder

    @property
    def pool(self) -> PoolArtifact:
        """The candidate pool."""
        return PoolArtifact(self.run)

    @property
    def warmup(self) -> WarmupArtifact:
        """Checkpoints."""
        return WarmupArtifact(self.run)

    @property
    def features(self) -> FeaturesArtifact:
        """Datastores and target gradients."""
        return FeaturesArtifact(self.run)

    @property
    def scores(self) -> ScoresArtifact:
        """Tables of scores."""
        return ScoresArtifact(self.run)

    @property
    def selections(self) -> SelectionsArtifact:
        """Selected rows."""
        return SelectionsArtifact(self.run)

    @property
    def models(self) -> ModelsArtifact:
        """Trained models."""
        return ModelsArtifact(self.run)

    @property
    def results(self) -> ResultsArtifact:
        """Results of evaluation."""
        return ResultsArtifact(self.run)

    @property
    def report(self) -> ReportArtifact:
        """The report."""
        return ReportArtifact(self.run)
