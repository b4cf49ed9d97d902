"""The report's contents, compared with the run's own files."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import gradsieve
import hostile
import world
from gradsieve.analysis.decompose import decompose
from gradsieve.recipe.schema import Recipe
from gradsieve.report.gather import gather
from gradsieve.report.page import embedded
from gradsieve.report.texts import CUT, turns
from gradsieve.runs.context import Context
from gradsieve.runs.folder import RunFolder

SETTINGS: dict[str, Any] = {
    "score": {"methods": ["less", "random"]},
    "select": {"fraction": 0.3, "per_source": {"one": 2}, "near_duplicates": {"cosine": 0.98}},
    "report": {"near_misses": 7, "lowest": 4},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, RunFolder]:
    data = hostile.world_of(tmp_path_factory.mktemp("inputs"))
    recipe = world.recipe(data, **SETTINGS)
    out = tmp_path_factory.mktemp("run")
    return recipe, gradsieve.run(recipe, out)


@pytest.fixture(scope="module")
def content(made: tuple[Recipe, RunFolder]) -> dict[str, Any]:
    return gather(Context(*made, world.Listening()))


@pytest.fixture(scope="module")
def view(content: dict[str, Any]) -> dict[str, Any]:
    (found,) = (v for v in content["views"] if (v["target"], v["method"]) == ("mine", "less"))
    return found


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_bytes().split(b"\n") if line]


def key_of(row: dict[str, Any]) -> tuple[str, str]:
    return row["source"], row["id"]


def ranked(run: RunFolder, method: str = "less") -> list[tuple[str, str]]:
    """Keys of the rows by the scores for `mine`, best first."""
    table = pq.read_table(run.stage("score") / "mine" / f"{method}.parquet").to_pylist()
    return [key_of(row) for row in sorted(table, key=lambda row: (-row["score"], *key_of(row)))]


def keys(content: dict[str, Any], view: dict[str, Any], group: int) -> list[tuple[str, str]]:
    shown = view["shown"]
    rows = [content["rows"][row] for row, of in zip(shown["row"], shown["group"], strict=True)
            if of == group]  # fmt: skip
    return [(content["sources"][row[0]], row[1]) for row in rows]


def test_the_page_holds_what_was_gathered(
    made: tuple[Recipe, RunFolder], content: dict[str, Any]
) -> None:
    page = (made[1].stage("report") / "index.html").read_text(encoding="utf-8")
    found = re.search(r' id="data">(.*)</script>', page)
    assert found is not None
    assert found[1] == embedded(content)


def test_groups_are_the_selections(
    made: tuple[Recipe, RunFolder], content: dict[str, Any], view: dict[str, Any]
) -> None:
    _, run = made
    folder = run.stage("select") / "mine" / "less"
    selected = [key_of(row) for row in lines(folder / "selected.jsonl")]
    rules = ("near_duplicates", "per_source")
    passed = [r for r in lines(folder / "dropped.jsonl") if r["reason"].startswith(rules)]
    assert keys(content, view, 0) == selected
    assert keys(content, view, 1) == [key_of(row) for row in passed[:7]]
    assert len(passed) > 7
    counts = Counter(row["reason"].partition(":")[0] for row in passed)
    assert dict(view["passed_over"]) == counts
    assert sorted(view["shown"]["reason"].values()) == sorted(r["reason"] for r in passed[:7])
    order, taken = ranked(run), {*selected, *map(key_of, passed)}
    rest = [key for key in order if key not in taken]
    assert keys(content, view, 2) == rest[:7]
    assert keys(content, view, 3) == rest[::-1][:4]
    every = [key for group in range(4) for key in keys(content, view, group)]
    assert [order[rank - 1] for rank in view["shown"]["rank"]] == every


def test_counts_are_those_of_the_files(
    made: tuple[Recipe, RunFolder], content: dict[str, Any], view: dict[str, Any]
) -> None:
    _, run = made
    selected = lines(run.stage("select") / "mine" / "less" / "selected.jsonl")
    table = pq.read_table(run.stage("score") / "mine" / "less.parquet").to_pylist()
    sources, pool = Counter(r["source"] for r in selected), Counter(r["source"] for r in table)
    assert view["sources"] == [[sources[name], pool[name]] for name in content["sources"]]
    best, chosen = (Counter(row["subtask"] for row in rows) for rows in (table, selected))
    assert view["subtasks"] == [[name, chosen[name], best[name]] for name in ("letters", "numbers")]
    assert (view["selected"], view["scored"]) == (len(selected), len(table))
    assert view["tokens"] == run.require("select")["targets"]["mine"]["less"]["tokens"]
    for bins in (view["scores"], view["lengths"]):
        assert (sum(bins["all"]), sum(bins["selected"])) == (len(table), len(selected))


def test_scores_of_rows_chosen_in_turns_are_on_the_scale_of_all_scores(
    made: tuple[Recipe, RunFolder], tmp_path: Path
) -> None:
    """The score for the subtask of a turn isn't standardized; the combined scores are."""
    changes = {"score": {"method": "bm25", "across_subtasks": "standardized_max"},
               "select": {"count": 20, "turns": "subtasks"}}  # fmt: skip
    data = made[0].model_dump(include={"model", "pool", "targets"}, mode="json")
    recipe = world.recipe(data, **changes)
    run = gradsieve.run(recipe, tmp_path)
    view = next(v for v in gather(Context(recipe, run))["views"] if v["target"] == "mine")
    table = pq.read_table(run.stage("score") / "mine" / "bm25.parquet").to_pylist()
    total = {key_of(row): row["score"] for row in table}
    chosen = [total[key_of(r)] for r in lines(run.stage("select") / "mine/bm25/selected.jsonl")]
    assert view["shown"]["score"][:20] == pytest.approx(chosen, rel=1e-5)
    assert view["lowest_selected"] == pytest.approx(min(chosen), rel=1e-5)


def test_contributions_are_the_strongest_parts_of_the_score(
    made: tuple[Recipe, RunFolder], content: dict[str, Any], view: dict[str, Any]
) -> None:
    recipe, run = made
    (target,) = (t for t in content["targets"] if t["name"] == "mine")
    shown = view["shown"]
    every = [key for group in range(4) for key in keys(content, view, group)]
    context = Context(recipe, run)
    numbers = np.array([context.pool.find(id)[source] for source, id in every])
    parts = decompose(context, "mine", numbers)
    total = parts.values.sum(axis=0)
    for row in range(len(every)):
        subtask = view["subtasks"][shown["subtask"][row]][0]
        own = {id: total[row, n] for n, (id, of) in
               enumerate(zip(parts.ids, parts.subtasks, strict=True)) if of == subtask}  # fmt: skip
        found = {target["examples"][n][0]: part for n, part in shown["contributions"][row]}
        # Three examples per subtask: all of them are shown.
        assert found == pytest.approx(own, rel=1e-4, abs=1e-7)
        assert sum(own.values()) == pytest.approx(shown["score"][row], rel=1e-3, abs=1e-6)
        assert sum(shown["by_checkpoint"][row]) == pytest.approx(sum(own.values()), abs=1e-5)
        assert [part for _, part in shown["contributions"][row]] == sorted(
            found.values(), reverse=True
        )


def test_checkpoints_are_compared(made: tuple[Recipe, RunFolder], view: dict[str, Any]) -> None:
    recipe, run = made
    table = pq.read_table(run.stage("score") / "mine" / "less.parquet").to_pylist()
    context = Context(recipe, run)
    parts = decompose(context, "mine", context.artifacts.scores.table("mine", "less").numbers(
        context.pool))  # fmt: skip
    of = np.array(parts.subtasks)
    first, second = (
        np.stack([part[:, of == name].sum(1) for name in ("letters", "numbers")], 1).max(1)
        for part in parts.values
    )
    ranks = [values.argsort().argsort() for values in (first, second)]
    found = view["agreement"]
    assert found["rows"] == len(table)
    assert found["spearman"][0][1] == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-4)
    count = round(0.05 * len(table))
    tops = [set(values.argsort()[::-1][:count].tolist()) for values in (first, second)]
    assert found["top"][0][1] == pytest.approx(len(tops[0] & tops[1]) / count, abs=1e-4)
    assert np.allclose(np.diag(found["spearman"]), 1)


def test_methods_that_cannot_be_decomposed_have_no_contributions(content: dict[str, Any]) -> None:
    for view in content["views"]:
        assert ("contributions" in view["shown"]) == (view["method"] == "less")


def test_long_texts_are_cut_at_a_stated_length() -> None:
    def cut(*texts: str) -> tuple[list[list[str]], int]:
        return turns([{"role": "user", "content": text} for text in texts])

    assert cut("a" * CUT) == ([["user", "a" * CUT]], 0)
    assert cut("a" * 100_000) == ([["user", "a" * CUT]], 100_000 - CUT)
    assert cut("a" * (CUT - 1), "bcd", "ef") == ([["user", "a" * (CUT - 1)], ["user", "b"]], 4)


def test_few_rows_are_shared_among_the_selections(made: tuple[Recipe, RunFolder]) -> None:
    recipe, run = made
    few = recipe.model_copy(update={"report": recipe.report.model_copy(update={"rows": 12})})
    views = gather(Context(few, run, world.Listening()))["views"]
    assert len(views) == 6
    for view in views:
        assert view["shown"]["group"].count(0) == min(2, view["selected"])
    assert max(view["selected"] for view in views) > 2


def test_the_same_inputs_give_the_same_bytes_but_for_one_line(
    made: tuple[Recipe, RunFolder], tmp_path: Path
) -> None:
    recipe, run = made
    tree = json.loads(recipe.model_dump_json())
    moved = world.shuffled({"pool": tree["pool"][:2]}, tmp_path / "pool")["pool"]
    other = world.recipe({**tree, "pool": [*moved, tree["pool"][2]]})
    again = gradsieve.run(other, tmp_path / "run")
    name = "08-report/index.html"
    assert world.results(again)[name] == world.results(run)[name]
    assert (again.path / name).read_bytes() != (run.path / name).read_bytes()


def test_ranks_are_those_of_the_tables(
    made: tuple[Recipe, RunFolder], content: dict[str, Any]
) -> None:
    _, run = made
    ranks = {row: places for row, *places in content["ranks"]["mine"]}
    own = [view for view in content["views"] if view["target"] == "mine"]
    assert {row for view in own for row in view["shown"]["row"]} == {*ranks}
    for column, view in enumerate(own):
        place = {key: rank for rank, key in enumerate(ranked(run, view["method"]), start=1)}
        folder = run.stage("select") / "mine" / view["method"]
        selected = set(map(key_of, lines(folder / "messages.jsonl")))
        for row, places in ranks.items():
            source, id = content["rows"][row][:2]
            key = (content["sources"][source], id)
            assert abs(places[column]) == place[key]
            assert (places[column] < 0) == (key in selected)


def test_the_map_has_the_selected_rows(
    made: tuple[Recipe, RunFolder], content: dict[str, Any]
) -> None:
    points = content["map"]["points"]
    for method in ("less", "random"):
        found = {(content["sources"][points[n][0]], points[n][1])
                 for n in content["map"]["selected"]["mine"][method]}  # fmt: skip
        rows = lines(made[1].stage("select") / "mine" / method / "messages.jsonl")
        assert found == set(map(key_of, rows))
