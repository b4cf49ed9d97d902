"""What each stage leaves in its folder: the only place that knows a path below a stage's folder.

In: a run folder. Out: one typed artifact per stage, with `paths`, `missing`, and methods that read
and write. Stages, analysis and report open each other's results through these types alone, which
verify what a finished stage left before it is used.
"""

from __future__ import annotations

from dataclasses import dataclass

from gradsieve.runs.artifacts.base import StageArtifact, damaged_error
from gradsieve.runs.artifacts.evaluating import (
    ModelsArtifact,
    ReportArtifact,
    ResultsArtifact,
    TrainedModel,
)
from gradsieve.runs.artifacts.selecting import (
    CheckpointFeatures,
    FeaturesArtifact,
    PoolArtifact,
    ScoresArtifact,
    SelectionFiles,
    SelectionsArtifact,
    WarmupArtifact,
)
from gradsieve.runs.folder import RunFolder

__all__ = [
    "Artifacts",
    "CheckpointFeatures",
    "SelectionFiles",
    "StageArtifact",
    "TrainedModel",
    "damaged_error",
]


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
