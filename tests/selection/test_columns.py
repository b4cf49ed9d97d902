"""Rows of different sources load as they were written, whatever order and types they come in."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from gradsieve.selection.columns import features_of

TEXT = "x" * 3000
"""Enough of them are several of the blocks (10 MB) in which `datasets` reads."""

CASES: dict[str, list[dict[str, Any]]] = {
    "formats": [
        {"messages": [{"role": "user", "content": "a"}], "rank": 1},
        {"prompt": "a", "completion": "b", "rank": 2},
        {"instruction": "x", "input": "", "output": "y", "rank": 3},
        {"conversations": [{"from": "human", "value": "a"}], "rank": 4},
    ],
    "objects with other keys": [
        {"messages": [{"role": "user", "content": "a"}], "meta": {"a": 1}},
        {"messages": [{"role": "user", "content": "a", "weight": 1}], "meta": {"b": [1, 2]}},
    ],
    "ids of two kinds": [{"id": 1, "a": "a"}, {"id": "x", "a": "b"}],
    "text or turns": [{"prompt": "a"}, {"prompt": [{"role": "user", "content": "q"}]}],
    "values of two kinds": [{"meta": {"a": 1}}, {"meta": {"a": "s"}}],
    "empty lists": [{"tags": []}, {"tags": []}, {"tags": None}],
    "a list that fills": [{"tags": []}, {"tags": ["a"]}],
    "numbers": [{"s": 1}, {"s": 1.5}],
    "numbers and truth": [{"s": 1}, {"s": True}],
    "times": [{"s": "2024-01-01T00:00:00", "d": {"e": ["2024-01-01"]}}] * 2,
    "empty objects": [{"m": {}}, {"m": {}}],
    "nothing": [{"m": None, "k": 1}],
    "odd names": [{"m é": "\u2028", "a: b": 1, "null": 2, "-": 3}],
    "a late column": [{"t": TEXT, "old": [i]} for i in range(8000)] + [{"new": [{"a": 1}]}],
    "a late kind": [{"t": TEXT, "id": i} for i in range(8000)] + [{"id": "x"}],
}


@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_rows_load_as_they_were_written(name: str, tmp_path: Path) -> None:
    rows = CASES[name]
    features = features_of(rows)
    block = {
        "configs": [{"config_name": "default", "data_files": "rows.jsonl"}],
        "dataset_info": [{"config_name": "default", "features": features._to_yaml_list()}],
    }
    (tmp_path / "README.md").write_text(f"---\n{yaml.safe_dump(block)}---\n", encoding="utf-8")
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(lines, encoding="utf-8")
    loaded = datasets.load_dataset(str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.features == features
    assert [_there(row) for row in loaded] == [_there(row) for row in rows]


def _there(row: dict[str, Any]) -> dict[str, Any]:
    """Without what is null: a column that a row lacks is null when it is loaded."""
    return {key: value for key, value in row.items() if value is not None}
