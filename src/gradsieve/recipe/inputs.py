"""Recipe sections for inputs and for where the work runs: model, pool, targets, limits, engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import field_validator

from gradsieve.recipe.section import Name, Section, key, regular_expression


class ModelConfig(Section):
    """The model whose gradients are computed."""

    name: Annotated[
        str, key(..., "A folder, a GGUF file, or a model id on the Hugging Face hub.", "contents")
    ]
    revision: str | None = key(None, "Branch, tag or commit of a hub model.", "contents")
    dtype: Literal["float32", "bfloat16", "float16"] = key(
        "bfloat16",
        "Precision of the frozen weights and of the forward and backward passes. Gradients and all "
        "later steps are float32. bfloat16 as in the paper.",
    )
    quantization: Literal["8bit", "4bit"] | None = key(
        None,
        "Frozen weights in 8 bits (LLM.int8) or 4 bits (QLoRA's NF4), by bitsandbytes; the adapter "
        "is not quantized. null: `dtype`. With 8 bits an example's gradient depends slightly on "
        "its batch (0.4% in a test).",
    )
    gradient_checkpointing: bool = key(
        False,
        "Recompute activations in the backward pass, for training and gradients: uses much less "
        "memory and a third more time, with the same results.",
        "no",
    )
    chat_template: str = key(
        "tokenizer",
        "`tokenizer`: the tokenizer's own template; `tulu`: the paper's format; or the path of a "
        "Jinja file.",
        "contents",
    )
    max_length: int = key(
        2048, "Tokens to which an example is truncated, on the right. 2048 as in the paper.", ge=8
    )
    trust_remote_code: bool = key(
        False, "Run Python code that comes with the model. Read it first.", "no"
    )


SUPERVISE = (
    "The supervised part of a prompt/completion row: the `completion`, as in TRL, or `all` "
    "assistant turns, including those in the prompt. In other formats every assistant turn is "
    "supervised, unless the row excludes it."
)

RowField = Literal[
    "id", "messages", "conversations", "prompt", "completion", "instruction", "input", "output",
    "history", "system", "tools",
]  # fmt: skip
"""Fields of the row formats (`data.formats`) that `columns` can map to a row's own key."""

COLUMNS = (
    "Maps a field of docs/howto/row-formats.md, or `id`, to the row's own key, if the name "
    "differs: {prompt: question, completion: answer}."
)


class SourceConfig(Section):
    """One source of the candidate pool."""

    name: Annotated[Name, key(..., "Written to each selected row; unique in the pool.")]
    path: Annotated[
        str,
        key(
            ...,
            "A .jsonl (.gz, .zst), .json or .parquet file, a saved `datasets` folder, or a "
            "data set on the hub.",
            "contents",
        ),
    ]
    split: str = key("train", "Split of a hub or saved data set.", "contents")
    revision: str | None = key(None, "Branch, tag or commit of a hub data set.", "contents")
    supervise: Literal["completion", "all"] = key("completion", SUPERVISE, "contents")
    columns: dict[RowField, str] = key({}, COLUMNS, "contents")
    source_field: str | None = key(
        None,
        "For a file with many sources: the key that names each row's source (`dataset` in Tulu). "
        "Caps, report and card list each one separately, as `NAME/VALUE`.",
        "contents",
    )


class TargetConfig(Section):
    """A target skill, defined by a few examples in one or more subtasks."""

    name: Annotated[Name, key(..., "Also the name of the selection's folder.")]
    path: Annotated[
        str,
        key(
            ...,
            "For a benchmark: a folder in the paper's layout, a data set on the hub such as "
            "cais/mmlu, or a copy of it (docs/targets.md). For `custom`: as `pool.path`.",
            "contents",
        ),
    ]
    task: Literal["mmlu", "bbh", "tydiqa", "custom"] = key(
        "custom", "The format of `path`: a benchmark of the paper, or your own examples."
    )
    subtask: str | None = key(
        None, "`custom` only: the field that names a row's subtask; null means a single subtask."
    )
    test: str | None = key(
        None,
        "Held-out examples for evaluation, in the same formats. For benchmarks, the default is "
        "the test questions in `path`.",
        "contents",
    )
    supervise: Literal["completion", "all"] = key(
        "completion",
        "For a benchmark: the `completion`, the text after the answer's prefix (`The answer is:`), "
        "as in the released code, or `all` of the assistant turn, including its prefix and end. "
        f"For `custom`: {SUPERVISE[0].lower()}{SUPERVISE[1:]}",
        "contents",
    )
    columns: dict[RowField, str] = key({}, f"`custom` only. {COLUMNS}", "contents")
    answer: str | None = key(
        None,
        "`custom` only: a regular expression whose first group is the final answer in "
        "`test` and in generated texts, e.g. `#### (\\S+)`; null means the full text.",
    )

    def contradictions(self) -> Iterator[str]:
        """Keys of `custom` in a benchmark's target."""
        own = {"columns": "format", "subtask": "subtasks", "answer": "answers"}
        for name, what in own.items():
            if self.task != "custom" and getattr(self, name) not in (None, {}):
                yield f"`{name}` is for task: custom; {self.task} has its own {what}"

    _answer_is_a_regular_expression = field_validator("answer")(regular_expression)


class EngineConfig(Section):
    """Where the stages run: in this process or on Ray workers, with the same results."""

    kind: Literal["auto", "local", "ray"] = key(
        "auto",
        "`local`: this process, on one device; `ray`: workers on every GPU of this machine or of a "
        "cluster (`gradsieve[ray]`); `auto`: ray if it is installed and this machine has several "
        "GPUs or RAY_ADDRESS is set.",
        "no",
    )
    workers: int | None = key(
        None,
        "Number of worker processes; null means as many as the GPUs allow, or one per 4 cores "
        "without GPUs. With a number, workers also wait for nodes that join later.",
        "no",
        ge=1,
    )
    gpus_per_worker: float | None = key(
        None,
        "GPUs per worker: 2 splits the model across two GPUs, 0.5 puts two workers on each GPU "
        "(they take turns, for features no faster than one where it was measured); null means 1 if "
        "there are GPUs.",
        "no",
        ge=0,
    )
    cpus_per_worker: float | None = key(
        None,
        "CPUs reserved per worker; null means 1 for a worker with a GPU, else an equal share.",
        "no",
        gt=0,
    )
    address: str | None = key(
        None,
        "Address of a Ray cluster, or `auto` for one on this machine; null means RAY_ADDRESS if it "
        "is set, else Ray is started for this run.",
        "no",
    )

    @property
    def gpus_of_model(self) -> int:
        """Number of GPUs that a model is split across, if there are GPUs."""
        return max(1, int(self.gpus_per_worker or 1))

    @field_validator("gpus_per_worker")
    @classmethod
    def _whole_above_one(cls, value: float | None) -> float | None:
        if value is not None and value > 1 and not value.is_integer():
            raise ValueError("above 1 GPU a worker has a whole number of them")
        return value


class LimitsConfig(Section):
    """Size and time limits: inputs beyond them are rejected before they use all memory or hours."""

    row_bytes: int = key(256 << 20, "Maximum bytes of a row.", "no", ge=1)
    unpacked_times: int = key(
        200,
        "Maximum ratio of a file's unpacked size to its own size (gzip, zstd, Parquet); files that "
        "unpack to less than 1 GiB are always accepted.",
        "no",
        ge=1,
    )
    render_seconds: float = key(10.0, "Maximum time of the chat template per row.", "no", gt=0)
    render_characters: int = key(
        1 << 29,
        "Maximum characters that the chat template writes per row; the default is twice the "
        "default of `row_bytes`.",
        "no",
        ge=1,
    )
