"""The recipe as typed, validated, frozen data: every key, its default and what it means.

Its sections are in the modules next to this one, and importable from here.
"""

from __future__ import annotations

import warnings
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import ValidationInfo, field_validator, model_validator

from gradsieve.recipe.inputs import (
    EngineConfig,
    LimitsConfig,
    ModelConfig,
    SourceConfig,
    TargetConfig,
)
from gradsieve.recipe.section import CHANGES, SEVERAL, TAGS, Effect, Section, key, unique
from gradsieve.recipe.selecting import (
    SIZES,
    AcrossSubtasks,
    Budget,
    FeaturesConfig,
    NearDuplicatesConfig,
    ProjectionConfig,
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
    "CHANGES",
    "SEVERAL",
    "SIZES",
    "TAGS",
    "TOGETHER",
    "AcrossSubtasks",
    "Budget",
    "Effect",
    "EngineConfig",
    "EvaluateConfig",
    "FeaturesConfig",
    "LimitsConfig",
    "LoraConfig",
    "ModelConfig",
    "NearDuplicatesConfig",
    "ProjectionConfig",
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

TOGETHER = "together"
"""In place of a target's name: the one selection for all targets."""

RESERVED = (TOGETHER, "target_loss")
"""Names that a target can't have: they mean something else in its place."""

FILE_NAMES = (".json", ".jsonl", ".parquet", ".tmp")
"""Ends of the names of files next to targets' folders; what ends in .tmp is unfinished work."""


class ReportConfig(Section):
    """Step 8: an HTML page on what was selected and why."""

    rows: int = key(
        20000,
        "Most selected rows shown with their text, the best of each selection in equal shares. A "
        "row takes 0.5 to 2 kB of the page.",
        "no",
        ge=0,
    )
    near_misses: int = key(200, "Best rows that were not selected, per selection.", "no", ge=0)
    lowest: int = key(100, "Rows with the lowest scores, per selection.", "no", ge=0)


class SelectionName(NamedTuple):
    """What a selection is for, by which method, and of which size.

    Attributes:
        of_several: Whether there are selections of other sizes, so that the name has the size.
    """

    target: str
    method: str
    budget: Budget
    of_several: bool = False

    @property
    def short(self) -> str:
        """METHOD, or METHOD@BUDGET; with a folder for the target this is the selection's path."""
        return f"{self.method}@{self.budget}" if self.of_several else self.method


# The field `validate` takes the place of a method that pydantic has deprecated.
warnings.filterwarnings("ignore", 'Field name "validate" in "Recipe" shadows')


class Recipe(Section):
    """All settings of a run."""

    model: ModelConfig
    pool: Annotated[
        list[SourceConfig],
        key(..., "The candidate pool's sources, or one of them alone.", min_length=1),
    ]
    targets: Annotated[
        list[TargetConfig], key(..., "The skills for which rows are selected.", min_length=1)
    ]
    on_bad_row: Literal["fail", "skip"] = key(
        "fail", "For a row that can't be read: report it and stop, or skip it and count."
    )
    warmup: WarmupConfig = WarmupConfig()
    features: FeaturesConfig = FeaturesConfig()
    score: ScoreConfig = ScoreConfig()
    select: SelectConfig = SelectConfig(fraction=0.05)
    train: TrainConfig | None = key(None, "null: stop after the selection.")
    evaluate: EvaluateConfig | None = key(None, "null: no evaluation.")
    validate: ValidateConfig | None = key(None, "null: scores are not validated.")  # type: ignore[assignment]
    report: ReportConfig = ReportConfig()
    limits: LimitsConfig = LimitsConfig()
    engine: EngineConfig = key(EngineConfig(), None, "no")

    @property
    def train_or_default(self) -> TrainConfig:
        """The section `train`, or its defaults: validation trains without one, too."""
        return self.train or TrainConfig()

    @property
    def training(self) -> TrainingConfig:
        """Training on selections: the warm-up's settings, overridden by those of `train`."""
        keys = {"epochs", "learning_rate"}
        own = self.train_or_default.model_dump(include=keys, exclude_none=True)
        shared = {key: getattr(self.warmup, key) for key in TrainingConfig.model_fields}
        return TrainingConfig(**{**shared, **own})

    @property
    def scored(self) -> list[tuple[str, str]]:
        """Target and method of each table of scores."""
        return [(target.name, method) for target in self.targets for method in self.score.methods]

    @property
    def exact_by_example(self) -> bool:
        """Whether exact cosines are taken to each target example as well as to subtasks' means."""
        turns = self.features.mode == "exact" and self.select.turns == "examples"
        return turns or self.score.target_mean == "none"

    @property
    def selections(self) -> list[SelectionName]:
        """All selections: for each target, or all together, by each method, of each size."""
        targets = [TOGETHER] if self.select.together else [target.name for target in self.targets]
        return [name for target in targets for name in self.selections_for(target)]

    def selections_for(self, target: str) -> list[SelectionName]:
        """The selections that serve a target, named as if it had its own."""
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
        """A single source or target may stand without its list; such a source without a name."""
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
        taken = [target.name for target in targets if target.name in RESERVED]
        taken += [target.name for target in targets if target.name.endswith(FILE_NAMES)]
        if taken:
            raise ValueError(f"{taken[0]} is a reserved name: rename the target")
        return targets

    @model_validator(mode="after")
    def _caps_are_of_sources(self) -> Recipe:
        # Of a file with many sources, the values of its field are known once it is read.
        known = [s.name if s.source_field is None else f"{s.name}/VALUE" for s in self.pool]
        caps = self.select.per_source
        for name in caps if isinstance(caps, dict) else ():
            start, slash, _ = name.partition("/")
            if (f"{start}/VALUE" if slash else name) not in known:
                raise ValueError(f"select.per_source: no source is called {name}; one of {known}")
        return self

    @model_validator(mode="after")
    def _duplicates_need_a_datastore(self) -> Recipe:
        if self.features.mode == "exact" and self.select.near_duplicates:
            raise ValueError(
                "select.near_duplicates compares rows of the datastore, which features.mode: exact "
                "does not make"
            )
        return self

    @model_validator(mode="after")
    def _all_weights_are_not_quantized(self) -> Recipe:
        if self.model.quantization and self.train and self.train.full_parameters:
            raise ValueError(
                "train.full_parameters trains all weights, which model.quantization freezes: "
                "remove one of them"
            )
        return self

    @model_validator(mode="after")
    def _tasks_are_targets(self) -> Recipe:
        known = ["target_loss", *(target.name for target in self.targets)]
        wrong = [
            task for task in (self.evaluate and self.evaluate.tasks) or [] if task not in known
        ]
        if wrong:
            raise ValueError(f"evaluate.tasks: no target is called {wrong[0]}; one of {known}")
        return self
