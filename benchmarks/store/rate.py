"""Scoring rate of a datastore, compared with the machine's read bandwidth, numpy and FAISS.

    python benchmarks/store/rate.py --out runs/rate [--million]

Uses synthetic rows of 8192 dims, and 57 subtasks or 1. The bandwidth is measured by summing the
bytes of each store's files (in the page cache); then all stores are scored in turn, five times, and
medians are reported. `--million` writes, opens, verifies and scores 1,000,000 rows at 1 bit, each
in a separate process whose peak memory is read. Writes rate.json and rate.md next to this file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from gradsieve.store import RowKey, create_store, open_store

HERE = Path(__file__).parent
DIM, SUBTASKS = 8192, 57
ROWS, SHARD = 65_536, 4096
REPEATS = 5


def make(folder: Path, bits: int, rows: int) -> None:
    """Write rows of random directions; an existing store is kept and extended."""
    store = create_store(folder, {"bits": bits, "projection": {"dim": DIM}})
    there = len(open_store(folder))
    for start in range(there, rows, SHARD):
        rng = np.random.default_rng(start)
        values = rng.standard_normal((min(SHARD, rows - start), DIM), dtype=np.float32)
        ids = range(start, start + len(values))
        keys = [RowKey("s", f"{i:08d}", f"{i * 0x9E3779B97F4A7C15 % 2**64:016x}") for i in ids]
        store.write_shard(keys, values, np.ones(len(values)))
    store.finish()


def directions(count: int) -> np.ndarray:
    made = np.random.default_rng(1).standard_normal((count, DIM), dtype=np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def score(folder: Path, subtasks: int) -> float:
    """The best of all scores, so that none of the work can be skipped."""
    parts = open_store(folder).similarities(directions(subtasks))
    return max(float(part.cosines.max()) for part in parts)


def find(folder: Path) -> int:
    """Look up the positions of all rows by their keys; returns how many are found."""
    store = open_store(folder)
    return int((store.positions(store.keys()) >= 0).sum())


def bytes_of(folder: Path) -> int:
    return sum(file.stat().st_size for kind in ("shard-*", "keys-*") for file in folder.glob(kind))


def total(folder: Path) -> int:
    """The sum of all bytes, read as 64-bit words: the cost of reading alone."""
    found = 0
    for file in sorted(folder.glob("shard-*")):
        content = np.frombuffer(file.read_bytes(), dtype=np.uint8)
        found += int(content[: len(content) // 8 * 8].view(np.uint64).sum(dtype=np.uint64))
    return found


def timed(runners: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Run each in turn, and return median seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(REPEATS):
        for name, runner in runners.items():
            start = time.perf_counter()
            runner()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def compare(out: Path) -> dict[str, Any]:
    """Scoring rates for each number of bits, and of numpy and FAISS on float32 in memory."""
    runners: dict[str, Callable[[], Any]] = {}
    sizes: dict[str, int] = {}
    for bits in (16, 8, 4, 2, 1):
        folder = out / f"bits-{bits}"
        make(folder, bits, ROWS)
        sizes[f"{bits} bits"] = bytes_of(folder)
        runners[f"{bits} bits, read"] = lambda folder=folder: total(folder)
        runners[f"{bits} bits, {SUBTASKS} subtasks"] = lambda folder=folder: score(folder, SUBTASKS)
        runners[f"{bits} bits, 1 subtask"] = lambda folder=folder: score(folder, 1)
    few = np.random.default_rng(0).standard_normal((ROWS // 4, DIM), dtype=np.float32)
    runners["numpy"] = lambda: (few @ directions(SUBTASKS).T).max()
    try:
        import faiss
    except ImportError:
        faiss = None
    if faiss is not None:
        index = faiss.IndexFlatIP(DIM)
        index.add(few)
        runners["FAISS flat"] = lambda: index.search(directions(SUBTASKS), len(few) // 20)
    for runner in runners.values():
        runner()
    seconds = timed(runners)
    rates = []
    for bits in (16, 8, 4, 2, 1):
        size, read = sizes[f"{bits} bits"], seconds[f"{bits} bits, read"]
        for what in (f"{SUBTASKS} subtasks", "1 subtask"):
            spent = seconds[f"{bits} bits, {what}"]
            rates.append(
                {
                    "bits": bits,
                    "subtasks": what,
                    "rows_a_second": ROWS / spent,
                    "gigabytes_a_second": size / spent / 1e9,
                    "share_of_read_bandwidth": read / spent,
                    "read_gigabytes_a_second": size / read / 1e9,
                }
            )
    peers = {name: ROWS / 4 / seconds[name] for name in ("numpy", "FAISS flat") if name in seconds}
    sixteen = sizes["16 bits"]
    return {
        "rates": rates,
        "float32_in_memory_rows_a_second": peers,
        "bytes_a_row": {name: size / ROWS for name, size in sizes.items()},
        "size_against_16_bits": {name: sixteen / size for name, size in sizes.items()},
    }


def million(out: Path) -> dict[str, Any]:
    """Write, verify and score a million rows at 1 bit; seconds and peak memory of each step."""
    folder = out / "million"
    steps = {
        "import": "pass",
        "write": f"rate.make(Path({str(folder)!r}), 1, 1_000_000)",
        "open": f"assert len(rate.open_store({str(folder)!r})) == 1_000_000",
        "positions": f"assert rate.find(Path({str(folder)!r})) == 1_000_000",
        "verify": f"assert rate.open_store({str(folder)!r}).verify() == []",
        "score": f"rate.score(Path({str(folder)!r}), {SUBTASKS})",
    }
    found: dict[str, Any] = {}
    for name, step in steps.items():
        code = (
            "import resource, sys, time; from pathlib import Path\n"
            f"sys.path.insert(0, {str(HERE)!r}); import rate\n"
            f"start = time.perf_counter(); {step}\n"
            "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
            "print(time.perf_counter() - start, peak)"
        )
        told = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        seconds, peak = map(float, told.stdout.split())
        found[name] = {"seconds": seconds, "peak_mebibytes": peak}
    found["bytes"] = bytes_of(folder)
    return found


def markdown(result: dict[str, Any]) -> str:
    lines = [
        "# How fast a datastore is scored",
        "",
        f"`{result['command']}`: {ROWS} rows x {DIM} dims, {result['cores']} cores, versions "
        f"{json.dumps(result['versions'])}; medians of {REPEATS}.",
        "",
        "| bits | subtasks | rows/s | GB/s | share of reading alone |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {rate['bits']} | {rate['subtasks'].split()[0]} | {rate['rows_a_second']:,.0f} | "
        f"{rate['gigabytes_a_second']:.2f} | {rate['share_of_read_bandwidth']:.2f} |"
        for rate in result["rates"]
    ]
    for name, rate in result["float32_in_memory_rows_a_second"].items():
        lines.append(f"| 32, {name}, in memory | {SUBTASKS} | {rate:,.0f} | | |")
    lines += ["", "| bits | bytes a row |", "| --- | --- |"]
    lines += [
        f"| {name.split()[0]} | {size:,.1f} |" for name, size in result["bytes_a_row"].items()
    ]
    if "million" in result:
        lines += ["", "A million rows at 1 bit:", "", "| step | seconds | peak MiB |"]
        lines.append("| --- | --- | --- |")
        for name in ("import", "write", "open", "positions", "verify", "score"):
            step = result["million"][name]
            lines.append(f"| {name} | {step['seconds']:.0f} | {step['peak_mebibytes']:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--million", action="store_true")
    given = parser.parse_args()
    result = {
        "command": "python benchmarks/store/rate.py" + (" --million" if given.million else ""),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("torch", "numpy", "numba", "xxhash")},
        **compare(given.out),
    }
    if given.million:
        result["million"] = million(given.out)
    (HERE / "rate.json").write_text(json.dumps(result, indent=1) + "\n")
    (HERE / "rate.md").write_text(markdown(result))


if __name__ == "__main__":
    main()
