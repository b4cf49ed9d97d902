"""Planted rows that BM25 finds in TyDiQA's nine languages, with two word splitters; needs no model.

    python benchmarks/paper_in_miniature/languages.py --data ../shared/data --out runs/languages

In: the miniature's pool of 31,000 rows, plus 100 planted rows per language from TyDiQA's held-out
questions, and the paper's nine examples. Nothing is truncated to a model's maximum length. Out:
languages.json and languages.md next to this file: by language, the planted rows among the top 5%,
with words split by bm25s (Python's `re`) and by the package (`data.words`). Each is also measured
with the instruction removed from the examples, because all planted rows share it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import bm25s
import numpy as np
import prepare
from planted import without_instruction

from gradsieve.console import Progress
from gradsieve.data.examples import Example, Row
from gradsieve.data.sources import read_source
from gradsieve.engine import LocalEngine
from gradsieve.methods import ScoringTask, find_method, lexical
from gradsieve.methods.base import full_text
from gradsieve.models.source import model_source
from gradsieve.recipe.load import check_recipe
from gradsieve.tasks import load_target, load_test_set
from gradsieve.tasks.tydiqa import WORDS

HERE = Path(__file__).parent
PLANTED = 100
SHARE = 0.05
Split = Callable[[str], list[str]]


def split_by_bm25s(text: str) -> list[str]:
    return bm25s.tokenize([text], stopwords=None, return_ids=False, show_progress=False)[0]


SPLITTERS: dict[str, Split] = {"bm25s": split_by_bm25s, "data.words": lexical._words}


class Texts:
    """The part of a pool's interface that BM25 uses, for examples in memory."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def texts(self, numbers: Sequence[int]) -> list[str]:
        return [full_text(self._rows[number].example) for number in numbers]


def row(example: Example) -> Row:
    return Row(example, None, None)  # BM25 reads no tokens


def pool_and_planted(data: Path, out: Path) -> list[Row]:
    prepare.draw_pool(data, out / "pool", planted=False)
    rows = [
        row(example)
        for file in sorted((out / "pool").glob("*.jsonl"))
        for example in read_source(file.stem, str(file)).examples
    ]
    test = load_test_set("planted", "tydiqa", str(data / "eval" / "tydiqa"), None)
    for language in WORDS:
        own = [q.example for q in test.questions if q.example.subtask == language]
        rows += [row(replace(example, source="planted")) for example in own[:PLANTED]]
    return sorted(rows, key=lambda row: (row.example.source, row.example.id))


def found(rows: list[Row], examples: list[Row], split: Split) -> dict[str, int]:
    """The number of planted rows of each language among the best 5%."""
    recipe = check_recipe(
        {
            "model": {"name": "none"},
            "pool": [{"name": "pool", "path": "none"}],
            "targets": [{"name": "t", "path": "none"}],
        }
    )
    numbers, progress = np.arange(len(rows)), Progress(quiet=True)
    with mock.patch.object(lexical, "_words", split):
        task = ScoringTask(
            Texts(rows),
            numbers,
            {"t": examples},
            recipe,
            model_source(recipe.model),
            0,
            progress,
            LocalEngine(progress),
            Path("unused"),
        )
        total = find_method("bm25").score(task)["t"].total
    best = np.argsort(-total, kind="stable")[: round(SHARE * len(rows))]
    planted = [rows[index].example for index in best if rows[index].example.source == "planted"]
    return {name: sum(own.subtask == name for own in planted) for name in WORDS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    rows = pool_and_planted(given.data, given.out)
    target = load_target("tydiqa", "tydiqa", str(given.data / "eval" / "tydiqa"))
    kinds = {
        "with instruction": [row(example) for example in target.examples],
        "without": [row(without_instruction(example)) for example in target.examples],
    }
    told = {
        f"{splitter}, {kind}": found(rows, examples, split)
        for kind, examples in kinds.items()
        for splitter, split in SPLITTERS.items()
    }
    record = {"rows": len(rows), "planted_by_language": PLANTED, "found": told}
    (HERE / "languages.json").write_text(json.dumps(record, indent=1) + "\n")
    lines = [
        "# BM25 on nine languages",
        "",
        f"Made by languages.py: of {PLANTED} planted rows of each language, those among the best",
        f"{SHARE:.0%} of {len(rows):,} rows; words as bm25s splits them, and as the package does.",
        "",
        f"| words, examples | {' | '.join(WORDS)} | all |",
        f"| --- |{' --- |' * (len(WORDS) + 1)}",
    ]
    for name, counts in told.items():
        numbers = " | ".join(map(str, counts.values()))
        lines.append(f"| {name} | {numbers} | {sum(counts.values())} |")
    (HERE / "languages.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
