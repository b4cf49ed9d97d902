"""Stage 7: what each trained model does on the targets' held-out questions (method.md, step 6).

In: the trained models, the model before training (`base`) and after the warm-up (`warmed_up`).
Out: `06-evaluate/TARGET/METHOD/seed-S.json` with a number for each question, and `results.json`:
each metric's average, its standard error and its value by subtask.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gradsieve.data.examples import Example
from gradsieve.errors import DataError, GradsieveError, ModelError
from gradsieve.evaluation.prompts import Asked, answered, ask, settings, tell
from gradsieve.io import agree, fingerprint
from gradsieve.methods import uses_gradients
from gradsieve.methods.perplexity import answer_losses
from gradsieve.recipe.schema import TOGETHER, Recipe
from gradsieve.runs.artifacts import StageArtifact
from gradsieve.runs.context import Context
from gradsieve.stages.base import Inputs, Stage
from gradsieve.tasks import QuestionSet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOSSES = ("target_loss", "held_out_loss")
"""Mean loss of the answers of the target's examples, and of its held-out ones; lower is better."""


class Evaluate(Stage):
    """Metrics of every model on its target's held-out examples."""

    name = "evaluate"

    def artifact(self, context: Context) -> StageArtifact:
        """What it leaves."""
        return context.artifacts.results

    def fingerprint_inputs(self, context: Context) -> dict[str, Any]:
        """What this stage depends on."""
        return {
            "evaluate": settings(context).results(("yes", "repeats", "adds")),
            "targets": {target.name: target.fingerprint for target in context.targets},
            "questions": {name: test.fingerprint for name, test in context.test_sets.items()},
            "base": context.student.model_inputs,
            "warmed_up": _warmed_up(context)[1],
            "models": context.artifacts.models.fingerprints,
        }

    def can_extend(self, old: Inputs, new: Inputs) -> bool:
        """Whether results are kept: other models and targets may come, and some may go."""
        varies = dict.fromkeys(("models", "targets", "questions"))
        same = {**old, **varies} == {**new, **varies}
        return same and all(agree(old[part], new[part]) for part in varies)

    def run(self, context: Context, folder: Path) -> dict[str, Any]:
        """Evaluate every model on its target; results that are there are kept."""
        results = context.artifacts.results
        rows: list[dict[str, Any]] = []
        wanted, known = _wanted(context), self.fingerprint_inputs(context)
        asked: dict[str, Asked] = {}
        with context.progress.counting("evaluation", len(wanted), "models") as report:
            for done, (name, model) in enumerate(wanted.items(), start=1):
                of = _identity(context, known, name, model)
                found = results.result(name)
                if found.get("of") != of:
                    found = {"of": of, **_evaluated(context, name, model, asked)}
                    results.write_result(name, found)
                rows += _summary(name, found)
                report(done)
        results.write_rows(rows)
        return {"results": len(rows), "output": fingerprint(rows)}

    def needed(self, recipe: Recipe) -> bool:
        """If the recipe asks for it."""
        return recipe.evaluate is not None

    def check(self, context: Context) -> Iterator[GradsieveError]:
        """Every task has held-out questions."""
        tasks = settings(context).tasks or []
        bare = [task for task in tasks if task != "target_loss" and task not in context.test_sets]
        if bare:
            yield DataError(
                "A target has no held-out questions to evaluate on.",
                f"evaluate.tasks: {bare[0]}",
                "Give the target `test: FILE`, or the benchmark's test files in its path.",
            )


def _wanted(context: Context) -> dict[str, Path | None]:
    """TARGET/METHOD/seed-S of each result, and the folder of its model; None before training.

    A model that was trained for all targets together is evaluated on each.
    """
    tasks = settings(context).tasks
    targets = [
        target.name
        for target in context.recipe.targets
        if tasks is None or "target_loss" in tasks or target.name in tasks
    ]
    wanted: dict[str, Path | None] = {f"{target}/base/seed-0": None for target in targets}
    if (warmed_up := _warmed_up(context)[0]) is not None:
        wanted.update({f"{target}/warmed_up/seed-0": warmed_up for target in targets})
    for name in context.artifacts.models.fingerprints:
        of, _, rest = name.partition("/")
        for target in targets if of == TOGETHER else {of} & {*targets}:
            wanted[f"{target}/{rest}"] = context.artifacts.models.model(name).folder
    return wanted


def _identity(context: Context, known: dict[str, Any], name: str, folder: Path | None) -> str:
    """Changes if a result would: with the model, its target or the target's questions."""
    target = name.partition("/")[0]
    if folder is None:
        model = known["base"]
    elif folder.is_relative_to(context.artifacts.models.folder):
        model = known["models"][str(folder.relative_to(context.artifacts.models.folder))]
    else:
        model = known["warmed_up"]
    parts = [known["evaluate"], known["targets"][target], known["questions"].get(target)]
    return fingerprint([*parts, model])


def _warmed_up(context: Context) -> tuple[Path | None, str | None]:
    """The warm-up's last checkpoint, if it is of the model that is trained; and its identity."""
    meta = context.run.metadata("warmup")
    own = any(map(uses_gradients, context.recipe.score.methods))  # or is it an older recipe's?
    if meta is None or not own or context.student.recipe.model != context.recipe.model:
        return None, None
    return context.artifacts.warmup.checkpoints[-1], meta["fingerprints"][-1]


def asks_questions(context: Context) -> bool:
    """Whether any answers are wanted, for which lm-eval is needed."""
    tasks = settings(context).tasks
    return any(tasks is None or name in tasks for name in context.whole_test_sets)


def _evaluated(
    context: Context, name: str, folder: Path | None, asked: dict[str, Asked]
) -> dict[str, Any]:
    """A number for each question and metric, of one model on one target.

    What is asked is kept in `asked`, by target: it is the same for every model.
    """
    from gradsieve.models.load import load_model, load_trained

    target = name.partition("/")[0]
    student = context.student.recipe.model
    model = load_model(student).eval() if folder is None else load_trained(student, folder)
    tasks = settings(context).tasks
    test = context.test_sets.get(target)
    found: dict[str, Any] = {"metrics": {}}
    if tasks is None or "target_loss" in tasks:
        found["metrics"].update(_losses(context, model, target, test))
    if test is not None:
        found.update(
            ids=[question.example.id for question in test.questions],
            subtasks=[question.example.subtask for question in test.questions],
            weights=test.weights(),
        )
        if tasks is None or target in tasks:
            of = context.student
            if target not in asked:
                asked[target] = ask(of, test)
                tell(context.progress, target, asked[target])
            found["metrics"].update(answered(of, model, test, asked[target]))
    values = [value for metric in found["metrics"].values() for value in metric]
    if not all(value is None or math.isfinite(value) for value in values):
        raise ModelError(
            "A model's losses are not finite numbers.",
            f"{name}: {folder or student.name}",
            "Lower the learning rate that it was trained with, or leave its method out.",
        )
    return found


def _losses(
    context: Context, model: PreTrainedModel, target: str, test: QuestionSet | None
) -> dict[str, list[float | None]]:
    """Losses of the target's own examples and of its held-out ones."""
    own = next(t.examples for t in context.targets if t.name == target)
    asked = [question.example for question in test.questions] if test else []
    return {
        name: _answer_losses(context, model, examples)
        for name, examples in zip(LOSSES, (own, asked), strict=True)
        if examples
    }


def _answer_losses(
    context: Context, model: PreTrainedModel, examples: Sequence[Example]
) -> list[float | None]:
    """Loss of each answer; None where none of it is within the model's length."""
    rows = context.student.encode(examples)
    usable = [index for index, row in enumerate(rows) if not row.skip_reason]
    losses: list[float | None] = [None] * len(rows)
    found = answer_losses(model, [rows[index].encoded for index in usable])
    for index, loss in zip(usable, found.tolist(), strict=True):
        losses[index] = loss
    return losses


def _summary(name: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    """One record a metric: average, standard error, count, and averages by subtask."""
    target, method, seed = name.split("/")
    rows = []
    for metric, given in found["metrics"].items():
        values = np.array([np.nan if value is None else value for value in given])
        there = ~np.isnan(values)
        if not there.any():
            continue
        own = metric == "target_loss"  # of the target's examples, not of the questions
        weights = np.ones(len(values)) if own else np.array(found["weights"])
        weights = np.where(there, weights, 0) / weights[there].sum()
        of = np.array(["all"] * len(values) if own else found["subtasks"])
        rows.append(
            {
                "target": target,
                "method": method,
                "seed": int(seed.removeprefix("seed-")),
                "metric": metric,
                "value": float(np.nansum(weights * values)),
                "standard_error": _standard_error(values[there], weights[there]),
                "count": int(there.sum()),
                "higher_is_better": metric not in LOSSES,
                "by_subtask": {
                    subtask: float(np.mean(values[there & (of == subtask)]))
                    for subtask in sorted(set(of[there].tolist()))
                },
            }
        )
    return rows


def _standard_error(values: np.ndarray, weights: np.ndarray) -> float | None:
    """Of a weighted mean of independent questions (Cochran, 1977); None for a single one."""
    if len(values) < 2:
        return None
    mean = float((weights * values).sum())
    n = len(values)
    return math.sqrt(n / (n - 1) * float((weights**2 * (values - mean) ** 2).sum()))


STAGE = Evaluate()
