"""A small part of `make test-trust`: some kills, power cuts and damaged files of full runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trust.program import BEGIN, END, table, write_table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"


@pytest.mark.parametrize(
    ("kills", "cuts", "damages", "which"),
    [
        (1, 1, 1, ["--finished", "--seeds", "1"]),
        pytest.param(30, 20, 60, [], marks=pytest.mark.slow),
    ],
)
def test_trials(tmp_path: Path, kills: int, cuts: int, damages: int, which: list[str]) -> None:
    """The trials run in a separate process, which forks before it has threads."""
    wanted = ["--kills", str(kills), "--cuts", str(cuts), "--damages", str(damages)]
    wanted += ["--jobs", "2", *which]
    done = subprocess.run(
        [sys.executable, "-m", "trust", "--out", str(tmp_path), *wanted],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lines = (tmp_path / "trials.jsonl").read_text().splitlines()
    records = [record for line in lines for record in json.loads(line)["records"]]
    assert sum(record["what"] == "kill" for record in records) >= kills
    assert sum(record["what"] == "cut" for record in records) >= cuts


def test_the_page_has_the_table(tmp_path: Path) -> None:
    content = PAGE.read_text(encoding="utf-8")
    assert content.index(BEGIN) < content.index(END)
    (tmp_path / "page.md").write_text(content, encoding="utf-8")
    records = [
        {"what": "kill", "how": "at a random moment", "ok": True},
        {"what": "damage", "how": "recipe.yaml, flip, the same command", "ok": True,
         "outcome": "healed"},
        {"what": "damage", "how": "a, flip, the same command", "ok": False, "outcome": "silent"},
    ]  # fmt: skip
    write_table(tmp_path / "page.md", table(records))
    lines = (tmp_path / "page.md").read_text().splitlines()
    assert any("SIGKILL at a random moment | 1 | the same bytes in all" in line for line in lines)
    assert any("| 2 | 1 healed; 1 used silently |" in line for line in lines)
