"""Generated answers to TyDiQA's questions, by the method that the model was trained on.

    python benchmarks/real_model/answers.py RUN [RUN ...] --target tydiqa_english

Reads `06-evaluate/TARGET/METHOD/seed-S.samples.jsonl` of runs that evaluated f1, and prints JSON:
F1 and exact match of each training, precision and recall of F1's words, the mean number of words,
and the differences to random rows with their standard errors over questions (paired; the mean over
trainings first). Several runs may hold different trainings, or different questions of one training.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradsieve.evaluation.metrics import normalized
from gradsieve.methods import split_seed

MEASURES = ("f1", "exact_match", "precision", "recall", "words")


def overlap(answer: str, reference: str) -> tuple[float, float, float]:
    """F1, precision and recall of an answer's words."""
    given, wanted = normalized(answer).split(), normalized(reference).split()
    same = sum((Counter(given) & Counter(wanted)).values())
    if not same:
        return 0.0, 0.0, 0.0
    return 2 * same / (len(given) + len(wanted)), same / len(given), same / len(wanted)


def measured(sample: dict[str, Any]) -> list[float]:
    """An answer's values of MEASURES."""
    final = sample["final"]
    _, precision, recall = max(overlap(final, one) for one in sample["references"])
    return [sample["f1"], sample["exact_match"], precision, recall, len(final.split())]


def read(runs: list[Path], target: str) -> dict[str, NDArray[np.float64]]:
    """The values by method [trainings, questions, MEASURES]."""
    found: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(dict)
    for run in runs:
        for file in sorted((run / "06-evaluate" / target).glob("*/seed-*.samples.jsonl")):
            for line in file.read_text(encoding="utf-8").splitlines():
                sample = json.loads(line)
                found[file.parent.name, file.name][sample["id"]] = measured(sample)
    questions = sorted(set.intersection(*(set(one) for one in found.values())))
    by_method = defaultdict(list)
    for (name, _), values in sorted(found.items()):
        method, _ = split_seed(name)
        by_method[method].append([values[question] for question in questions])
    return {method: np.array(values) for method, values in by_method.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--target", default="tydiqa_english")
    arguments = parser.parse_args()
    values = read(arguments.runs, arguments.target)
    result: dict[str, Any] = {"questions": values["random"].shape[1], "methods": {}}
    for method, each in values.items():
        over = each.mean(axis=0) - values["random"].mean(axis=0)
        errors = over.std(axis=0, ddof=1) / len(over) ** 0.5
        result["methods"][method] = {
            name: {
                "by_training": each[:, :, column].mean(axis=1).round(4).tolist(),
                "over_random": [round(over[:, column].mean(), 4), round(errors[column], 4)],
            }
            for column, name in enumerate(MEASURES)
        }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
