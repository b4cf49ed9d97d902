"""Error of sketched scores compared with exact ones: plain and balanced, by dimensions and bits.

python benchmarks/real_model/fidelity.py --passes PASS ... --out benchmarks/real_model
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from measured import Pass, across, top
from scipy.stats import spearmanr

from gradients import PROJECTIONS, name_of

TARGETS = ("tydiqa", "mmlu", "bbh", "gsm8k", "code")


def compare(exact: np.ndarray, sketched: np.ndarray) -> dict[str, float]:
    """Cosine error, spread of the exact cosines, rank correlation and recall of the best 5%."""
    own, true = across(sketched, "standardized_max"), across(exact, "standardized_max")
    both = set(top(own)) & set(top(true))
    correlations = [spearmanr(a, b)[0] for a, b in zip(sketched.T, exact.T, strict=True)]
    return {
        "error": float(np.sqrt(np.mean((sketched - exact) ** 2))),
        "spread": float(np.mean(exact.std(0))),
        "spearman": float(np.mean(correlations)),
        "recall": len(both) / len(top(true)),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--passes", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    result = {}
    for folder in arguments.passes:
        one = Pass(folder)
        table = []
        exact = {
            (reading, target): one.exact(reading, target)
            for reading in {projection[0] for projection in PROJECTIONS}
            for target in TARGETS
        }
        for projection in PROJECTIONS:
            key = name_of(*projection)
            widths = (1, 4, 16) if projection[2] in (8192, 32768) else (16,)
            for bits in widths:
                for target in TARGETS:
                    row = compare(exact[projection[0], target], one.projected(key, target, bits))
                    table.append({"projection": key, "bits": bits, "target": target, **row})
        result[folder.name] = {"rows": len(one.sources), "table": table}
    (arguments.out / "fidelity.json").write_text(json.dumps(result, indent=1) + "\n")
    lines = []
    for name, part in result.items():
        lines += [f"## {name}: {part['rows']} rows, means over {', '.join(TARGETS)}", ""]
        lines += [
            "| projection | bits | error | spread of cosines | Spearman | recall of the top 5% |"
        ]
        lines += ["|" + " --- |" * 6]
        seen = dict.fromkeys((row["projection"], row["bits"]) for row in part["table"])
        for key, bits in seen:
            own = [r for r in part["table"] if (r["projection"], r["bits"]) == (key, bits)]
            mean = {
                k: np.mean([r[k] for r in own]) for k in ("error", "spread", "spearman", "recall")
            }
            lines.append(
                f"| {key} | {bits} | {mean['error']:.4f} | {mean['spread']:.4f} | "
                f"{mean['spearman']:.3f} | {mean['recall']:.0%} |"
            )
        lines.append("")
    (arguments.out / "fidelity.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
