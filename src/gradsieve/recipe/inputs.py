"""The recipe's sections on inputs and places of work: model, pool, targets, limits, engine."""

from __future__ import annotations

from typing import Literal

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from gradsieve.recipe.section import CONTENTS, NO, Name, Section, regular_expression


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
        return regular_expression(value)


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
    render_characters: int = Field(
        1 << 29,
        ge=1,
        description="Characters that the chat template may write for a row; twice the bytes of the "
        "largest row.",
        json_schema_extra=NO,
    )
