"""The card of a selection's folder: what it holds, how it was made, how to train on it.

In: the recipe, and what was chosen from what. Out: a README.md with the metadata block that the
Hugging Face hub and `datasets.load_dataset(FOLDER)` read. It names no path of the machine that it
was made on: of a file only its name is told. What only the user can know (license, language) is
left as a comment.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from gradsieve.data.examples import Example
from gradsieve.recipe.schema import TOGETHER, Recipe
from gradsieve.selection.choose import Candidate

if TYPE_CHECKING:
    import datasets

ROWS = "selected.jsonl"
MESSAGES = "messages.jsonl"

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)
"""The hub's size categories (huggingface.co/docs/hub/datasets-cards)."""

_NO_RESULT_CHANGES = (
    ("features", "tokens_per_batch"),
    ("warmup", "micro_batch_size"),
    ("warmup", "report_to"),
    ("model", "gradient_checkpointing"),
    ("model", "trust_remote_code"),
)
"""Settings that the card leaves out."""

CITATION = """@inproceedings{xia2024less,
  title     = {{LESS}: Selecting Influential Data for Targeted Instruction Tuning},
  author    = {Xia, Mengzhou and Malladi, Sadhika and Gururangan, Suchin and Arora, Sanjeev and
               Chen, Danqi},
  booktitle = {International Conference on Machine Learning (ICML)},
  year      = {2024}
}"""
"""arXiv 2402.04333."""


_LEFT_TO_THE_USER = """\
# license: one that the sources' licenses allow (huggingface.co/docs/hub/repositories-licenses)
# language: [en]
"""


@dataclass(frozen=True)
class Selected:
    """What a card tells of.

    Attributes:
        recipe: The run's.
        target: Its name, or `together`.
        method: Its name.
        proposed: Who proposed the method, and with which settings it is run here.
        uses_gradients: Whether the method needs a warm-up and features.
        chosen: The selected rows, in order of rank.
        scored: All rows that were scored.
        examples: Each target's number of examples and of subtasks.
        features: Types of the columns of `selected.jsonl`.
        message_features: Types of the columns of `messages.jsonl`.
        date: What the chat template was given as today's date; None if it writes none.
    """

    recipe: Recipe
    target: str
    method: str
    proposed: str
    uses_gradients: bool
    chosen: Sequence[Candidate]
    scored: Sequence[Candidate]
    examples: Mapping[str, tuple[int, int]]
    features: datasets.Features
    message_features: datasets.Features
    date: str | None = None


def card(told: Selected) -> str:
    """The card's text."""
    targets = [t.name for t in told.recipe.targets if told.target in (TOGETHER, t.name)]
    spent = sum(row.tokens for row in told.chosen)
    return f"""---
{_metadata(told)}---

# Selected for {", ".join(targets)}

{len(told.chosen)} of {len(told.scored)} rows ({spent} tokens), chosen with
`{shown(told.recipe.model.name)}` by `{told.method}`: {told.proposed}.

- `{ROWS}`: rows as they came in, in order of rank, with `rank`, `score`, `subtask` (the subtask
  that a row was chosen for) and `source` added. A row's own key of such a name is kept, and what is
  added is then called `gradsieve_rank` and so on.
- `{MESSAGES}` (configuration `messages`): the same rows as chat messages, whatever format they came
  in, with `tools` where a row has them, `source`, `id`, `rank`, `score` and `subtask`. An answer of
  `weight` 0 is not supervised.
- `dropped.jsonl`: rows that could not be scored or were passed over, and why.

## Where the rows are from

| source | file | selected | share of selection | in the pool | share of pool |
| --- | --- | --- | --- | --- | --- |
{_sources(told)}

The sources' licenses apply. Targets, by whose examples rows were scored:

| target | kind | file | examples | subtasks |
| --- | --- | --- | --- | --- |
{_targets(told, targets)}

## How they were chosen

Made with gradsieve, an implementation of LESS. Settings:

```yaml
{_settings(told)}```
{_date(told)}
## Use

```python
from datasets import load_dataset

rows = load_dataset("FOLDER", "messages", split="train")   # TRL's SFTTrainer takes it as it is
```

axolotl: `datasets: [{{path: FOLDER/{MESSAGES}, ds_type: json, type: chat_template}}]`.
LLaMA-Factory: `{MESSAGES}` is of `formatting: sharegpt` with the tags role, content, user,
assistant, system. To push the folder: `hf upload USER/NAME FOLDER . --repo-type dataset`.

## Citation

```bibtex
{CITATION}
```
"""


def shown(path: str) -> str:
    """A path or hub name without the folders of this machine."""
    is_of_hub = _HUB_NAME.fullmatch(path) and not Path(path).exists()
    return path if is_of_hub else Path(path).name


def _metadata(told: Selected) -> str:
    model = told.recipe.model.name
    block: dict[str, Any] = {
        "pretty_name": f"Selected for {told.target} by {told.method}",
        "task_categories": ["text-generation"],
        "size_categories": [_size(len(told.chosen))],
        "tags": ["gradsieve", "less", "data-selection", "instruction-tuning"],
    }
    if shown(model) == model and "/" in model:
        block["base_model"] = model
    block["configs"] = [
        {"config_name": "default", "data_files": ROWS, "default": True},
        {"config_name": "messages", "data_files": MESSAGES},
    ]
    block["dataset_info"] = [
        {"config_name": "default", "features": told.features._to_yaml_list()},
        {"config_name": "messages", "features": told.message_features._to_yaml_list()},
    ]
    text: str = yaml.safe_dump(block, sort_keys=False, allow_unicode=True)
    return f"{_LEFT_TO_THE_USER}{text}"


def weighted(example: Example) -> Sequence[Mapping[str, Any]]:
    """The turns; where some answers are not supervised, each answer has a `weight`, 0 or 1."""
    if example.supervised is None:
        return example.messages
    return tuple(
        {**turn, "weight": int(flag)} if turn["role"] == "assistant" else turn
        for turn, flag in zip(example.messages, example.supervised, strict=True)
    )


def message_features(records: Iterable[Mapping[str, Any]] = ()) -> datasets.Features:
    """Types of the columns of `messages.jsonl`.

    Turns that have more than a role and text are `Json`: a column of objects with the same keys
    would give each turn the keys of all.
    """
    import datasets

    text, number = datasets.Value("string"), datasets.Value("float64")
    turns: set[frozenset[str]] = set()
    has_tools = False
    for record in records:
        turns.update(map(frozenset, record["messages"]))
        has_tools |= "tools" in record
    is_plain = turns <= {frozenset(("role", "content"))}
    return datasets.Features(
        {
            "messages": [{"role": text, "content": text}] if is_plain else datasets.Json(),
            **({"tools": datasets.Json()} if has_tools else {}),
            "source": text,
            "id": text,
            "rank": datasets.Value("int64"),
            "score": number,
            "subtask": text,
        }
    )


def _size(rows: int) -> str:
    return next((name for most, name in _SIZES if rows < most), "n>10M")


def _sources(told: Selected) -> str:
    picked, pool = (Counter(row.key[0] for row in rows) for rows in (told.chosen, told.scored))
    files = {source.name: shown(source.path) for source in told.recipe.pool}
    return "\n".join(
        f"| {name} | {files[name]} | {picked[name]} | {picked[name] / len(told.chosen):.1%} | "
        f"{pool[name]} | {pool[name] / len(told.scored):.1%} |"
        for name in sorted(pool)
    )


def _targets(told: Selected, names: Sequence[str]) -> str:
    return "\n".join(
        f"| {t.name} | {t.task} | {shown(t.path)} | {told.examples[t.name][0]} | "
        f"{told.examples[t.name][1]} |"
        for t in told.recipe.targets
        if t.name in names
    )


def _date(told: Selected) -> str:
    if told.date is None:
        return ""
    return (
        f"\nThe chat template writes today's date: every row was scored with {told.date} there.\n"
    )


def _settings(told: Selected) -> str:
    """What of the recipe decides the selection, as YAML."""
    recipe = told.recipe
    of_gradients = ("warmup", "features") if told.uses_gradients else ()
    tree = recipe.model_dump(mode="json", include={"model", *of_gradients, "score", "select"})
    for section, key in _NO_RESULT_CHANGES:
        tree.get(section, {}).pop(key, None)
    tree["model"]["name"] = shown(recipe.model.name)
    tree["model"]["chat_template"] = shown(recipe.model.chat_template)
    tree["score"]["embedding"] = shown(recipe.score.embedding)
    tree["score"]["methods"] = [told.method]
    if told.uses_gradients and recipe.warmup.checkpoints is not None:
        tree["warmup"] = {"checkpoints": [Path(path).name for path in recipe.warmup.checkpoints]}
    if told.uses_gradients and recipe.features.mode == "exact":
        del tree["features"]["projection"], tree["features"]["bits"]
    text: str = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    return text
