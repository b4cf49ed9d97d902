"""Methods from a user's Python file: named in the recipe, fingerprinted by contents."""

from pathlib import Path
from typing import Any

import pytest

import gradsieve
import world
from gradsieve.errors import GradsieveError, UsageError
from gradsieve.methods.files import load_method
from gradsieve.recipe.load import dump_recipe, load_recipe

LONGEST = """
import numpy as np
from gradsieve.methods import Scores

class Longest:
    source = "rows with the most tokens"
    uses = "data"

    def score(self, task):
        lengths = task.pool.lengths[task.numbers].astype(np.float32)
        return {target: Scores(SIGN * lengths) for target in task.targets}

SIGN = 1
LONGEST = Longest()
needs = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.py").write_text(LONGEST)
    return tmp_path


@pytest.mark.parametrize("place", ["my.py:Longest", "my.py:LONGEST"])
def test_an_object_or_a_class(folder: Path, place: str) -> None:
    assert load_method(place).source == "rows with the most tokens"


@pytest.mark.parametrize(
    ("place", "text", "what", "todo"),
    [
        ("no.py:Longest", LONGEST, "is not there", "FILE.py:OBJECT"),
        ("my.py:Longst", LONGEST, "Longst is no method: it lacks source, uses", "Longest, LONGEST"),
        ("my.py:needs", LONGEST, "needs is no method", "One of"),
        ("my.py:X", "import no_such_thing", "ModuleNotFoundError", "Correct the file"),
        ("my.py:X", "def (", "SyntaxError", "Correct the file"),
        ("my.py:X", "class X:\n    def __init__(self, a): ...", "cannot be made", "without arg"),
    ],
)
def test_what_is_no_method(folder: Path, place: str, text: str, what: str, todo: str) -> None:
    (folder / "my.py").write_text(text)
    with pytest.raises(UsageError) as caught:
        load_method(place)
    assert what in caught.value.what
    assert todo in caught.value.todo
    assert place in caught.value.where


def test_in_a_run(folder: Path) -> None:
    data: dict[str, Any] = world.make(folder / "inputs", rows=20)
    recipe = world.recipe(data, score={"methods": ["my.py:Longest", "random"]})
    assert recipe.score.methods == ["Longest", "random"]
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(folder / "recipe.yaml") == recipe

    def scored() -> tuple[list[float], int]:
        run = gradsieve.run(recipe, folder / "run", last="select")
        other = run.stage("score") / "mine" / "random.parquet"
        assert run.require("score")["methods"]["Longest"]["source"] == "rows with the most tokens"
        return world.table(run, "Longest")["score"].tolist(), other.stat().st_mtime_ns

    first, written = scored()
    assert min(first) > 0
    assert scored() == (first, written)
    (folder / "my.py").write_text(LONGEST.replace("SIGN = 1", "SIGN = -1"))
    second, again = scored()
    assert second == [-length for length in first]
    assert again == written  # other methods are kept


def test_the_method_is_loaded_before_anything_is_spent(folder: Path) -> None:
    data: dict[str, Any] = world.make(folder / "inputs", rows=20)
    recipe = world.recipe(data, score={"methods": ["my.py:Shortest", "less"]})
    with pytest.raises(GradsieveError, match="Shortest is no method"):
        gradsieve.run(recipe, folder / "run")
    assert not (folder / "run" / "01-warmup").exists()


def test_reading_a_run_folder_runs_no_code(folder: Path) -> None:
    data: dict[str, Any] = world.make(folder / "inputs", rows=20)
    recipe = world.recipe(data, score={"methods": ["my.py:Longest"]}, select={"count": 3})
    run = gradsieve.run(recipe, folder / "run", last="select")
    table = world.table(run, "Longest")
    (folder / "my.py").write_text("raise SystemExit('this was run')")
    id, source = table["id"][0], table["source"][0]
    assert gradsieve.explain(folder / "run", "mine", id, source).score is not None
