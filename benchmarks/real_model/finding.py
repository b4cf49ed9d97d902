"""Planted rows among the best 5%, by reading of Adam, way of combining subtasks, and sketch.

python benchmarks/real_model/finding.py --passes PASS ... --out benchmarks/real_model
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from measured import SHARE, Pass, across, fused, in_turns, top

from gradients import PROJECTIONS, READINGS, name_of

PLANTED = {
    "tydiqa": ("planted_english", "planted_swahili", "planted_korean"),
    "mmlu": ("planted_mmlu",),
}
WAYS = ("max", "mean", "standardized_max")


def found(sources: np.ndarray, selected: np.ndarray, target: str) -> dict[str, float]:
    """The share of each kind of planted row that is selected, and their ratio to chance overall."""
    kinds = PLANTED[target]
    shares = {
        kind: float((sources[selected] == kind).sum() / (sources == kind).sum()) for kind in kinds
    }
    among = float(np.isin(sources[selected], kinds).mean() / np.isin(sources, kinds).mean())
    return {**shares, "times chance": among}


def measure(one: Pass, baselines: Path | None) -> list[dict]:
    rows = []
    for target in PLANTED:
        columns = {f"exact {r}": one.exact(r, target) for r in READINGS}
        examples = {f"exact {r}": one.exact(r, target, by_example=True) for r in READINGS}
        columns |= {name_of(*p): one.projected(name_of(*p), target) for p in PROJECTIONS}
        for what, by_subtask in columns.items():
            selected = {way: top(across(by_subtask, way)) for way in WAYS}
            selected["turns of subtasks"] = in_turns(by_subtask)
            if what in examples:
                selected["turns of examples"] = in_turns(examples[what])
                best = across(examples[what], "standardized_max")
                selected["standardized_max of examples"] = top(best)
            rows += [
                {"target": target, "scores": what, "way": way} | found(one.sources, some, target)
                for way, some in selected.items()
            ]
        rows += of_baselines(one, target, baselines, across(columns["exact torch"], WAYS[-1]))
    return rows


def of_baselines(one: Pass, target: str, folder: Path | None, less: np.ndarray) -> list[dict]:
    """Results of methods without gradients, from a run's score tables, and of fusion with LESS."""
    scores = {}
    for file in sorted((folder / target).glob("*.parquet")) if folder else []:
        table = pq.read_table(file, columns=["source", "id", "score"])
        of = {(row["source"], row["id"]): row["score"] for row in table.to_pylist()}
        scores[file.stem] = np.array([of[key] for key in one.keys])
    for others in (("bm25",), ("bm25", "rds_plus")):
        if all(name in scores for name in others):
            name = " + ".join(["less", *others])
            scores[f"fusion: {name}"] = fused(less, *(scores[other] for other in others))
    return [
        {"target": target, "scores": name, "way": ""} | found(one.sources, top(own), target)
        for name, own in scores.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--passes", type=Path, nargs="+", required=True)
    parser.add_argument("--baselines", type=Path, help="03-score of a run with other methods")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    result = {}
    for folder in arguments.passes:
        one = Pass(folder)
        result[folder.name] = {
            "rows": len(one.sources),
            "of": len(one.facts["keys"]),
            "step": one.facts["step"],
            "table": measure(one, arguments.baselines),
        }
    (arguments.out / "finding.json").write_text(json.dumps(result, indent=1) + "\n")
    lines = []
    for name, part in result.items():
        lines += [
            f"## {name}: {part['rows']} of {part['of']} rows, step {part['step']}, top {SHARE:.0%}",
            "",
        ]
        for target in PLANTED:
            own = [row for row in part["table"] if row["target"] == target]
            keys = [key for key in own[0] if key not in ("target", "scores", "way")]
            lines += [f"### {target}", "", "| scores | over subtasks | " + " | ".join(keys) + " |"]
            lines += ["|" + " --- |" * (len(keys) + 2)]
            for row in own:
                cells = [f"{row[k]:.1f}" if k == "times chance" else f"{row[k]:.0%}" for k in keys]
                lines.append(f"| {row['scores']} | {row['way']} | " + " | ".join(cells) + " |")
            lines.append("")
    (arguments.out / "finding.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
