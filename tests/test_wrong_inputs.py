"""Every wrong input of tests/wrong: one message, the right exit status, and nothing lost.

docs/messages.md lists the messages; after changing one, run `python -m wrong.pages` in tests/.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import wrong
from wrong import Case, Desk
from wrong.pages import PAGE, TABLES, line

CASES = [case for cases in TABLES.values() for case in cases]
PARTS = ("  where:      ", "  what to do: ")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return wrong.make_desk(tmp_path_factory.mktemp("desk") / "desk")


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text(encoding="utf-8")


def told(case: Case, desk: Desk, folder: Path, on: str) -> wrong.Answer:
    """Try a case: it must give a single message and lose nothing."""
    with wrong.at(desk, folder, on) as copy:
        case.spoil(copy)
        run = folder / "run"
        before = wrong.state(run)
        answer = wrong.call(case.command)
        after = wrong.state(run)
    assert answer.status == case.status, answer.err
    assert answer.out == ""
    assert "Traceback" not in answer.err
    if "Usage: " not in answer.err:  # typer's own messages are not split into parts
        assert [part for part in PARTS if f"\n{part}" not in answer.err] == []
    assert [phrase for phrase in case.says if phrase not in answer.message] == [], answer.message
    if on == "finished":
        assert wrong.lost(before, after, case.keeps) == []
    elif not case.late:
        made = [name for name in after if name.startswith(("01-", "02-"))]
        assert made in ([], ["01-warmup/inputs.json", "01-warmup/meta.json"])
    return answer


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_is_one_message_and_nothing_is_lost(
    case: Case, desk: Desk, page: str, tmp_path: Path
) -> None:
    answers = [told(case, desk, tmp_path / on, on) for on in case.on]
    assert {answer.message for answer in answers} == {answers[0].message}
    assert line(case, answers[0]) in page


def test_the_page_has_these_cases_and_no_others(page: str) -> None:
    named = [row.split(" | ")[0].removeprefix("| ") for row in page.splitlines() if " | " in row]
    assert [name for name in named if name not in ("input", "---")] == [case.name for case in CASES]
    assert len(CASES) == len({case.name for case in CASES}) >= 60


def test_a_process_says_the_same(desk: Desk, tmp_path: Path) -> None:
    """An error in the recipe, and one that involves transformers and the hub."""
    wanted = ("a misspelt key", "an encoder (BERT)")
    for number, case in enumerate(case for case in CASES if case.name in wanted):
        with wrong.at(desk, tmp_path / str(number), "new") as copy:
            case.spoil(copy)
            done = subprocess.run(
                [sys.executable, "-m", "gradsieve", *case.command.split()],
                capture_output=True,
                text=True,
            )
            answer = wrong.call(case.command)
        assert done.returncode == case.status
        assert done.stdout == ""
        assert done.stderr.endswith(f"error: {answer.message}\n")


def test_names_of_any_letters_work(desk: Desk, tmp_path: Path) -> None:
    """Spaces and other scripts in every path; a byte-order mark, CRLF and ids of any kind."""
    with wrong.at(desk, tmp_path / "Übung für 子 data", "new") as copy:
        for old, new in (("model", "mein Modell"), ("target.jsonl", "ziele & 目标.jsonl")):
            (copy.folder / old).rename(new)
        ids: list[object] = [[1], {"a": 1}, 1.5, None, True, "", "\ud800", "a/b \0", 7, "7 "]
        rows = [{"id": id, "prompt": f"say {n}", "completion": "é"} for n, id in enumerate(ids)]
        lines = "".join(json.dumps(row) + "\r\n" for row in rows)
        copy.pool("gemischte Zeilen.JSONL", b"\xef\xbb\xbf" + lines.encode())
        copy.set("model.name", "mein Modell")
        for target in (0, 1):
            copy.set(f"targets.{target}.path", "ziele & 目标.jsonl")
        copy.set("select", {"count": 10})
        answer = wrong.call("run recipe.yaml --out 'mein Lauf/später'")
        selected = Path("mein Lauf/später/04-select/plain/less/selected.jsonl").read_bytes()
    assert answer.status == 0, answer.err
    assert "Traceback" not in answer.err
    given = [json.loads(line) for line in selected.splitlines()]
    assert sorted(row["prompt"] for row in given) == sorted(row["prompt"] for row in rows)


def test_weights_that_are_a_plain_pickle_work(desk: Desk, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    with wrong.at(desk, tmp_path / "new", "new") as copy:
        weights = copy.folder / "model" / "model.safetensors"
        torch.save(load_file(weights), "model/pytorch_model.bin")
        weights.unlink()
        answer = wrong.call("warmup recipe.yaml --out run")
    assert answer.status == 0, answer.err


def test_what_was_made_before_a_disk_was_full_is_used_again(desk: Desk, tmp_path: Path) -> None:
    (case,) = [case for case in CASES if case.name == "a full disk"]
    with wrong.at(desk, tmp_path / "new", "new") as copy:
        case.spoil(copy)
        assert wrong.call(case.command).status == 1
        copy.undo.close()
        made = wrong.state(Path("run/01-warmup"))
        answer = wrong.call(case.command)
        assert answer.status == 0
        assert "warmup: up to date" in answer.err
        assert wrong.state(Path("run/01-warmup")) == made
