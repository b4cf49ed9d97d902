"""The recipe as typed, validated, frozen data: every key with its default and its meaning.

The sections are defined in the other modules of this package and re-exported here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import ValidationInfo, field_validator

from gradsieve.recipe.inputs import (
    EngineConfig,
    LimitsConfig,
    ModelConfig,
    SourceConfig,
    TargetConfig,
)
from gradsieve.recipe.section import Section, key, unique
from gradsieve.recipe.selecting import (
    Budget,
    FeaturesConfig,
    ScoreConfig,
    SelectConfig,
)
from gradsieve.recipe.training import (
    EvaluateConfig,
    LoraConfig,
    TrainConfig,
    TrainingConfig,
    ValidateConfig,
    WarmupConfig,
)

__all__ = [
    "TOGETHER",
    "Budget",
    "EngineConfig",
    "EvaluateConfig",
    "FeaturesConfig",
    "LimitsConfig",
    "LoraConfig",
    "ModelConfig",
    "OnBadRow",
    "Recipe",
    "ReportConfig",
    "ScoreConfig",
    "Section",
    "SelectConfig",
    "SelectionName",
    "SourceConfig",
    "TargetConfig",
    "TrainConfig",
    "TrainingConfig",
    "ValidateConfig",
    "WarmupConfig",
]

OnBadRow = Literal["fail", "skip"]
"""What to do with rows that cannot be used."""

TOGETHER = "together"
"""Used in place of a target's name for the single selection that serves all targets."""

RESERVED = (TOGETHER, "target_loss")
"""Names that a target can't have, because they mean something else where a target is named."""

FILE_NAMES = (".json", ".jsonl", ".parquet", ".tmp")
"""Suffixes of files next to the targets' folders, not allowed in target names; .tmp: unfinished."""


class ReportConfig(Section):
    """Step 8: an HTML page on what was selected and why."""

    rows: int = key(
        20000,
        "Maximum number of selected rows shown with their text, divided equally among selections, "
        "best rows first. A row takes 0.5 to 2 kB of the page.",
        "no",
        ge=0,
    )
    near_misses: int = key(200, "Number of best unselected rows per selection.", "no", ge=0)
    lowest: int = key(100, "Number of rows with the lowest scores per selection.", "no", ge=0)


class SelectionName(NamedTuple):
    """Identifies a selection by target, method and size."""

    target: str
    method: str
    budget: Budget
    of_several: bool = False  # of several sizes, so that the name includes it

    @property
    def short(self) -> str:
        """METHOD or METHOD@BUDGET: the name of the selection's folder in the target's folder."""
        return f"{self.method}@{self.budget}" if self.of_several else self.method


# The field `validate` shadows a deprecated method of pydantic.
warnings.filterwarnings("ignore", 'Field name "validate" in "Recipe" shadows')


class Recipe(Section):
    """All settings of a run."""

    model: ModelConfig
    pool: Annotated[
        list[SourceConfig],
        key(..., "The sources of the candidate pool; a single one needs no list.", min_length=1),
    ]
    targets: Annotated[
        list[TargetConfig], key(..., "The skills for which rows are selected.", min_length=1)
    ]
    on_bad_row: OnBadRow = key(
        "fail", "For rows that can't be read: report them and stop, or skip and count them."
    )
    warmup: WarmupConfig = WarmupConfig()
    features: FeaturesConfig = FeaturesConfig()
    score: ScoreConfig = ScoreConfig()
    select: SelectConfig = SelectConfig()
    train: TrainConfig | None = key(None, "Step 6: training; null stops after the selection.")
    evaluate: EvaluateConfig | None = key(None, "Step 7: evaluation; null skips it.")
    validate: ValidateConfig | None = key(None, "Validation of scores; null skips it.")  # type: ignore[assignment]
    report: ReportConfig = ReportConfig()
    limits: LimitsConfig = LimitsConfig()
    engine: EngineConfig = key(EngineConfig(), None, "no")

    @property
    def train_or_default(self) -> TrainConfig:
        """The section `train`, or its defaults if there is none: validation also trains then."""
        return self.train or TrainConfig()

    @property
    def training(self) -> TrainingConfig:
        """Settings for training on selections: the warm-up's, overridden by those of `train`."""
        keys = {"epochs", "learning_rate"}
        own = self.train_or_default.model_dump(include=keys, exclude_none=True)
        shared = {key: getattr(self.warmup, key) for key in TrainingConfig.model_fields}
        return TrainingConfig(**{**shared, **own})

    @property
    def scored(self) -> list[tuple[str, str]]:
        """The (target, method) pairs that are scored, each in its own table."""
        return [(target.name, method) for target in self.targets for method in self.score.methods]

    @property
    def exact_by_example(self) -> bool:
        """Whether exact cosines are computed with each target example, not only subtask means."""
        turns = self.features.mode == "exact" and self.select.turns == "examples"
        return turns or self.score.target_mean == "none"

    @property
    def selections(self) -> list[SelectionName]:
        """All selections: one per target (or one for all targets), method and size."""
        targets = [TOGETHER] if self.select.together else [target.name for target in self.targets]
        return [name for target in targets for name in self.selections_for(target)]

    def selections_for(self, target: str) -> list[SelectionName]:
        """The selections that a target uses, one per method and size, under the target's name."""
        budgets = self.select.budgets
        full = Budget(fraction=1.0)
        return [
            SelectionName(target, method, budget, len(budgets) > 1 and method != "full")
            for method in self.score.methods
            for budget in ([full] if method == "full" else budgets)
        ]

    @field_validator("pool", "targets", mode="before")
    @classmethod
    def _one_is_a_list(cls, parts: Any, info: ValidationInfo) -> Any:
        """Accept a single source or target without a list; such a source needs no name."""
        if not isinstance(parts, dict):
            return parts
        return [{"name": "pool", **parts} if info.field_name == "pool" else parts]

    @field_validator("pool", "targets")
    @classmethod
    def _names_are_unique(cls, parts: list[Any]) -> list[Any]:
        unique([part.name for part in parts])
        return parts

    @field_validator("targets")
    @classmethod
    def _names_mean_nothing_else(cls, targets: list[TargetConfig]) -> list[TargetConfig]:
        for target in targets:
            if target.name in RESERVED or target.name.endswith(FILE_NAMES):
                raise ValueError(f"{target.name} is a reserved name: rename the target")
        return targets

    def contradictions(self) -> Iterator[str]:
        """Sections that exclude each other, and names of sources and targets that are not there."""
        # For a file with many sources, the values of its field are unknown until it is read.
        known = [s.name if s.source_field is None else f"{s.name}/VALUE" for s in self.pool]
        caps = self.select.per_source
        for name in caps if isinstance(caps, dict) else ():
            start, slash, _ = name.partition("/")
            if (f"{start}/VALUE" if slash else name) not in known:
                yield f"select.per_source: no source is called {name}; one of {known}"
        if self.features.mode == "exact" and self.select.near_duplicates:
            yield (
                "select.near_duplicates compares rows of the datastore, which features.mode: exact "
                "does not make"
            )
        if self.model.quantization and self.train and self.train.full_parameters:
            yield (
                "train.full_parameters trains all weights, which model.quantization freezes: "
                "remove one of them"
            )
        known = ["target_loss", *(target.name for target in self.targets)]
        for task in (self.evaluate and self.evaluate.tasks) or []:
            if task not in known:
                yield f"evaluate.tasks: no target is called {task}; one of {known}"
