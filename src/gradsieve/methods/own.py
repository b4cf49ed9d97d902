"""User-supplied methods: loads them, and checks what they declare and the scores that they return.

In: a Python file, which the recipe names as `FILE.py:OBJECT`, or an object from an entry point.
Out: the method, and its `Scores`, in float32. A wrong method raises a `UsageError` with its name,
so that no score table is written that later stages can't read or that contains NaN.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from gradsieve.errors import GradsieveError, UsageError
from gradsieve.io import file_fingerprint
from gradsieve.methods.base import Method, Scores, ScoringTask, Uses

FIX = "Correct the method; docs/methods.md describes what it returns."


def load_method(place: str) -> Method:
    """Run a Python file and return a method from it.

    Raises:
        UsageError: If the file or object doesn't exist, or it is not a method.
    """
    file = Path(place.rpartition(":")[0])
    if not file.is_file():
        todo = "Give a Python file as FILE.py:OBJECT, relative to where gradsieve is started."
        raise UsageError("The file of a method does not exist.", f"score.methods: {place}", todo)
    return _loaded(place, file_fingerprint(file))


@contextmanager
def users_code(where: str) -> Iterator[None]:
    """Report whatever loading a method raises as the user's mistake."""
    try:
        yield
    except Exception as error:
        what = f"The method cannot be loaded: {type(error).__name__}: {error}"
        todo = "Correct it: give an object, or a class without arguments."
        raise UsageError(what, where, todo) from error


@cache
def _loaded(place: str, contents: str) -> Method:
    """`load_method`, cached: the file runs again only after its contents change."""
    file, _, name = place.rpartition(":")
    where = f"score.methods: {place}"
    module = ModuleType(f"gradsieve_method_{Path(file).stem}")
    module.__file__ = file
    sys.modules[module.__name__] = module  # dataclasses need it there
    with users_code(where):
        # Not imported: the import system's bytecode cache only checks time and size.
        exec(compile(Path(file).read_bytes(), file, "exec"), vars(module))
    known = [key for key, value in vars(module).items() if hasattr(value, "score")]
    return checked_method(getattr(module, name, None), name, where, known)


def checked_method(found: Any, name: str, where: str, known: Sequence[str] = ()) -> Method:
    """Return the object, or an instance of the class, if it is a method; else suggest `known`.

    Raises:
        UsageError: If it lacks an attribute, or `uses` has an unknown value.
    """
    with users_code(where):
        method = _made(found) if isinstance(found, type) else found
    lacks = [part for part in ("source", "uses", "score") if not hasattr(method, part)]
    if lacks:
        what = f"{name} is not a method: it lacks {', '.join(lacks)}."
        todo = "Add what it lacks; docs/methods.md has an example."
        if known and name not in known:
            todo = f"One of {', '.join(known)}."
        raise UsageError(what, where, todo)
    if method.uses not in get_args(Uses):
        todo = f"Set `uses` to one of {', '.join(map(repr, get_args(Uses)))}."
        raise UsageError(f"{name} uses {method.uses!r}, which is not known.", where, todo)
    return cast(Method, method)


def score_by_own(method: Method, name: str, task: ScoringTask) -> dict[str, Scores]:
    """Run a method and check its scores.

    Raises:
        UsageError: If it fails, or returns anything but finite scores for each example.
    """
    try:
        found: object = method.score(task)
    except (GradsieveError, MemoryError):
        raise
    except Exception as error:  # whatever the user's code raises
        what = f"The method {name} failed: {type(error).__name__}: {error}"
        raise UsageError(what, _place(error), "Correct the method.") from error
    if not isinstance(found, Mapping):
        raise _wrong(name, f"{_kind(found)}, not a dict of Scores by target")
    return {target: _checked(found.get(target), name, target, task) for target in task.targets}


@cache
def _made(kind: type) -> Any:
    """The only instance of a class: it may be costly to make, or keep what its `check` found."""
    return kind()


def _checked(scores: object, name: str, target: str, task: ScoringTask) -> Scores:
    if not isinstance(scores, Scores):
        raise _wrong(name, f"{_kind(scores)} for target {target}, not Scores")
    rows, columns = len(task), len(scores.subtasks)
    if len({subtask for subtask in scores.subtasks if isinstance(subtask, str)}) < columns:
        raise _wrong(name, f"subtasks that are not distinct texts (target {target})")
    total = _numbers(scores.total, (rows,), name, f"target {target}, total", task)
    by_subtask = scores.by_subtask
    if by_subtask is not None or columns:
        where = f"target {target}, by_subtask"
        by_subtask = _numbers(by_subtask, (rows, columns), name, where, task)
    return replace(scores, total=total, by_subtask=by_subtask)


def _numbers(
    values: Any, shape: tuple[int, ...], name: str, where: str, task: ScoringTask
) -> NDArray[np.float32]:
    """The values as float32, checked to have the given shape and to be finite."""
    try:
        found = np.asarray(values).astype(np.float32)
    except (TypeError, ValueError):
        raise _wrong(name, f"{_kind(values)}, not numbers ({where})") from None
    if found.shape != shape:
        raise _wrong(name, f"scores of the shape {found.shape} instead of {shape} ({where})")
    wrong = np.flatnonzero(~np.isfinite(found.reshape(len(found), -1)).all(axis=1))
    if len(wrong):
        key = task.pool.keys(task.numbers[wrong[:1]])[0]
        first = f"the first: source {key.source}, id {key.id}"
        raise _wrong(name, f"scores of {len(wrong)} rows that are not finite ({where}; {first})")
    return found


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__


def _wrong(name: str, returned: str) -> UsageError:
    return UsageError(f"The method {name} returned {returned}.", f"score.methods: {name}", FIX)


def _place(error: Exception) -> str:
    """The last line of the method's own file that ran."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    own = [frame for frame in frames if frame.filename == frames[0].filename]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else "score"
