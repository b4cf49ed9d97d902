"""The scores stage reports scores that don't rank rows."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import gradsieve
import world

ROWS = 20


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return world.make(tmp_path_factory.mktemp("inputs"), rows=ROWS)


def warnings(inputs: dict[str, Any], out: Path, methods: list[str]) -> list[str]:
    progress = world.Listening()
    recipe = world.recipe(inputs, score__methods=methods, select={"count": 3})
    gradsieve.run(recipe, out, last="score", progress=progress)
    return [line for line in progress.lines if "the same" in line]


def target(folder: Path, *texts: tuple[str, str]) -> dict[str, Any]:
    """A target with one example per (kind, text)."""
    records = [
        {
            "id": str(number),
            "kind": kind,
            "messages": [
                {"role": "user", "content": text},
                {"role": "assistant", "content": text},
            ],
        }
        for number, (kind, text) in enumerate(texts)
    ]
    file = folder / "target.jsonl"
    world.write(file, records)
    return {"name": "odd", "path": str(file), "subtask": "kind"}


def test_rows_that_all_tie_are_reported(inputs: dict[str, Any], tmp_path: Path) -> None:
    odd = target(tmp_path, ("foreign", "quantum chromodynamics"))
    wrong = {**inputs, "targets": [odd, *inputs["targets"]]}
    found = warnings(wrong, tmp_path / "run", ["bm25", "random", "full"])
    assert found == [
        f"warning: bm25, target odd: {ROWS} of {ROWS} rows have the same, highest score; equal "
        "scores are ordered by source and id"
    ]


def test_ties_of_most_rows_for_the_highest_score_are_reported(
    inputs: dict[str, Any], tmp_path: Path
) -> None:
    # A single target example spans a line; every row points in one of its two directions.
    one = target(tmp_path, ("known", "b c a"))
    run = {**inputs, "targets": [one]}
    found = [text for text in warnings(run, tmp_path / "run", ["gist"]) if "gist" in text]
    table = pq.read_table(tmp_path / "run" / "03-score" / "odd" / "gist.parquet")
    best = int((table["score"].to_numpy() == table["score"].to_numpy().max()).sum())
    assert ROWS / 2 < best < ROWS
    assert found == [
        f"warning: gist, target odd: {best} of {ROWS} rows have the same, highest score; "
        "equal scores are ordered by source and id"
    ]


def test_a_subtask_for_which_all_rows_tie_is_named(inputs: dict[str, Any], tmp_path: Path) -> None:
    row = json.loads(Path(inputs["pool"][0]["path"]).read_text("utf-8").split("\n")[0])
    texts = ("foreign", "quantum chromodynamics"), ("known", row["messages"][0]["content"])
    odd = target(tmp_path, *texts)
    found = warnings({**inputs, "targets": [odd]}, tmp_path / "run", ["bm25"])
    assert len(found) == 1
    assert found[0].endswith(
        f"all {ROWS} rows have the same score for 1 of 2 subtasks, the first foreign"
    )
