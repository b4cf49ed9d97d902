"""MMLU's loss after training on a selection, by the letter of the correct answer.

    python benchmarks/real_model/by_letter.py OUT/trained random stored_less --out letters.json

`OUT/trained` is a finished run with MMLU as a target; `random` and `stored_less` are methods of
its recipe. Writes the mean loss of the label tokens for each letter, before training (`untrained`)
and after training on each method's selection for MMLU, with its first seed.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from gradsieve.console import Progress
from gradsieve.evaluation.prompts import LOSSES
from gradsieve.gradients.objectives import example_losses
from gradsieve.models.load import load_trained
from gradsieve.recipe.load import load_recipe
from gradsieve.runs.context import Context
from gradsieve.runs.folder import RunFolder
from gradsieve.stages.evaluate import EvaluationTask, evaluation_job

TARGET = "mmlu"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("methods", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    run = RunFolder(arguments.run)
    recipe = load_recipe(run.path / "recipe.yaml")
    context = Context(recipe, run, Progress(quiet=True))
    job = evaluation_job(context, [EvaluationTask(f"{TARGET}/base/seed-0", None, "")])
    held_out = [row for row in job.questions[TARGET].losses[LOSSES[1]] if not row.skip_reason]
    letters = [row.example.messages[-1]["content"].strip()[-1] for row in held_out]
    found = {}
    for method in ("untrained", *arguments.methods):
        model = job.source.load().eval()
        if method != "untrained":
            # The random rows are the same for all targets: one model, kept under the first.
            first = recipe.targets[0].name if method.startswith("random") else TARGET
            seed = f"seed-{recipe.train_or_default.seeds[0]}"
            model = load_trained(job.source, run.path / "05-train" / first / method / seed)
        by_letter = defaultdict(list)
        losses = example_losses(model, [row.encoded for row in held_out])
        for letter, loss in zip(letters, losses, strict=True):
            by_letter[letter].append(float(loss))
        means = {letter: round(float(np.mean(own)), 3) for letter, own in sorted(by_letter.items())}
        found[method] = {"all": round(float(losses.mean()), 3), **means}
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
