"""The report as the last stage: when it is made, what it contains, and from which stages."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import gradsieve
import world
from gradsieve.cli import app
from gradsieve.demo.skills import make_questions
from gradsieve.errors import RunError
from gradsieve.pipeline.run import STAGES
from gradsieve.recipe.load import dump_recipe
from gradsieve.recipe.schema import Recipe
from gradsieve.runs.artifacts import Artifacts
from gradsieve.runs.folder import STAGE_NAMES, RunFolder

QUICK: dict[str, Any] = {"score": {"methods": ["random", "bm25"]}, "select": {"count": 9}}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("inputs")
    made = world.make(folder, rows=60)
    questions = [world.record(row) for row in make_questions("reverse", 4, 1)]
    world.write(folder / "test.jsonl", questions)
    made["targets"][0]["test"] = str(folder / "test.jsonl")
    return made


def content(run: RunFolder, block: str = "data") -> dict[str, Any]:
    """What the page contains."""
    text = (run.stage("report") / "index.html").read_text(encoding="utf-8")
    found = re.search(f' id="{block}">(.*)</script>', text)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def run(recipe: Recipe, out: Path, **stages: Any) -> tuple[RunFolder, list[str]]:
    said = world.Listening()
    return gradsieve.run(recipe, out, progress=said, **stages), said.lines


def test_a_stages_name_is_one_word_everywhere() -> None:
    commands = {command.name for command in app.registered_commands}
    assert tuple(STAGES) == STAGE_NAMES
    assert {type(stage).__module__ for stage in STAGES.values()} == {
        f"gradsieve.stages.{name}" for name in STAGE_NAMES
    }
    assert set(STAGE_NAMES) < commands
    no_stages = {"model", "targets", "on_bad_row", "engine", "limits"}
    assert set(STAGE_NAMES) == set(Recipe.model_fields) - no_stages


def test_it_grows_with_the_run(inputs: dict[str, Any], tmp_path: Path) -> None:
    plain = world.recipe(inputs, **QUICK)
    made, _ = run(plain, tmp_path)
    assert content(made)["results"] == {}
    assert list(content(made, "provenance")["seconds"]) == ["pool", "score", "select"]
    assert run(plain, tmp_path)[1][-1] == "report: up to date"

    trained = world.recipe(inputs, **QUICK, train={"epochs": 1}, evaluate={})
    _, said = run(trained, tmp_path)
    assert any(line.startswith("report: updating") for line in said)
    results = {metric["metric"]: metric for metric in content(made)["results"]["mine"]}
    rows = json.loads((made.stage("evaluate") / "results.json").read_text())["rows"]
    for row in rows:
        if row["target"] == "mine":
            (cell,) = (one for one in results[row["metric"]]["methods"]
                       if one["method"] == row["method"])  # fmt: skip
            assert cell["mean"] == pytest.approx(row["value"], rel=1e-5)
    answers = content(made)["answers"]["mine"]
    assert answers["models"] == ["base", "random", "bm25"]
    for place, model in enumerate(answers["models"]):
        file = made.stage("evaluate") / "mine" / model / "seed-0.samples.jsonl"
        samples = map(json.loads, file.read_bytes().split(b"\n")[:-1])
        for question, sample in zip(answers["questions"], samples, strict=True):
            assert question[0] == sample["id"]
            assert question[5][place][0] == sample[answers["metric"]]
            assert question[5][place][2] == sample["answer"]
    stages = ["pool", "score", "select", "train", "evaluate"]
    assert list(content(made, "provenance")["seconds"]) == stages

    # With another selection, what was trained on the old one is not its result.
    other = world.recipe(inputs, **{**QUICK, "select": {"count": 5}}, train={}, evaluate={})
    run(other, tmp_path, last="select")
    run(other, tmp_path, first="report")
    assert content(made)["results"] == {}
    assert content(made)["views"][0]["selected"] == 5
    assert not list((tmp_path / "archive").glob("08*"))


def test_answers_stay_with_their_questions(inputs: dict[str, Any], tmp_path: Path) -> None:
    """This holds whatever `evaluate.limit` is when the page is written."""
    inputs = {**inputs, "targets": [{**inputs["targets"][0], "test": inputs["targets"][0]["path"]}]}
    quick = {**QUICK, "train": {"epochs": 1}}
    made, _ = run(world.recipe(inputs, **quick, evaluate={"limit": 2}), tmp_path)
    before = content(made)["answers"]["mine"]
    assert [question[1] for question in before["questions"]] == 2 * ["letters"] + 2 * ["numbers"]
    for limit in (1, None):
        run(world.recipe(inputs, **quick, evaluate={"limit": limit}), tmp_path, first="report")
        assert content(made)["answers"]["mine"] == before


def test_a_lost_page_is_made_again(inputs: dict[str, Any], tmp_path: Path) -> None:
    made, _ = run(world.recipe(inputs, **QUICK), tmp_path)
    page = made.stage("report") / "index.html"
    before = page.read_bytes()
    page.unlink()
    run(world.recipe(inputs, **QUICK), tmp_path)
    assert page.read_bytes() == before


@pytest.mark.parametrize(
    "changes",
    [
        {"features": {"mode": "exact"}},
        {"score": {"methods": ["less"], "across_subtasks": "mean"}},
        {"score": {"methods": ["dot", "sgd"]}, "select": {"count": 6, "turns": "subtasks"}},
        {"score": {"methods": ["less", "full"]}, "select": {"count": 6, "together": True}},
        {"score": {"methods": ["random"]}, "report": {"rows": 0, "near_misses": 0, "lowest": 1}},
    ],
    ids=["exact", "mean", "turns", "together", "few"],
)
def test_every_way_to_select_has_its_report(
    inputs: dict[str, Any],
    tmp_path: Path,
    changes: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gradsieve.report.contributions.SHOWN", 6)  # as many as there are examples
    recipe = world.recipe(inputs, **changes)
    made, _ = run(recipe, tmp_path)
    data = content(made)
    assert len(data["views"]) == 2 * len(recipe.score.methods)
    for view in data["views"]:
        shown = view["shown"]
        assert len({len(values) for name, values in shown.items() if name != "reason"}) == 1
        can_decompose = recipe.features.mode == "store" and view["method"] in ("less", "dot", "sgd")
        assert ("contributions" in shown) == (view["agreement"] is not None) == can_decompose
        if can_decompose:
            each = zip(
                *(shown[name] for name in ("contributions", "subtask", "by_subtask", "score")),
                strict=True,
            )
            for parts, subtask, by_subtask, score in each:
                if recipe.select.turns == "subtasks":  # it may be another subtask's score
                    score = dict(by_subtask).get(subtask, score)
                total = sum(part for _, part in parts)
                assert total == pytest.approx(score, rel=2e-3, abs=2e-6)
        if recipe.report.rows:
            assert shown["group"].count(0) == view["selected"]


def test_the_command(inputs: dict[str, Any], tmp_path: Path) -> None:
    shell, file = CliRunner(), tmp_path / "recipe.yaml"
    recipe = world.recipe(inputs, **QUICK, train={"epochs": 1})
    file.write_text(dump_recipe(recipe), encoding="utf-8")
    out = tmp_path / "run"
    with pytest.raises(RunError, match="pool is not finished"):
        run(recipe, out, first="report")
    run(recipe, out, last="select")  # there is no training yet
    done = shell.invoke(app, ["report", str(file), "--out", str(out), "--quiet"])
    assert done.exit_code == 0, done.output
    assert f"report: {out / '08-report' / 'index.html'}" in done.output
    others = world.recipe(inputs, score={"methods": ["bm25", "full"]})
    with pytest.raises(RunError, match="not of this recipe") as caught:
        run(others, out, first="report")
    assert "no selection mine/full" in caught.value.where
    fewer = world.recipe({**inputs, "pool": inputs["pool"][:1]}, **QUICK)
    more = world.recipe(inputs, **{**QUICK, "select": {"count": 10}})
    for recipe, changed in ((fewer, "source `two` was removed"), (more, "select.count: 9 -> 10")):
        with pytest.raises(RunError, match="not of this recipe") as caught:
            run(recipe, out, first="report")
        assert changed in caught.value.where


def test_another_model_is_refused_another_warmup_or_features_noted(
    inputs: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    made, _ = run(world.recipe(inputs), out)
    recipe = (out / "recipe.yaml").read_bytes()
    with pytest.raises(RunError, match="not of this recipe") as caught:
        run(world.recipe(inputs, model__dtype="bfloat16"), out, first="report")
    assert 'model.dtype: "float32" -> "bfloat16"' in caught.value.where
    assert (out / "recipe.yaml").read_bytes() == recipe
    checkpoints = [str(folder) for folder in Artifacts(made).warmup.checkpoints]
    for changes, line in (
        ({"warmup__learning_rate": 0.5}, "warmup.learning_rate: "),
        ({"warmup__checkpoints": checkpoints}, "warmup.checkpoints: null "),
        ({"features__adam": "official"}, "features.adam: "),
        ({"features__bits": 4}, "features.bits: "),
    ):
        run(world.recipe(inputs, **changes), out, first="report")
        page = (out / "08-report" / "index.html").read_text(encoding="utf-8")
        assert f"made with other settings than below: {line}" in page
    # Settings that a recipe without gradients does not use don't matter.
    blind = world.recipe(inputs, score={"methods": ["random"]}, warmup__learning_rate=0.5)
    run(blind, out)
    assert "made with other settings" not in (out / "08-report" / "index.html").read_text()
    run(world.recipe(inputs), out)
    run(world.recipe(inputs, features__tokens_per_batch=64), out, first="report")
    assert "made with other settings" not in (out / "08-report" / "index.html").read_text()


def test_rows_whose_ids_name_nothing(inputs: dict[str, Any], tmp_path: Path) -> None:
    ids = [True, 1.5, [1], "", True]
    rows = [{"id": id, "prompt": f"say {n % 4}", "completion": "a"} for n, id in enumerate(ids)]
    rows[0] |= {"rank": 7, "gradsieve_rank": 8, "gradsieve_source": "elsewhere", "score": "high"}
    world.write(tmp_path / "odd.jsonl", rows)
    pool = [{"name": "odd", "path": str(tmp_path / "odd.jsonl")}]
    recipe = world.recipe(
        {**inputs, "pool": pool}, score={"methods": ["random"]}, select={"count": 5}
    )
    made, _ = run(recipe, tmp_path / "run")
    texts = [row[6][0][1] for row in content(made)["rows"]]
    assert sorted(texts) == ["say 0", "say 0", "say 1", "say 2", "say 3"]
