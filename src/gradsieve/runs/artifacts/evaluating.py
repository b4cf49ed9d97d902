"""Outputs of the stages after selection: trained models, results, the report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradsieve.io import (
    file_hash,
    folder_fingerprint,
    is_whole,
    publish,
    read_lines,
    read_sealed,
    reading,
    write_json,
    write_sealed,
)
from gradsieve.runs.artifacts.base import TRAINING, Below, StageArtifact, is_display
from gradsieve.runs.files import hash_once


@dataclass(frozen=True)
class TrainedModel:
    """A trained adapter, or a full model, such as `RUN/05-train/TARGET/METHOD/seed-S`."""

    folder: Path

    @property
    def partial(self) -> Path:
        """The folder used during training; it is renamed to `folder` at the end."""
        return self.folder.with_name(f"{self.folder.name}.tmp")

    def exists(self) -> bool:
        """Whether all saved files exist undamaged."""
        try:
            training = read_sealed(self.folder / TRAINING)
            return training is not None and all(
                hash_once(self.folder / name) == kept for name, kept in training["files"].items()
            )
        except (OSError, ValueError, LookupError):
            return False

    @property
    def fingerprint(self) -> str:
        """A fingerprint of the weights."""
        return folder_fingerprint(self.folder, ("*.safetensors",))

    def training(self) -> dict[str, Any]:
        """The training's seconds, rows and the fingerprint of its selection."""
        return _json(self.folder / TRAINING)

    def publish(self, training: Mapping[str, Any]) -> None:
        """Publish the content of `partial` as the model."""
        files = {
            file.relative_to(self.partial).as_posix(): file_hash(file)
            for file in self.partial.rglob("*")
            if file.is_file() and not is_display(file)
        }
        write_sealed(self.partial / TRAINING, {**training, "files": files})
        publish(self.partial, self.folder)

    def copy_from(self, other: TrainedModel) -> None:
        """Copy a model that was trained on the same rows with the same seed."""
        shutil.rmtree(self.partial, ignore_errors=True)
        shutil.copytree(other.folder, self.partial)
        publish(self.partial, self.folder)


class ModelsArtifact(StageArtifact):
    """The models trained on selections."""

    stage = "train"
    trains = True

    def model(self, name: str) -> TrainedModel:
        """A model by its name, TARGET/METHOD/seed-S."""
        return TrainedModel(self.verified(self.folder / name))

    def trained_on(self, selection: str, seed: int) -> TrainedModel | None:
        """A model trained on these rows with this seed, under any name; None if there is none."""
        for folder in sorted(self.folder.glob(f"*/*/seed-{seed}")):
            with suppress(OSError, ValueError):
                training = read_sealed(folder / TRAINING) or {}
                model = TrainedModel(folder)
                if training.get("selection") == selection and model.exists():
                    return model
        return None

    @property
    def fingerprints(self) -> dict[str, str]:
        """The fingerprint of each model, by name."""
        return dict(self.metadata["models"])

    def made_with(self, file: Path) -> list[Path]:
        """A model is made again as a whole."""
        return [self.folder.joinpath(*file.relative_to(self.folder).parts[:3])]


class _Summarized(StageArtifact):
    """Results of a stage, summarized in one file; the stage's list has the other files."""

    summary = Below("results.json")

    def rows(self) -> list[dict[str, Any]]:
        """The summary's records."""
        return list(_json(self.verified(self.summary))["rows"])

    def write_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        write_json(self.summary, {"rows": rows})


class ResultsArtifact(_Summarized):
    """Metrics of each model per question; the summary has one record per metric, averaged."""

    stage = "evaluate"

    def result_file(self, name: str) -> Path:
        """Result of one model on one target: TARGET/METHOD/seed-S."""
        return self.folder / f"{name}.json"

    def samples_file(self, name: str) -> Path:
        """Generated answers of one model on one target: TARGET/METHOD/seed-S."""
        return self.folder / f"{name}.samples.jsonl"

    def samples(self, name: str) -> Iterator[dict[str, Any]]:
        """Prompt, references, answer and metrics of each question."""
        return read_lines(self.verified(self.samples_file(name)))

    def is_complete(self, name: str, of: str) -> bool:
        """Whether the result for this model and these questions exists, with its answers."""
        if not is_whole(self.result_file(name)):
            return False
        found = self.result(name)
        return found.get("of") == of and (
            not found.get("samples") or is_whole(self.samples_file(name))
        )

    def result(self, name: str) -> dict[str, Any]:
        """A value per question and metric."""
        return _json(self.verified(self.result_file(name)))

    @staticmethod
    def weights(result: Mapping[str, Any], metric: str) -> list[float]:
        """Each question's weight in a metric's average; 0 in `held_out_loss` if it has no loss."""
        of_loss = metric == "held_out_loss" and "loss_weights" in result
        weights: list[float] = result["loss_weights" if of_loss else "weights"]
        return weights

    @staticmethod
    def name(row: Mapping[str, Any]) -> str:
        """The name of the result that a row of the summary averages."""
        return f"{row['target']}/{row['method']}/seed-{row['seed']}"


class ValidationArtifact(_Summarized):
    """Losses of models trained on parts of the pool; and a record for each target and method.

    A part is named by a hash of its members: each is trained on once, whichever methods use it.
    """

    stage = "validate"
    trains = True

    def model(self, part: str, seed: int) -> TrainedModel:
        """The model trained on a part of the pool."""
        return TrainedModel(self.folder / "models" / part / f"seed-{seed}")

    def loss_file(self, part: str, seed: int, target: str) -> Path:
        """The file with that model's losses on a target."""
        return self.folder / "losses" / part / f"seed-{seed}" / f"{target}.json"

    def losses(self, part: str, seed: int, target: str) -> list[float]:
        """One loss per example."""
        return list(_json(self.loss_file(part, seed, target))["losses"])

    def has_losses(self, part: str, seed: int, target: str, of: str) -> bool:
        """Whether the losses on these examples exist."""
        file = self.loss_file(part, seed, target)
        return is_whole(file) and _json(file).get("of") == of

    def made_with(self, file: Path) -> list[Path]:
        """A model is made again as a whole, with its losses: only missing losses cause that."""
        kind, *parts = file.relative_to(self.folder).parts
        if kind != "models":
            return [file]
        return [self.folder.joinpath(name, *parts[:2]) for name in ("models", "losses")]


class ReportArtifact(StageArtifact):
    """The page, one HTML file."""

    stage = "report"
    page = Below("index.html")


def _json(file: Path) -> dict[str, Any]:
    with reading(file):
        found: dict[str, Any] = json.loads(file.read_bytes())
    return found
