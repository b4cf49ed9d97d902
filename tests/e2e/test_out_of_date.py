"""Results are shown with the selection they belong to, or as out of date with what to run."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import world
from gradsieve.cli import app
from gradsieve.demo.skills import make_questions
from gradsieve.recipe.load import dump_recipe, load_recipe
from gradsieve.runs.folder import RunFolder
from gradsieve.runs.lineage import outdated, upstream
from gradsieve.runs.settings import changed_settings


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    data = world.make(folder, rows=40)
    questions = [world.record(row) for row in make_questions("reverse", 4, 1)]
    world.write(folder / "test.jsonl", questions)
    data["targets"] = [{**data["targets"][0], "test": str(folder / "test.jsonl")}]
    changes: dict[str, Any] = {"score": {"methods": ["random", "bm25"]}, "select": {"count": 9}}
    evaluated = {"train": {"epochs": 1}, "evaluate": {"tasks": ["target_loss"]}}
    text = dump_recipe(world.recipe(data, **changes, **evaluated))
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    return folder / "recipe.yaml"


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def out(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run, and then the select stage alone with other settings."""
    out = tmp_path_factory.mktemp("run")
    whole = call("run", recipe, "--out", out)
    assert whole.exit_code == 0, whole.output
    assert "out of date" not in whole.output
    assert "### mine" in whole.stdout
    assert "report: " in whole.stdout
    assert outdated(RunFolder(out)) == {}
    return out


def test_another_selection_has_no_results_yet(recipe: Path, out: Path) -> None:
    other = call("run", recipe, "--out", out, "--set", "select.count=5", "--until", "select")
    assert other.exit_code == 0, other.output
    assert "mine, bm25: 5 rows" in other.stdout
    assert "### mine" not in other.stdout
    assert "index.html" not in other.stdout
    lines = other.stdout.split("\n")
    assert "train: out of date, because select has changed since" in lines
    assert "evaluate: out of date, because train is out of date" in lines
    assert "report: out of date, because select has changed since" in lines
    assert f"To update: `gradsieve run --from train` with this recipe and --out {out}" in lines
    found = json.loads(call("select", recipe, "--out", out, "--set", "select.count=5", "--json")
                       .stdout)  # fmt: skip
    assert set(found["out_of_date"]) == {"train", "evaluate", "report"}

    compared = call("compare", out)
    assert compared.exit_code != 0
    assert "out of date" in str(compared.exception)
    assert "gradsieve run" in str(compared.exception)

    # With the old settings the selection is again the one that the models were trained on.
    call("run", recipe, "--out", out, "--until", "select")
    assert outdated(RunFolder(out)) == {}
    assert call("compare", out).exit_code == 0


def test_a_stage_alone_says_that_the_ones_before_are_of_other_settings(
    recipe: Path, out: Path
) -> None:
    call("run", recipe, "--out", out, "--until", "select")
    alone = call("evaluate", recipe, "--out", out, "--set", "select.count=20")
    assert alone.exit_code == 0, alone.output
    assert "select is taken as it is, though settings differ: select.count: 9 -> 20" in alone.stderr
    assert "`gradsieve run`" in alone.stderr
    assert "evaluate: up to date" in alone.stderr
    same = call("evaluate", recipe, "--out", out)
    assert "taken as it is" not in same.stderr
    assert "evaluate: up to date\n" in same.stderr
    speed = call("evaluate", recipe, "--out", out, "--set", "model.gradient_checkpointing=true")
    assert "taken as it is" not in speed.stderr


def test_stages_belong_together_by_what_they_read(recipe: Path, out: Path) -> None:
    run = RunFolder(out)
    assert upstream(run, "evaluate") == {"pool", "score", "select", "train", "evaluate"}
    assert upstream(run, "pool") == {"pool"}
    assert changed_settings(run, load_recipe(recipe), "warmup") == []  # it is not finished


def test_a_stage_that_the_recipe_lacks(recipe: Path, tmp_path: Path) -> None:
    """`--until evaluate` trains too; after another selection, a message gives the command."""
    alone, out = tmp_path / "alone.yaml", tmp_path / "run"
    alone.write_text(f"base: {recipe}\ntrain: null\nevaluate: null\n", encoding="utf-8")
    first = call("run", alone, "--out", out, "--until", "evaluate")
    assert first.exit_code == 0, first.output
    assert "### mine" in first.stdout
    other = call("run", alone, "--out", out, "--set", "select.count=5")
    assert "train: out of date, because select has changed since" in other.stdout
    assert f"To update: `gradsieve train` with this recipe and --out {out}" in other.stdout


def test_outputs_that_come_back_are_named(recipe: Path, tmp_path: Path) -> None:
    """A stage that fails before it has written anything leaves the old outputs in place."""
    out = tmp_path / "run"
    few = ("run", recipe, "--out", out, "--until", "features", "--set", "score.methods=[less]")
    assert call(*few).exit_code == 0
    methods, pool = "score.methods=[less]", "pool.1.path=" + str(recipe.parent / "test.jsonl")
    assert call("score", recipe, "--out", out, "--set", methods).exit_code == 0
    failed = call("score", recipe, "--out", out, "--set", methods, "--set", pool)
    assert "The datastore lacks" in str(failed.exception)
    kept = RunFolder(out).stage("score")
    assert f"score: the old outputs are back in {kept}" in failed.stderr
    assert (kept / "meta.json").is_file()
