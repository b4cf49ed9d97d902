"""The outputs in each stage's folder: the only code that knows a path below a stage's folder.

In: a run folder. Out: one typed artifact per stage, with its paths and methods that read and write.
Stages, analysis and report open each other's results only through these types, which verify a
finished stage's files before they are used.
"""

from __future__ import annotations

from gradsieve.runs.artifacts.base import StageArtifact, damaged_error
from gradsieve.runs.artifacts.evaluating import (
    ModelsArtifact,
    ReportArtifact,
    ResultsArtifact,
    TrainedModel,
    ValidationArtifact,
)
from gradsieve.runs.artifacts.selecting import (
    FeaturesArtifact,
    PoolArtifact,
    ScoresArtifact,
    SelectionFiles,
    SelectionsArtifact,
    WarmupArtifact,
    link_tables,
)
from gradsieve.runs.folder import RunFolder

__all__ = [
    "Artifacts",
    "ResultsArtifact",
    "SelectionFiles",
    "StageArtifact",
    "TrainedModel",
    "ValidationArtifact",
    "damaged_error",
    "link_tables",
]


class Artifacts:
    """The outputs of every stage of a run."""

    def __init__(self, run: RunFolder) -> None:
        self.pool = PoolArtifact(run)
        self.warmup = WarmupArtifact(run)
        self.features = FeaturesArtifact(run)
        self.scores = ScoresArtifact(run)
        self.selections = SelectionsArtifact(run)
        self.models = ModelsArtifact(run)
        self.results = ResultsArtifact(run)
        self.validation = ValidationArtifact(run)
        self.report = ReportArtifact(run)

    def of(self, stage: str) -> StageArtifact:
        """The artifact of a stage, by the stage's name."""
        found: StageArtifact = next(part for part in vars(self).values() if part.stage == stage)
        return found
