"""The same pipeline from Python, with a model, a tokenizer and data in memory.

In: the objects of a fine-tuning script. Out: a `Selection`. Only the inputs differ from the command
line's (`runs.context.InMemoryInputs`). The base model is neither copied to disk nor changed.
"""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Mapping
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gradsieve.analysis.explain import explain
from gradsieve.analysis.explanation import Explanation
from gradsieve.console import Progress, progress_for
from gradsieve.data.content import text_of
from gradsieve.data.formats import BadRow, conversation_of
from gradsieve.data.readers import IN_MEMORY
from gradsieve.errors import DataError, ModelError, RunError, UsageError
from gradsieve.io import read_lines
from gradsieve.models.source import section_of
from gradsieve.pipeline.run import run_stages
from gradsieve.recipe.load import check_recipe
from gradsieve.recipe.schema import TOGETHER
from gradsieve.runs.artifacts import Artifacts
from gradsieve.runs.context import Context, InMemoryInputs
from gradsieve.runs.folder import RunFolder
from gradsieve.runs.notebook import html_table
from gradsieve.selection import MESSAGES, ROWS
from gradsieve.selection.export import features_of, message_features

Rows = Any
"""A `datasets.Dataset`, any other iterable of rows, a path, or a hub name; or a mapping with the
keys of the recipe's section, whose `path` is one of these."""

SHOWN = 5
"""Number of a selection's rows shown in a notebook."""


def select(
    model: PreTrainedModel | str | Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase | None,
    pool: Rows | Mapping[str, Rows],
    targets: Rows | Mapping[str, Rows],
    *,
    out: str | Path | None = None,
    chat_template: str | None = None,
    max_length: int | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Selection:
    """Select the rows of a pool that teach a model the targets' skill.

    Args:
        model: A causal language model in memory, a folder, a hub name, or the recipe's `model`
            section. A model in memory is never changed: its weights are shared, it keeps its mode
            and gets no adapter.
        tokenizer: The model's tokenizer, never changed either; None loads the one saved under the
            model's name.
        pool: Rows (a `datasets.Dataset`, a list of dicts, a path), or several sources by name.
        targets: Examples of the skill, in the same forms, or several targets by name. Keys of the
            recipe's section can be added: `{"mine": {"path": rows, "subtask": "topic"}}`,
            `{"mmlu": {"task": "mmlu", "path": "data/eval/mmlu"}}`.
        out: The run folder; stages that are up to date are kept. None means a temporary folder,
            removed with the result.
        chat_template: Same as the recipe's `model.chat_template`.
        max_length: Same as the recipe's `model.max_length`, in tokens.
        progress: Where to report progress; standard error by default.
        **settings: The recipe's other sections, e.g. `warmup={"epochs": 2}`,
            `select={"count": 500}`, `score={"methods": ["less", "bm25"]}`.

    Returns:
        The selection for the first target by the first method; `Selection.of` returns the others.

    Raises:
        GradsieveError: For anything that the user can fix.

    Example:
        >>> import gradsieve
        >>> found = gradsieve.select(
        ...     model, tokenizer, pool, examples, select={"count": 3}, warmup={"epochs": 2}
        ... )
        >>> list(found.selected["rank"])
        [1, 2, 3]
        >>> best = found.scores.iloc[0]
        >>> found.explain(best["id"]).selected
        1
    """
    model_section, in_memory_model = _model_section(model)
    _check_tokenizer(tokenizer)
    progress = progress_for(progress)
    options = {"chat_template": chat_template, "max_length": max_length}
    model_section |= {key: value for key, value in options.items() if value is not None}
    sources, rows = _sections(pool, "pool")
    target_sections, examples = _sections(targets, "target")
    tests = {}
    for target in target_sections:
        if not isinstance(test := target.get("test"), str | Path | None):
            tests[target["name"]], target["test"] = _rows(test), IN_MEMORY
    recipe = check_recipe(
        {"model": model_section, "pool": sources, "targets": target_sections, **settings},
        "gradsieve.select",
    )
    # Absolute, for a notebook that changes its directory later.
    folder = Path(tempfile.mkdtemp(prefix="gradsieve-") if out is None else out).absolute()
    # The tokenizer is copied: a call may change how it truncates and pads.
    in_memory = InMemoryInputs(rows, examples, tests, in_memory_model, copy.deepcopy(tokenizer))
    context = Context(recipe, RunFolder(folder), progress, in_memory)
    if out is None:
        weakref.finalize(context, shutil.rmtree, folder, ignore_errors=True)
    run_stages(context)
    first = recipe.selections[0]
    return Selection(context, first.target, first.short)


class Selection:
    """Rows selected for one target by one method, as returned by `select`.

    Attributes:
        target: The target's name, or `together`.
        method: The selection method; METHOD@SIZE if the recipe asks for several sizes.
    """

    def __init__(self, context: Context, target: str, method: str) -> None:
        self._context, self.target, self.method = context, target, method
        self._files = self._listed()

    def __repr__(self) -> str:
        return f"Selection(target={self.target!r}, method={self.method!r}, rows={len(self)})"

    def _repr_html_(self) -> str:
        """The best rows as a table, in a notebook."""
        rows = [
            [row["rank"], f"{row['score']:.4g}", row["subtask"], row["source"], row["id"],
             " / ".join(text_of(turn["content"]) for turn in row["messages"])]
            for row in islice(self.messages, SHOWN)
        ]  # fmt: skip
        title = f"{len(self)} rows for {self.target} by {self.method}, the best {len(rows)}"
        return html_table(title, [["rank", "score", "subtask", "source", "id", "text"], *rows])

    def __len__(self) -> int:
        self._check_current()
        return int(self.run.require("select")["targets"][self.target][self.method]["rows"])

    def _listed(self) -> dict[str, Any]:
        """The selection's files of rows, with their hashes."""
        listed, folder = self.run.files("select") or {}, f"{self.target}/{self.method}/"
        return {name: found for name, found in listed.items()
                if name.startswith(folder) and name.endswith(".jsonl")}  # fmt: skip

    def _check_current(self) -> None:
        """Refuse to read a selection that another call has replaced."""
        if self._listed() != self._files:
            raise RunError(
                "The run folder now has another selection than this one.",
                str(self.run.stage("select")),
                "Give each call of gradsieve.select its own folder (`out`), or repeat the call.",
            )

    @property
    def run(self) -> RunFolder:
        """The run folder."""
        return self._context.run

    @property
    def folder(self) -> Path:
        """The selection's folder: a dataset with a card, ready to be pushed to a hub."""
        return Artifacts(self.run).selections.selection(self.target, self.method).folder

    def of(self, target: str | None = None, method: str | None = None) -> Selection:
        """The selection for another target, or by another method.

        Raises:
            UsageError: If the run has none.
        """
        target, method = target or self.target, method or self.method
        finished = self.run.require("select")["targets"]
        if method not in finished.get(target, {}):
            known = ", ".join(f"{t} {m}" for t, methods in finished.items() for m in methods)
            raise UsageError(
                "There is no such selection.", f"{target} {method}", f"One of {known}."
            )
        return Selection(self._context, target, method)

    @cached_property
    def selected(self) -> datasets.Dataset:
        """The selected original rows, best first, with rank, score, subtask and source."""
        self._check_current()
        rows = _records(self.folder / ROWS)
        return _dataset(rows, features_of(rows))

    @cached_property
    def messages(self) -> datasets.Dataset:
        """The selected rows as chat messages to train on, whatever their original format."""
        self._check_current()
        rows = _records(self.folder / MESSAGES)
        return _dataset(rows, message_features(rows))

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Every scored row, best first: source, id, score, subtask, and columns of the subtasks.

        Raises:
            UsageError: For a selection for all targets together: each target has its own scores.
        """
        if self.target == TOGETHER:
            names = ", ".join(t.name for t in self._context.recipe.targets)
            what = "A selection for all targets together has no scores of its own."
            raise UsageError(what, "scores", f"Read RUN/03-score/TARGET; targets: {names}.")
        self._check_current()
        scores, method = Artifacts(self.run).scores, self.method.partition("@")[0]
        file = scores.verified(scores.table_file(self.target, method))
        table = pd.read_parquet(file)
        # Stable: the table is in order of (source, id), and equal scores stay so.
        return table.sort_values("score", ascending=False, kind="stable", ignore_index=True)

    def explain(
        self, id: str | int, source: str | None = None, target: str | None = None
    ) -> Explanation:
        """Why a row of the pool was selected, or was not.

        Args:
            id: The row's id, as in `scores`.
            source: The row's source, needed if several sources have this id.
            target: Only for a selection for all targets together: the target to explain it for.

        Raises:
            UsageError: If there is no such row, or there are several.
        """
        self._check_current()
        wanted = target or (None if self.target == TOGETHER else self.target)
        return explain(
            self.run, wanted, id=id, source=source, method=self.method, context=self._context
        )

    def report(self) -> Path:
        """Write the report; returns `08-report/index.html`."""
        run_stages(self._context, "report", "report")
        return Artifacts(self.run).report.page


def _dataset(rows: list[dict[str, Any]], features: datasets.Features) -> datasets.Dataset:
    """A dataset built by column: `Dataset.from_list` uses only the first row's columns."""
    columns = {name: [row.get(name) for row in rows] for name in features}
    return datasets.Dataset.from_dict(columns, features=features)


def _records(file: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file; half of a surrogate pair, which no Dataset can hold, becomes `?`."""
    texts = (json.dumps(row, ensure_ascii=False) for row in read_lines(file))
    return [json.loads(text.encode("utf-8", "replace")) for text in texts]


def _model_section(
    model: PreTrainedModel | str | Path | Mapping[str, Any],
) -> tuple[dict[str, Any], PreTrainedModel | None]:
    """The recipe's `model` section, and the model if it is in memory."""
    if isinstance(model, Mapping):
        return dict(model), None
    if isinstance(model, str | Path):
        return {"name": str(model)}, None
    return section_of(model), model


def _check_tokenizer(tokenizer: object) -> None:
    if not isinstance(tokenizer, PreTrainedTokenizerBase | None):
        todo = (
            "Give what AutoTokenizer.from_pretrained returns (processor.tokenizer of a processor)"
        )
        todo += ", or None for the one that is saved under the model's name."
        raise ModelError("This is not a transformers tokenizer.", type(tokenizer).__name__, todo)


def _sections(
    value: Rows | Mapping[str, Rows], default_name: str
) -> tuple[list[dict[str, Any]], dict[str, Iterable[Any]]]:
    """The recipe's sections of sources or targets, and the rows that replace their paths."""
    if _is_row(value):
        todo = "Give a list of rows, also of a single one: [row]."
        raise DataError("This is one row, not rows.", default_name, todo)
    if isinstance(value, Mapping) and _is_row({key: _first(value[key]) for key in value}):
        todo = "Give its rows: dataset.select(range(n)), not dataset[:n]; a dict of columns as "
        todo += "Dataset.from_dict(columns)."
        raise DataError("This is a dict of columns, not rows.", default_name, todo)
    is_named = isinstance(value, Mapping) and "path" not in value and not _is_dict_of_splits(value)
    sections, rows = [], {}
    for name, one in (value if is_named else {default_name: value}).items():
        is_section = isinstance(one, Mapping) and "path" in one
        section = {"name": name, **(one if is_section else {"path": one})}
        if not isinstance(path := section["path"], str | Path):
            rows[str(section["name"])], section["path"] = _rows(path), IN_MEMORY
        sections.append(section)
    return sections, rows


def _rows(value: Any) -> Iterable[Any]:
    """Rows as plain Python values.

    Raises:
        DataError: If the value holds no rows.
    """
    kind = type(value).__name__
    if _is_dict_of_splits(value):
        todo = f"Give one of its splits: {', '.join(map(str, value))}."
        raise DataError("This is a data set of several splits.", kind, todo)
    if any(hasattr(value, method) for method in ("iterrows", "to_dicts", "to_pylist")):
        todo = "Give its rows: frame.to_dict('records') in pandas, frame.to_dicts() in polars, "
        todo += "table.to_pylist() in pyarrow."
        raise DataError("A table is read by columns, not by rows.", kind, todo)
    if not isinstance(value, Iterable) and (
        hasattr(value, "__getitem__") and hasattr(value, "__len__")  # torch's map style
    ):
        value = [value[number] for number in range(len(value))]
    if isinstance(value, Mapping) or not isinstance(value, Iterable):
        todo = "Give a datasets.Dataset, a list of rows, a path, or {'path': one of these}."
        raise DataError("This holds no rows.", kind, todo)
    if isinstance(value, list | tuple) and value and isinstance(value[0], str | Path):
        todo = "Give one path, or several by name: {'a': 'a.jsonl', 'b': 'b.jsonl'}."
        raise DataError("These are texts, not rows.", f"{kind}, the first {str(value[0])!r}", todo)
    if hasattr(value, "with_format"):
        value = value.with_format(None)
    if getattr(value, "features", None) and hasattr(value, "decode"):  # a streamed dataset
        value = value.decode(False)  # images stay bytes: decoding needs Pillow
    return value if hasattr(value, "__getitem__") else list(value)  # it is read more than once


def _is_row(value: Any) -> bool:
    """Whether the value is a single row, whose keys would be read as names, its texts as paths."""
    if not isinstance(value, Mapping):
        return False
    try:
        conversation_of(value)
    except BadRow:
        return False
    return True


def _first(column: Any) -> Any:
    return column[0] if isinstance(column, list | tuple) and column else None


def _is_dict_of_splits(value: Any) -> bool:
    return isinstance(value, dict) and hasattr(value, "push_to_hub")
