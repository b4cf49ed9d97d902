"""The demo from end to end. Slow: it trains its model from scratch."""

import json
from pathlib import Path

import pytest
import yaml
from transformers.utils.logging import is_progress_bar_enabled

import world
from gradsieve import demo
from gradsieve.recipe.load import check_recipe, load_recipe


@pytest.mark.slow
def test_the_selection_finds_the_skill(tmp_path: Path) -> None:
    result = demo.main(tmp_path, world.Listening())
    assert result.selected == 120
    assert result.of_skill / result.selected > 3 * result.pool_of_skill / result.pool
    assert result.of_skill > 3 * result.of_twin
    assert result.loss["less"] < result.loss["bm25"] < result.loss["base"]
    assert result.loss["less"] < result.loss["random"]
    assert result.loss["less"] < result.loss["full"]  # with the same number of steps
    assert result.accuracy["less"] > result.accuracy["random"]
    assert "5% by LESS taught the skill best" in result.table()


def test_what_is_not_installed_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    recipe = check_recipe(yaml.safe_load(demo.recipe_text(tmp_path)))
    assert recipe.score.methods == ["less", "random", "full"]
    assert recipe.evaluate is not None
    assert recipe.evaluate.metrics == ["held_out_loss"]


def test_the_truth_is_hidden_from_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradsieve.demo.model.STEPS", 2)
    assert is_progress_bar_enabled()
    recipe = load_recipe(demo.prepare(tmp_path, world.Listening()))
    truth = json.loads((tmp_path / "truth.json").read_text())
    for source in recipe.pool:
        for line in Path(source.path).read_text().splitlines():
            row = json.loads(line)
            assert row.keys() == {"id", "kind", "messages"}
            assert row["id"] in truth
    assert is_progress_bar_enabled()
