"""Targets: the examples of a skill, grouped by subtask; one module per benchmark.

In: the path of a folder in the paper's layout, of a data set on the hub, or of the user's own
examples. Out: a `Target`, with examples in the format of the paper's released code.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from gradsieve.data.examples import Example
from gradsieve.data.formats import Supervise
from gradsieve.data.sources import SourceSpec
from gradsieve.errors import DataError, did_you_mean
from gradsieve.io import fingerprint
from gradsieve.recipe.schema import OnBadRow
from gradsieve.tasks import bbh, custom, mmlu, tydiqa
from gradsieve.tasks.layout import missing
from gradsieve.tasks.questions import Question, QuestionSet, Shots


class Benchmark(Protocol):
    """The interface of a benchmark's module."""

    SUBTASKS: int

    def read(self, name: str, path: str) -> tuple[list[Example], list[str]]:
        """The target examples, and warnings; `name` becomes the examples' source."""

    def test_set(self, name: str, path: str) -> QuestionSet | None:
        """The held-out questions; None if there are none."""


BENCHMARKS: dict[str, Benchmark] = {"mmlu": mmlu, "bbh": bbh, "tydiqa": tydiqa}
"""The paper's benchmarks."""

__all__ = [
    "TASKS",
    "Benchmark",
    "Question",
    "QuestionSet",
    "Shots",
    "Target",
    "load_target",
    "load_test_set",
]

TASKS = (*BENCHMARKS, "custom")
"""Values of a target's `task`."""


@dataclass(frozen=True, slots=True)
class Target:
    """A skill for which rows are selected.

    Attributes:
        examples: The target examples, each with its `subtask`.
        bad_rows: Skipped rows of a custom target, as (where, reason).
        warnings: Messages about how the target was read, one line each.
    """

    name: str
    task: str
    examples: tuple[Example, ...]
    bad_rows: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def subtasks(self) -> tuple[str, ...]:
        """Names of the subtasks, in alphabetical order."""
        return tuple(sorted({example.subtask for example in self.examples}))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the examples, independent of their order."""
        return fingerprint(sorted(map(_identity, self.examples)))


def _identity(example: Example) -> list[Any]:
    """Everything that determines an example's tokens and labels, with its id and subtask."""
    turns = map(dict, example.messages)
    rare = [part for part in (example.tools, example.supervised) if part]
    return [example.id, example.subtask, example.answer_prefix or "", *turns, *rare]


def load_target(
    name: str,
    task: str,
    path: str | Iterable[Any],
    *,
    subtask_field: str | None = None,
    on_bad_row: OnBadRow = "fail",
    supervise: Supervise = "completion",
    **reading: Any,
) -> Target:
    """Read a target.

    Args:
        name: Becomes the examples' `source`.
        task: One of `TASKS`.
        path: For a benchmark, a folder in the paper's layout, a data set on the hub, or a folder in
            the hub's format; for custom, a path as for a pool's source, or rows in memory.
        subtask_field: For custom only: the field that names a row's subtask.
        on_bad_row: For custom only: stop at rows that can't be read, or skip them.
        supervise: For custom, as in `SourceSpec`. For a benchmark, "completion" supervises the text
            after the answer's prefix, as in the released code; "all", the full assistant turn.
        **reading: For custom only: `columns` and `limits`, as in `SourceSpec`.

    Raises:
        DataError: If the task is unknown, or the path yields no examples.
    """
    if task not in TASKS:
        raise DataError(f"There is no task {task}.", f"target {name}", did_you_mean(task, TASKS))
    if task not in BENCHMARKS:
        source = custom.read(name, path, subtask_field, on_bad_row, supervise=supervise, **reading)
        return Target(name, task, source.examples, source.bad_rows, source.warnings)
    folder = _folder(name, path)
    examples, warnings = BENCHMARKS[task].read(name, folder)
    if not examples:
        where = f"target {name}: {folder}"
        raise DataError("The target has no examples.", where, "Add at least one example.")
    if supervise == "all":
        examples = [replace(example, answer_prefix=None) for example in examples]
    found, expected = len({one.subtask for one in examples}), BENCHMARKS[task].SUBTASKS
    if found < expected:
        warnings = [*warnings, f"{found} of the benchmark's {expected} subtasks were found"]
    return Target(name, task, tuple(examples), warnings=tuple(warnings))


def load_test_set(
    name: str,
    task: str,
    path: str | Iterable[Any],
    test: str | Iterable[Any] | None,
    *,
    subtask_field: str | None = None,
    answer: str | None = None,
    on_bad_row: OnBadRow = "fail",
    **reading: Any,
) -> QuestionSet | None:
    """Read a target's held-out questions; None if there are none. Arguments as in `load_target`.

    A benchmark's questions are in the folder `test`, or by default in the target's `path`; those of
    a custom target are in `test`, a file or rows. `answer` is a regular expression that matches the
    final answer within an answer.

    Raises:
        DataError: If they can't be read.
    """
    if task in BENCHMARKS:
        folder = _folder(name, test or path)
        found = BENCHMARKS[task].test_set(name, folder)
        if test and found is None:
            what = "There are no test questions here."
            raise missing(what, name, Path(folder), f"the folder that holds {task}'s questions")
        return found
    if test is None:
        return None
    return custom.test_set(name, test, subtask_field, answer, on_bad_row, **reading)


def _folder(name: str, path: str | Iterable[Any]) -> str:
    if not isinstance(path, str):
        todo = "Use the benchmark's folder, or remove `task` for examples of your own."
        raise DataError("A benchmark is read from its folder.", SourceSpec(name, path).place, todo)
    return path
