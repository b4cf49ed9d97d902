"""A score table is read back as it was written, and its lines are matched to the pool."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import gradsieve
import world
from gradsieve.data.pool import Pool
from gradsieve.methods import Scores
from gradsieve.runs.artifacts import Artifacts
from gradsieve.runs.score_table import (
    FIXED,
    ScoreTable,
    column_of,
    read_scores,
    subtask_of,
    write_scores,
)

NAMES = [*FIXED, "letters", "subtask:x", "subtask:id", "subtask:subtask:id", "subtask:", ""]


def test_names_come_back_and_share_no_column() -> None:
    columns = [column_of(name) for name in NAMES]
    assert [subtask_of(column) for column in columns] == NAMES
    assert len({*columns, *FIXED}) == len(NAMES) + len(FIXED)
    assert column_of("letters") == "letters"


def table(subtasks: list[str]) -> ScoreTable:
    keys = pa.table({"source": ["a", "a", "b"], "id": ["1", "é", "0"]})
    by_subtask = np.array([[3, 1], [0, 7], [7, 7]], np.float32)[:, : len(subtasks)]
    total = np.array([3, 7, 7], np.float32)
    best = np.array([0, 1, 0], np.int32) if subtasks else np.full(3, -1, np.int32)
    return ScoreTable(keys, total, best, subtasks, by_subtask)


@pytest.mark.parametrize("subtasks", [["letters", "id"], []])
def test_a_table_comes_back(subtasks: list[str], tmp_path: Path) -> None:
    made = table(subtasks)
    by_subtask = made.by_subtask if subtasks else None
    scores = Scores(made.total, subtasks, by_subtask)
    write_scores(tmp_path / "scores.parquet", made.keys, scores)
    found = read_scores(tmp_path / "scores.parquet")
    assert found.keys.equals(made.keys)
    assert found.subtasks == subtasks
    for name in ("total", "best", "by_subtask"):
        values = getattr(found, name)
        assert values.dtype == getattr(made, name).dtype
        assert values.tolist() == getattr(made, name).tolist()
    names = [found.subtask(line) for line in range(3)]
    assert names == (["letters", "id", "letters"] if subtasks else ["", "", ""])
    written = pq.read_table(tmp_path / "scores.parquet")
    assert written["subtask"].to_pylist() == names
    assert written.column_names == [*FIXED, *map(column_of, subtasks)]


def test_lines_by_rank_and_by_key() -> None:
    made = table([])
    assert made.order.tolist() == [1, 2, 0]  # ties are sorted by (source, id)
    assert made.ranks.tolist() == [3, 1, 2]
    assert made.key(1) == ("a", "é")
    assert [made.find(*made.key(line)) for line in range(3)] == [0, 1, 2]
    assert made.find("a", "0") is made.find("c", "0") is None


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    data: dict[str, Any] = world.make(tmp_path_factory.mktemp("inputs"), rows=30)
    run = gradsieve.run(world.recipe(data), tmp_path_factory.mktemp("run"), last="pool")
    return Artifacts(run).pool.read()


def test_lines_are_numbers_of_the_pool(pool: Pool) -> None:
    def scored(keys: pa.Table) -> ScoreTable:
        zeros = np.zeros(len(keys), np.float32)
        return ScoreTable(keys, zeros, np.full(len(keys), -1), [], zeros[:, None][:, :0])

    every = pool.take(pool.usable, ["source", "id"])
    assert scored(every).numbers(pool).tolist() == pool.usable.tolist()
    few = scored(every.take([0, 3, 29]))
    assert few.numbers(pool).tolist() == pool.usable[[0, 3, 29]].tolist()
    other = pa.concat_tables([few.keys, pa.table({"source": ["z"], "id": ["gone"]})])
    assert scored(other).numbers(pool).tolist() == [*pool.usable[[0, 3, 29]].tolist(), -1]


def test_best_examples_come_back(tmp_path: Path) -> None:
    subtasks = ["letters", "best_example:letters"]
    ids = [pa.array(["x", "é", "x"]).dictionary_encode(), pa.array(["", "z", "z"])]
    made, best_examples = table(subtasks), pa.table(dict(zip("ab", ids, strict=True)))
    scores = Scores(made.total, subtasks, made.by_subtask, best_examples=best_examples)
    write_scores(tmp_path / "scores.parquet", made.keys, scores)
    found = read_scores(tmp_path / "scores.parquet")
    assert found.subtasks == subtasks
    assert found.within.tolist() == made.by_subtask.tolist()
    assert [found.best_example(line, 0) for line in range(3)] == ["x", "é", "x"]
    assert [found.best_example(line, 1) for line in range(3)] == ["", "z", "z"]
    assert table(subtasks).best_example(0, 0) is None
