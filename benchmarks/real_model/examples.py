"""How many target examples are enough? Relevant rows in the best 5%, by examples per subtask.

    python benchmarks/real_model/examples.py --passes PASS ... --out benchmarks/real_model

Relevant rows are planted MMLU questions for MMLU, GSM8K's training rows for GSM8K and GPTeacher's
code for code. Uses exact cosines of the default reading and random subsets of the examples.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from measured import Pass, across, top

OWN = {"mmlu": "planted_mmlu", "gsm8k": "gsm8k", "code": "gpteacher_code"}
COUNTS = (1, 2, 3, 5, 8)
DRAWS = 8


def share(one: Pass, target: str, count: int, rng: np.random.Generator) -> float:
    """The share of the target's kind among the best 5% of rows, over its share of the pool."""
    columns, subtasks = one.columns(target)
    of = np.array(subtasks)
    chosen = np.concatenate(
        [rng.permutation(np.flatnonzero(of == name))[:count] for name in sorted(set(subtasks))]
    )
    names = sorted(set(of[chosen]))
    gradients = one.targets["gradients"][np.array(columns)[chosen]].numpy()
    products = one.array("products-torch")[:, np.array(columns)[chosen]]
    norms = one.array("norm-torch")[:, None]
    means = np.stack([gradients[of[chosen] == name].mean(0) for name in names])
    sums = np.stack([products[:, of[chosen] == name].mean(1) for name in names], axis=1)
    cosines = sums / norms / np.linalg.norm(means, axis=1)
    is_own = one.sources == OWN[target]
    return float(is_own[top(across(cosines, "standardized_max"))].mean() / is_own.mean())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--passes", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    result: dict[str, dict] = {}
    lines = ["Rows of the target's kind among the best 5%, over their share of the pool:", ""]
    for folder in arguments.passes:
        one = Pass(folder)
        lines += [f"| {folder.name} | " + " | ".join(f"{c} a subtask" for c in COUNTS) + " |"]
        lines += ["|" + " --- |" * (len(COUNTS) + 1)]
        result[folder.name] = {}
        for target in OWN:
            most = max(one.columns(target)[1].count(s) for s in set(one.columns(target)[1]))
            rng = np.random.default_rng(0)
            found = {}
            for count in (c for c in COUNTS if c <= most):
                draws = 1 if count == most else DRAWS
                found[count] = [share(one, target, count, rng) for _ in range(draws)]
            result[folder.name][target] = found
            cells = [
                f"{np.mean(found[c]):.1f} ± {np.std(found[c]):.1f}" if c in found else ""
                for c in COUNTS
            ]
            lines.append(f"| {target} | " + " | ".join(cells) + " |")
        lines.append("")
    (arguments.out / "examples.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.out / "examples.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
