"""Memory and time of a training step with Trainer and PEFT, compared with this package.

    python benchmarks/training/run.py --data ../shared/data --model NAME=FOLDER ... [--threads 2]

Uses rows of eleven public sources in the Tulu format, truncated to 512 tokens; shorter rows are
skipped. Each step is one micro-batch of 4 rows, through `train_model` with the recipe's defaults
(LoRA of rank 128 on q, k, v, o; bfloat16). Each way of training runs in a separate process, which
reports its peak resident memory and the median CPU seconds per step (other programs may use the
machine), without the first step. `stock` is the model's own loss over all logits, PyTorch's dropout
and PEFT's layers; `gradsieve` computes logits only at label positions and stores less for dropout.

Writes result.json and table.md to this folder.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import torch

from gradsieve.data.examples import Example, TokenizedExample
from gradsieve.data.formats import conversation_of
from gradsieve.data.template import ChatTemplate
from gradsieve.gradients.objectives import SFT, Sft
from gradsieve.io import read_lines, write_json, write_text
from gradsieve.models import training
from gradsieve.models.load import add_adapter
from gradsieve.models.source import ModelSource
from gradsieve.recipe.schema import LoraConfig, ModelConfig, TrainingConfig

HERE = Path(__file__).parent
ROWS, TOKENS = 4, 512
STEPS = 4
WAYS = ("stock", "gradsieve")


class OwnLoss(Sft):
    """Leaves the loss to the model."""

    def fits(self, model: Any) -> bool:
        return False


def stock_dropout(*_: Any) -> Any:
    """Leaves dropout to PyTorch."""
    return nullcontext(lambda *_: None)


def long_rows(data: Path, template: ChatTemplate, count: int) -> list[TokenizedExample]:
    """Random rows of all sources that fill the maximum length after truncation."""
    files = sorted((data / "train").glob("*.jsonl"))
    sources = [file.read_bytes().splitlines() for file in files]
    found: list[TokenizedExample] = []
    rng = random.Random(0)
    while len(found) < count:
        line = max(rng.choices(rng.choice(sources), k=20), key=len)
        example = Example("s", str(len(found)), conversation_of(json.loads(line)).messages)
        tokens = template.encode(example)
        if len(tokens.input_ids) == TOKENS and tokens.n_labels:
            found.append(tokens)
    return found


def measure(way: str, folder: str, data: Path) -> dict[str, Any]:
    """Measure one training in this process."""
    source = ModelSource(ModelConfig(name=folder))
    rows = long_rows(data, ChatTemplate(source.tokenizer(), "tulu", TOKENS), ROWS * STEPS)
    model = add_adapter(source.load(), LoraConfig(), 0)
    before = psutil.Process().memory_info().rss
    clock: list[tuple[float, float]] = []
    settings = TrainingConfig(epochs=1, batch_size=ROWS, learning_rate=1e-4)
    stock = mock.patch.object(training, "example_dropout", stock_dropout)
    with tempfile.TemporaryDirectory() as out, stock if way == "stock" else nullcontext():
        training.train_model(
            model,
            rows,
            settings,
            0,
            Path(out),
            OwnLoss() if way == "stock" else SFT,
            lambda *_: clock.append((time.process_time(), time.monotonic())),
        )
        losses = [row["loss"] for row in read_lines(Path(out) / "loss.jsonl")]
    steps = [[b - a for a, b in zip(*pair, strict=True)] for pair in pairwise(clock)]
    return {
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
        "loaded_bytes": before,
        "cpu_seconds": statistics.median(cpu for cpu, _ in steps),
        "seconds": statistics.median(wall for _, wall in steps),
        "label_share": sum(row.n_labels for row in rows) / (TOKENS * len(rows)),
        "losses": losses,
        "vocabulary": model.get_output_embeddings().weight.shape[0],
    }


def table(found: dict[str, Any]) -> str:
    lines = [
        "# Memory and time of a training step",
        "",
        f"`python benchmarks/training/run.py`, {found['machine']}, {found['threads']} threads, "
        f"commit {found['commit']}, {json.dumps(found['versions'])}.",
        "",
        f"Micro-batches of {ROWS} x {TOKENS} tokens. Memory is the process's peak, and in "
        "parentheses what it holds above the loaded model. Seconds are the CPU's.",
        "",
        "| model | vocabulary | labels | way | memory | seconds a step |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    notes = [""]
    for name, ways in found["models"].items():
        for way, one in ways.items():
            above = one["peak_bytes"] - one["loaded_bytes"]
            lines.append(
                f"| {name} | {one['vocabulary']:,} | {one['label_share']:.0%} | {way} | "
                f"{one['peak_bytes'] / 1e9:.1f} GB ({above / 1e9:.1f}) | "
                f"{one['cpu_seconds']:.1f} |"
            )
        old, new = (ways[way] for way in WAYS)
        notes.append(
            f"{name}: {new['peak_bytes'] / old['peak_bytes']:.2f} of the memory, "
            f"{new['cpu_seconds'] / old['cpu_seconds']:.2f} of the time."
        )
    return "\n".join([*lines, *notes, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", action="append", required=True, help="NAME=FOLDER")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", help="one way of training, in this process")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    models = dict(one.split("=", 1) for one in arguments.model)
    if arguments.one:
        (folder,) = models.values()
        print(json.dumps(measure(arguments.one, folder, arguments.data)))
        return
    found: dict[str, Any] = {
        "machine": f"{platform.machine()}, {psutil.cpu_count()} cores",
        "commit": subprocess.check_output(
            ["git", "rev-parse", "--short", "HEAD"], text=True
        ).strip(),
        "threads": arguments.threads,
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "models": {},
    }
    for name, folder in models.items():
        found["models"][name] = {}
        for way in WAYS:
            command = [sys.executable, __file__, "--data", str(arguments.data), "--one", way]
            command += ["--model", f"{name}={folder}", "--threads", str(arguments.threads)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found["models"][name][way] = json.loads(done.stdout.splitlines()[-1])
    write_json(HERE / "result.json", found)
    write_text(HERE / "table.md", table(found))


if __name__ == "__main__":
    main()
