"""The recipe's sections on training and on what is measured of trained models."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from gradsieve.recipe.section import ADDS, CONTENTS, NO, REPEATS, Section, Seed, regular_expression


class LoraConfig(Section):
    """The adapter. Defaults: the paper's section 4.1."""

    r: int = Field(128, ge=1, description="Rank.")
    alpha: float = Field(
        512, gt=0, description="Scale: the adapter's output is multiplied by alpha / r."
    )
    dropout: float = Field(
        0.1, ge=0, lt=1, description="Dropout in training; features are computed without."
    )
    target_modules: list[str] | str = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj"],
        description="Layers with an adapter, as in peft: a list of names, a regular expression for "
        "the full name, or `all-linear`.",
    )
    exclude_modules: list[str] | str | None = Field(
        None,
        description="Layers to exclude from `target_modules`: names, or a regular expression.",
    )
    rslora: bool = Field(False, description="Scale by alpha / sqrt(r) instead.")

    @field_validator("target_modules", "exclude_modules")
    @classmethod
    def _is_a_regular_expression(cls, value: list[str] | str | None) -> list[str] | str | None:
        if isinstance(value, str):
            regular_expression(value)
        return value


AT_ONCE = 8
"""Examples per forward pass: the rows of a step are sorted by length, so that few need little
padding; with more, models run hardly faster."""


class TrainingConfig(Section):
    """Training of an adapter: in the warm-up, and on selections."""

    epochs: int = Field(4, ge=1, description="Epochs; each ends with a checkpoint.")
    learning_rate: float = Field(2e-5, gt=0, description="Peak; linear decay to 0.")
    warmup_ratio: float = Field(
        0.03, ge=0, lt=1, description="Share of steps with an increasing learning rate."
    )
    batch_size: int = Field(32, ge=1, description="Examples per optimizer step.")
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description="Examples per forward pass, a divisor of batch_size; null: at most 8. Changes "
        "results by rounding only.",
        json_schema_extra=NO,
    )
    lora: LoraConfig = Field(default_factory=LoraConfig, description="The adapter.")
    report_to: list[Literal["tensorboard", "trackio", "wandb"]] = Field(
        [],
        description="Trackers for the losses of this training and of `train`, by transformers' "
        "integrations.",
        json_schema_extra=NO,
    )

    @model_validator(mode="after")
    def _micro_batches_fill_a_batch(self) -> Self:
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} does not divide "
                f"batch_size {self.batch_size}"
            )
        return self

    def rows_at_once(self, processes: int = 1) -> int:
        """Examples of a forward pass of one of so many processes."""
        if self.micro_batch_size:
            return self.micro_batch_size
        share = max(1, self.batch_size // processes)
        return max(rows for rows in range(1, min(share, AT_ONCE) + 1) if share % rows == 0)


class WarmupConfig(TrainingConfig):
    """Step 1: LoRA training on a random share of the pool."""

    fraction: float = Field(0.05, gt=0, le=1, description="Share of the pool's rows to train on.")
    seed: Seed = Field(
        0,
        description="Decides the rows, the adapter's initial weights and the order of training.",
        json_schema_extra=REPEATS,
    )
    checkpoints: list[str] | None = Field(
        None,
        description="Checkpoint folders of an existing training (peft adapter and optimizer "
        "state), in order; then there is no warm-up.",
        json_schema_extra=CONTENTS,
    )

    @model_validator(mode="after")
    def _checkpoints_are_some(self) -> Self:
        if self.checkpoints is not None and not self.checkpoints:
            raise ValueError("`checkpoints` is an empty list: name a folder, or write null")
        return self


class TrainConfig(Section):
    """Step 6: training on the selections, with the warm-up's settings unless set here."""

    model: str | None = Field(
        None,
        description="Another model than the one that selects (LESS-T); null: the same.",
        json_schema_extra=CONTENTS,
    )
    seeds: list[Seed] = Field(
        [0], min_length=1, description="Each trains one model.", json_schema_extra=ADDS
    )
    epochs: int | None = Field(None, ge=1, description="null: the warm-up's.")
    learning_rate: float | None = Field(None, gt=0, description="Peak; null: the warm-up's.")
    max_steps: int | None = Field(
        None,
        ge=1,
        description="Optimizer steps of each training, `full` included, in as many epochs as they "
        "take; so selections of different sizes get the same budget. null: `epochs` decide.",
    )
    full_parameters: bool = Field(
        False, description="Train all weights, in the model's dtype, instead of an adapter."
    )


Metric = Literal["target_loss", "held_out_loss", "accuracy", "exact_match", "f1"]
"""What is measured of a trained model."""


class EvaluateConfig(Section):
    """Step 7: evaluation of each trained model on the targets' held-out examples."""

    tasks: list[str] | None = Field(
        None,
        description="Targets, each with its own metric, and `target_loss`, the loss of all "
        "targets' answers; null: everything that has held-out examples.",
        json_schema_extra=ADDS,
    )
    metrics: list[Metric] | None = Field(
        None,
        min_length=1,
        description="Of each target those that it has; null: all. With `[target_loss, "
        "held_out_loss]` nothing is generated, which takes most of the time.",
        json_schema_extra=ADDS,
    )
    limit: int | None = Field(
        None, ge=1, description="Held-out examples per subtask, the first ones; null: all."
    )
    shots: bool = Field(
        True, description="Put the benchmark's few-shot examples before each question."
    )
    batch_size: int = Field(8, ge=1, description="Questions per batch.", json_schema_extra=NO)


class ValidateConfig(Section):
    """Whether scores predict what training does: many trainings on random subsets of the pool."""

    subsets: int = Field(
        32,
        ge=3,
        description="Random subsets of the pool to train on, with the settings of `train`; more "
        "narrow the interval.",
        json_schema_extra=ADDS,
    )
    share: float = Field(0.5, gt=0, lt=1, description="Share of the pool's rows in each subset.")
    leave_out: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        [0.01, 0.05],
        description="Shares of the pool to leave out, the best rows by each method against random "
        "ones: a training on the rest for each target, method and share. []: none.",
        json_schema_extra=ADDS,
    )
    seeds: list[Seed] = Field(
        [0],
        min_length=1,
        description="Each trains one model per subset; losses are averaged over them.",
        json_schema_extra=ADDS,
    )
    seed: Seed = Field(0, description="Decides the subsets.", json_schema_extra=REPEATS)
