"""Planted rows among the best 5%, from the score tables of two models' runs on one pool.

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
from judged import KINDS, in_best, table_of
from measured import SHARE


def found(run: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Rows of the target's kind among the best 5%, by method and target."""
    by_method: dict[str, dict[str, dict[str, float]]] = {}
    for target, kinds in KINDS.items():
        for file in sorted((run / "03-score" / target).glob("*.parquet")):
            table = pq.read_table(file, columns=["source", "score"])
            of_kind = np.isin(table["source"].to_numpy(), kinds)
            scores = table["score"].to_numpy()
            by_method.setdefault(file.stem, {})[target] = in_best(of_kind, scores)
    return by_method


def main() -> None:
    measured = {Path(run).name: found(Path(run)) for run in sys.argv[1:]}
    for name, by_method in measured.items():
        print("", *table_of(by_method, f"{name}, best {SHARE:.0%}"), sep="\n")
    file = Path(__file__).with_name("second_model.json")
    file.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
