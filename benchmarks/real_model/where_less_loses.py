"""Why LESS finds fewer rows of code than BM25 does, and what helps: results per target example.

    python benchmarks/real_model/where_less_loses.py --gradients OUT/W-4 \
        --target OUT/judged/code.jsonl

From a gradients.py pass over judged.py's pool: rows of code that each target example finds alone
(multiples of chance, among the best 5%), with its answer's length and gradient norm; and ways of
combining the examples, in each reading of Adam. Writes where_less_loses.json and .md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from judged import KINDS
from measured import Pass, top

from gradients import READINGS
from gradsieve.methods.base import standardize

HERE = Path(__file__).parent
TARGET = "code"
WAYS = ("mean gradient", "mean of cosines", "mean of standardized cosines", "largest of these")


def joined(one: Pass, reading: str) -> dict[str, np.ndarray]:
    """Scores [n] by way of combining examples."""
    cosines = one.exact(reading, TARGET, by_example=True)
    compared = standardize(cosines.astype(np.float32))
    mean = one.exact(reading, TARGET)[:, 0]
    return dict(zip(WAYS, (mean, cosines.mean(1), compared.mean(1), compared.max(1)), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gradients", type=Path, required=True)
    parser.add_argument("--target", type=Path, required=True)
    arguments = parser.parse_args()
    one = Pass(arguments.gradients)
    of_kind = np.isin(one.sources, KINDS[TARGET])

    def found(scores: np.ndarray) -> float:
        return round(float(of_kind[top(scores)].mean() / of_kind.mean()), 1)

    rows = [json.loads(line) for line in arguments.target.read_text().splitlines()]
    answers = [row["messages"][-1]["content"] for row in rows]
    columns, _ = one.columns(TARGET)
    norms = np.linalg.norm(one.targets["gradients"][columns].numpy(), axis=1)
    alone = {reading: one.exact(reading, TARGET, by_example=True) for reading in READINGS}
    examples = [
        {
            "characters of the answer": len(answer),
            "gradient norm": round(float(norm), 2),
            **{reading: found(alone[reading][:, column]) for reading in READINGS},
        }
        for column, (answer, norm) in enumerate(zip(answers, norms, strict=True))
    ]
    ways = {
        reading: {way: found(scores) for way, scores in joined(one, reading).items()}
        for reading in READINGS
    }
    lines = [f"Rows of code among the best 5% of {len(of_kind)}, in times of chance.", ""]
    lines += [
        "| example | " + " | ".join(examples[0]) + " |",
        "|" + " --- |" * (1 + len(examples[0])),
    ]
    lines += [
        f"| {number} | " + " | ".join(map(str, example.values())) + " |"
        for number, example in enumerate(examples, start=1)
    ]
    lines += ["", "| reading | " + " | ".join(WAYS) + " |", "|" + " --- |" * (1 + len(WAYS))]
    lines += [
        f"| {name} | " + " | ".join(map(str, own.values())) + " |" for name, own in ways.items()
    ]
    (HERE / "where_less_loses.json").write_text(
        json.dumps({"examples": examples, "ways": ways}, indent=1) + "\n"
    )
    (HERE / "where_less_loses.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
