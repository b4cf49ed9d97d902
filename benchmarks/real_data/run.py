"""One run over real rows with planted needles: time per stage, peak memory, needles found.

    python benchmarks/real_data/run.py --data ../shared/data --out runs/real [--rows 6000]

The pool is drawn at random from eleven public sources, and TyDiQA training rows in three languages
are planted in it; the targets are MMLU, TyDiQA and BBH; the model is a Llama with 260 thousand
parameters and a context of 512 tokens, so long rows are truncated or skipped. Writes result.json.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import gradsieve
from gradsieve.recipe.load import check_recipe

PLANTED = "planted_tydiqa_train"


def draw(data: Path, out: Path, rows: int, planted: int) -> list[dict[str, str]]:
    """Write the pool; returns the recipe's `pool` section."""
    rng = random.Random(0)
    files = sorted((data / "train").glob("*.jsonl"))
    lines = [(file.stem, line) for file in files for line in file.read_bytes().split(b"\n") if line]
    needles = (data / "planted" / f"{PLANTED}.jsonl").read_bytes().split(b"\n")[:-1]
    drawn = rng.sample(lines, rows - planted)
    drawn += [(PLANTED, line) for line in rng.sample(needles, planted)]
    out.mkdir(parents=True, exist_ok=True)
    for name in {name for name, _ in drawn}:
        own = [line for owner, line in drawn if owner == name]
        (out / f"{name}.jsonl").write_bytes(b"\n".join(own) + b"\n")
    names = sorted({name for name, _ in drawn})
    return [{"name": name, "path": str(out / f"{name}.jsonl")} for name in names]


def small_model(data: Path) -> dict[str, Any]:
    """The recipe's `model` section."""
    return {
        "name": str(data / "models" / "stories260K"),
        "dtype": "float32",
        "chat_template": "tulu",
        "max_length": 512,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--planted", type=int, default=600)
    arguments = parser.parse_args()
    data, out = arguments.data, arguments.out
    recipe = check_recipe(
        {
            "model": small_model(data),
            "pool": draw(data, out / "pool", arguments.rows, arguments.planted),
            "targets": [
                {"name": name, "task": name, "path": str(data / "eval" / name)}
                for name in ("mmlu", "tydiqa", "bbh")
            ],
            # So small a model needs a larger learning rate than the paper's 2e-5.
            "warmup": {"learning_rate": 1e-3, "batch_size": 16, "lora": {"r": 8, "alpha": 32}},
        }
    )
    start = time.monotonic()
    run = gradsieve.run(recipe, out / "run")
    seconds = time.monotonic() - start
    scored = pq.read_table(run.stage("score") / "tydiqa" / "less.parquet").to_pylist()
    in_pool = sum(row["source"] == PLANTED for row in scored) / len(scored)
    found = {}
    for target in ("mmlu", "tydiqa", "bbh"):
        rows = pq.read_table(run.stage("score") / target / "less.parquet").to_pylist()
        rows.sort(key=lambda row: (-row["score"], row["source"], row["id"]))
        top = rows[: max(1, round(0.05 * len(rows)))]
        found[target] = dict(Counter(row["source"] for row in top).most_common())
    top = sum(found["tydiqa"].values())
    features = run.require("features")
    result = {
        "command": f"python benchmarks/real_data/run.py --rows {arguments.rows} "
        f"--planted {arguments.planted}",
        "rows": arguments.rows,
        "skipped": features["skipped"],
        "truncated": features["truncated"],
        "seconds": {
            name: run.require(name)["seconds"] for name in ("warmup", "features", "score", "select")
        },
        "seconds_in_all": round(seconds, 1),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "share_of_coordinates_below_eps": [
            fact["share_of_coordinates_below_eps"] for fact in features["checkpoints"]
        ],
        "planted_share_of_scored_pool": round(in_pool, 4),
        "planted_share_of_tydiqa_top_5_percent": round(found["tydiqa"].get(PLANTED, 0) / top, 4),
        "sources_of_top_5_percent": found,
        "versions": features["versions"],
    }
    (out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
