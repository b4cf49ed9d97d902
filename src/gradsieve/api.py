"""The same steps from a notebook: model, tokenizer and data that are in memory already.

In: what a fine-tuning script holds. Out: a `Selection`. The pipeline and the result are the command
line's; only the inputs differ: a model in memory (`models.source`) and rows that stand for files.
The base model is neither copied to disk nor changed.
"""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradsieve.analysis import Explanation, explain
from gradsieve.console import Progress
from gradsieve.data.readers import IN_MEMORY
from gradsieve.errors import DataError, UsageError
from gradsieve.pipeline.run import run_stages
from gradsieve.recipe.load import check_recipe
from gradsieve.recipe.schema import TOGETHER
from gradsieve.runs.artifacts import Artifacts
from gradsieve.runs.context import Context, Given
from gradsieve.runs.folder import RunFolder
from gradsieve.selection.export import MESSAGES, ROWS, features_of, message_features

if TYPE_CHECKING:
    import datasets
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from gradsieve.models.source import Lent

Rows = Any
"""A `datasets.Dataset`, any other iterable of rows, or a path or hub name; or a mapping with the
keys of the recipe's section, in which `path` is one of these."""


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
        model: A causal language model in memory, which is left as it is: its weights are shared,
            never changed, and it keeps its mode and gets no adapter. Or a folder, a hub name, or
            the recipe's `model` section.
        tokenizer: The model's, which is left as it is; None: the one that is saved under the
            model's name.
        pool: Rows (a `datasets.Dataset`, a list of dicts, a path); or several sources by name.
        targets: Examples of the skill, in the same forms; or several targets by name. Keys of the
            recipe's section go with it: `{"mine": {"path": rows, "subtask": "topic"}}`,
            `{"mmlu": {"task": "mmlu", "path": "data/eval/mmlu"}}`.
        out: The run's folder; what is done there already is kept. None: a temporary one, that goes
            when the result does.
        chat_template: As the recipe's `model.chat_template`.
        max_length: As the recipe's `model.max_length`, in tokens.
        progress: Where to tell what is being done; standard error by default.
        **settings: The recipe's other sections, e.g. `warmup={"epochs": 2}`,
            `select={"count": 500}`, `score={"methods": ["less", "bm25"]}`.

    Returns:
        The selection for the first target by the first method; `Selection.of` gives the others.

    Raises:
        GradsieveError: For anything that the user can mend.

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
    lent, section = _lent(model, tokenizer)
    given = {"chat_template": chat_template, "max_length": max_length}
    section.update({key: value for key, value in given.items() if value is not None})
    sources, rows = _sections(pool, "pool")
    skills, examples = _sections(targets, "target")
    tests = {
        skill["name"]: _rows(skill["test"])
        for skill in skills
        if not isinstance(skill.get("test"), str | Path | None)
    }
    for skill in skills:
        if skill.get("test") is not None:
            skill["test"] = IN_MEMORY if skill["name"] in tests else str(skill["test"])
    recipe = check_recipe(
        {"model": section, "pool": sources, "targets": skills, **settings}, "gradsieve.select"
    )
    folder = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="gradsieve-"))
    context = Context(
        recipe, RunFolder(folder), progress or Progress(), Given(rows, examples, tests)
    )
    made = _Made(context, lent, is_temporary=out is None)
    made.run_stages()
    first = TOGETHER if recipe.select.together else recipe.targets[0].name
    return Selection(made, first, recipe.score.methods[0])


class _Made:
    """A run and what it was made of; a temporary folder goes when nothing refers to it any more."""

    def __init__(self, context: Context, lent: Lent, is_temporary: bool) -> None:
        self.context, self.lent = context, lent
        if is_temporary:
            weakref.finalize(self, shutil.rmtree, context.run.path, ignore_errors=True)

    def run_stages(self, first: str | None = None, last: str | None = None) -> None:
        from gradsieve.models.source import lend

        with lend(self.lent):
            run_stages(self.context, first, last)


class Selection:
    """Rows selected for one target by one method; `select` makes it.

    Attributes:
        target: The target's name, or `together`.
        method: What scored.
    """

    def __init__(self, made: _Made, target: str, method: str) -> None:
        self._made, self.target, self.method = made, target, method

    def __repr__(self) -> str:
        return f"Selection(target={self.target!r}, method={self.method!r}, rows={len(self)})"

    def __len__(self) -> int:
        return int(self._facts["rows"])

    @property
    def run(self) -> RunFolder:
        """The run's folder."""
        return self._made.context.run

    @property
    def folder(self) -> Path:
        """The selection's folder: a data set with a card, ready to be pushed to a hub."""
        return Artifacts(self.run).selections.selection(self.target, self.method).folder

    def of(self, target: str | None = None, method: str | None = None) -> Selection:
        """The selection for another target, or by another method.

        Raises:
            UsageError: If the run has none.
        """
        target, method = target or self.target, method or self.method
        made = self.run.require("select")["targets"]
        if method not in made.get(target, {}):
            known = ", ".join(f"{t} {m}" for t, methods in made.items() for m in methods)
            raise UsageError(
                "There is no such selection.", f"{target} {method}", f"One of {known}."
            )
        return Selection(self._made, target, method)

    @cached_property
    def selected(self) -> datasets.Dataset:
        """The selected rows as they came in, best first, with rank, score, subtask and source."""
        import datasets

        rows = _records(self.folder / ROWS)
        features = features_of(rows)
        columns = {name: [row.get(name) for row in rows] for name in features}
        return datasets.Dataset.from_dict(columns, features=features)

    @cached_property
    def messages(self) -> datasets.Dataset:
        """The selected rows as chat messages, whatever format they came in: to train on."""
        import datasets

        rows = _records(self.folder / MESSAGES)
        return datasets.Dataset.from_list(rows, features=message_features(rows))

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Every scored row, best first: source, id, score, subtask, and a column a subtask.

        Raises:
            UsageError: For a selection for all targets together: each has scores of its own.
        """
        import pandas as pd

        if self.target == TOGETHER:
            names = ", ".join(t.name for t in self._made.context.recipe.targets)
            what = "A selection for all targets together has no scores of its own."
            raise UsageError(what, "scores", f"Read RUN/03-score/TARGET; targets: {names}.")
        file = Artifacts(self.run).scores.table_file(self.target, self.method)
        table = pd.read_parquet(file)
        # Stable: the table is in order of (source, id), and equal scores stay so.
        return table.sort_values("score", ascending=False, kind="stable", ignore_index=True)

    def explain(self, id: str, source: str | None = None, target: str | None = None) -> Explanation:
        """Why a row of the pool was selected, or was not.

        Args:
            id: The row's id, as in `scores`.
            source: The row's source, where the id alone is in several.
            target: Only for a selection for all targets together: by which one's scores.

        Raises:
            UsageError: If there is no such row, or there are several.
        """
        wanted = target or (None if self.target == TOGETHER else self.target)
        return explain(self.run, wanted, id, source, self.method, context=self._made.context)

    def report(self) -> Path:
        """Write the report; returns `08-report/index.html`."""
        self._made.run_stages("report", "report")
        return Artifacts(self.run).report.page

    @property
    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = self.run.require("select")["targets"][self.target][self.method]
        return facts


def _records(file: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file; half of a surrogate pair, which no Dataset can hold, becomes `?`."""
    lines = file.read_text(encoding="utf-8").split("\n")[:-1]
    texts = (json.dumps(json.loads(line), ensure_ascii=False) for line in lines)
    return [json.loads(text.encode("utf-8", "replace")) for text in texts]


def _lent(
    model: PreTrainedModel | str | Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None
) -> tuple[Lent, dict[str, Any]]:
    """What is lent, and the recipe's `model` section."""
    from gradsieve.models.source import Lent, check_lendable, dtype_of, name_of

    tokenizer = copy.deepcopy(tokenizer)  # a call may change how it cuts and pads
    if isinstance(model, str | Path | Mapping):
        section = dict(model) if isinstance(model, Mapping) else {"name": str(model)}
        return Lent(str(section.get("name")), None, tokenizer), section
    check_lendable(model)
    name = name_of(model)
    return Lent(name, model, tokenizer), {"name": name, "dtype": dtype_of(model)}


def _sections(
    given: Rows | Mapping[str, Rows], one: str
) -> tuple[list[dict[str, Any]], dict[str, Iterable[Any]]]:
    """The recipe's sections of sources or targets, and the rows that stand for their paths."""
    if isinstance(given, Mapping) and "path" not in given and not _is_dict_of_splits(given):
        named = dict(given)
    else:
        named = {one: given}
    sections, rows = [], {}
    for name, value in named.items():
        is_section = isinstance(value, Mapping) and "path" in value
        section = {"name": name, **value} if is_section else {"name": name, "path": value}
        path = section["path"]
        if isinstance(path, str | Path):
            section["path"] = str(path)
        else:
            rows[str(section["name"])] = _rows(path)
            section["path"] = IN_MEMORY
        sections.append(section)
    return sections, rows


def _rows(given: Any) -> Iterable[Any]:
    """Rows as plain Python values.

    Raises:
        DataError: If what was given holds no rows.
    """
    kind = type(given).__name__
    if _is_dict_of_splits(given):
        todo = f"Give one of its splits: {', '.join(map(str, given))}."
        raise DataError("This is a data set of several splits.", kind, todo)
    if hasattr(given, "iterrows"):
        todo = "Give frame.to_dict('records'), or datasets.Dataset.from_pandas(frame)."
        raise DataError("A data frame's rows are its columns' names.", kind, todo)
    if isinstance(given, Mapping) or not isinstance(given, Iterable):
        todo = "Give a datasets.Dataset, a list of rows, a path, or {'path': one of these}."
        raise DataError("This holds no rows.", kind, todo)
    if hasattr(given, "with_format"):
        given = given.with_format(None)
    if getattr(given, "features", None) and hasattr(given, "decode"):  # a stream of a data set
        given = given.decode(False)  # images stay bytes: decoding needs Pillow
    return given if hasattr(given, "__getitem__") else list(given)  # it is read more than once


def _is_dict_of_splits(given: Any) -> bool:
    return isinstance(given, dict) and hasattr(given, "push_to_hub")
