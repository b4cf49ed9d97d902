"""Can so small a model answer questions at all? MMLU accuracy and TyDiQA F1 after training.

    python benchmarks/paper_in_miniature/run.py --data ../shared/data --out runs/miniature
    python benchmarks/paper_in_miniature/accuracy.py --run runs/miniature/pool

In: a run of run.py. Each of its models for these targets answers the first 20 held-out questions of
each subtask, without few-shot examples, which don't fit into 512 positions. Out: accuracy.json and
accuracy.md in this folder; for a run not named `pool`, accuracy-NAME.json and accuracy-NAME.md.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path
from typing import Any

from gradsieve.console import Progress
from gradsieve.evaluation.generate import model_answers
from gradsieve.evaluation.prompts import write_prompts
from gradsieve.io import write_json
from gradsieve.methods import split_seed
from gradsieve.models.load import load_trained
from gradsieve.models.source import ModelSource
from gradsieve.recipe.load import load_recipe
from gradsieve.recipe.schema import EvaluateConfig
from gradsieve.runs.context import Context
from gradsieve.runs.folder import RunFolder

HERE = Path(__file__).parent
TARGETS = ("mmlu", "tydiqa")


def measure(run: RunFolder) -> dict[str, Any]:
    """The mean of the first metric for each model, by target and method, with standard errors."""
    recipe = load_recipe(run.recipe)
    questions = EvaluateConfig(shots=False, limit=20, batch_size=16)
    context = Context(recipe.model_copy(update={"evaluate": questions}), run, Progress())
    told: dict[str, Any] = {}
    for target in TARGETS:
        test = context.test_sets[target]
        metric, asked = test.metrics[0], write_prompts(context, test)
        models: dict[str, list[Path | None]] = {"base": [None]}
        for folder in sorted((run.stage("train") / target).glob("*/seed-*")):
            models.setdefault(split_seed(folder.parent.name)[0], []).append(folder)
        for method, folders in models.items():
            values, by_question = [], []
            for folder in folders:
                source = ModelSource(recipe.model)
                model = load_trained(source, folder) if folder else source.load()
                answers = model_answers(context.template, model.eval(), test, asked, 8)
                found = [answer.metrics[metric] for answer in answers]
                values.append(sum(w * v for w, v in zip(test.weights(), found, strict=True)))
                by_question.append(statistics.pstdev(found) / math.sqrt(len(found)))
            error = statistics.fmean(by_question)
            told.setdefault(target, {})[method] = {"values": values, "standard_error": error}
            print(target, method, told[target][method], flush=True)
        told[target]["questions"] = len(test.questions)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    run = parser.parse_args().run
    told = measure(RunFolder(run))
    name = "accuracy" if run.name == "pool" else f"accuracy-{run.name}"
    write_json(HERE / f"{name}.json", told)
    lines = [
        "# Answers after training",
        "",
        "Made by accuracy.py. The mean over three seeds of training (and as many selections, for",
        "random rows), ± the standard error of one model's mean over its questions. Chance is 0.25",
        "for MMLU.",
        "",
        "| target | questions | method | accuracy (MMLU), F1 (TyDiQA) |",
        "| --- | --- | --- | --- |",
    ]
    for target, methods in told.items():
        count = methods.pop("questions")
        for method, found in methods.items():
            mean = f"{statistics.fmean(found['values']):.3f} ± {found['standard_error']:.3f}"
            lines.append(f"| {target} | {count} | {method} | {mean} |")
    (HERE / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
