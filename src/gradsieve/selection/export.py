"""Write a selection as a dataset: original rows, messages, prompts with completions, and a card.

In: the selected examples. Out: JSON lines, and a README.md with the metadata block that the Hugging
Face hub and `datasets.load_dataset(FOLDER)` read. The card contains no local path: files are shown
by name only. Metadata that only the user can know (license, language) is left as a comment.

The card declares column types, because `datasets` infers them block by block: loading fails if a
column starts late in a file or changes its type, and text that looks like a timestamp is returned
in another form. Rejected: making rows uniform (they must be returned unchanged).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import jinja2
import pyarrow as pa
import yaml
from datasets.features.features import generate_from_arrow_type

from gradsieve.data.examples import Example
from gradsieve.data.formats import is_unicode
from gradsieve.data.sources import json_text
from gradsieve.io import atomic
from gradsieve.methods import find_method, members, uses_gradients
from gradsieve.recipe.schema import TOGETHER, Recipe, SelectionName
from gradsieve.recipe.section import Effect
from gradsieve.selection import ANSWERS, MESSAGES, ROWS

FILES = {"default": ROWS, "messages": MESSAGES, "prompt_completion": ANSWERS}
"""The dataset's configurations, for `datasets.load_dataset(FOLDER, NAME)`, and their files."""

SHOWN: tuple[Effect, ...] = ("yes", "repeats", "contents", "adds")
"""A card shows settings with these effects: all except those that change no result."""

SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "n>10M")
"""The hub's size categories (huggingface.co/docs/hub/datasets-cards), by the number of digits."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

_TIME = re.compile(r"\d{4}-\d\d-\d\d")
"""The start of text that Arrow's JSON reader may parse as a timestamp."""

_UNTYPED = "\ud800"
"""Stands for text that needs `Json`: half of a surrogate pair, which Arrow rejects."""

_TEMPLATE = jinja2.Environment(
    trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
).from_string(Path(__file__).with_name("card.md.jinja").read_text(encoding="utf-8"))


@dataclass(frozen=True, slots=True)
class Selected:
    """A selected example, its rank from 1, its score, and the subtask that it was chosen for."""

    example: Example
    rank: int
    score: float
    subtask: str

    def as_row(self) -> dict[str, Any]:
        """The original row, plus its rank, score, subtask and source; its own keys are kept.

        An added key that already exists is prefixed with `gradsieve_`, repeatedly if necessary.
        """
        row = {"id": None, **self.example.row}
        if row["id"] is None:  # use the id by which gradsieve refers to the row
            row["id"] = self.example.id
        for key, value in {**self._added, "source": self.example.source}.items():
            while key in row:
                key = f"gradsieve_{key}"
            row[key] = value
        return row

    def as_messages(self) -> dict[str, Any]:
        """The turns as chat messages, whatever the input format.

        If some answers are not supervised, each answer has a `weight`, 0 or 1.
        """
        example = self.example
        turns: Sequence[Mapping[str, Any]] = example.messages
        if example.supervised is not None:
            turns = [
                {**turn, "weight": int(flag)} if turn["role"] == "assistant" else turn
                for turn, flag in zip(turns, example.supervised, strict=True)
            ]
        return {"messages": turns, **self._described}

    def as_answers(self) -> Iterator[dict[str, Any]]:
        """For each supervised answer, a prompt (the turns before it) and a completion (the answer).

        An answer without a turn before it is left out, since it has no prompt.
        """
        turns = self.example.messages
        flags = self.example.supervised or [turn["role"] == "assistant" for turn in turns]
        for place, turn in enumerate(turns):
            if flags[place] and place:
                yield {"prompt": turns[:place], "completion": [turn], **self._described}

    @property
    def _described(self) -> dict[str, Any]:
        """What a line contains besides turns."""
        tools = {"tools": self.example.tools} if self.example.tools else {}
        return {**tools, "source": self.example.source, "id": self.example.id, **self._added}

    @property
    def _added(self) -> dict[str, Any]:
        return {"rank": self.rank, "score": self.score, "subtask": self.subtask}


def write_selected(selected: Iterable[Selected], rows: Path, messages: Path, answers: Path) -> None:
    """Write the files of rows, of messages, and of prompts with completions, in one pass."""
    with ExitStack() as stack:
        temporary = [stack.enter_context(atomic(path)) for path in (rows, messages, answers)]
        files = [stack.enter_context(path.open("wb")) for path in temporary]
        for one in selected:
            files[0].write(_line(one.as_row()))
            files[1].write(_line(one.as_messages()))
            files[2].writelines(map(_line, one.as_answers()))


def write_lines(path: Path, records: Iterable[Mapping[str, Any]], hashed: bool = False) -> None:
    """Write JSON lines, atomically."""
    with atomic(path, hashed) as temporary, temporary.open("wb") as file:
        file.writelines(map(_line, records))


def _line(record: Mapping[str, Any]) -> bytes:
    return json_text(record).encode() + b"\n"


def features_of(rows: Iterable[Mapping[str, Any]]) -> datasets.Features:
    """A type for each key in any row; `Json` if its values don't share an Arrow type.

    Arrow infers the type from one value of each shape, so rows can be streamed.
    """
    columns: dict[str, dict[str, Any]] = {}
    for row in rows:
        for key, value in row.items():
            shape = _shape(value)
            columns.setdefault(key, {}).setdefault(repr(shape), shape)
    return datasets.Features({key: _type([*shapes.values()]) for key, shapes in columns.items()})


def _shape(value: Any) -> Any:
    """A representative value with the same Arrow type; there are few different ones."""
    if isinstance(value, Mapping):
        return {key: _shape(of) for key, of in value.items()}
    if isinstance(value, list):
        shapes = map(_shape, value)
        return list({repr(shape): shape for shape in shapes}.values())
    if isinstance(value, str):
        return _UNTYPED if _TIME.match(value) or not is_unicode(value) else ""
    if isinstance(value, bool) or not isinstance(value, int):
        return 0.5 if isinstance(value, float) and value == value else value
    # Distinguishes integers that fit into a double, into 64 bits, or into neither.
    return 0 if abs(value) <= 2**53 else 2**53 + 1 if -(2**63) <= value < 2**63 else 2**63


def _type(shapes: Sequence[Any]) -> Any:
    try:
        array = pa.array(shapes)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        return datasets.Json()
    # Objects with different keys would each be returned with all keys.
    if pa.types.is_nested(array.type) and array.to_pylist() != shapes:
        return datasets.Json()
    return generate_from_arrow_type(array.type)


def message_features(
    records: Iterable[Mapping[str, Any]] = (), columns: Sequence[str] = ("messages",)
) -> datasets.Features:
    """Column types of `messages.jsonl`, or of another file whose `columns` hold turns.

    Turns with keys other than `role` and `content` are `Json`: a struct type would give each turn
    the keys of all turns.
    """
    text = datasets.Value("string")
    is_plain, has_tools = True, False
    for record in records:
        turns = (turn for column in columns for turn in record[column])
        is_plain &= all(turn.keys() == {"role", "content"} for turn in turns)
        has_tools |= "tools" in record
    plain = [{"role": text, "content": text}]
    return datasets.Features(
        {
            **dict.fromkeys(columns, plain if is_plain else datasets.Json()),
            **({"tools": datasets.Json()} if has_tools else {}),
            "source": text,
            "id": text,
            "rank": datasets.Value("int64"),
            "score": datasets.Value("float64"),
            "subtask": text,
        }
    )


@dataclass(frozen=True)
class Card:
    """The data that a selection's card shows.

    `selected` and `scored` are numbers of rows by source, `examples` the numbers of examples and
    subtasks by target, and `features` the column types of each configuration in `FILES`.
    """

    recipe: Recipe
    name: SelectionName
    tokens: int
    selected: Mapping[str, int]
    scored: Mapping[str, int]
    examples: Mapping[str, tuple[int, int]]
    features: Mapping[str, datasets.Features]
    date: str | None = None

    def text(self) -> str:
        """The card's text."""
        recipe = self.recipe
        targets = [t for t in recipe.targets if self.name.target in (TOGETHER, t.name)]
        return _TEMPLATE.render(
            card=self,
            rows=sum(self.selected.values()),
            scored=sum(self.scored.values()),
            files={source.name: shown(source.path) for source in recipe.pool},
            shown=shown,
            model=shown(recipe.model.name),
            targets=targets,
            proposed=find_method(self.name.method, recipe).source,
            metadata=_yaml(self._metadata()),
            settings=_yaml(self._settings()),
            jsonl=FILES,
        )

    def _metadata(self) -> dict[str, Any]:
        model, rows = self.recipe.model.name, sum(self.selected.values())
        return {
            "pretty_name": f"Selected for {self.name.target} by {self.name.short}",
            "task_categories": ["text-generation"],
            "size_categories": [SIZES[min(max(len(str(rows)), 3), 8) - 3]],
            "tags": ["gradsieve", "less", "data-selection", "instruction-tuning"],
            **({"base_model": model} if shown(model) == model and "/" in model else {}),
            "configs": [
                {"config_name": name, "data_files": file} | ({"default": True} if not place else {})
                for place, (name, file) in enumerate(FILES.items())
            ],
            "dataset_info": [
                {"config_name": name, "features": self.features[name]._to_yaml_list()}
                for name in FILES
            ],
        }

    def _settings(self) -> dict[str, Any]:
        """The settings that affect the selection, according to the marks in the schema."""
        recipe = self.recipe
        of_gradients = ("warmup", "features") if uses_gradients(self.name.method, recipe) else ()
        sections = ("model", *of_gradients, "score", "select")
        tree = {name: getattr(recipe, name).results(SHOWN) for name in sections}
        tree["model"]["name"] = shown(recipe.model.name)
        tree["model"]["chat_template"] = shown(recipe.model.chat_template)
        tree["score"]["embedding"] = shown(recipe.score.embedding)
        own = {self.name.method, *members(self.name.method, recipe)}
        for method in {"fusion", "embedding"} - own:
            del tree["score"][method]  # this setting only affects that method
        tree["score"]["methods"] = [self.name.method]
        tree["select"] = recipe.select.of(self.name.budget).results(SHOWN)
        if of_gradients and recipe.warmup.checkpoints is not None:
            names = [Path(path).name for path in recipe.warmup.checkpoints]
            tree["warmup"] = {"checkpoints": names}
        return tree


def shown(path: str) -> str:
    """A hub name unchanged; of a local path only the last part."""
    is_of_hub = _HUB_NAME.fullmatch(path) and not Path(path).exists()
    return path if is_of_hub else Path(path).name


def _yaml(tree: Mapping[str, Any]) -> str:
    text: str = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    return text
