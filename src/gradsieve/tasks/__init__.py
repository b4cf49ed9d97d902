"""Targets: the examples of a skill, by subtask, one file for each kind.

In: a path: the paper's layout, a name on the hub, or the user's own examples. Out: a `Target`,
whose examples read as the paper's released code formats them. Each benchmark is one module (a
`Benchmark`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from gradsieve.data.examples import Example
from gradsieve.data.formats import Supervise
from gradsieve.data.readers import place_of
from gradsieve.errors import DataError, did_you_mean
from gradsieve.io import fingerprint
from gradsieve.tasks import bbh, custom, mmlu, tydiqa
from gradsieve.tasks.layout import missing
from gradsieve.tasks.questions import Question, QuestionSet, Shots


class Benchmark(Protocol):
    """What the module of a benchmark offers."""

    SUBTASKS: int

    def read(self, name: str, path: str) -> tuple[list[Example], list[str]]:
        """The examples, and what to warn of; `name` becomes their source."""

    def test_set(self, name: str, path: str) -> QuestionSet | None:
        """The held-out questions; None if they are not there."""


BENCHMARKS: dict[str, Benchmark] = {"mmlu": mmlu, "bbh": bbh, "tydiqa": tydiqa}
"""Those of the paper."""

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
"""What a target's `task` may be."""


@dataclass(frozen=True, slots=True)
class Target:
    """A skill to select for.

    Attributes:
        name: As the recipe has it.
        task: Which kind it is.
        examples: Each with its `subtask`.
        bad_rows: Rows of a custom target left out, as (where, reason).
        warnings: What the user should know of how it was read, a line each.
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
        """SHA-256 of the examples, whatever their order."""
        return fingerprint(sorted(map(_identity, self.examples)))


def _identity(example: Example) -> list[Any]:
    """What an example's tokens and labels depend on."""
    turns = map(dict, example.messages)
    rare = [part for part in (example.tools, example.supervised) if part]
    return [example.id, example.subtask, example.answer_prefix or "", *turns, *rare]


def load_target(
    name: str,
    task: str,
    path: str | Iterable[Any],
    *,
    subtask_field: str | None = None,
    on_bad_row: Literal["fail", "skip"] = "fail",
    supervise: Supervise = "completion",
) -> Target:
    """Read a target.

    Args:
        name: Becomes the examples' `source`.
        task: mmlu, bbh, tydiqa or custom.
        path: A folder in the paper's layout, or a data set on the hub or in its format; for custom,
            any file that a pool may be, or rows.
        subtask_field: custom only: the field of a row that names its subtask.
        on_bad_row: custom only: stop at rows that can't be read, or leave them out.
        supervise: custom only: what is supervised of a prompt/completion row.

    Raises:
        DataError: If the task is not known, or no examples can be had from the path.
    """
    if task not in TASKS:
        raise DataError(f"There is no task {task}.", f"target {name}", did_you_mean(task, TASKS))
    if task in BENCHMARKS:
        target = _benchmark(name, task, _folder(name, path))
    else:
        examples, source = custom.read(name, path, subtask_field, on_bad_row, supervise)
        target = Target(name, task, tuple(examples), source.bad_rows, source.warnings)
    if not target.examples:
        raise DataError(
            "The target has no examples.",
            f"target {name}: {place_of(name, path)}",
            "Give at least one.",
        )
    return target


def _benchmark(name: str, task: str, path: str) -> Target:
    examples, warnings = BENCHMARKS[task].read(name, path)
    target = Target(name, task, tuple(examples))
    found, expected = len(target.subtasks), BENCHMARKS[task].SUBTASKS
    if found < expected:
        warnings = [*warnings, f"{found} of the benchmark's {expected} subtasks are there"]
    return replace(target, warnings=tuple(warnings))


def load_test_set(
    name: str,
    task: str,
    path: str | Iterable[Any],
    test: str | Iterable[Any] | None,
    subtask_field: str | None,
    supervise: Supervise = "completion",
) -> QuestionSet | None:
    """Read a target's held-out questions; None if it has none.

    Args:
        name: Becomes the examples' `source`.
        task: mmlu, bbh, tydiqa or custom.
        path: The target's path, which holds a benchmark's questions too.
        test: A file of held-out examples, or rows; for a benchmark, another folder than `path`.
        subtask_field: custom only.
        supervise: custom only.

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
    return custom.test_set(name, test, subtask_field, supervise) if test is not None else None


def _folder(name: str, path: str | Iterable[Any]) -> str:
    if not isinstance(path, str):
        todo = "Give the benchmark's folder, or leave `task` out for examples of your own."
        raise DataError("A benchmark is read from its folder.", place_of(name, path), todo)
    return path
