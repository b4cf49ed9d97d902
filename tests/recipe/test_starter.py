"""Starter recipes are valid, and no file is overwritten."""

from pathlib import Path

import pytest
import yaml

from gradsieve.errors import UsageError
from gradsieve.recipe.load import check_recipe, load_recipe
from gradsieve.recipe.starter import copy_ready, ready_recipes, starter, write_recipe


@pytest.mark.parametrize("test", [None, "held out.jsonl"])
def test_a_starter_is_a_recipe(test: str | None) -> None:
    pool = ["a: #b.jsonl.gz", "x/1e5.jsonl", "y/1e5.parquet", "data/no", 'q"\\.json', "\u00fc"]
    text = starter("C:\\model", pool, "t\u00e9st.jsonl", test, "recipe.yaml")
    recipe = check_recipe(yaml.safe_load(text))
    assert recipe.model.name == "C:\\model"
    assert [source.path for source in recipe.pool] == pool
    assert [source.name for source in recipe.pool] == ["ab", "1e5", "1e5-3", "no", "q", "data"]
    assert (recipe.targets[0].path, recipe.targets[0].test) == ("t\u00e9st.jsonl", test)
    assert (recipe.train is None) == (recipe.evaluate is None) == (test is None)


def test_no_two_sources_get_one_name() -> None:
    pool = ["a-3.jsonl", "x/a.jsonl", "y/a.jsonl", "z/a.jsonl"]
    recipe = check_recipe(yaml.safe_load(starter("m", pool, "t.jsonl", None, "recipe.yaml")))
    assert [source.name for source in recipe.pool] == ["a-3", "a", "a-4", "a-5"]


def test_its_comments_are_right_too(tmp_path: Path) -> None:
    """Each key that is commented out can be enabled."""
    text = starter("m", ["a.jsonl"], "t.jsonl", None, "recipe.yaml")
    for start in ("chat_template", "max_length", "subtask", "test", "answer", "micro_batch_size",
                  "learning_rate", "lora",
                  "train", "evaluate"):  # fmt: skip
        assert f"# {start}:" in text
        text = text.replace(f"# {start}:", f"{start}:")
    recipe = check_recipe(yaml.safe_load(text))
    assert recipe.targets[0].answer == r"#### (\S+)"
    assert recipe.model.chat_template == "tulu"


def test_every_ready_recipe_can_be_copied(tmp_path: Path) -> None:
    names = ready_recipes()
    assert names["less-t-llama2-13b"].endswith("Llama-2-13B trains on its selection")
    for name in names:
        folder = tmp_path / name
        files, kept = copy_ready(name, folder / "mine.yaml")
        assert not kept
        again = copy_ready(name, folder / "again.yaml")
        assert again == ([folder / "again.yaml"], files[1:2])
        assert files[0] == folder / "mine.yaml"
        load_recipe(files[0])
        with pytest.raises(UsageError, match="there already"):
            copy_ready(name, files[0])
    with pytest.raises(UsageError, match="Did you mean qwen3"):
        copy_ready("qwen3", tmp_path / "x.yaml")


def test_a_file_is_never_written_over(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    write_recipe("a", file)
    with pytest.raises(UsageError, match="there already"):
        write_recipe("b", file)
    assert file.read_text() == "a"
