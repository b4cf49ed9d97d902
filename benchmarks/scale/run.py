"""Time and memory by number of rows: a run up to the selection, stage by stage.

    python benchmarks/scale/run.py --data ../shared/data --rows 10000 100000 1000000

A pool of real text (rows of train/*.jsonl, repeated with new ids) is run stage by stage with the
model models/stories260K in the tulu format, the target MMLU and one method (random by default). The
run is compared with reading and tokenizing the same rows in memory, as the first version of the
package did (at most --in-memory rows). Each number of rows is measured in a separate process.
Private memory is the anonymous memory (not backed by a file) of all processes together, sampled
every 50 ms; a stage's figure includes memory left over from earlier stages. Writes result.json and
table.md; for another method, METHOD.json and METHOD.md:

    OMP_NUM_THREADS=1 ONEDNN_PRIMITIVE_CACHE_CAPACITY=64 \
        python benchmarks/scale/run.py --data ../shared/data --method less \
        --rows 5000 20000 --in-memory 0 --max-length 512 --characters 300
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import psutil
from transformers import AutoTokenizer

import gradsieve
from gradsieve.console import Progress
from gradsieve.data.sources import read_source
from gradsieve.data.template import ChatTemplate
from gradsieve.methods import uses_gradients
from gradsieve.recipe.load import check_recipe
from gradsieve.recipe.schema import Recipe

HERE = Path(__file__).parent
MIB = 1 << 20


def write_pool(data: Path, rows: int, file: Path, characters: int | None) -> None:
    """Write real rows, repeated with new ids, from lines with at most `characters` characters."""
    lines = [line for source in sorted((data / "train").glob("*.jsonl"))
             for line in source.read_bytes().splitlines()
             if characters is None or len(line) <= characters]  # fmt: skip
    with file.open("w", encoding="utf-8") as out:
        for number, line in enumerate(islice(cycle(lines), rows)):
            row = {**json.loads(line), "id": f"row-{number}"}
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


class Usage:
    """Memory and CPU time of this process and its children, sampled while a block runs."""

    def __init__(self) -> None:
        self.private_bytes = 0
        self._cpu: dict[int, float] = {}
        self._process = psutil.Process()

    @contextmanager
    def sampled(self) -> Iterator[None]:
        done = threading.Event()

        def sample() -> None:
            while not done.wait(0.05):
                self._sample()

        self._sample()
        self._before = self.cpu_seconds
        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self._cpu[self._process.pid] = sum(self._process.cpu_times()[:2])

    @property
    def cpu_seconds(self) -> float:
        return sum(self._cpu.values()) - getattr(self, "_before", 0.0)

    def _sample(self) -> None:
        private = 0
        for process in [self._process, *self._process.children(recursive=True)]:
            try:
                private += anonymous_bytes(process.pid)
                self._cpu[process.pid] = sum(process.cpu_times()[:2])
            except (psutil.Error, OSError):
                continue
        self.private_bytes = max(self.private_bytes, private)


def anonymous_bytes(process: int) -> int:
    """Memory of a process that is not backed by a file."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Anonymous:"))


def measure(
    how: str, data: Path, file: Path, folder: Path, max_length: int, rank: int
) -> list[dict[str, Any]]:
    """Measure one number of rows in this process; returns a record per stage and one overall."""
    if how == "in memory":
        return [{"stage": "read and tokenize, in memory", **measured_call(in_memory, data, file)}]
    tree = {
        "model": {
            "name": str(data / "models" / "stories260K"),
            "chat_template": "tulu",
            "max_length": max_length,
        },
        "pool": [{"name": "s", "path": str(file)}],
        "targets": [{"name": "mmlu", "task": "mmlu", "path": str(data / "eval" / "mmlu")}],
        "warmup": {"epochs": 1, "lora": {"target_modules": ["q_proj", "v_proj"], "r": rank}},
        "score": {"methods": [how]},
    }
    recipe = check_recipe(tree)
    stages = ["pool", *["warmup", "features"] * uses_gradients(how, recipe), "score", "select"]
    found = [
        {"stage": stage, **measured_call(run_stage, recipe, folder, stage)} for stage in stages
    ]
    whole = {
        "stage": f"{how}, pool to selection",
        "seconds": sum(one["seconds"] for one in found),
        "cpu_seconds": sum(one["cpu_seconds"] for one in found),
        "private_bytes": max(one["private_bytes"] for one in found),
    }
    return [*found, whole]


def in_memory(data: Path, file: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(data / "models" / "stories260K")
    template = ChatTemplate(tokenizer, "tulu", max_length=2048)
    template.try_encode_all(read_source("s", str(file)).examples)


def run_stage(recipe: Recipe, folder: Path, stage: str) -> None:
    gradsieve.run(recipe, folder, first=stage, last=stage, progress=Progress(quiet=True))


def measured_call(call: Callable[..., None], *arguments: Any) -> dict[str, Any]:
    usage, started = Usage(), time.monotonic()
    with usage.sampled():
        call(*arguments)
    return {
        "seconds": time.monotonic() - started,
        "cpu_seconds": usage.cpu_seconds,
        "private_bytes": usage.private_bytes,
    }


def measured(
    arguments: argparse.Namespace, how: str, rows: int, scratch: Path
) -> list[dict[str, Any]]:
    """Measure one number of rows in a separate process."""
    file = scratch / f"{rows}.jsonl"
    if not file.exists():
        write_pool(arguments.data, rows, file, arguments.characters)
    command = [sys.executable, __file__, "--data", str(arguments.data)]
    command += ["--max-length", str(arguments.max_length), "--rank", str(arguments.rank)]
    command += ["--one", how]
    places = [str(file), str(scratch / f"{how}-{rows}")]
    done = subprocess.run([*command, *places], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return [{"rows": rows, **one} for one in json.loads(done.stdout.splitlines()[-1])]


def table(results: list[dict[str, Any]]) -> str:
    lines = ["| rows | what | seconds | rows a second | CPU seconds | private memory, MiB |",
             "| ---: | --- | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for one in results:
        rate = one["rows"] / one["seconds"]
        lines.append(
            f"| {one['rows']:,} | {one['stage']} | {one['seconds']:.1f} | {rate:,.0f} "
            f"| {one['cpu_seconds']:.1f} | {one['private_bytes'] / MIB:,.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--method", default="random")
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--rank", type=int, default=128, help="of LoRA")
    parser.add_argument("--characters", type=int, help="most of a line; default: any number")
    parser.add_argument("--in-memory", type=int, default=100_000, help="most rows read in memory")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--one", nargs=3, metavar=("HOW", "FILE", "FOLDER"))
    arguments = parser.parse_args()
    if arguments.one:
        how, file, folder = arguments.one
        limits = arguments.max_length, arguments.rank
        print(json.dumps(measure(how, arguments.data, Path(file), Path(folder), *limits)))
        return
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for rows in arguments.rows:
            for how in ["in memory"] * (rows <= arguments.in_memory) + [arguments.method]:
                found = measured(arguments, how, rows, Path(scratch))
                print("\n".join(table(found).splitlines()[2:]), file=sys.stderr)
                results += found
    versions = {name: version(name) for name in ("tokenizers", "transformers", "pyarrow")}
    commit = subprocess.run(
        ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    rows = " ".join(map(str, arguments.rows))
    setup = {
        "command": f"python benchmarks/scale/run.py --data DATA --rows {rows}"
        f" --method {arguments.method} --in-memory {arguments.in_memory}"
        f" --max-length {arguments.max_length} --rank {arguments.rank}"
        + (f" --characters {arguments.characters}" if arguments.characters else ""),
        "commit": commit.stdout.strip(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "versions": versions,
    }
    found = json.dumps({"setup": setup, "results": results}, indent=1)
    usual = arguments.method == "random"
    stems = ("result", "table") if usual else (arguments.method, arguments.method)
    (arguments.out / f"{stems[0]}.json").write_text(found + "\n")
    (arguments.out / f"{stems[1]}.md").write_text(table(results))


if __name__ == "__main__":
    main()
