"""Selecting with rules: each excludes what it claims, and reports it."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import gradsieve
import world
from gradsieve.analysis.results import compare
from gradsieve.demo.skills import make_questions, make_rows
from gradsieve.errors import RecipeError, RunError
from gradsieve.runs.folder import RunFolder

ROWS = 80


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A pool with a source of copied rows and a source that leaks test questions."""
    folder = tmp_path_factory.mktemp("inputs")
    made = world.make(folder, rows=ROWS)
    copies = [world.record(row) for row in make_rows(ROWS, 0)[:20]]
    world.write(folder / "copies.jsonl", copies)
    questions = [world.record(row) for row in make_questions("reverse", 4, 1)]
    for question in questions:
        text = question["messages"][0]["content"]
        question["messages"][0]["content"] = " : ".join([text] * 3)  # long enough for the leak rule
    world.write(folder / "test.jsonl", questions)
    leaking = [{**question, "id": f"leak-{n}"} for n, question in enumerate(questions[:3])]
    world.write(folder / "leaking.jsonl", leaking)
    made["pool"] += [
        {"name": name, "path": str(folder / f"{name}.jsonl")} for name in ("copies", "leaking")
    ]
    made["targets"][0]["test"] = str(folder / "test.jsonl")
    return made


@pytest.fixture(scope="module")
def out(inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with scores, from which every test selects again."""
    folder = tmp_path_factory.mktemp("run")
    gradsieve.run(world.recipe(inputs), folder, last="score")
    return folder


def select(inputs: dict[str, Any], out: Path, **settings: Any) -> tuple[RunFolder, world.Listening]:
    progress = world.Listening()
    return gradsieve.run(world.recipe(inputs, select=settings), out, progress=progress), progress


def lines(run: RunFolder, name: str, target: str = "mine") -> list[dict[str, Any]]:
    file = run.stage("select") / target / "less" / f"{name}.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]


def test_leaks_are_reported_and_dropped_on_request(inputs: dict[str, Any], out: Path) -> None:
    leaking = {"leak-0", "leak-1", "leak-2"}
    run, progress = select(inputs, out, fraction=1.0)
    assert leaking <= {row["id"] for row in lines(run, "selected")}
    found = (run.stage("select") / "leaks.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    assert {json.loads(line)["id"] for line in found} == leaking
    assert {json.loads(line)["target"] for line in found} == {"mine"}
    assert any("3 rows of the pool share 13 words" in line for line in progress.lines)
    assert run.require("select")["leaks"] == {"mine": 3}
    assert run.require("select")["targets"]["mine"]["less"]["leaks"] == {"mine": 3}
    run, _ = select(inputs, out, fraction=1.0, drop_leaks=True)
    assert not leaking & {row["id"] for row in lines(run, "selected")}
    assert run.require("select")["targets"]["mine"]["less"]["leaks"] == {}
    reasons = {row["id"]: row["reason"] for row in lines(run, "dropped")}
    assert reasons.keys() == leaking
    assert all(reason.startswith("drop_leaks: shares ") for reason in reasons.values())


def test_near_duplicates_are_left_out(inputs: dict[str, Any], out: Path) -> None:
    run, _ = select(inputs, out, fraction=1.0, near_duplicates={"cosine": 0.999})
    chosen = [(row["source"], row["id"]) for row in lines(run, "selected")]
    copied = {id for source, id in chosen if source == "copies"}
    others = {id for source, id in chosen if source in ("one", "two")}
    assert not copied & others
    reasons = [row["reason"] for row in lines(run, "dropped")]
    assert len(reasons) == 20 + ROWS + 3 - len(chosen) >= 20
    assert all(reason.startswith("near_duplicates: cosine ") for reason in reasons)


def test_near_duplicates_do_not_depend_on_what_the_run_made_before(
    inputs: dict[str, Any], out: Path, tmp_path: Path
) -> None:
    """After `less` alone, only the datastore of `sgd` counts, as in a new run."""
    rules = {"fraction": 1.0, "near_duplicates": {"cosine": 0.8}}
    recipe = world.recipe(inputs, score__methods=["sgd"], select=rules)
    selected = []
    for name in ("grown", "new"):
        folder = shutil.copytree(out, tmp_path / name)
        if name == "new":
            for store in RunFolder(folder).stage("features").glob("checkpoint-*/pool"):
                shutil.rmtree(store)
        run = gradsieve.run(recipe, folder, last="select")
        file = run.stage("select") / "mine" / "sgd" / "selected.jsonl"
        selected.append([json.loads(line)["id"] for line in file.read_bytes().split(b"\n")[:-1]])
    assert selected[0] == selected[1]


def test_near_duplicates_need_a_datastore(inputs: dict[str, Any], tmp_path: Path) -> None:
    exact = world.recipe(inputs, features={"mode": "exact"})
    gradsieve.run(exact, tmp_path, last="score")
    recipe = world.recipe(inputs, select={"near_duplicates": {}, "fraction": 0.5})
    with pytest.raises(RunError, match="exact mode keeps none"):
        gradsieve.run(recipe, tmp_path, first="select")


def test_each_subtask_gets_its_turn(inputs: dict[str, Any], out: Path) -> None:
    run, _ = select(inputs, out, count=20, turns="subtasks")
    chosen = lines(run, "selected")
    assert [row["subtask"] for row in chosen] == ["letters", "numbers"] * 10
    plain = lines(select(inputs, out, count=20)[0], "selected")
    assert chosen[0]["id"] in {row["id"] for row in plain}
    assert len({(row["source"], row["id"]) for row in chosen}) == 20


def test_each_target_example_gets_its_turn(inputs: dict[str, Any], tmp_path: Path) -> None:
    recipe = world.recipe(
        inputs, select={"count": 20, "turns": "examples"}, score__methods=["less", "bm25", "random"]
    )
    run = gradsieve.run(recipe, tmp_path, last="select")
    text = Path(inputs["targets"][0]["path"]).read_text("utf-8")
    examples = [json.loads(line) for line in text.split("\n")[:-1]]
    for method in ("less", "bm25"):
        table = pq.read_table(run.stage("score") / "mine" / f"{method}.parquet")
        columns = [name for name in table.column_names if name.startswith("example:")]
        assert columns == [
            f"example:{n}:{example['kind']}/{example['id']}"
            for n, example in enumerate(examples, start=1)
        ]
        values = np.stack([table[name].to_numpy() for name in columns], axis=1)
        for kind in ("letters", "numbers"):
            own = [n for n, name in enumerate(columns) if f":{kind}/" in name]
            if method == "bm25":  # a subtask's score is the mean over its examples
                assert table[kind].to_numpy() == pytest.approx(values[:, own].mean(axis=1))
        keys = list(zip(table["source"].to_pylist(), table["id"].to_pylist(), strict=True))
        expected: list[tuple[str, str]] = []
        while len(expected) < 20:
            column = len(expected) % len(columns)
            left = [line for line, key in enumerate(keys) if key not in expected]
            expected.append(keys[max(left, key=lambda line: values[line, column])])
        file = run.stage("select") / "mine" / method / "messages.jsonl"
        found = [json.loads(line) for line in file.read_text("utf-8").split("\n")[:-1]]
        assert [(row["source"], row["id"]) for row in found] == expected
        kinds = [examples[turn % len(examples)]["kind"] for turn in range(20)]
        assert [row["subtask"] for row in found] == kinds
    # A method without scores per example selects by its total score.
    assert run.require("select")["targets"]["mine"]["random"]["rows"] == 20


def test_a_sources_cap(inputs: dict[str, Any], out: Path) -> None:
    run, _ = select(inputs, out, count=20, per_source={"one": 0.25, "copies": 2})
    counts = Counter(row["source"] for row in lines(run, "selected"))
    assert counts["one"] <= 5
    assert counts["copies"] <= 2
    assert counts.total() == 20


def test_fewer_rows_than_asked_for_is_a_warning(inputs: dict[str, Any], out: Path) -> None:
    run, progress = select(inputs, out, count=20, per_source=2)
    assert len(lines(run, "selected")) == 8
    assert any("less, target mine: 8 rows instead of 20" in line for line in progress.lines)
    run, progress = select(inputs, out, fraction=0.2, per_source=2)
    assert len(lines(run, "selected")) == 8
    assert any("less, target mine: 8 rows instead of 21" in line for line in progress.lines)


def test_one_selection_for_all_targets(inputs: dict[str, Any], tmp_path: Path) -> None:
    recipe = world.recipe(
        inputs,
        select={"count": 10, "together": True},
        score__methods=["random", "bm25"],
        train={"epochs": 1},
        evaluate={"tasks": ["target_loss"]},
    )
    run = gradsieve.run(recipe, tmp_path)
    file = run.stage("select") / "together" / "bm25" / "selected.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]
    turns = [row["subtask"].split("/") for row in rows]  # both targets may have a subtask `all`
    assert [target for target, _ in turns] == ["mine", "plain"] * 5
    assert {subtask for target, subtask in turns if target == "plain"} == {"all"}
    assert "# Selected for mine, plain" in (file.parent / "README.md").read_text()
    assert set(run.require("train")["models"]) == {
        "together/bm25/seed-0",
        "together/random/seed-0",
    }
    found = compare([run.path])
    for target in ("mine", "plain"):
        assert set(found.cells[target]["target_loss"]) == {"base", "bm25", "random"}
        assert found.rows[target] == {"bm25": 10, "random": 10}


def test_the_first_target_has_the_first_turn(inputs: dict[str, Any], tmp_path: Path) -> None:
    def best(targets: list[dict[str, Any]]) -> list[str]:
        changes = {"score__methods": ["bm25"], "select": {"count": 2, "together": True}}
        recipe = world.recipe({**inputs, "targets": targets}, **changes)
        run = gradsieve.run(recipe, tmp_path / "run", last="select")
        file = run.stage("select") / "together" / "bm25" / "selected.jsonl"
        return [json.loads(line)["id"] for line in file.read_text("utf-8").split("\n")[:-1]]

    copy = tmp_path / "copy.jsonl"
    first, second = inputs["targets"][0], {**inputs["targets"][1], "path": str(copy)}
    row = Path(inputs["pool"][0]["path"]).read_text(encoding="utf-8").split("\n")[5]
    copy.write_text(row, encoding="utf-8")
    assert best([second, first])[0] == json.loads(row)["id"]
    assert best([first, second])[1] == json.loads(row)["id"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"select": {"per_source": {"none": 3}}}, "no source is called none"),
        ({"select": {"per_source": 0}}, "per_source"),
        ({"select": {"near_duplicates": {"cosine": 1.5}}}, "less than or equal to 1"),
        (
            {"features": {"mode": "exact"}, "select": {"near_duplicates": {}}},
            "does not make",
        ),
    ],
)
def test_wrong_rules_are_refused(
    inputs: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        world.recipe(inputs, **changes)
    assert said in str(caught.value)
