"""Several sizes of selections in one run: names, prefixes, trainings, tables, report, explain."""

import json
from pathlib import Path
from typing import Any

import pytest

import gradsieve
import world
from gradsieve.analysis.results import compare
from gradsieve.errors import UsageError
from gradsieve.runs.artifacts import Artifacts
from gradsieve.runs.folder import RunFolder

NAMES = ["less@0.1", "less@0.3", "random@0.1", "random@0.3", "full"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("inputs")
    made = world.make(folder, rows=40)
    made["targets"] = [{**made["targets"][1], "test": str(folder / "target.jsonl")}]
    return {
        **made,
        "score": {"methods": ["less", "random", "full"]},
        "select": {"fraction": [0.1, 0.3]},
        "train": {"epochs": 1},
        "evaluate": {"tasks": ["target_loss"]},
    }


@pytest.fixture(scope="module")
def run(inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    out = tmp_path_factory.mktemp("run")
    return gradsieve.run(world.recipe(inputs), out)


def ids(run: RunFolder, name: str) -> list[str]:
    file = run.stage("select") / "plain" / name / "selected.jsonl"
    return [json.loads(line)["id"] for line in file.read_text("utf-8").split("\n")[:-1]]


def test_a_selection_of_each_size(run: RunFolder) -> None:
    assert list(run.require("select")["targets"]["plain"]) == NAMES
    assert [len(ids(run, name)) for name in NAMES] == [4, 12, 4, 12, 40]
    for method in ("less", "random"):
        assert ids(run, f"{method}@0.3")[:4] == ids(run, f"{method}@0.1")
    card = (run.stage("select") / "plain" / "less@0.1" / "README.md").read_text("utf-8")
    assert "fraction: 0.1\n" in card
    assert "Selected for plain by less@0.1" in card


def test_one_size_keeps_its_name(inputs: dict[str, Any], run: RunFolder, tmp_path: Path) -> None:
    recipe = world.recipe(inputs, select={"fraction": [0.3]}, score__methods=["random"])
    other = gradsieve.run(recipe, tmp_path, last="select")
    assert ids(other, "random") == ids(run, "random@0.3")


def test_a_size_that_becomes_one_of_several_is_not_trained_on_again(
    inputs: dict[str, Any], run: RunFolder, tmp_path: Path
) -> None:
    def trained(**changes: Any) -> list[str]:
        progress = world.Listening()
        recipe = world.recipe(inputs, score={"methods": ["random"]}, **changes)
        gradsieve.run(recipe, tmp_path, last="train", progress=progress)
        lines = [line.strip() for line in progress.lines]
        return [line.split(":")[0] for line in lines if line.startswith("training plain")]

    assert trained(select={"fraction": 0.3}) == ["training plain, random, seed 0"]
    assert trained() == ["training plain, random@0.1, seed 0"]
    models = RunFolder(tmp_path).require("train")["models"]
    kept = run.require("train")["models"]
    assert models == {name: kept[name] for name in models}
    assert len(models) == 2


def test_each_is_trained_on_evaluated_and_compared_with_random_of_its_size(run: RunFolder) -> None:
    models = run.require("train")["models"]
    assert set(models) == {f"plain/{name}/seed-0" for name in NAMES}
    methods = {row["method"] for row in Artifacts(run).results.rows()}
    assert methods == {*NAMES, "base", "warmed_up"}
    found = compare([run.path])
    cells = found.cells["plain"]["held_out_loss"]
    assert found.rows["plain"] == dict(zip(NAMES, [4, 12, 4, 12, 40], strict=True))
    for size in ("0.1", "0.3"):
        less, random = cells[f"less@{size}"], cells[f"random@{size}"]
        assert less.over_random is not None
        assert less.over_random[0] == pytest.approx(less.mean - random.mean, abs=1e-6)
        assert random.over_random is None
    assert cells["full"].over_random is None  # no random selection has the same size
    assert set(found.overlap["plain"]) == {"less@0.1", "less@0.3"}
    table = found.markdown()
    assert "| less@0.1 | 4 |" in table
    assert "| random@0.3 | 12 |" in table
    for size in ("0.1", "0.3"):  # no cell compares two selections of different sizes
        shared = table.split(f"Rows that selections of {size} share:\n\n")[1].split("\n\n")[0]
        assert shared.split("\n")[0] == f"|  | less@{size} |"


def test_the_report_and_explain_know_all(run: RunFolder) -> None:
    page = (run.stage("report") / "index.html").read_text("utf-8")
    assert all(f'"method":"{name}"' in page.replace('": "', '":"') for name in NAMES)
    chosen = ids(run, "less@0.3")
    late = gradsieve.explain(run, "plain", id=chosen[8], method="less@0.3")
    assert (late.selected, late.method) == (9, "less@0.3")
    assert gradsieve.explain(run, "plain", id=chosen[8], method="less@0.1").selected is None
    assert gradsieve.explain(run, "plain", id=chosen[0]).method == "less@0.1"
    with pytest.raises(UsageError) as caught:
        gradsieve.explain(run, "plain", id=chosen[0], method="less@0.2")
    assert caught.value.todo == "Did you mean less@0.3?"


def test_a_size_more_keeps_the_trainings_of_the_others(
    inputs: dict[str, Any], run: RunFolder
) -> None:
    before = run.require("train")["models"]
    times = {
        name: (run.stage("train") / name / "training.json").stat().st_mtime_ns for name in before
    }
    more = world.recipe(inputs, select={"fraction": [0.1, 0.2, 0.3]})
    gradsieve.run(more, run.path, last="train")
    after = run.require("train")["models"]
    assert set(after) - set(before) == {"plain/less@0.2/seed-0", "plain/random@0.2/seed-0"}
    for name in before:
        file = run.stage("train") / name / "training.json"
        assert file.stat().st_mtime_ns == times[name]


def test_sizes_in_tokens(inputs: dict[str, Any], tmp_path: Path) -> None:
    recipe = world.recipe(inputs, select={"tokens": [60, 200]}, score__methods=["random"])
    run = gradsieve.run(recipe, tmp_path, last="select")
    facts = run.require("select")["targets"]["plain"]
    assert list(facts) == ["random@60-tokens", "random@200-tokens"]
    assert facts["random@60-tokens"]["tokens"] <= 60 < facts["random@200-tokens"]["tokens"] <= 200
