"""The main job on a built-in example: does the selection find a skill that words don't show?

In: a folder. Out: a pool, a model and a recipe in `RUN/inputs`, a run beside them; the share of the
selection that is of the target's skill, next to what chance would give; and what the model can do
after training on it, next to training on rivals' selections and on everything. The model has
learnt nine of the pool's ten skills; the target is the tenth, shown in one wording and asked for in
all. Over seeds of data and model 47 to 84% of the selection were of that skill, by chance 10%
(LOG.md).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gradsieve.console import Progress
from gradsieve.io import read_lines, write_json, write_text
from gradsieve.recipe.load import check_recipe, dump_recipe, load_recipe
from gradsieve.runs.artifacts import Artifacts
from gradsieve.runs.folder import RunFolder

if TYPE_CHECKING:
    from gradsieve.demo.skills import Row

TARGET = "reverse"
TWIN = "copy"
"""The skill whose words are the target's, in another order."""

ROWS_TOLD = {
    "base": "nothing (before training)",
    "random": "5% by chance",
    "bm25": "5% by words (BM25)",
    "less": "5% by LESS",
    "full": "everything",
}

POOL_ROWS = 2400
EXAMPLES_A_KIND = 10
QUESTIONS_A_KIND = 60
SEED = 0


@dataclass(frozen=True)
class Result:
    """What the demo found.

    Attributes:
        skill: The target's skill.
        selected: Rows selected.
        of_skill: How many of them are of the skill.
        of_twin: How many are of the skill that shares all its words.
        pool: Rows in the pool.
        pool_of_skill: How many of them are of the skill.
        accuracy: Share of held-out questions answered exactly after training, by method.
        loss: Mean loss of their right answers, by method.
        folder: The run's folder.
    """

    skill: str
    selected: int
    of_skill: int
    of_twin: int
    pool: int
    pool_of_skill: int
    accuracy: dict[str, float]
    loss: dict[str, float]
    folder: str

    def table(self) -> str:
        """A few lines for people."""
        results = "\n".join(
            f"  {told:26} {self.accuracy[name]:25.1%} {self.loss[name]:16.2f}"
            for name, told in ROWS_TOLD.items()
        )
        share, chance = self.of_skill / self.selected, self.pool_of_skill / self.pool
        return (
            f"Target skill: {self.skill}, given by {2 * EXAMPLES_A_KIND} examples.\n"
            f"  by chance: {chance:6.1%} of rows are of that skill "
            f"({self.pool_of_skill} of {self.pool} in the pool)\n"
            f"  selected:  {share:6.1%} ({self.of_skill} of {self.selected}), "
            f"{share / chance:.1f} times as many\n"
            f"  of the skill that shares all its words: {self.of_twin} of {self.selected}\n"
            f"Held-out questions after training on  answered exactly  loss of answers\n{results}\n"
            f"See {self.folder}/04-select/{self.skill}/less/selected.jsonl, and\n"
            f"gradsieve compare {self.folder}"
        )


def main(out: Path, progress: Progress) -> Result:
    """Make the example, run the recipe, and compare with the truth."""
    from gradsieve.analysis.results import compare
    from gradsieve.pipeline import run as pipeline

    RunFolder(out).claim()
    recipe = prepare(out / "inputs", progress)
    run = pipeline.run(load_recipe(recipe), out, progress=progress)
    files = Artifacts(run).selections.selection(TARGET, "less")
    cells = compare([out]).cells[TARGET]
    truth = json.loads((out / "inputs" / "truth.json").read_text(encoding="utf-8"))
    skills = [truth[row["id"]] for row in read_lines(files.selected)]
    return Result(
        skill=TARGET,
        selected=len(skills),
        of_skill=skills.count(TARGET),
        of_twin=skills.count(TWIN),
        pool=len(truth),
        pool_of_skill=list(truth.values()).count(TARGET),
        accuracy={method: cell.mean for method, cell in cells["exact_match"].items()},
        loss={method: cell.mean for method, cell in cells["held_out_loss"].items()},
        folder=str(out),
    )


def prepare(folder: Path, progress: Progress, seed: int = SEED) -> Path:
    """Write pool, targets, model and recipe; returns the recipe's file."""
    from gradsieve.demo.model import STEPS, make_model
    from gradsieve.demo.skills import make_examples, make_questions, make_rows

    rows = make_rows(POOL_ROWS, seed)
    for source in range(3):
        own = [row for row in rows if row.source == source]
        write_text(folder / f"source-{source}.jsonl", _lines(own))
    examples = make_examples(TARGET, EXAMPLES_A_KIND, seed)
    write_text(folder / "target.jsonl", _lines(examples))
    questions = make_questions(TARGET, QUESTIONS_A_KIND, seed)
    write_text(folder / "test.jsonl", _lines(questions))
    write_json(folder / "truth.json", {row.id: row.skill for row in rows})
    if not (folder / "model" / "tokenizer.json").is_file():
        progress.say(f"demo: training a small model from scratch, on all skills but {TARGET}")
        with progress.counting("model", STEPS, "steps") as report:
            known = [row for row in make_rows(POOL_ROWS, seed + 1) if row.skill != TARGET]
            make_model(known, folder / "model", seed, report)
    write_text(folder / "recipe.yaml", recipe_text(folder))
    return folder / "recipe.yaml"


def recipe_text(folder: Path) -> str:
    """The recipe of the demo. Its settings differ from the paper's where a small model asks so."""
    recipe = {
        "model": {"name": str(folder / "model"), "dtype": "float32", "max_length": 64},
        "pool": [
            {"name": f"source-{source}", "path": str(folder / f"source-{source}.jsonl")}
            for source in range(3)
        ],
        "targets": [
            {
                "name": TARGET,
                "path": str(folder / "target.jsonl"),
                "subtask": "kind",
                "test": str(folder / "test.jsonl"),
            }
        ],
        "warmup": {
            "fraction": 0.05,
            "epochs": 4,
            "learning_rate": 3e-4,
            "batch_size": 16,
            "lora": {"r": 8, "alpha": 32, "dropout": 0.0},
        },
        # After so few steps momentum is the noise of the last batches (LOG.md).
        "features": {"momentum": "drop"},
        "score": {"methods": ["less", "random", "bm25", "full"]},
        "train": {"seeds": [0, 1], "epochs": 20, "learning_rate": 6e-3},
        "evaluate": {"batch_size": 50},
    }
    return dump_recipe(check_recipe(recipe))


def _lines(rows: list[Row]) -> str:
    records = [
        {
            "id": row.id,
            "kind": row.kind,
            "messages": [
                {"role": "user", "content": row.question},
                {"role": "assistant", "content": row.answer},
            ],
        }
        for row in rows
    ]
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
