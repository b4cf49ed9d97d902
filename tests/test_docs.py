"""The Python of the docs runs as it stands, on a model and files of the names that it uses."""

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import gradsieve
import world
from gradsieve.recipe import dump_recipe

DOCS = Path(__file__).parents[1] / "docs"
MODEL = "Qwen/Qwen3-0.6B"


def blocks(page: str, language: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    # TRL trains in bfloat16 unless told otherwise, which needs a GPU.
    text = text.replace('report_to="none"', 'report_to="none", bf16=False')
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The folder that the examples are run in; returns its recipe."""
    data = world.make(tmp_path, rows=60)
    (tmp_path / "Qwen").mkdir()
    (tmp_path / "model").rename(tmp_path / MODEL)
    (tmp_path / "one.jsonl").rename(tmp_path / "dolly.jsonl")
    legal = [
        {**world.record(row), "topic": row.kind} for row in world.make_examples("reverse", 3, 0)
    ]
    world.write(tmp_path / "legal.jsonl", legal)
    more = [world.record(row) for row in world.make_rows(60, 0)[30:]]
    pq.write_table(pa.Table.from_pylist(more), tmp_path / "more.parquet")
    data["model"]["name"] = MODEL
    data["pool"] = [{"name": "dolly", "path": "dolly.jsonl"}]
    data["targets"] = [{"name": "legal", "path": "legal.jsonl", "subtask": "topic"}]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(world.recipe(data)), encoding="utf-8")
    return data


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::FutureWarning", "ignore::ResourceWarning"
)
def test_python(notebook: dict[str, Any]) -> None:
    names: dict[str, Any] = {}
    for block in blocks("python.md", "python"):
        exec(compile(block, "python.md", "exec"), names)
    assert len(names["found"]) == 3
    assert names["after"].selected["rank"][0] == 1
    assert len(names["store"]) == 30


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::FutureWarning", "ignore::ResourceWarning"
)
def test_training(notebook: dict[str, Any]) -> None:
    gradsieve.run(world.recipe(notebook), "runs/first", progress=world.Listening())
    names: dict[str, Any] = {}
    for block in blocks("training.md", "python"):
        exec(compile(block, "training.md", "exec"), names)
    assert names["trainer"].state.global_step == 4
    for block in blocks("training.md", "yaml") + blocks("training.md", "json"):
        assert yaml.safe_load(block)
