"""Methods from a user's Python file: named in the recipe, fingerprinted by their contents."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradsieve
import world
from gradsieve.errors import GradsieveError, UsageError
from gradsieve.methods.own import load_method
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
        ("no.py:Longest", LONGEST, "does not exist", "FILE.py:OBJECT"),
        (
            "my.py:Longst",
            LONGEST,
            "Longst is not a method: it lacks source, uses",
            "Longest, LONGEST",
        ),
        ("my.py:needs", LONGEST, "needs is not a method", "One of"),
        ("my.py:Longest", LONGEST.replace("source =", "sources ="), "lacks source", "Add what"),
        ("my.py:X", "import no_such_thing", "ModuleNotFoundError", "Correct it"),
        ("my.py:X", "def (", "SyntaxError", "Correct it"),
        (
            "my.py:X",
            "class X:\n    def __init__(self, a): ...",
            "cannot be loaded: TypeError",
            "without arg",
        ),
        (
            "my.py:X",
            "class X:\n    def __init__(self): raise OSError('no file')",
            "loaded: OSError: no",
            "",
        ),
        (
            "my.py:Longest",
            LONGEST.replace('"data"', '"gradient"'),
            "uses 'gradient', which is not known",
            "one of 'data', 'model', 'gradients', 'plain gradients'",
        ),
    ],
)
def test_what_is_no_method(folder: Path, place: str, text: str, what: str, todo: str) -> None:
    (folder / "my.py").write_text(text)
    with pytest.raises(UsageError) as caught:
        load_method(place)
    assert what in caught.value.what
    assert todo in caught.value.todo
    assert place in caught.value.where


BODY = "        return {target: Scores(SIGN * lengths) for target in task.targets}\n"

WRONG = {
    "        raise ValueError('of mine')\n": "The method Longest failed: ValueError: of mine",
    "        return None\n": "nothing, not a dict of Scores by target",
    "        return {}\n": "nothing for target mine, not Scores",
    "        return {'mine': lengths}\n": "ndarray for target mine, not Scores",
    "        return {'mine': Scores(lengths[:3])}\n": "the shape (3,) instead of (20,)",
    "        return {'mine': Scores(['a'] * 20)}\n": "list, not numbers (target mine, total)",
    "        return {'mine': Scores(0 / (lengths - lengths.max()))}\n": "rows that are not finite",
    "        return {'mine': Scores(lengths, ['a'])}\n": "by_subtask",
    "        return {'mine': Scores(lengths, ['a', 'b'], lengths[:, None])}\n": "(20, 1) instead",
    "        return {'mine': Scores(lengths, ['a', 'a'], np.ones((20, 2)))}\n": "subtasks that",
    "        return {'mine': Scores(lengths, [1, 2], np.ones((20, 2)))}\n": "subtasks that",
}


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_wrong_scores_are_refused_by_the_methods_name(folder: Path) -> None:
    data: dict[str, Any] = world.make(folder / "inputs", rows=20)
    recipe = world.recipe(data, score={"methods": ["my.py:Longest"]})
    for body, said in WRONG.items():
        (folder / "my.py").write_text(LONGEST.replace(BODY, body))
        with pytest.raises(UsageError) as caught:
            gradsieve.run(recipe, folder / "run", last="select")
        assert said in caught.value.what
        assert not list((folder / "run").glob("03-score/mine/*.parquet"))
    (folder / "my.py").write_text(LONGEST.replace(BODY, next(iter(WRONG))))
    for methods in (["my.py:Longest"], ["fusion"]):
        settings = {"methods": methods, "files": {"Longest": "my.py:Longest"}}
        if methods == ["fusion"]:
            settings["fusion"] = ["random", "Longest"]
        with pytest.raises(UsageError, match="Longest failed") as caught:
            gradsieve.run(world.recipe(data, score=settings), folder / "run", last="select")
        assert caught.value.where == "my.py:11"


def test_scores_of_any_type_of_number_become_float32(folder: Path) -> None:
    data: dict[str, Any] = world.make(folder / "inputs", rows=20)
    body = "        return {target: Scores(list(range(20))) for target in task.targets}\n"
    (folder / "my.py").write_text(LONGEST.replace(BODY, body))
    recipe = world.recipe(data, score={"methods": ["my.py:Longest"]})
    table = world.table(gradsieve.run(recipe, folder / "run", last="select"), "Longest")
    assert table["score"].dtype == np.float32


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
    assert again == written  # other methods' scores are kept


def test_the_method_is_loaded_before_anything_is_spent(folder: Path) -> None:
    data: dict[str, Any] = world.make(folder / "inputs", rows=20)
    recipe = world.recipe(data, score={"methods": ["my.py:Shortest", "less"]})
    with pytest.raises(GradsieveError, match="Shortest is not a method"):
        gradsieve.run(recipe, folder / "run")
    assert not (folder / "run" / "01-warmup").exists()


def test_reading_a_run_folder_runs_no_code(folder: Path) -> None:
    data: dict[str, Any] = world.make(folder / "inputs", rows=20)
    recipe = world.recipe(data, score={"methods": ["my.py:Longest"]}, select={"count": 3})
    run = gradsieve.run(recipe, folder / "run", last="select")
    table = world.table(run, "Longest")
    (folder / "my.py").write_text("raise SystemExit('this was run')")
    id, source = table["id"][0], table["source"][0]
    assert gradsieve.explain(folder / "run", "mine", id=id, source=source).score is not None
