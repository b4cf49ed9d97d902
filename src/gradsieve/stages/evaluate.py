"""Stage 7: evaluate each trained model on the targets' held-out questions (method.md, step 6).

In: the trained models, the model before training (`base`) and after the warm-up (`warmed_up`).
Out: `06-evaluate/TARGET/METHOD/seed-S.json` with values for each question, `seed-S.samples.jsonl`
with each answer, logged like lm-eval's samples, and `results.json`: each metric's average, its
standard error and its value by subtask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from gradsieve.console import Progress
from gradsieve.data.examples import Example, Row
from gradsieve.data.template import ChatTemplate
from gradsieve.engine import Job
from gradsieve.errors import DataError, GradsieveError, ModelError
from gradsieve.evaluation.generate import Answer, model_answers
from gradsieve.evaluation.prompts import (
    LOSSES,
    Prompts,
    has_answers,
    metrics_of,
    metrics_there,
    settings,
    write_prompts,
)
from gradsieve.gradients.objectives import example_losses
from gradsieve.io import agree, file_fingerprint, fingerprint, installed, write_json
from gradsieve.methods import needs_gradients, uses_gradients
from gradsieve.models.load import load_trained
from gradsieve.models.source import ModelSource
from gradsieve.recipe.schema import TOGETHER, Recipe
from gradsieve.runs.artifacts import ResultsArtifact
from gradsieve.runs.context import Context
from gradsieve.selection.export import write_lines
from gradsieve.stages import checks
from gradsieve.stages.base import Inputs, Stage, same_but
from gradsieve.stages.estimate import (
    ROW_BYTES,
    Estimate,
    evaluation_bytes,
    questions,
    student_shape,
    target_rows,
)
from gradsieve.tasks import QuestionSet

GENERATED = 10
"""Cost of a generated token, in prompt tokens: an assumption."""


class Evaluate(Stage):
    """Metrics of every model on its target's held-out examples."""

    name = "evaluate"
    reads = "train"

    def fingerprint_inputs(self, context: Context) -> dict[str, Any]:
        return {
            "evaluate": settings(context).results(("yes", "repeats", "adds")),
            "targets": context.target_inputs,
            "questions": {name: test.fingerprint for name, test in context.test_sets.items()},
            "base": context.student.model_inputs,
            "warmed_up": _warmed_up(context)[1],
            "models": context.artifacts.models.fingerprints,
        }

    def can_extend(self, old: Inputs, new: Inputs) -> bool:
        """Whether results can be kept: models and targets may be added or removed."""
        varies = ("models", "targets", "questions")
        return same_but(old, new, *varies) and all(agree(old[key], new[key]) for key in varies)

    def estimate(self, context: Context) -> Estimate:
        """Prompts, answers and losses of each model: untrained, warmed up, and trained."""
        shape, batch_size = student_shape(context), settings(context).batch_size
        seeds = context.recipe.train_or_default.seeds
        same = context.student is context
        models = 1 + (same and needs_gradients(context.recipe))
        models += len(context.recipe.selections_for("any")) * len(seeds)
        encoded = [row.encoded for row in target_rows(context)]
        asked = questions(context).values()
        read = float(sum(len(one.input_ids) for one in encoded))
        read += sum(one.number * one.prompt for one in asked)
        written = sum(one.number * one.answer for one in asked)
        kept = round(sum(one.number * (ROW_BYTES + one.sample_bytes) for one in asked))
        batches = sum(math.ceil(q.number / batch_size) * q.answer for q in asked)
        held = evaluation_bytes(shape, encoded, asked, batch_size)
        flops = read * shape.forward(1, 1, 0) + written * shape.forward(1, 1, 1)
        return Estimate(
            units=models * (read + GENERATED * written),
            flops=models * flops,
            hidden=shape.hidden,
            loads=models * len(context.targets),
            tasks=models * len(context.targets),
            disk_bytes=models * (ROW_BYTES * len(encoded) + kept),
            memory_bytes=shape.weight_bytes + held,
            weight_bytes=shape.weight_bytes,
            generated_bytes=float(models * batches * shape.weight_bytes),
        )

    def run(self, context: Context) -> dict[str, Any]:
        results = context.artifacts.results
        tasks = list(_tasks(context, self.fingerprint_inputs(context)))
        missing = [task for task in tasks if not results.is_complete(task.name, task.of)]
        done = len(tasks) - len(missing)
        for _ in context.engine.map(evaluation_job(context, missing), missing, "evaluation", done):
            pass
        rows = [row for task in tasks for row in _summary(task.name, results.result(task.name))]
        results.write_rows(rows)
        samples = [results.samples_file(task.name) for task in tasks]
        answers = [file_fingerprint(file) for file in samples if file.is_file()]
        return {"results": len(rows), "output": fingerprint([rows, answers])}

    def needed(self, recipe: Recipe) -> bool:
        return recipe.evaluate is not None

    def check(self, context: Context) -> Iterator[GradsieveError]:
        yield from checks.students(context)
        yield from checks.targets(context)
        problems = checks.test_sets(context)
        yield from problems
        if problems:
            return
        measured = {m for t in context.recipe.targets for m in metrics_of(context, t.name)}
        if has_answers([*measured]):
            yield from checks.problem_of(partial(installed, "lm_eval", "evaluate"))
        tasks = settings(context).tasks or []
        bare = [task for task in tasks if task != "target_loss" and task not in context.test_sets]
        if bare:
            yield DataError(
                "A target has no held-out questions to evaluate on.",
                f"evaluate.tasks: {bare[0]}",
                "Give the target `test: FILE`, or the benchmark's test files in its path.",
            )
        unknown = [name for name in settings(context).metrics or () if name not in measured]
        if unknown:
            there = {m for t in context.recipe.targets for m in metrics_there(context, t.name)}
            todo = "Use one of these, or give a target held-out examples (`test`)."
            if unknown[0] in LOSSES and tasks and "target_loss" not in tasks:
                todo = "Add target_loss to evaluate.tasks, or take it out of evaluate.metrics."
            yield DataError(
                "No target has this metric.",
                f"evaluate.metrics: {unknown[0]}; the targets have {', '.join(sorted(there))}",
                todo,
            )


def _tasks(context: Context, known: Inputs) -> Iterator[EvaluationTask]:
    """A task for each result.

    A model that was trained for all targets together is evaluated on each.
    """
    targets = [t.name for t in context.recipe.targets if metrics_of(context, t.name)]

    def task(target: str, name: str, folder: Path | None, model: str) -> EvaluationTask:
        parts = [known["evaluate"], known["targets"][target], known["questions"].get(target)]
        return EvaluationTask(f"{target}/{name}", folder, fingerprint([*parts, model]))

    yield from (task(target, "base/seed-0", None, known["base"]) for target in targets)
    if (folder := _warmed_up(context)[0]) is not None:
        model = known["warmed_up"]
        yield from (task(target, "warmed_up/seed-0", folder, model) for target in targets)
    for name, model in known["models"].items():
        of, _, rest = name.partition("/")
        for target in targets if of == TOGETHER else {of} & {*targets}:
            yield task(target, rest, context.artifacts.models.model(name).folder, model)


def _warmed_up(context: Context) -> tuple[Path | None, str | None]:
    """The warm-up's last checkpoint and its fingerprint, if it is of the model to train."""
    meta = context.run.metadata("warmup")
    recipe = context.recipe
    own = any(uses_gradients(name, recipe) for name in recipe.score.methods)  # else an older one's
    if meta is None or not own or context.student is not context:
        return None, None
    return context.artifacts.warmup.checkpoints[-1], meta["fingerprints"][-1]


@dataclass(frozen=True)
class EvaluationTask:
    """The evaluation of one model on one target.

    Attributes:
        name: Name of the result, TARGET/METHOD/seed-S.
        model: The trained model's folder; None means the model before training.
        of: Fingerprint of all that the result depends on: model, target, questions and settings.
    """

    name: str
    model: Path | None
    of: str

    @property
    def target(self) -> str:
        return self.name.partition("/")[0]


@dataclass(frozen=True)
class Questions:
    """The metrics, questions and prompts of a target."""

    metrics: Sequence[str]
    test: QuestionSet | None
    prompts: Prompts | None
    losses: Mapping[str, Sequence[Row]]


@dataclass(frozen=True)
class EvaluationJob(Job[EvaluationTask, None]):
    """Evaluation of trained models."""

    unit = "models"

    source: ModelSource
    template: ChatTemplate
    questions: Mapping[str, Questions]
    results: ResultsArtifact
    batch_size: int

    def name(self, task: EvaluationTask) -> str:
        return f"evaluation of {task.name}"

    def setup(self, progress: Progress) -> Callable[[EvaluationTask], None]:
        """Nothing is shared: each task loads its own model."""
        return self._evaluate

    def _evaluate(self, task: EvaluationTask) -> None:
        """Write a value for each question and metric."""
        questions = self.questions[task.target]
        test, prompts = questions.test, questions.prompts
        model = load_trained(self.source, task.model) if task.model else self.source.load().eval()
        metrics: dict[str, Sequence[float | None]] = {
            name: _losses(model, rows) for name, rows in questions.losses.items()
        }
        found: dict[str, Any] = {"metrics": metrics}
        if test is not None:
            found["ids"] = [question.example.id for question in test.questions]
            found["subtasks"] = [question.example.subtask for question in test.questions]
            found["weights"] = test.weights()
            counted = [loss is not None for loss in metrics.get(LOSSES[1], ())]
            if any(counted):
                found["loss_weights"] = test.weights(counted)
        if test is not None and prompts is not None:
            answers = model_answers(self.template, model, test, prompts, self.batch_size)
            for name in questions.metrics:
                if name in test.metrics:
                    metrics[name] = [answer.metrics[name] for answer in answers]
            records = _samples(test, prompts, answers)
            write_lines(self.results.samples_file(task.name), records, hashed=True)
            found["samples"] = True
        values = [value for metric in metrics.values() for value in metric]
        if not all(value is None or math.isfinite(value) for value in values):
            raise ModelError(
                "A model's losses are not finite numbers.",
                f"{task.name}: {task.model or self.source.settings.name}",
                "Lower the learning rate that it was trained with, or leave its method out.",
            )
        write_json(self.results.result_file(task.name), {"of": task.of, **found}, hashed=True)


def evaluation_job(context: Context, tasks: Sequence[EvaluationTask]) -> EvaluationJob:
    """The job for these tasks, with the questions and prompts of all their targets."""
    student, names = context.student, dict.fromkeys(task.target for task in tasks)
    questions = {name: _questions(context, name) for name in names}
    context.report_warnings()
    results, batch_size = context.artifacts.results, settings(context).batch_size
    return EvaluationJob(student.model, student.template, questions, results, batch_size)


def _questions(context: Context, target: str) -> Questions:
    metrics, test = metrics_of(context, target), context.test_sets.get(target)
    own: Sequence[Example] = next(t.examples for t in context.targets if t.name == target)
    held_out = [question.example for question in test.questions] if test else []
    prompts = write_prompts(context.student, test) if test and has_answers(metrics) else None
    if prompts is not None and prompts.warning:
        context.warnings.append(f"target {target}: {prompts.warning}")
    losses = {}
    for name, examples in zip(LOSSES, (own, held_out), strict=True):
        if name in metrics:
            rows = losses[name] = context.student.encode(examples)
            if reasons := [row.skip_reason for row in rows if row.skip_reason]:
                context.warnings.append(
                    f"target {target}: {name} is of {len(rows) - len(reasons)} of {len(rows)} "
                    f"answers; the first of the others: {reasons[0]}"
                )
    return Questions(metrics, test, prompts, losses)


def _samples(
    test: QuestionSet, prompts: Prompts, answers: Sequence[Answer]
) -> Iterator[dict[str, Any]]:
    """One record per question: the prompt, the references, and the model's answer."""
    for question, prompt, answer in zip(test.questions, prompts.texts, answers, strict=True):
        yield {
            "id": question.example.id,
            "subtask": question.example.subtask,
            "prompt": prompt,
            "references": list(question.answers),
            "answer": answer.text,
            "final": answer.final,
            **answer.metrics,
        }


def _losses(model: PreTrainedModel, rows: Sequence[Row]) -> list[float | None]:
    """The loss of each answer; None if truncation leaves no label token."""
    usable = [row.encoded for row in rows if not row.skip_reason]
    losses = iter(example_losses(model, usable).tolist())
    return [None if row.skip_reason else next(losses) for row in rows]


def _summary(name: str, found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One record per metric: average, standard error, count, and averages by subtask."""
    target, method, seed = name.split("/")
    for metric, numbers in found["metrics"].items():
        values = np.array([np.nan if value is None else value for value in numbers])
        there = ~np.isnan(values)
        if not there.any():
            continue
        own = metric == "target_loss"  # per target example, not per question
        weights = np.ones(len(values)) if own else np.array(ResultsArtifact.weights(found, metric))
        weights = np.where(there, weights, 0) / weights[there].sum()
        of = np.array(["all"] * len(values) if own else found["subtasks"])
        yield {
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


def _standard_error(values: np.ndarray, weights: np.ndarray) -> float | None:
    """Standard error of a weighted mean of independent questions (Cochran, 1977); None for one."""
    if len(values) < 2:
        return None
    mean = float((weights * values).sum())
    n = len(values)
    return math.sqrt(n / (n - 1) * float((weights**2 * (values - mean) ** 2).sum()))


STAGE = Evaluate()
