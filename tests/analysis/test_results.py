"""Comparing runs: what counts as a repetition, as a difference, and as out of date."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

import world
from gradsieve.analysis.results import compare
from gradsieve.analysis.validation import Validation
from gradsieve.cli import app
from gradsieve.errors import RunError
from gradsieve.io import write_json
from gradsieve.recipe.load import load_recipe
from gradsieve.recipe.schema import Recipe, Section
from gradsieve.runs.folder import RunFolder

INPUTS = {
    "model": {"name": "m"},
    "pool": [{"name": "a", "path": "p"}],
    "targets": [{"name": "mine", "path": "t"}],
}


def finished(
    folder: Path,
    methods: Sequence[str],
    ids: Sequence[str] = ("q1", "q2"),
    metric: str = "held_out_loss",
) -> Path:
    """A run of one target with made-up results; every method selects rows r0 and NAME."""
    run = RunFolder(folder)
    rows = []
    for number, method in enumerate(methods):
        values = [float(number + place) for place in range(len(ids))]
        told = {"target": "mine", "method": method, "seed": 0, "metric": metric}
        rows.append({**told, "value": float(np.mean(values)), "higher_is_better": False})
        asked = {"ids": ids, "weights": [1 / len(ids)] * len(ids)}
        found = {"metrics": {metric: values}, **asked}
        write_json(run.stage("evaluate") / "mine" / method / "seed-0.json", found)
        out = run.stage("select") / "mine" / method
        out.mkdir(parents=True)
        chosen = [{"source": "a", "id": id} for id in ("r0", method)]
        world.write(out / "messages.jsonl", chosen)
    write_json(run.stage("evaluate") / "results.json", {"rows": rows})
    scored = [method for method in methods if method != "base"]
    run.finish(
        "score", {"methods": {name: {"seconds": 1.0, "gradients": False} for name in scored}}
    )
    run.finish("select", {"targets": {"mine": {method: {"rows": 2} for method in scored}}})
    run.finish("evaluate", {})
    return folder


def test_runs_may_have_different_methods(tmp_path: Path) -> None:
    one = finished(tmp_path / "one", ["bm25", "random"])
    two = finished(tmp_path / "two", ["bm25", "rds"])
    found = compare([one, two])
    table = found.markdown().split("Rows that selections share:")[1].split("\n")
    assert table[4:] == ["| random | 50% |  |", "| rds | 50% |  |"]
    results, shared = found.latex().split("\n\n")
    assert results.count(r"\\") == 4  # the header and three methods
    assert shared.startswith(r"\begin{tabular}{lrr} % mine: Rows that selections share")
    assert r"rds & 50\% &  \\" in shared


def test_questions_with_the_same_ids_may_be_others(tmp_path: Path) -> None:
    runs = [finished(tmp_path / name, ["bm25", "random"]) for name in ("one", "two")]
    for run, questions in zip(runs, ("a", "b"), strict=True):
        RunFolder(run).finish(
            "evaluate", {"inputs": {"models": {}, "questions": {"mine": questions}}}
        )
    with pytest.raises(RunError, match="different questions") as caught:
        compare(runs)
    assert caught.value.where == (
        f"target mine: 2 in {runs[0]}, 2 in {runs[1]}; the ids are the same; the texts, few-shot "
        "examples or answers are not"
    )


def test_a_run_named_twice_is_no_repetition(tmp_path: Path) -> None:
    run = finished(tmp_path / "one", ["bm25", "random"])
    found = compare([run, run.parent / "." / "one"])
    assert found.markdown() == compare(run).markdown()
    assert len(found.cells["mine"]["held_out_loss"]["bm25"].values) == 1


def test_runs_that_differ_in_more_than_seeds_are_noted(tmp_path: Path) -> None:
    runs = [finished(tmp_path / name, ["bm25", "random"]) for name in ("one", "two")]
    for run, rate in zip(runs, (1, 2), strict=True):
        recipe = {"warmup": {"seed": rate, "epochs": rate}, "train": {"seeds": [rate]}}
        RunFolder(run).write_recipe(yaml.safe_dump({**INPUTS, **recipe}))
    (note,) = compare(runs).notes
    assert note == (
        f"{runs[0]} and {runs[1]} count as repetitions of each other and differ in "
        "warmup.epochs: 1 -> 2"
    )
    told = CliRunner().invoke(app, ["compare", *map(str, runs)])
    assert note in told.stderr
    assert compare([runs[0], finished(tmp_path / "three", ["rds"])]).notes == []


def test_runs_of_other_rows_are_noted(tmp_path: Path) -> None:
    runs = [finished(tmp_path / name, ["bm25", "random"]) for name in ("one", "two")]
    for run, rows in zip(runs, ("x", "y"), strict=True):
        inputs = {"pool": {"a": rows, "b": "z"}, "targets": {"mine": rows, rows: rows}}
        RunFolder(run).finish("score", {"inputs": inputs, "methods": {}})
    (note,) = [note for note in compare(runs).notes if "repetitions" in note]
    assert note.endswith("differ in the rows of source `a`; the examples of target `mine`")


SECTIONS = (
    *("model", "warmup", "warmup.lora", "features", "features.projection", "score", "select"),
    *("select.near_duplicates", "train", "evaluate", "report", "pool.0", "targets.0"),
)


def section_at(recipe: Recipe, path: str) -> Section:
    found: Any = recipe
    for part in path.split("."):
        found = found[int(part)] if part.isdigit() else getattr(found, part)
    return found


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize("path", SECTIONS)
def test_differences_are_the_keys_that_are_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    runs = [finished(tmp_path / name, ["bm25", "random"]) for name in ("one", "two")]
    full = {"select": {"near_duplicates": {}}, "train": {}, "evaluate": {}}
    for run in runs:
        RunFolder(run).write_recipe(yaml.safe_dump({**INPUTS, **full}))
    for key in type(section_at(load_recipe(runs[0] / "recipe.yaml"), path)).model_fields:
        if key == "name" and path in ("pool.0", "targets.0"):
            continue  # the name identifies the source or target

        def changed(file: Path, key: str = key) -> Recipe:
            recipe = load_recipe(file).model_copy(deep=True)  # the recipes share default objects
            if file == runs[1] / "recipe.yaml":
                section_at(recipe, path).__dict__[key] = "another value"
            return recipe

        monkeypatch.setattr("gradsieve.analysis.results.load_recipe", changed)
        marked = section_at(load_recipe(runs[0] / "recipe.yaml"), path).effect(key)
        notes = [note for note in compare(runs).notes if f".{key}" in note]
        assert bool(notes) == (marked in ("yes", "contents")), key


def trained(run: Path, selections: dict[str, str], on: dict[str, str]) -> None:
    """Write the metadata of a run whose models were trained on other selections than its own."""
    folder = RunFolder(run)
    models = {f"{name}/seed-0": f"weights of {selection}" for name, selection in on.items()}
    select = folder.require("select")
    folder.finish("select", {**select, "selections": selections, "output": str(selections)})
    folder.finish("train", {"models": models, "inputs": {"selections": on}})
    folder.finish("evaluate", {"inputs": {"models": models, "targets": {"mine": "t"}}})


def test_results_of_an_earlier_selection_are_left_out(tmp_path: Path) -> None:
    run = finished(tmp_path, ["base", "bm25", "random"])
    same = {"mine/bm25": "1", "mine/random": "2"}
    trained(run, same, on=same)
    assert compare([run]).notes == []
    assert compare([run]).cells["mine"]["held_out_loss"].keys() == {"base", "bm25", "random"}
    trained(run, {**same, "mine/random": "3"}, on=same)
    found = compare([run])
    assert found.cells["mine"]["held_out_loss"].keys() == {"base", "bm25"}
    (note,) = found.notes
    assert "results of mine/random are out of date" in note
    assert "`gradsieve run --from train`" in note
    assert note in CliRunner().invoke(app, ["compare", str(run)]).stderr
    trained(run, {"mine/bm25": "4", "mine/random": "3"}, on=same)
    with pytest.raises(RunError, match="out of date") as caught:
        compare([run])
    assert "mine/bm25, mine/random" in caught.value.where
    trained(run, {"mine/bm25": "1", "mine/rds": "9"}, on=same)  # one method replaced
    RunFolder(run).finish("report", {"inputs": {"stages": {"select": "as it was"}}})
    found = compare([run])
    assert found.cells["mine"]["held_out_loss"].keys() == {"base", "bm25"}
    assert "`gradsieve run --from train`" in found.notes[0]  # not from the report


def test_a_training_that_was_stopped_is_named(tmp_path: Path) -> None:
    run = finished(tmp_path, ["base", "bm25"])
    trained(run, {"mine/bm25": "1"}, on={"mine/bm25": "1"})
    RunFolder(run).begin("train", {})
    with pytest.raises(RunError, match="The stage train is not finished"):
        compare([run])


def test_results_of_a_selection_for_all_targets_together(tmp_path: Path) -> None:
    run = finished(tmp_path, ["bm25", "random"])
    trained(run, {"together/bm25": "1", "together/random": "2"},
            on={"together/bm25": "1", "together/random": "1"})  # fmt: skip
    assert compare([run]).cells["mine"]["held_out_loss"].keys() == {"bm25"}


def test_a_model_before_training_is_no_repetition_of_itself(tmp_path: Path) -> None:
    runs = [finished(tmp_path / name, ["base", "random"]) for name in ("one", "two")]
    for run in runs:
        RunFolder(run).finish("evaluate", {"inputs": {"base": {"weights": "w"}}})
    cells = compare(runs).cells["mine"]["held_out_loss"]
    assert (len(cells["base"].values), len(cells["random"].values)) == (1, 2)


@pytest.mark.parametrize("target", ["mine", "together"])
def test_a_trained_model_that_runs_share_is_no_repetition_of_itself(
    tmp_path: Path, target: str
) -> None:
    runs = [finished(tmp_path / name, ["bm25", "random"]) for name in ("one", "two")]
    for run, seed in zip(runs, "01", strict=True):
        trained(run, {f"{target}/bm25": "1", f"{target}/random": seed},
                on={f"{target}/bm25": "1", f"{target}/random": seed})  # fmt: skip
    cells = compare(runs).cells["mine"]["held_out_loss"]
    assert (len(cells["bm25"].values), len(cells["random"].values)) == (1, 2)
    assert cells["bm25"].deviation is None


def test_a_model_that_runs_share_is_refused_on_different_questions(tmp_path: Path) -> None:
    """Only one of its two results counts; which one must not depend on the order of runs."""
    runs = [finished(tmp_path / str(n), ["bm25"], ("q1", "q2", "q3")[:n]) for n in (2, 3)]
    for run in runs:
        trained(run, {"mine/bm25": "1"}, on={"mine/bm25": "1"})
    with pytest.raises(RunError, match="different questions"):
        compare(runs)


def test_order_of_methods_may_differ_between_runs(tmp_path: Path) -> None:
    one = finished(tmp_path / "one", ["bm25", "random"])
    two = finished(tmp_path / "two", ["rds", "bm25"])
    assert "| rds | 50% |  |" in compare([one, two]).markdown()


@pytest.mark.parametrize(
    ("ids", "differ"),
    [
        (("q1", "q3"), "q2 and q3"),
        (("q2", "q1"), "q1 and q2"),
        (("q1", "q2", "q3"), "no question and q3"),
    ],
)
def test_runs_on_different_questions_are_refused(
    tmp_path: Path, ids: Sequence[str], differ: str
) -> None:
    one = finished(tmp_path / "one", ["random", "bm25"])
    two = finished(tmp_path / "two", ["random", "bm25"], ids)
    with pytest.raises(RunError) as caught:
        compare([one, two])
    assert "different questions" in str(caught.value)
    assert f"the first to differ are {differ}" in caught.value.where
    assert f"2 in {one}, {len(ids)} in {two}" in caught.value.where


@pytest.mark.parametrize("own_id", ["", None, True, 0.5, ["r0"]])
def test_rows_are_distinguished_whatever_their_id(tmp_path: Path, own_id: Any) -> None:
    run = finished(tmp_path, ["random-1", "bm25"])
    for method in ("random-1", "bm25"):
        folder = RunFolder(run).stage("select") / "mine" / method
        world.write(folder / "selected.jsonl", [{"source": "a", "id": own_id}] * 2)
    assert compare([run]).overlap == {"mine": {"random": {"bm25": 0.5}}}


def test_the_verdict_and_the_steps(tmp_path: Path) -> None:
    run = finished(tmp_path, ["less", "random", "full", "base"])  # losses rise by 1 each
    counts = {"less": 12, "random": 12, "full": 240}
    steps = {f"mine/{name}/seed-0": count for name, count in counts.items()}
    RunFolder(run).finish("train", {"steps_by_model": steps})
    found = compare([run])
    cells = found.cells["mine"]["held_out_loss"]
    assert cells["less"].over == {
        "random": (-1.0, -1.0, -1.0), "full": (-2.0, -2.0, -2.0), "base": (-3.0, -3.0, -3.0)
    }  # fmt: skip
    assert cells["random"].over.keys() == {"full", "base"}
    text = found.markdown()
    assert "| method | rows | steps | held_out_loss ↓ |" in text
    assert "| less | 2 | 12 | 0.500 |" in text
    assert "| base | – | – | 3.500 |" in text
    assert "Verdict: use 04-select/mine/less: held_out_loss (lower is better) -1.000 over" in text
    assert "Caution: one trained model of less, random, full: the intervals are over" in text
    assert "Caution: optimizer steps differ, from 12 (less) to 240 (full)" in text
    assert "% Verdict: use 04-select" in found.latex()
    two = compare([run, finished(tmp_path / "two", ["less", "random"])])
    assert two.verdicts["mine"].text.startswith(f"use {run}/04-select/mine/less")
    assert not any(caution.startswith("one") for caution in two.verdicts["mine"].cautions[1:])


@pytest.mark.parametrize(
    ("methods", "metric", "why"),
    [
        (["less", "random", "base"], "target_loss", "target_loss is of the examples that were"),
        (["random", "full", "base"], "held_out_loss", "the only selections are random and full"),
    ],
)
def test_why_there_is_no_verdict(
    methods: Sequence[str], metric: str, why: str, tmp_path: Path
) -> None:
    found = compare([finished(tmp_path, methods, metric=metric)])
    assert found.verdicts == {}
    assert found.markdown().count("erdict: ") == 1
    assert f"No verdict: {why}" in found.markdown()
    assert f"% No verdict: {why}" in found.latex()


def test_what_validate_has_found(tmp_path: Path) -> None:
    """It is reported even for a run without evaluation; results for earlier scores are left out."""
    folder, lds = RunFolder(tmp_path), (0.31, 0.05, 0.52)
    row = asdict(Validation("mine", "less", "held_out_loss", 4, 1, lds, {}, 6 * [1.0], 6 * [2.0]))
    write_json(folder.stage("validate") / "results.json", {"rows": [row]})
    folder.finish("score", {"output": "now"})
    with pytest.raises(RunError, match="The stage validate is not finished"):
        compare([tmp_path])
    folder.finish("validate", {"inputs": {"scores": "now"}})
    found = compare([tmp_path])
    assert found.markdown() == (
        "### Validation\n\n- mine, less: LDS 0.31 [0.05, 0.52]: the scores predict which rows "
        "lower the loss."
    )
    assert found.latex().startswith("% mine, less: LDS 0.31")
    folder.finish("score", {"output": "later"})
    found = compare([tmp_path])
    assert found.validation == {}
    assert "validate is out of date" in found.notes[0]
