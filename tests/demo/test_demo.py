"""The demo from end to end. Slow: it trains its model from scratch."""

import json
from pathlib import Path

import pytest

import world
from gradsieve import demo
from gradsieve.recipe.load import load_recipe


@pytest.mark.slow
def test_the_selection_finds_the_skill(tmp_path: Path) -> None:
    result = demo.main(tmp_path, world.Listening())
    assert result.selected == 120
    assert result.of_skill / result.selected > 3 * result.pool_of_skill / result.pool
    assert result.of_skill > 3 * result.of_twin
    assert result.loss["less"] < result.loss["bm25"] < result.loss["base"]
    assert result.loss["less"] < result.loss["random"]
    assert result.accuracy["full"] > result.accuracy["less"] > result.accuracy["random"]
    assert "Target skill: reverse" in result.table()


def test_the_truth_is_hidden_from_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradsieve.demo.model.STEPS", 2)
    recipe = load_recipe(demo.prepare(tmp_path, world.Listening()))
    truth = json.loads((tmp_path / "truth.json").read_text())
    for source in recipe.pool:
        for line in Path(source.path).read_text().splitlines():
            row = json.loads(line)
            assert row.keys() == {"id", "kind", "messages"}
            assert row["id"] in truth
