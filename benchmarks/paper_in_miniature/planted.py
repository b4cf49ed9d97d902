"""How many planted rows each method finds: TyDiQA's training rows and MMLU's validation rows.

    python benchmarks/paper_in_miniature/run.py --data ../shared/data --out runs/miniature \
        --planted yes --targets tydiqa mmlu --methods less bm25 random --until select
    python benchmarks/paper_in_miniature/planted.py --run runs/miniature/planted-tydiqa-mmlu

In: a run with planted rows, up to its selections. Out: planted.json and planted.md beside this.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from gradsieve.rundir import RunDir

HERE = Path(__file__).parent
PLANTED = {"tydiqa": "planted_tydiqa_train", "mmlu": "planted_mmlu_val"}


def found(run: RunDir, target: str, method: str) -> dict[str, Any]:
    """Planted rows in a selection, and in the pool."""
    file = run.stage("score") / target / f"{method}.parquet"
    pool = Counter(pq.read_table(file, columns=["source"])["source"].to_pylist())
    lines = (run.stage("select") / target / method / "selected.jsonl").read_bytes().splitlines()
    sources = Counter(json.loads(line)["source"] for line in lines)
    planted = PLANTED[target]
    return {
        "rows": sum(pool.values()),
        "planted": pool[planted],
        "selected": len(lines),
        "planted_selected": sources[planted],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    run = RunDir(parser.parse_args().run)
    targets = run.done("select")["targets"]
    told = {t: {m: found(run, t, m) for m in targets[t]} for t in PLANTED}
    (HERE / "planted.json").write_text(json.dumps(told, indent=1) + "\n")
    lines = [
        "# Planted rows that are found",
        "",
        "Rows of the targets' own kind planted in a pool of real rows; 5% are selected. Commands",
        "in planted.py. The warm-up is that of the pool without them.",
        "",
        "| target | rows | planted | method | planted among selected | share of all planted |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for target, methods in told.items():
        for method, n in methods.items():
            of_all = n["planted_selected"] / n["planted"]
            cells = [target, n["rows"], n["planted"], method]
            cells += [f"{n['planted_selected'] / n['selected']:.1%}", f"{of_all:.1%}"]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    (HERE / "planted.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
