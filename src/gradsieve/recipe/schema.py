"""The recipe as typed, validated, frozen data: every key, its default and what it means.

Each field's description, with its unit and source, is what docs/recipe.md is made from. Each field
also carries one mark: whether it changes results (`Effect`). Fingerprints, the card of a selection,
`compare` and docs/recipe.md all read that mark, through `Section.results`.

Rejected: dataclasses with hand-written checks (pydantic's messages and JSON schema come free).
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
"""A name that becomes part of a file name."""

TOGETHER = "together"
"""In place of a target's name: the one selection for all targets."""

RESERVED = (TOGETHER, "target_loss")
"""Names that a target can't have: they mean something else in its place."""

FILE_NAMES = (".json", ".jsonl", ".parquet", ".tmp")
"""Ends of the names of files next to targets' folders; what ends in .tmp is unfinished work."""

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""A seed of training; NumPy's generator accepts no larger one."""


SIZES = ("fraction", "count", "tokens")
"""Keys for the size of a selection; a recipe sets one of them."""

AcrossSubtasks = Literal["max", "standardized_max", "mean"]

ACROSS_SUBTASKS: AcrossSubtasks = "standardized_max"
"""The default of `score.across_subtasks`. The paper's is `max`, which found 15 to 27% fewer
planted rows with a real model (benchmarks/real_model)."""

Effect = Literal["yes", "no", "contents", "adds", "repeats"]
"""A key's effect on results: it changes them; it doesn't; only the contents that it names do (a
path); it adds results and keeps the others (methods, seeds); it makes a repetition (a seed)."""

NO: dict[str, Any] = {"effect": "no"}
CONTENTS: dict[str, Any] = {"effect": "contents"}
ADDS: dict[str, Any] = {"effect": "adds"}
REPEATS: dict[str, Any] = {"effect": "repeats"}
"""Marks of fields, as `json_schema_extra`; a field without one changes results."""

CHANGES: tuple[Effect, ...] = ("yes", "repeats")
"""Effects of the keys that a fingerprint holds."""


class Section(BaseModel):
    """A part of the recipe: frozen, and any key that it doesn't know is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )

    @classmethod
    def effect(cls, key: str) -> Effect:
        """A key's effect on results."""
        extra = cls.model_fields[key].json_schema_extra
        found: Effect = extra["effect"] if isinstance(extra, dict) else "yes"  # type: ignore[assignment]
        return found

    def results(self, effects: Collection[Effect] = CHANGES) -> dict[str, Any]:
        """The keys with these effects and their values, as JSON data, in all sections below."""
        return {
            key: value.results(effects) if isinstance(value, Section) else dumped
            for (key, value), dumped in zip(
                self, self.model_dump(mode="json").values(), strict=True
            )
            if self.effect(key) in effects
        }


class ModelConfig(Section):
    """The model whose gradients are computed."""

    name: str = Field(
        description="A folder, a GGUF file, or a model id on the Hugging Face hub.",
        json_schema_extra=CONTENTS,
    )
    revision: str | None = Field(
        None, description="Branch, tag or commit of a hub model.", json_schema_extra=CONTENTS
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "bfloat16",
        description="Precision of the frozen weights and of the forward and backward passes. "
        "Gradients and all later steps are float32. bfloat16 as in the paper.",
    )
    quantization: Literal["8bit", "4bit"] | None = Field(
        None,
        description="Frozen weights in 8 bits (LLM.int8) or 4 bits (QLoRA's NF4), by bitsandbytes; "
        "the adapter is not quantized. null: `dtype`. With 8 bits an example's gradient depends "
        "slightly on its batch (0.4% in a test).",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Recompute activations in the backward pass, in training and features: much "
        "less memory, a third more time, the same results.",
        json_schema_extra=NO,
    )
    chat_template: str = Field(
        "tokenizer",
        description="`tokenizer`: the tokenizer's own template; `tulu`: the paper's format; or the "
        "path of a Jinja file.",
        json_schema_extra=CONTENTS,
    )
    max_length: int = Field(
        2048,
        ge=8,
        description="Tokens to which an example is truncated, on the right. 2048 as in the paper.",
    )
    trust_remote_code: bool = Field(
        False,
        description="Run Python code that comes with the model. Read it first.",
        json_schema_extra=NO,
    )


SUPERVISE = (
    "The supervised part of a prompt/completion row: the `completion`, as in TRL, or `all` "
    "assistant turns, those of the prompt too. In other formats every assistant turn is "
    "supervised, unless the row excludes it."
)


RowField = Literal[
    "id", "messages", "conversations", "prompt", "completion", "instruction", "input", "output",
    "history", "system", "tools",
]  # fmt: skip
"""Fields of the formats of rows (`data.formats`) that `columns` can name."""

COLUMNS = (
    "The row's own key for a field of docs/howto/row-formats.md or `id`, where its name differs: "
    "{prompt: question, completion: answer}."
)


class SourceConfig(Section):
    """One source of the candidate pool."""

    name: Name = Field(description="Written to each selected row; unique in the pool.")
    path: str = Field(
        description="A .jsonl (.gz, .zst), .json or .parquet file, a saved `datasets` folder, or a "
        "data set on the hub.",
        json_schema_extra=CONTENTS,
    )
    split: str = Field(
        "train",
        description="Split of a hub or saved data set.",
        json_schema_extra=CONTENTS,
    )
    revision: str | None = Field(
        None, description="Branch, tag or commit of a hub data set.", json_schema_extra=CONTENTS
    )
    supervise: Literal["completion", "all"] = Field(
        "completion", description=SUPERVISE, json_schema_extra=CONTENTS
    )
    columns: dict[RowField, str] = Field({}, description=COLUMNS, json_schema_extra=CONTENTS)
    source_field: str | None = Field(
        None,
        description="The row's key that names its source, for a file with many (`dataset`, as in "
        "Tulu): `NAME/VALUE` is a source of its own in caps, report and card.",
        json_schema_extra=CONTENTS,
    )


class TargetConfig(Section):
    """A skill, shown by a few examples in one or more subtasks."""

    name: Name = Field(description="Also the name of the selection's folder.")
    path: str = Field(
        description="Of a benchmark: a folder in the paper's layout, a data set on the hub, such "
        "as cais/mmlu, or a copy of it (docs/targets.md). `custom`: as a source's `path`.",
        json_schema_extra=CONTENTS,
    )
    task: Literal["mmlu", "bbh", "tydiqa", "custom"] = Field(
        "custom",
        description="The format of `path`: a benchmark of the paper, or your own examples.",
    )
    subtask: str | None = Field(
        None,
        description="`custom` only: the field that names a row's subtask; null: one subtask.",
    )
    test: str | None = Field(
        None,
        description="Held-out examples for evaluation, in the same formats. Benchmarks have theirs "
        "in `path`.",
        json_schema_extra=CONTENTS,
    )
    supervise: Literal["completion", "all"] = Field(
        "completion",
        description=f"`custom` only. {SUPERVISE}",
        json_schema_extra=CONTENTS,
    )
    columns: dict[RowField, str] = Field(
        {}, description=f"`custom` only. {COLUMNS}", json_schema_extra=CONTENTS
    )
    answer: str | None = Field(
        None,
        description="`custom` only: a regular expression whose first group is the final answer in "
        "`test` and in generated texts, e.g. `#### (\\S+)`; null: the full text.",
    )

    @model_validator(mode="after")
    def _keys_of_custom(self) -> TargetConfig:
        own = {
            "supervise": "format",
            "columns": "format",
            "subtask": "subtasks",
            "answer": "answers",
        }
        for key, what in own.items():
            if self.task != "custom" and getattr(self, key) not in (None, "completion", {}):
                raise ValueError(f"`{key}` is for task: custom; {self.task} has its own {what}")
        return self

    @field_validator("answer")
    @classmethod
    def _answer_is_a_regular_expression(cls, value: str | None) -> str | None:
        return _regular_expression(value)


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
            _regular_expression(value)
        return value


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
        description="Examples per forward pass, a divisor of batch_size; null: all. Changes "
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


class ProjectionConfig(Section):
    """The random projection of gradients, the same for the pool and the targets."""

    kind: Literal["sketch", "rademacher", "none"] = Field(
        "sketch",
        description="`sketch`: a sign sketch of O(P) cost (the error of the paper's matrix); "
        "`rademacher`: dense random signs, as in the paper; `none`: the full update.",
    )
    dim: int = Field(
        8192,
        ge=8,
        multiple_of=8,
        description="Dimensions. 8192 as in the paper. 32768 with `bits: 4` takes as many bytes "
        "and finds 76% of the best rows instead of 56% (benchmarks/store).",
    )
    seed: int = Field(0, ge=0, description="Seed of the signs.")
    balanced: bool = Field(
        True,
        description="Multiply updates by v^(1/4) and divide target gradients by it before the "
        "projection (v: Adam's second moment): the same inner products with a smaller error "
        "(docs/method.md). `false`: as in the paper; default of `none`.",
    )

    @model_validator(mode="before")
    @classmethod
    def _without_projection_unscaled(cls, values: Any) -> Any:
        unprojected = isinstance(values, dict) and values.get("kind") == "none"
        return {"balanced": False, **values} if unprojected else values


class FeaturesConfig(Section):
    """Steps 2 and 3: the gradient datastore and the target gradients."""

    adam: Literal["torch", "official"] = Field(
        "torch",
        description="The place of Adam's eps: `torch` is the update that training applies, "
        "`official` that of the released code (docs/method.md).",
    )
    momentum: Literal["keep", "drop"] = Field(
        "keep", description="`drop` omits beta1 * m, which all examples share, from the update."
    )
    projection: ProjectionConfig = Field(
        default_factory=ProjectionConfig, description="The projection."
    )
    bits: Literal[1, 2, 4, 8, 16, 32] = Field(
        16, description="Bits per value in the datastore. 16 as in the paper."
    )
    mode: Literal["store", "exact", "both"] = Field(
        "store",
        description="`store`: write a datastore, reusable for other targets; `exact`: compute "
        "exact products with these targets' gradients, without projection or datastore; `both`: in "
        "one pass, exact products for these targets and a datastore for those added later.",
    )
    tokens_per_batch: int | Literal["auto"] = Field(
        "auto",
        description="Tokens per forward pass, including padding. `auto`: increased while memory "
        "suffices, halved when it runs out. It changes the speed, not the results.",
        json_schema_extra=NO,
    )

    @model_validator(mode="after")
    def _exact_needs_no_projection(self) -> FeaturesConfig:
        unused = sorted(self.unused & self.model_fields_set)
        if unused:
            raise ValueError(f"mode: exact does not use {' and '.join(unused)}: remove it")
        return self

    @property
    def unused(self) -> set[str]:
        """Keys that the mode does not use."""
        return {"projection", "bits"} if self.mode == "exact" else set()

    def results(self, effects: Collection[Effect] = CHANGES) -> dict[str, Any]:
        """As for every section, without the keys that the mode does not use."""
        found = super().results(effects)
        return {key: value for key, value in found.items() if key not in self.unused}

    @field_validator("tokens_per_batch")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("expected a positive number of tokens, or auto")
        return value


class ScoreConfig(Section):
    """Step 4: the influence of each example on each subtask."""

    methods: list[Name] = Field(
        ["less"],
        min_length=1,
        description="Selection methods (docs/methods.md); `method: less` is short for a list of "
        "one. `random-1` is `random` with seed 1.",
        json_schema_extra=ADDS,
    )
    target_mean: Literal["cosine_of_mean", "mean_of_cosines"] = Field(
        "cosine_of_mean",
        description="Cosine similarity to a subtask's mean gradient (the paper), or the mean of "
        "the similarities to each of its examples (the released code).",
    )
    across_subtasks: AcrossSubtasks = Field(
        ACROSS_SUBTASKS,
        description="How a row's score follows from its scores on subtasks. `max` as in the paper; "
        "`standardized_max`: the maximum after each subtask's scores are standardized over the "
        "pool (mean 0, deviation 1), so that no subtask wins by its level; `mean`.",
    )
    fusion: list[Name] = Field(
        ["less", "bm25", "rds_plus"],
        min_length=2,
        description="The methods that method `fusion` joins by their ranks.",
        json_schema_extra=ADDS,
    )
    files: dict[Name, str] = Field(
        {},
        description="Methods in Python files of yours, by name: `{Longest: my.py:Longest}`. "
        "`methods: [my.py:Longest]` is short for both. The file is run: read it first.",
        json_schema_extra=ADDS,
    )
    embedding: str = Field(
        "sentence-transformers/all-MiniLM-L6-v2",
        description="The model of method `embedding`: a folder, or a model id on the hub.",
        json_schema_extra=CONTENTS,
    )

    @model_validator(mode="before")
    @classmethod
    def _one_method_is_a_list(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or "method" not in given:
            return given
        if "methods" in given:
            raise ValueError("expected one of method, methods; got both")
        rest = {key: value for key, value in given.items() if key != "method"}
        return {**rest, "methods": [given["method"]]}

    @model_validator(mode="before")
    @classmethod
    def _methods_of_files_are_named(cls, given: Any) -> Any:
        """`my.py:Longest` to the method `Longest` and its file."""
        if not isinstance(given, Mapping) or not isinstance(given.get("methods"), list):
            return given
        places = [name for name in given["methods"] if isinstance(name, str) and ".py:" in name]
        files = {place.rpartition(":")[2]: place for place in places}
        if not files:
            return given
        names = [n.rpartition(":")[2] if n in places else n for n in given["methods"]]
        return {**given, "methods": names, "files": {**given.get("files", {}), **files}}

    @field_validator("fusion")
    @classmethod
    def _fusion_is_of_others(cls, names: list[str]) -> list[str]:
        if "fusion" in names:
            raise ValueError("fusion cannot be a part of itself")
        return _unique(names)

    @field_validator("methods")
    @classmethod
    def _methods_are_unique(cls, names: list[str]) -> list[str]:
        return _unique(names)


class NearDuplicatesConfig(Section):
    """Rows with almost the same update, of which only the best is selected."""

    cosine: float = Field(
        0.95,
        gt=0,
        le=1,
        description="Cosine similarity at the last checkpoint from which rows are duplicates.",
    )


Cap = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)]
"""A number of rows, or a share such as 0.4."""


T = TypeVar("T")

ONE, SEVERAL = "(one)", "(several)"
"""Tags of `OneOrSeveral`; they are no part of a key's path in messages."""

OneOrSeveral = Annotated[
    Annotated[T, Tag(ONE)] | Annotated[list[T], Tag(SEVERAL), Field(min_length=1)],
    Discriminator(lambda value: SEVERAL if isinstance(value, list) else ONE),
]
"""A value, or a list of values; what is wrong is reported for the one that was written."""

Fraction = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Budget:
    """The size of a selection: one of these."""

    fraction: float | None = None
    count: int | None = None
    tokens: int | None = None

    def __str__(self) -> str:
        """As in the name of a selection."""
        if self.tokens is not None:
            return f"{self.tokens}-tokens"
        return str(self.count if self.fraction is None else self.fraction)

    def rows(self, scored: int) -> int | None:
        """Rows to select of so many; None: the budget is in tokens."""
        return self.count if self.fraction is None else max(1, round(self.fraction * scored))


class SelectConfig(Section):
    """Step 5: the size of the selection (one of the first three keys) and its constraints."""

    fraction: OneOrSeveral[Fraction] | None = Field(
        None,
        description="Share of the scored rows. Default: 0.05, as in the paper. A list, here and in "
        "the next two: one selection, training and evaluation for each.",
    )
    count: OneOrSeveral[Count] | None = Field(None, description="Number of rows.")
    tokens: OneOrSeveral[Count] | None = Field(
        None, description="Most tokens of the selected rows."
    )
    turns: Literal["none", "subtasks", "examples"] = Field(
        "none",
        description="`subtasks`: a target's subtasks take turns in choosing their best remaining "
        "row, so that each gets an equal share; `examples`: its examples do.",
    )
    together: bool = Field(
        False,
        description="One selection for all targets, which take turns; its name is `together`.",
    )
    per_source: Cap | dict[str, Cap] | None = Field(
        None,
        description="The most rows of a source: a number (500) or a share of the selection (0.4), "
        "for every source or by name ({cot: 0.3}).",
    )
    near_duplicates: NearDuplicatesConfig | None = Field(
        None, description="null: near duplicates are kept. Requires the datastore."
    )
    drop_leaks: bool = Field(
        False,
        description="Skip rows that share 13 consecutive words with a target's test questions; "
        "they are reported in any case.",
    )

    @model_validator(mode="before")
    @classmethod
    def _paper_share_by_default(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        if "round_robin" in given:
            raise ValueError("`round_robin: true` is called `turns: subtasks`")
        set_here = [key for key in SIZES if given.get(key) is not None]
        if len(set_here) > 1:
            raise ValueError(f"expected one of {', '.join(SIZES)}; got {', '.join(set_here)}")
        return given if set_here else {**given, "fraction": 0.05}

    @field_validator(*SIZES)
    @classmethod
    def _sizes_are_unique(cls, sizes: Any) -> Any:
        _unique([str(size) for size in sizes] if isinstance(sizes, list) else [])
        return sizes

    @property
    def budgets(self) -> list[Budget]:
        """The sizes of selections, in order."""
        (key,) = (key for key in SIZES if getattr(self, key) is not None)
        sizes = getattr(self, key)
        return [Budget(**{key: size}) for size in (sizes if isinstance(sizes, list) else [sizes])]

    def of(self, budget: Budget) -> SelectConfig:
        """The same settings for one budget."""
        return self.model_copy(update=asdict(budget))


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


class ReportConfig(Section):
    """Step 8: an HTML page on what was selected and why."""

    rows: int = Field(
        20000,
        ge=0,
        description="Most selected rows shown with their text, the best of each selection in equal "
        "shares. A row takes 0.5 to 2 kB of the page.",
        json_schema_extra=NO,
    )
    near_misses: int = Field(
        200,
        ge=0,
        description="Best rows that were not selected, per selection.",
        json_schema_extra=NO,
    )
    lowest: int = Field(
        100, ge=0, description="Rows with the lowest scores, per selection.", json_schema_extra=NO
    )


class EngineConfig(Section):
    """Where the work of a stage runs; the results are the same."""

    kind: Literal["auto", "local", "ray"] = Field(
        "auto",
        description="`local`: this process, on one device; `ray`: workers on every GPU of this "
        "machine or of a cluster (`gradsieve[ray]`); `auto`: ray if it is installed and this "
        "machine has several GPUs or RAY_ADDRESS is set.",
        json_schema_extra=NO,
    )
    workers: int | None = Field(
        None,
        ge=1,
        description="Worker processes; null: as many as the GPUs allow, without GPUs one per 4 "
        "cores. With a number, workers also wait for nodes that join later.",
        json_schema_extra=NO,
    )
    gpus_per_worker: float | None = Field(
        None,
        ge=0,
        le=1,
        description="GPUs of a worker, such as 0.5 for two workers on each; null: 1 where there "
        "are GPUs.",
        json_schema_extra=NO,
    )
    cpus_per_worker: float | None = Field(
        None,
        gt=0,
        description="CPUs reserved for a worker; null: 1 next to a GPU, else an equal share.",
        json_schema_extra=NO,
    )
    address: str | None = Field(
        None,
        description="Of a Ray cluster, or `auto` for one on this machine; null: RAY_ADDRESS, else "
        "Ray is started for this run.",
        json_schema_extra=NO,
    )


class LimitsConfig(Section):
    """What is refused as too large before it takes all memory or hours."""

    row_bytes: int = Field(
        256 << 20, ge=1, description="Bytes of a row of the pool.", json_schema_extra=NO
    )
    unpacked_times: int = Field(
        200,
        ge=1,
        description="Bytes of an unpacked file (gzip, zstd, Parquet), in times its own size; what "
        "unpacks to less than 1 GiB is never refused.",
        json_schema_extra=NO,
    )
    render_seconds: float = Field(
        10.0,
        gt=0,
        description="Time that the chat template may take for a row.",
        json_schema_extra=NO,
    )


class SelectionName(NamedTuple):
    """What a selection is for, by which method, and of which size.

    Attributes:
        target: A target's name, or `together`.
        method: The method.
        budget: The size.
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
    pool: list[SourceConfig] = Field(min_length=1, description="The candidate pool's sources.")
    targets: list[TargetConfig] = Field(
        min_length=1, description="The skills for which rows are selected."
    )
    on_bad_row: Literal["fail", "skip"] = Field(
        "fail",
        description="For a row that can't be read: report it and stop, or skip it and count.",
    )
    warmup: WarmupConfig = Field(default_factory=WarmupConfig)
    features: FeaturesConfig = Field(default_factory=FeaturesConfig)
    score: ScoreConfig = Field(default_factory=ScoreConfig)
    select: SelectConfig = Field(default_factory=lambda: SelectConfig(fraction=0.05))
    train: TrainConfig | None = Field(None, description="null: stop after the selection.")
    evaluate: EvaluateConfig | None = Field(None, description="null: no evaluation.")
    validate: ValidateConfig | None = Field(  # type: ignore[assignment]
        None, description="null: scores are not validated."
    )
    report: ReportConfig = Field(default_factory=ReportConfig)
    limits: LimitsConfig = Field(default_factory=LimitsConfig)
    engine: EngineConfig = Field(default_factory=EngineConfig, json_schema_extra=NO)

    @property
    def training(self) -> TrainingConfig:
        """Training on selections: the warm-up's settings, overridden by those of `train`."""
        own = self.train.model_dump(include={"epochs", "learning_rate"}) if self.train else {}
        shared = {key: getattr(self.warmup, key) for key in TrainingConfig.model_fields}
        return TrainingConfig(**{**shared, **{k: v for k, v in own.items() if v is not None}})

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

    @field_validator("pool", "targets")
    @classmethod
    def _names_are_unique(cls, parts: list[Any]) -> list[Any]:
        _unique([part.name for part in parts])
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


def _regular_expression(value: str | None) -> str | None:
    try:
        re.compile(value or "")
    except re.error as error:
        raise ValueError(f"{value!r} is not a regular expression: {error}") from None
    return value


def _unique(names: list[str]) -> list[str]:
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ValueError(f"the name {', '.join(twice)} is used twice")
    return names
