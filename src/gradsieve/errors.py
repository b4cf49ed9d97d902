"""All exceptions that gradsieve raises on purpose.

    GradsieveError            any of them; the command line prints it without a traceback
    +-- UsageError            the command or the recipe is wrong            (exit status 2)
    |   +-- RecipeError       all problems of a recipe, in one message
    +-- DataError             a pool, target or template file cannot be used (exit status 1)
    +-- ModelError            a model, adapter or optimizer state cannot be used
    +-- StoreError            a gradient datastore is damaged or was made with other settings
    +-- RunError              a run folder cannot be used: another program's, locked, incomplete
    +-- ErrorGroup            several of these at once, found before the run starts

Each message has three parts: what is wrong, where (file:line, value, shape), what to do next.
All exceptions can be pickled and copied, so that a worker process can raise them.
"""

from __future__ import annotations

import copyreg
import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Any


class GradsieveError(Exception):
    """A problem that the user can fix, described in three parts.

    Args:
        what: What is wrong, one sentence.
        where: File, line, key, value or shape of the problem; may be empty.
        todo: What to do next; may be empty.
    """

    exit_status = 1

    def __init__(self, what: str, where: str = "", todo: str = "") -> None:
        self.what, self.where, self.todo = what, where, todo
        super().__init__(what)

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where:      {self.where}")
        if self.todo:
            lines.append(f"  what to do: {self.todo}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        # The default would call the class with `args`, which a subclass's __init__ may not accept.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class UsageError(GradsieveError):
    """The command line is wrong."""

    exit_status = 2


class RecipeError(UsageError):
    """A recipe is wrong; `problems` has one line for each problem."""

    def __init__(self, problems: list[str], where: str, todo: str = "") -> None:
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(
            f"The recipe has {count}:\n" + "\n".join(f"  - {problem}" for problem in problems),
            where,
            todo or "Correct the recipe; docs/recipe.md lists every key.",
        )


class DataError(GradsieveError):
    """A pool, target or template file cannot be used."""


class ModelError(GradsieveError):
    """A model, adapter or optimizer state cannot be used."""


class StoreError(GradsieveError):
    """A gradient datastore is damaged, or was made with other settings."""


class RunError(GradsieveError):
    """A run folder cannot be used."""


class ErrorGroup(GradsieveError):
    """Several problems; `errors` has an error for each."""

    def __init__(self, errors: Sequence[GradsieveError]) -> None:
        self.errors = errors
        self.exit_status = max(error.exit_status for error in errors)
        super().__init__(f"{len(errors)} problems.")

    def __str__(self) -> str:
        numbered = (f"{number}. {error}" for number, error in enumerate(self.errors, start=1))
        return "\n".join((f"{len(self.errors)} problems, and nothing was started:", *numbered))


def raise_all(problems: Iterable[GradsieveError]) -> None:
    """Raise the problems, if there are any: each only once, several as one `ErrorGroup`."""
    each = [e for one in problems for e in (one.errors if isinstance(one, ErrorGroup) else [one])]
    found = list({str(problem): problem for problem in each}.values())
    if found:
        raise found[0] if len(found) == 1 else ErrorGroup(found)


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """A hint with the nearest known name, or with all of them."""
    near = difflib.get_close_matches(given, list(known), n=1)
    return f"Did you mean {near[0]}?" if near else f"Known: {', '.join(known)}."


def first_line(error: BaseException) -> str:
    """The first line of a library's error, and the second if the first is only a heading.

    Without its full stop; of an error without a message, the type.
    """
    first, *others = (line.strip() for line in str(error).strip().split("\n"))
    line = f"{first} {others[0]}" if first.endswith(":") and others else first
    return (line.rstrip(".") or type(error).__name__)[:300]


def first_few(items: Sequence[str], most: int = 3, separator: str = ", ") -> str:
    """The first items, and the number of the others."""
    more = f"{separator}and {len(items) - most} more" if len(items) > most else ""
    return separator.join(items[:most]) + more
