"""Run the documentation's code blocks as a reader would.

In: a Markdown page. Out: its fenced blocks, and a `Reader` that runs them from top to bottom in a
folder:

- a block with `title="FILE"` is written to that file; with `title="add to FILE"` its sections are
  added to that recipe;
- a `yaml` block must be a recipe that loads; without a title, it is added to a copy of recipe.yaml;
- `sh` and `python` blocks are run; `jsonl` rows must be readable; `json` and `toml` must parse;
- a `text` block is output, and is not run.

What needs a network or takes too long is replaced; `HUB`, `INSTEAD` and `SIZES` list all
replacements.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from markdown_it import MarkdownIt
from typer.testing import CliRunner

import world
from gradsieve.cli import app
from gradsieve.data.formats import conversation_of
from gradsieve.demo.skills import make_examples, make_questions, make_rows
from gradsieve.recipe.load import load_recipe

ROOT = Path(__file__).parent.parent

HUB = (
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    "Qwen/Qwen3-0.6B",
    "SmolLM2-135M-Instruct.Q4_1.gguf",
)
"""Published models, replaced by a random Llama with 16 hidden units."""

INSTEAD = {
    "max_length: 512": "max_length: 256",  # that Llama's number of positions
    "seeds: [0, 1, 2]": "seeds: [0]",  # one training instead of three
    # 7 trainings, not 38, each on a tenth of the pool.
    "validate: {}": "validate: {subsets: 3, share: 0.1, leave_out: [0.9]}",
    # The extras are already installed; resolving them takes pip 5 s.
    "pip install 'gradsieve[": "pip install --no-deps 'gradsieve[",
    "--id row-17": "--id 00017",  # a row of the pool that `prepare` writes
    # The pool of the tutorial with a real model, with a fifth of its rows.
    "functions[:150]": "functions[:70]",
    "functions[150:300]": "functions[150:180]",
    "letters[:200]": "letters[:40]",
    "range(1, 100)": "range(1, 10)",
    "summaries[10:50]": "summaries[10:14]",  # each is answered by five models
    # TRL trains in bfloat16, which requires a GPU or `use_cpu`.
    'report_to="none")': 'report_to="none", use_cpu=True)',
    # Trains on 24 rows, not 200: an epoch has 3 steps of 8 rows, not 25.
    "warm/checkpoint-25": "warm/checkpoint-3",
    "warm/checkpoint-50": "warm/checkpoint-6",
}

SIZES = {
    "demo.model.STEPS": 8,
    "demo.STEPS": 8,
    "demo.POOL_ROWS": 40,
    "demo.TRAINING_STEPS": 4,
    "demo.EXAMPLES_A_KIND": 2,
    "demo.QUESTIONS_A_KIND": 2,
    "pipeline.sample.CLEAR_SECONDS": 0.01,
}
"""Reduced sizes of the demo and `plan`; a slow test runs the demo's own, which take minutes."""

ROWS = 120


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: The page's path from the repository's root.
        line: The line where its text starts.
        language: The first word after the fence.
        title: The title, which names the file that it is written or added to; empty if none.
        text: Its content.
    """

    page: str
    line: int
    language: str
    title: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """All code blocks of a page, indented ones too (their language is empty)."""
    found = []
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type in ("fence", "code_block") and token.map:
            language, _, rest = token.info.strip().partition(" ")
            title = re.search(r'title="([^"]*)"', rest)
            name = page.relative_to(ROOT).as_posix()
            line = token.map[0] + (2 if token.type == "fence" else 1)
            found.append(Block(name, line, language, title[1] if title else "", token.content))
    return found


def prepare(folder: Path) -> None:
    """Write a reader's files: a pool, a target, held-out questions and a model."""
    world.make(folder, rows=ROWS)
    config = folder / "model" / "config.json"
    positions = json.dumps({**json.loads(config.read_text()), "max_position_embeddings": 256})
    config.write_text(positions)
    (folder / "one.jsonl").unlink()
    (folder / "two.jsonl").unlink()
    rows = [world.record(row) for row in make_rows(ROWS, 0)]
    examples = [world.record(row) for row in make_examples("reverse", 3, 0)]
    questions = [world.record(row) for row in make_questions("reverse", 2, 1)]
    for row in (*rows, *examples, *questions):
        row["topic"] = row.pop("kind")
    world.write(folder / "my-data.jsonl", rows)
    world.write(folder / "dolly.jsonl", rows[: ROWS // 2])
    more = [{**row, "id": f"m{row['id']}"} for row in rows[:30]]
    datasets.Dataset.from_list(more).to_parquet(folder / "more.parquet")
    for name in ("target.jsonl", "legal.jsonl"):
        world.write(folder / name, examples)
    world.write(folder / "test.jsonl", questions)
    for part, count in (("dev", 5), ("test", 2)):
        file = folder / "data" / "eval" / "mmlu" / part / f"anatomy_{part}.csv"
        file.parent.mkdir(parents=True)
        with file.open("w", newline="") as opened:
            lines = [[f"a b c {n} ?", "a", "b", "c", "d", "ABCD"[n % 4]] for n in range(count)]
            csv.writer(opened).writerows(lines)


class Reader:
    """Runs the blocks of a page.

    Args:
        folder: The folder where blocks run; it must contain the files that `prepare` writes.
        real_shell: Run `sh` blocks unchanged in bash. Otherwise each gradsieve command runs in this
            process, which saves seconds of imports.
    """

    def __init__(self, folder: Path, real_shell: bool = False) -> None:
        self.folder, self.real_shell = folder, real_shell
        self._names: dict[str, Any] = {"__name__": "__main__"}

    def follow(self, block: Block) -> None:
        """Run one block; raises an AssertionError or the block's own error if it fails."""
        text = self._here(block.text)
        with contextlib.chdir(self.folder):
            if block.title.startswith("add to "):
                self._add(self.folder / block.title.removeprefix("add to "), text)
            elif block.title:
                file = self.folder / block.title
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
            getattr(self, f"_{block.language}")(block, text)

    def _here(self, text: str) -> str:
        for name in HUB:
            text = text.replace(name, str(self.folder / "model"))
        for there, here in INSTEAD.items():
            text = text.replace(there, here)
        return text

    def _add(self, file: Path, text: str) -> None:
        tree = {**yaml.safe_load(file.read_text(encoding="utf-8")), **yaml.safe_load(text)}
        file.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")

    def _yaml(self, block: Block, text: str) -> None:
        file = self.folder / (block.title.removeprefix("add to ") or "fragment.yaml")
        if not block.title:
            shutil.copy(self.folder / "recipe.yaml", file)
            self._add(file, text)
        load_recipe(file)

    def _sh(self, block: Block, text: str) -> None:
        if self.real_shell:
            _bash(text, block.where)
            return
        for command in _commands(text):
            if command.startswith("gradsieve "):
                _gradsieve(shlex.split(command, comments=True)[1:], block.where)
            else:
                _bash(command, block.where)

    def _python(self, block: Block, text: str) -> None:
        if block.title:
            return  # a file that a command runs
        code = compile("\n" * (block.line - 1) + text, block.page, "exec")
        with contextlib.redirect_stdout(io.StringIO()):
            exec(code, self._names)

    def _jsonl(self, block: Block, text: str) -> None:
        for line in text.splitlines():
            conversation_of(json.loads(line))

    def _json(self, block: Block, text: str) -> None:
        json.loads(text)

    def _toml(self, block: Block, text: str) -> None:
        tomllib.loads(text)

    def _jinja(self, block: Block, text: str) -> None:
        assert block.title, f"{block.where}: a template is used as a file; give it a title"

    def _text(self, block: Block, text: str) -> None:
        """Output is not run."""


def _commands(text: str) -> list[str]:
    """The commands of a block, split at line ends and `&&`."""
    parts = re.split(r"\n| && ", text.replace("\\\n", " "))
    return [part.strip() for part in parts if part.strip() and not part.lstrip().startswith("#")]


def _gradsieve(arguments: list[str], where: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SIZES.items():
            patch.setattr(f"gradsieve.{name}", value)
        done = CliRunner().invoke(app, arguments)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, f"{where}: gradsieve {shlex.join(arguments)}\n{done.output}"


def _bash(text: str, where: str) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", text],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path},
    )
    assert done.returncode == 0, f"{where}: {text}\n{done.stdout}\n{done.stderr}"
