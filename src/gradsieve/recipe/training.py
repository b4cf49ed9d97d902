"""Recipe sections for training, evaluation and the validation of scores."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, field_validator

from gradsieve.recipe.section import OneOrSeveral, Section, Seed, key, regular_expression


class LoraConfig(Section):
    """The LoRA adapter. The defaults are those of the paper's section 4.1."""

    r: int = key(128, "Rank.", ge=1)
    alpha: float = key(512, "Scale: the adapter's output is multiplied by alpha / r.", gt=0)
    dropout: float = key(0.1, "Dropout in training; gradients are computed without.", ge=0, lt=1)
    target_modules: OneOrSeveral[str] = key(
        ["q_proj", "k_proj", "v_proj", "o_proj"],
        "Layers with an adapter, as in peft: a list of names, a regular expression for the full "
        "name, or `all-linear`.",
    )
    exclude_modules: OneOrSeveral[str] | None = key(
        None, "Layers to exclude from `target_modules`: names, or a regular expression."
    )
    rslora: bool = key(False, "Scale by alpha / sqrt(r) instead of alpha / r.")

    _text_is_a_regular_expression = field_validator("target_modules", "exclude_modules")(
        regular_expression
    )


AT_ONCE = 8
"""Maximum number of examples per forward pass by default. The rows of a step are sorted by length,
so that small batches need little padding; with larger ones, models run hardly faster."""


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of a number that is at most `most`."""
    return max(divisor for divisor in range(1, most + 1) if number % divisor == 0)


class TrainingConfig(Section):
    """Settings for training an adapter, in the warm-up and on selections."""

    epochs: int = key(4, "Epochs; each ends with a checkpoint.", ge=1)
    learning_rate: float = key(2e-5, "Peak learning rate, with linear decay to 0.", gt=0)
    warmup_ratio: float = key(0.03, "Share of steps for learning rate warm-up.", ge=0, lt=1)
    batch_size: int = key(32, "Examples per optimizer step.", ge=1)
    micro_batch_size: int | None = key(
        None,
        "Examples per forward pass, a divisor of batch_size; null means at most 8. Halved when "
        "memory runs out. Changes results by rounding only.",
        "no",
        ge=1,
    )
    lora: LoraConfig = key(LoraConfig(), "The adapter.")
    report_to: list[Literal["tensorboard", "trackio", "wandb"]] = key(
        [],
        "Trackers for the losses of this training and of `train`, via transformers' integrations.",
        "no",
    )

    def contradictions(self) -> Iterator[str]:
        """A micro-batch size that does not divide the batch size."""
        micro, batch = self.micro_batch_size, self.batch_size
        if micro and batch % micro:
            yield f"micro_batch_size {micro} does not divide batch_size {batch}"

    def optimizer_steps(self, rows: int) -> int:
        """The number of optimizer steps in a training on `rows` examples."""
        return self.epochs * math.ceil(rows / self.batch_size)

    def changes_nothing(self, rows: int, max_steps: int | None = None) -> bool:
        """Whether the only optimizer step has a learning rate of 0, the start of its warm-up."""
        return (max_steps or self.optimizer_steps(rows)) == 1 and self.warmup_ratio > 0

    def rows_at_once(self, processes: int = 1) -> int:
        """Examples per forward pass in each of `processes` processes."""
        if self.micro_batch_size:
            return self.micro_batch_size
        share = max(1, self.batch_size // processes)
        return largest_divisor(share, min(share, AT_ONCE))


class WarmupConfig(TrainingConfig):
    """Step 1: LoRA training on a random share of the pool."""

    fraction: float = key(0.05, "Share of the pool's rows to train on.", gt=0, le=1)
    seed: Seed = key(
        0, "Seed of the rows, the adapter's initial weights and the data order.", "repeats"
    )
    checkpoints: list[str] | None = key(
        None,
        "Checkpoint folders of an existing training run (peft adapter and optimizer state), in "
        "order; these replace the warm-up.",
        "contents",
    )

    def contradictions(self) -> Iterator[str]:
        """As for any training, and an empty list of checkpoints."""
        yield from super().contradictions()
        if self.checkpoints == []:
            yield "`checkpoints` is an empty list: name a folder, or write null"


class TrainConfig(Section):
    """Step 6: training on the selections, with the warm-up's settings unless set here."""

    model: str | None = key(
        None, "Model to train, if not the selecting one (LESS-T); null means the same.", "contents"
    )
    chat_template: str | None = key(
        None, "Chat template of this `model`; null means `model.chat_template`.", "contents"
    )
    seeds: list[Seed] = key([0], "Each trains one model.", "adds", min_length=1)
    epochs: int | None = key(None, "Epochs; null means the warm-up's.", ge=1)
    learning_rate: float | None = key(None, "Peak; null means the warm-up's.", gt=0)
    max_steps: int | None = key(
        None,
        "Optimizer steps of each training run, including `full`, over as many epochs as needed, so "
        "that selections of different sizes get the same budget. null means `epochs` decides.",
        ge=1,
    )
    full_parameters: bool = key(
        False, "Train all weights, in the model's dtype, instead of an adapter."
    )

    def contradictions(self) -> Iterator[str]:
        """A chat template without a model."""
        if self.chat_template is not None and self.model is None:
            yield "chat_template is that of `model`, which is not set here"


Metric = Literal["target_loss", "held_out_loss", "accuracy", "exact_match", "f1"]
"""Metrics of a trained model."""


class EvaluateConfig(Section):
    """Step 7: evaluation of each trained model on the targets' held-out examples."""

    tasks: list[str] | None = key(
        None,
        "Targets, each with its own metrics, and `target_loss`, the loss on all targets' answers; "
        "null means everything with held-out examples.",
        "adds",
    )
    metrics: list[Metric] | None = key(
        None,
        "Metrics to compute for each target that has them; null means all. `[target_loss, "
        "held_out_loss]` skips generation, which takes most of the time.",
        "adds",
        min_length=1,
    )
    limit: int | None = key(None, "First held-out examples per subtask; null means all.", ge=1)
    shots: bool = key(True, "Put the benchmark's few-shot examples before each question.")
    batch_size: int = key(8, "Questions per batch; halved when memory runs out.", "no", ge=1)


class ValidateConfig(Section):
    """Tests whether scores predict the effect of training, on many random subsets of the pool."""

    subsets: int = key(
        32,
        "Number of random subsets of the pool to train on, with the settings of `train`; more "
        "subsets give a narrower interval.",
        "adds",
        ge=3,
    )
    share: float = key(0.5, "Share of the pool's rows in each subset.", gt=0, lt=1)
    leave_out: list[Annotated[float, Field(gt=0, lt=1)]] = key(
        [0.01, 0.05],
        "Shares of the pool to leave out: each method's best rows, compared with random rows. One "
        "training run on the rest for each target, method and share. [] means none.",
        "adds",
    )
    seeds: list[Seed] = key(
        [0],
        "Each trains one model per subset; losses are averaged over them.",
        "adds",
        min_length=1,
    )
    seed: Seed = key(0, "Seed of the subsets.", "repeats")
