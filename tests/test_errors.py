"""Errors survive pickling and copying: workers send them, notebooks keep them."""

import copy
import pickle  # noqa: TID251

import pytest

from gradsieve import errors
from gradsieve.errors import ErrorGroup, GradsieveError, RecipeError, UsageError, first_line
from gradsieve.tasks.hub import NotThere


def subclasses(of: type[GradsieveError]) -> list[type[GradsieveError]]:
    return [of, *(found for own in of.__subclasses__() for found in subclasses(own))]


MADE = {
    RecipeError: RecipeError(["a is wrong", "b is missing"], "r.yaml", "Correct it."),
    ErrorGroup: ErrorGroup([UsageError("what", "where", "todo"), RecipeError(["c"], "r.yaml")]),
}
KINDS = [kind for kind in subclasses(GradsieveError) if kind.__module__.startswith("gradsieve")]


def test_every_error_is_tried() -> None:
    own = {value for value in vars(errors).values() if isinstance(value, type)}
    assert {kind for kind in own if issubclass(kind, Exception)} | {NotThere} <= {*KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_survives_pickling_and_copying(kind: type[GradsieveError]) -> None:
    error = MADE.get(kind) or kind("What is wrong.", "file:3", "Fix it.")
    error.add_note("shard 7")
    protocols = range(pickle.HIGHEST_PROTOCOL + 1)
    pickled = [pickle.loads(pickle.dumps(error, protocol)) for protocol in protocols]
    for twin in (*pickled, copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is kind
        assert str(twin) == str(error)
        assert twin.args == error.args
        assert attributes(twin) == attributes(error)
        assert (twin.what, twin.where, twin.todo) == (error.what, error.where, error.todo)


def attributes(error: GradsieveError) -> dict[str, object]:
    """All attributes; errors in a group are equal if their attributes are."""
    found = dict(vars(error))
    if isinstance(error, ErrorGroup):
        found["errors"] = [(type(own), attributes(own)) for own in error.errors]
    return {**found, "exit_status": error.exit_status}


def test_a_recipes_problems_are_kept() -> None:
    twin = pickle.loads(pickle.dumps(MADE[RecipeError]))
    assert twin.problems == ["a is wrong", "b is missing"]
    assert twin.exit_status == 2


def test_a_groups_errors_are_kept() -> None:
    twin = pickle.loads(pickle.dumps(MADE[ErrorGroup]))
    assert [type(error) for error in twin.errors] == [UsageError, RecipeError]
    assert "1. what\n  where:      where" in str(twin)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError("It is gone.\nIt was here."), "It is gone"),
        (ValueError("Cannot read:\n  row 3\n"), "Cannot read: row 3"),
        (OSError(), "OSError"),
        (ValueError("x" * 999), "x" * 300),
    ],
)
def test_the_first_line_of_another_librarys_error(error: Exception, line: str) -> None:
    assert first_line(error) == line
