"""How many planted rows each method finds: TyDiQA's training rows and MMLU's validation rows.

    python benchmarks/paper_in_miniature/run.py --data ../shared/data --out runs/miniature
    python benchmarks/paper_in_miniature/planted.py --run runs/miniature/planted

In: a run with planted rows, up to its selections. Out: planted.json and planted.md in this folder.

All TyDiQA rows share the words of an instruction, by which BM25 finds them; rows that it finds by
the rest of the examples are counted too.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from gradsieve.console import Progress
from gradsieve.data.examples import Example
from gradsieve.methods import ScoringTask, find_method
from gradsieve.recipe.load import load_recipe
from gradsieve.runs.context import Context
from gradsieve.runs.folder import RunFolder
from gradsieve.tasks.tydiqa import WORDS

HERE = Path(__file__).parent
PLANTED = {"tydiqa": "planted_tydiqa_train", "mmlu": "planted_mmlu_val"}


def found(run: RunFolder, target: str, method: str) -> dict[str, Any]:
    """Counts of planted rows in a selection and in the pool."""
    file = run.stage("score") / target / f"{method}.parquet"
    pool = pq.read_table(file, columns=["source", "id"]).to_pylist()
    lines = (run.stage("select") / target / method / "messages.jsonl").read_bytes().splitlines()
    return counted(target, pool, list(map(json.loads, lines)))


def counted(target: str, pool: list[Any], selected: list[Any]) -> dict[str, Any]:
    """Counts of a target's planted rows; for TyDiQA also by language."""

    def planted(rows: list[Any]) -> list[str]:
        return [row["id"] for row in rows if row["source"] == PLANTED[target]]

    told = {
        "rows": len(pool),
        "planted": len(planted(pool)),
        "selected": len(selected),
        "planted_selected": len(planted(selected)),
    }
    if target == "tydiqa":
        for name, rows in (("languages", pool), ("languages_selected", selected)):
            told[name] = dict(Counter(id.partition("-")[0] for id in planted(rows)).most_common())
    return told


def without_instruction(example: Example) -> Example:
    """A TyDiQA example without its instruction, whose words all planted rows share."""
    asked, answer = example.messages
    rest = asked["content"].removeprefix(WORDS[example.subtask][0])
    return replace(example, messages=({"role": asked["role"], "content": rest}, answer))


def bm25_without_instruction(run: RunFolder, count: int) -> dict[str, Any]:
    """Counts of TyDiQA's planted rows that BM25 finds by examples without the instruction."""
    recipe = load_recipe(run.recipe)
    context = Context(recipe, run, Progress())
    pool = context.pool
    target = next(target for target in context.targets if target.name == "tydiqa")
    rows = context.target_rows(target)
    examples = [replace(row, example=without_instruction(row.example)) for row in rows]
    task = ScoringTask(
        pool,
        pool.usable,
        {"tydiqa": examples},
        recipe,
        context.model,
        0,
        Progress(),
        context.engine,
        context.artifacts.scores.work,
    )
    scores = find_method("bm25").score(task)["tydiqa"]
    keys = [key._asdict() for key in task.example_keys()]
    best = np.argsort(-scores.total, kind="stable")[:count].tolist()
    return counted("tydiqa", keys, [keys[index] for index in best])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    run = RunFolder(parser.parse_args().run)
    targets = run.require("select")["targets"]
    told = {t: {m: found(run, t, m) for m in targets[t]} for t in PLANTED}
    count = told["tydiqa"]["bm25"]["selected"]
    told["tydiqa"]["bm25, no instruction"] = bm25_without_instruction(run, count)
    (HERE / "planted.json").write_text(json.dumps(told, indent=1) + "\n")
    lines = [
        "# Planted rows that are found",
        "",
        "Rows of the targets' own kind planted in a pool of real rows; 5% are selected. Commands",
        "in planted.py. The warm-up is that of the pool without them.",
        "",
        "| target | rows | planted | method | planted among selected | share of all planted "
        "| by language |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for target, methods in told.items():
        for method, n in methods.items():
            of_all = n["planted_selected"] / n["planted"]
            cells = [target, n["rows"], n["planted"], method]
            cells += [f"{n['planted_selected'] / n['selected']:.1%}", f"{of_all:.1%}"]
            selected = n.get("languages_selected", {})
            shares = [
                f"{language} {selected.get(language, 0) / count:.0%}"
                for language, count in n.get("languages", {}).items()
            ]
            cells.append(", ".join(shares))
            lines.append(f"| {' | '.join(map(str, cells))} |")
    (HERE / "planted.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
