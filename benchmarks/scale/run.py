"""Rows against seconds and memory: how long a large pool takes, and what it holds in memory.

    python benchmarks/scale/run.py --data ../shared/data --rows 10000 100000

A pool of real text (train/*.jsonl in turn, again and again with new ids) is made on disk by
`build_pool` with the tokenizer of models/stories260K in the tulu format, and compared with reading
and tokenizing the same rows in memory, as the first edition did (at most --in-memory rows). Each
number is measured in a process of its own. Private memory is what no file on disk backs: anonymous
memory of all processes together, sampled every 50 ms. Writes result.json and table.md.
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
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
MIB = 1 << 20


def write_pool(data: Path, rows: int, file: Path) -> None:
    """Real rows, repeated with new ids."""
    lines = [line for source in sorted((data / "train").glob("*.jsonl"))
             for line in source.read_bytes().splitlines()]  # fmt: skip
    with file.open("w", encoding="utf-8") as out:
        for number, line in enumerate(islice(cycle(lines), rows)):
            row = {**json.loads(line), "id": f"row-{number}"}
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


class Usage:
    """Memory and CPU time of this process and all that it starts, sampled while a block runs."""

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
                private += sum(found.anonymous for found in process.memory_maps(grouped=True))
                self._cpu[process.pid] = sum(process.cpu_times()[:2])
            except psutil.Error:
                continue
        self.private_bytes = max(self.private_bytes, private)


def measure(how: str, data: Path, file: Path, folder: Path, workers: int) -> dict[str, Any]:
    """One number of rows, in this process."""
    from transformers import AutoTokenizer

    from gradsieve.data.pool import SourceSpec, build_pool
    from gradsieve.data.readers import read_source
    from gradsieve.data.template import ChatTemplate

    tokenizer = AutoTokenizer.from_pretrained(data / "models" / "stories260K")
    template = ChatTemplate(tokenizer, "tulu", max_length=2048)
    usage, started = Usage(), time.monotonic()
    with usage.sampled():
        if how == "on disk":
            rows = len(build_pool(folder, [SourceSpec("s", str(file))], template, workers=workers))
        else:
            rows = len(template.encode_all(read_source("s", str(file)).examples))
    return {
        "rows": rows,
        "seconds": time.monotonic() - started,
        "cpu_seconds": usage.cpu_seconds,
        "private_bytes": usage.private_bytes,
    }


def measured(arguments: argparse.Namespace, how: str, rows: int, scratch: Path) -> dict[str, Any]:
    """One number of rows, in a process of its own."""
    file = scratch / f"{rows}.jsonl"
    if not file.exists():
        write_pool(arguments.data, rows, file)
    command = [sys.executable, __file__, "--data", str(arguments.data), "--one", how]
    places = [str(file), str(scratch / f"pool-{rows}"), str(arguments.workers)]
    done = subprocess.run([*command, *places], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return {"how": how, **json.loads(done.stdout)}


def table(results: list[dict[str, Any]]) -> str:
    lines = ["| rows | how | seconds | rows a second | CPU seconds | private memory, MiB |",
             "| ---: | --- | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for one in results:
        rate = one["rows"] / one["seconds"]
        lines.append(
            f"| {one['rows']:,} | {one['how']} | {one['seconds']:.1f} | {rate:,.0f} "
            f"| {one['cpu_seconds']:.1f} | {one['private_bytes'] / MIB:,.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--in-memory", type=int, default=100_000, help="most rows read in memory")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--one", nargs=4, metavar=("HOW", "FILE", "FOLDER", "WORKERS"))
    arguments = parser.parse_args()
    if arguments.one:
        how, file, folder, workers = arguments.one
        found = measure(how, arguments.data, Path(file), Path(folder), int(workers))
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as scratch:
        results = []
        for rows in arguments.rows:
            for how in ["in memory"] * (rows <= arguments.in_memory) + ["on disk"]:
                results.append(measured(arguments, how, rows, Path(scratch)))
                print(table(results[-1:]).splitlines()[-1], file=sys.stderr)
    versions = {name: version(name) for name in ("tokenizers", "transformers", "pyarrow")}
    setup = {"cores": os.cpu_count(), "machine": platform.machine(), "versions": versions}
    (arguments.out / "result.json").write_text(
        json.dumps({"setup": setup, "workers": arguments.workers, "results": results}, indent=1)
        + "\n"
    )
    (arguments.out / "table.md").write_text(table(results))


if __name__ == "__main__":
    main()
