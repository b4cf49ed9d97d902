"""A run small enough for every test: a random Llama, its tokenizer, a pool and a target."""

from __future__ import annotations

import json
import pickle  # noqa: TID251 - as Ray sends jobs
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gradsieve.console import Progress
from gradsieve.data.pool import Pool
from gradsieve.data.pool.build import build_pool
from gradsieve.data.sources import SourceSpec
from gradsieve.data.template import ChatTemplate
from gradsieve.demo.model import make_tokenizer
from gradsieve.demo.skills import Row, make_examples, make_rows
from gradsieve.engine import Engine, Job
from gradsieve.engine.base import Finished, Worker
from gradsieve.recipe.load import check_recipe
from gradsieve.recipe.schema import Recipe
from gradsieve.runs.folder import ARCHIVE, RunFolder

ROWS = 150


def record(row: Row) -> dict[str, Any]:
    """A row of the pool, with a field that no code uses."""
    turns = [("user", row.question), ("assistant", row.answer)]
    messages = [{"role": role, "content": content} for role, content in turns]
    return {"id": row.id, "messages": messages, "kind": row.kind, "note": "\u2028 é"}


def write(file: Path, records: list[dict[str, Any]]) -> None:
    """Write JSONL."""
    text = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in records)
    file.write_text(text, encoding="utf-8", newline="\n")


def make(folder: Path, rows: int = ROWS) -> dict[str, Any]:
    """Write a model, a pool and a target; returns the recipe as a dict."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    records = [record(row) for row in make_rows(rows, 0)]
    write(folder / "one.jsonl", records[: rows // 2])
    write(folder / "two.jsonl", records[rows // 2 :])
    write(folder / "target.jsonl", [record(row) for row in make_examples("reverse", 3, 0)])
    return {
        "model": {"name": str(folder / "model"), "dtype": "float32", "max_length": 64},
        "pool": [{"name": name, "path": str(folder / f"{name}.jsonl")} for name in ("one", "two")],
        "targets": [
            {"name": "mine", "path": str(folder / "target.jsonl"), "subtask": "kind"},
            {"name": "plain", "path": str(folder / "target.jsonl")},
        ],
        "warmup": {
            "fraction": 0.3,
            "epochs": 2,
            "batch_size": 4,
            "learning_rate": 3e-3,
            "lora": {"r": 2, "alpha": 8},
        },
        "features": {"projection": {"dim": 2048}, "tokens_per_batch": 256},
    }


def recipe(data: dict[str, Any], **changes: Any) -> Recipe:
    """A recipe with some keys changed: `warmup__epochs=3` or `select={"count": 5}`."""
    tree = json.loads(json.dumps(data))
    for path, value in changes.items():
        *above, last = path.split("__")
        node = tree
        for key in above:
            node = node.setdefault(key, {})
        node[last] = value
    # Unstandardized scores, which a test can compute by hand.
    tree.setdefault("score", {}).setdefault("across_subtasks", "max")
    return check_recipe(tree)


def shuffled(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same pool with its sources and their rows in another order."""
    folder.mkdir(parents=True, exist_ok=True)
    pool = []
    for source in reversed(data["pool"]):
        lines = Path(source["path"]).read_text(encoding="utf-8").split("\n")[:-1]
        random.Random(5).shuffle(lines)
        file = folder / f"{source['name']}.jsonl"
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        pool.append({"name": source["name"], "path": str(file)})
    return {**data, "pool": pool}


def table(run: RunFolder, method: str = "less", target: str = "mine") -> dict[str, np.ndarray]:
    """The columns of a score table."""
    read = pq.read_table(run.stage("score") / target / f"{method}.parquet")
    return {name: read[name].to_numpy() for name in read.column_names}


def pool_of(folder: Path, texts: list[str]) -> Pool:
    """A pool of short conversations, whose ids are their numbers, e.g. 007."""
    rows = [{"id": f"{n:03}", "prompt": text, "completion": "a"} for n, text in enumerate(texts)]
    write(folder / "rows.jsonl", rows)
    source = SourceSpec("s", str(folder / "rows.jsonl"))
    template = ChatTemplate(make_tokenizer(), "tokenizer", 64)
    return build_pool(folder / "pool", [source], template)


class Listening(Progress):
    """Stores the progress messages."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def warn(self, text: str) -> None:
        self.lines.append(f"warning: {text}")


class Noting(Listening):
    """Stores the lines of the log file, too."""

    def note(self, text: str) -> None:
        self.lines.append(text)


class Workers(Engine):
    """Runs tasks in reverse order, from a pickled copy of the job and tasks."""

    def _run(self, job: Job[Any, Any], tasks: Sequence[Any]) -> Iterator[Finished]:
        sent, sent_tasks = pickle.loads(pickle.dumps((job, tasks)))
        run = sent.setup(self.progress)
        for task, one in [*zip(tasks, sent_tasks, strict=True)][::-1]:
            yield Finished(task, run(one), Worker("w", "here"), 0.1)


def results(run: RunFolder) -> dict[str, bytes]:
    """The bytes of all results of a run, except files that contain times and versions."""
    skip = {"meta.json", "inputs.json", ".lock", "recipe.yaml", "seconds.json", "training.json"}
    skip |= {"log.txt", ".turn"}
    files = [file for file in run.path.rglob("*") if file.is_file() and file.name not in skip]
    return {str(file.relative_to(run.path)): _lasting(file) for file in sorted(files)}


def _lasting(file: Path) -> bytes:
    """A file's bytes; for the report, without the line with the recipe, times and versions.

    An archived report may be damaged and lack that line.
    """
    content = file.read_bytes()
    if file.name != "index.html":
        return content
    lines = content.split(b"\n")
    kept = [line for line in lines if b' id="provenance">' not in line]
    assert ARCHIVE in file.parts or len(kept) == len(lines) - 1
    return b"\n".join(kept)


class Killed(BaseException):
    """A simulated kill, which `except Exception` does not catch."""


def kill_at(
    patch: pytest.MonkeyPatch, number: int, before: bool = True, below: str = ""
) -> list[int]:
    """Raise Killed just before or after the nth move to a path with `below`; returns a counter."""
    count = [0]

    def counting(name: str) -> None:
        real = getattr(Path, name)

        def move(self: Path, target: Any) -> Path:
            counts = below in str(target)
            count[0] += counts
            if counts and count[0] == number and before:
                raise Killed
            moved = real(self, target)
            if counts and count[0] == number:
                raise Killed
            return moved

        patch.setattr(Path, name, move)

    counting("replace")
    counting("rename")
    return count
