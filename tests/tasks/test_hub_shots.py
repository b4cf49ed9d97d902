"""BBH and TyDiQA through `datasets`: their few-shot examples come from elsewhere.

BBH's come from lm-eval's task files, TyDiQA's from its training set: the paper's if present.
"""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from gradsieve.errors import DataError, UsageError
from gradsieve.tasks import load_target
from gradsieve.tasks.bbh import shipped_prompts
from gradsieve.tasks.tydiqa import PAPERS, SHORT_BYTES
from hub_folders import (
    WAYS,
    Write,
    both,
    jsonl_with_card,
    parquet,
    plain,
    refusal,
    saved,
    tydiqa,
    tydiqa_files,
    tydiqa_row,
)

# --- BBH ------------------------------------------------------------------------------------------

BBH: dict[str, list[dict[str, Any]]] = {
    "navigate": [{"input": "Turn.\nOptions:\n- Yes\n- No", "target": "No"}],
    "sports_understanding": [
        {"input": "Is it?", "target": "yes"},
        {"input": "Or not?", "target": "no"},
    ],
}


def bbh_files(folder: Path) -> Path:
    (folder / "bbh").mkdir(parents=True)
    texts = {task: text for task, (_, text) in shipped_prompts().items() if task in BBH}
    (folder / "bbh-three-shot.json").write_text(json.dumps(texts), encoding="utf-8")
    for task, rows in BBH.items():
        (folder / "bbh" / f"{task}.json").write_text(json.dumps({"examples": rows}))
    return folder


@pytest.mark.parametrize("split", ["test", pytest.param("train", marks=pytest.mark.slow)])
@pytest.mark.parametrize("write", WAYS)
def test_bbh_is_the_same_both_ways(tmp_path: Path, write: Write, split: str) -> None:
    path = write(tmp_path / "hub", {task: {split: rows} for task, rows in BBH.items()})
    found = both("bbh", path)
    assert found == both("bbh", bbh_files(tmp_path / "local"))
    assert found[0].warnings == ("2 of the benchmark's 27 subtasks were found",)


def test_all_shipped_prompts_have_three_examples(tmp_path: Path) -> None:
    texts = {task: text for task, (_, text) in shipped_prompts().items()}
    (tmp_path / "bbh-three-shot.json").write_text(json.dumps(texts), encoding="utf-8")
    target = load_target("t", "bbh", str(tmp_path))
    assert (len(target.subtasks), len(target.examples), target.warnings) == (27, 81, ())
    for example in target.examples:
        assert example.messages[1]["content"].startswith("A: Let's think step by step.")
        assert example.messages[1]["content"].count("step by step") == 1


def test_bbh_of_unknown_tasks_is_refused(tmp_path: Path) -> None:
    rows = {"test": BBH["navigate"]}
    error = refusal("bbh", parquet(tmp_path / "other", {"swimming": rows}))
    assert error.what == "The data set has none of BBH's 27 tasks as a configuration."
    # A single saved data set could be any task.
    assert refusal("bbh", saved(tmp_path, {"one": rows}) + "/one").what == error.what


def test_bbh_names_the_first_bad_row(tmp_path: Path) -> None:
    rows = [*BBH["navigate"], {"input": "q", "target": None}]
    error = refusal("bbh", parquet(tmp_path, {"navigate": {"test": rows}}))
    assert error.where.endswith("split test, question 2: found input: 'q', target: None")


def test_bbh_needs_lm_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path, {"navigate": {"test": BBH["navigate"]}})
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(UsageError, match="not installed") as caught:
        load_target("t", "bbh", path)
    assert "gradsieve[evaluate]" in caught.value.todo


def test_other_versions_of_lm_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lm_eval

    folder = tmp_path / "tasks" / "bbh" / "cot_fewshot"
    folder.mkdir(parents=True)
    there = Path(lm_eval.__file__).parent / "tasks" / "bbh" / "cot_fewshot" / "navigate.yaml"
    monkeypatch.setattr(lm_eval, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(DataError, match="in another form"):
        shipped_prompts()
    text = there.read_text(encoding="utf-8")
    (folder / "navigate.yaml").write_text(text.replace("target: '", "target: 'Let''s think step by step.\n\n      "))  # noqa: E501 # fmt: skip
    old = shipped_prompts()["navigate"][1]
    monkeypatch.undo()
    assert old == shipped_prompts()["navigate"][1]
    monkeypatch.setattr(lm_eval, "__file__", str(tmp_path / "__init__.py"))
    (folder / "navigate.yaml").write_text(text.replace("step by step", "in steps"))
    with pytest.raises(DataError, match="in another form"):
        shipped_prompts()


# --- TyDiQA ---------------------------------------------------------------------------------------


TESTS = [
    tydiqa_row("korean-1-0", "비가 왔다.", "비"),
    tydiqa_row("english-3-1", "Snow fell.", "Snow", "snow"),
]
PAPERS_ROWS = [tydiqa_row(id, f"About {id}.", "About") for id in sorted(PAPERS)]


@pytest.mark.parametrize("write", WAYS)
def test_tydiqa_is_the_same_both_ways(tmp_path: Path, write: Write) -> None:
    """If the paper's rows are in the training set, the result is the paper's target."""
    local = both("tydiqa", tydiqa_files(tmp_path / "local", tydiqa(PAPERS_ROWS, TESTS)))
    train = [*PAPERS_ROWS, *(tydiqa_row(f"english-{n}-0") for n in range(20))]
    random.Random(0).shuffle(train)
    found = both("tydiqa", write(tmp_path / "hub", tydiqa(train, TESTS)))
    assert found == local
    assert found[0].fingerprint == local[0].fingerprint
    assert found[1].fingerprint == local[1].fingerprint
    assert found[0].warnings == ()


def test_tydiqa_with_answers_as_a_list_of_objects(tmp_path: Path) -> None:
    data = tydiqa(PAPERS_ROWS, TESTS)
    listed = {split: [plain(row) for row in rows] for split, rows in data["secondary_task"].items()}
    path = jsonl_with_card(tmp_path / "hub", {"secondary_task": listed})
    assert both("tydiqa", path) == both("tydiqa", tydiqa_files(tmp_path / "local", data))


def test_other_one_shots_are_reported_and_the_same_in_any_order(tmp_path: Path) -> None:
    train = [tydiqa_row(f"{language}-{n}-0", f"{language} {n}")
             for n in range(9) for language in ("english", "korean")]  # fmt: skip
    picked = []
    for seed in range(3):
        random.Random(seed).shuffle(train)
        path = parquet(tmp_path / str(seed), tydiqa(train, TESTS))
        target = load_target("t", "tydiqa", path)
        picked.append(target.fingerprint)
        assert target.warnings == (
            "the paper's one-shot examples of 2 of 2 languages (english, korean) are not among the "
            "training rows: others are used",
            "2 of the benchmark's 9 subtasks were found",
        )
    assert len(set(picked)) == 1


def test_one_shots_are_short_and_not_of_tested_passages(tmp_path: Path) -> None:
    good, long = tydiqa_row("english-4-0"), "é" * (SHORT_BYTES // 2 + 1)
    bad = [tydiqa_row(f"english-{n}-0", "Snow fell.") for n in range(10, 30)]
    bad += [tydiqa_row(f"english-{n}-0", long) for n in range(30, 50)]
    target = load_target("t", "tydiqa", parquet(tmp_path / "1", tydiqa([*bad, good], TESTS)))
    assert [example.row["id"] for example in target.examples] == ["english-4-0"]
    # A long example is better than none.
    target = load_target("t", "tydiqa", parquet(tmp_path / "2", tydiqa(bad, TESTS)))
    assert [example.row["context"] for example in target.examples] == [long]


@pytest.mark.parametrize(
    "bad",
    [
        {**tydiqa_row("english-1-0"), "question": None},
        {"input": "q", "target": "a"},
        {**tydiqa_row("english-1-0"), "answers": {"text": [], "answer_start": []}},
        {**tydiqa_row("english-1-0"), "answers": {"text": ["Rain"], "answer_start": []}},
        {**tydiqa_row("english-1-0"), "answers": {"text": ["Rain", None], "answer_start": [0, 1]}},
        {**tydiqa_row("english-1-0"), "answers": {"text": ["Rain"], "answer_start": None}},
        {**tydiqa_row("english-1-0"), "answers": [{"text": 1}]},
        {**tydiqa_row("english-1-0"), "answers": "Rain"},
    ],
    ids=["no question", "columns", "none", "ragged", "null", "null start", "number", "text"],
)
def test_a_bad_row_of_tydiqa_is_named(tmp_path: Path, bad: dict[str, Any]) -> None:
    path = jsonl_with_card(tmp_path, {"secondary_task": {"train": [bad]}})
    error = refusal("tydiqa", path)
    assert error.what.startswith("Expected columns id, context, question and answers")
    assert "configuration secondary_task, split train, row 1: found " in error.where
