"""Planted rows among the best 5%, by the score tables of two models' runs on one pool.

    python benchmarks/real_model/prepare.py --data ../shared/data --model MODEL --out OUT \
        --rows 700 --needles 0.25 --characters 600
    gradsieve run OUT/gemma.yaml --out OUT/gemma --until score      (settings: second_model.md)
    gradsieve run OUT/smollm2.yaml --out OUT/smollm2 --until score
    python benchmarks/real_model/second_model.py OUT/gemma OUT/smollm2
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from judged import KINDS
from measured import SHARE, top


def found(run: Path) -> dict[str, dict[str, list[float]]]:
    """By method and target: rows of its kind in the best 5%, rows of its kind, times chance."""
    by_method: dict[str, dict[str, list[float]]] = {}
    for target, kinds in KINDS.items():
        for file in sorted((run / "03-score" / target).glob("*.parquet")):
            table = pq.read_table(file, columns=["source", "score"])
            of_kind = np.isin(table["source"].to_numpy(), kinds)
            best = of_kind[top(table["score"].to_numpy())]
            times = round(float(best.mean() / of_kind.mean()), 1)
            by_method.setdefault(file.stem, {})[target] = [
                int(best.sum()),
                int(of_kind.sum()),
                times,
            ]
    return by_method


def main() -> None:
    measured = {Path(run).name: found(Path(run)) for run in sys.argv[1:]}
    for name, by_method in measured.items():
        print(f"\n| {name}, best {SHARE:.0%} | " + " | ".join(KINDS) + " |")
        print("|" + " --- |" * (len(KINDS) + 1))
        for method, cells in by_method.items():
            shown = (f"{times} ({rows} of {of})" for rows, of, times in cells.values())
            print(f"| {method} | " + " | ".join(shown) + " |")
    file = Path(__file__).with_name("second_model.json")
    file.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
