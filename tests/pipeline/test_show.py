"""`gradsieve show` marks supervised text, and explains why a row can't be used."""

import json
from pathlib import Path

import pytest

import world
from gradsieve.errors import UsageError
from gradsieve.pipeline.show import show
from gradsieve.recipe.schema import Recipe
from wrong import call


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("show")
    data = world.make(folder, rows=10)
    turns = [("user", "rising : b a"), ("assistant", "a b")] * 2
    messages = [{"role": role, "content": content} for role, content in turns]
    messages[1]["weight"] = 0
    rows = [
        {"id": "two", "messages": messages},
        {"prompt": "no answer"},
        {"prompt": "rising : b a", "completion": "a b " * 60},
    ]
    world.write(folder / "mine.jsonl", rows)
    data["pool"].append({"name": "mine", "path": str(folder / "mine.jsonl")})
    (folder / "recipe.yaml").write_text(json.dumps(data))
    return world.recipe(data)


def test_supervised_text_is_marked(recipe: Recipe) -> None:
    [row] = show(recipe, id="two")
    assert (row.name, row.skip_reason) == ("mine two", None)
    assert row.where.endswith("mine.jsonl:1")
    assert [text.split() for text, flag in row.pieces if flag] == [["a", "b", "</s>"]]
    assert "".join(text for text, _ in row.pieces).count("a b") == 2
    assert str(row).count("[[") == str(row).count("]]") == 1
    assert 0 < row.labels < row.tokens
    assert row.colored().plain.replace("[[", "") == str(row).replace("[[", "").replace("]]", "")


def test_the_first_rows_with_what_is_wrong(recipe: Recipe) -> None:
    good, bad, cut = show(recipe, first=3, source="mine")
    assert good.name == "mine two"
    assert "expected messages" in str(bad.skip_reason)
    assert not bad.pieces
    assert (cut.tokens, cut.truncated) == (64, True)
    assert len([*show(recipe, first=2)]) == 6


@pytest.mark.parametrize(("asked", "said"), [({"id": "x"}, "no row"), ({"source": "x"}, "source")])
def test_what_is_not_there_is_a_message(recipe: Recipe, asked: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        list(show(recipe, **asked))


def test_a_row_that_cannot_be_read_may_be_the_one(recipe: Recipe) -> None:
    with pytest.raises(UsageError, match=r"cannot be read: 1, the first .*mine.jsonl:2: expected"):
        list(show(recipe, id="x", source="mine"))


def test_the_command_prints_text_or_json(recipe: Recipe) -> None:
    file = Path(recipe.pool[-1].path).with_name("recipe.yaml")
    answer = call(f"show {file} --id two")
    [row] = show(recipe, id="two")
    assert (answer.status, answer.out.strip()) == (0, str(row).strip())
    [found] = json.loads(call(f"show {file} --id two --json").out)
    assert found["labels"] == row.labels
