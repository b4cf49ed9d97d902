"""Checks that several stages share: targets, held-out questions, models.

In: a run's context. Out: problems, found without loading a model. Inputs that are read stay in the
context, so that a run reads them once; only if something is wrong are they read again one by one,
to find all problems. Each check runs once per context, however many stages use it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial, wraps
from pathlib import Path
from typing import Any

from gradsieve.errors import DataError, GradsieveError, ModelError, UsageError
from gradsieve.io import installed
from gradsieve.methods import all_members, find_method
from gradsieve.models.load import check_vocabulary
from gradsieve.models.support import check_support
from gradsieve.models.training import check_trackers
from gradsieve.recipe.schema import Recipe
from gradsieve.runs.context import Context

Problems = Iterator[GradsieveError]


def problem_of(call: Callable[[], object]) -> Problems:
    """Yield the problem that a call raises, if any."""
    try:
        call()
    except GradsieveError as error:
        yield error
    except OSError as error:
        yield DataError(
            f"A file cannot be read: {error.strerror or error}.",
            str(error.filename or ""),
            "Give access to it, or check the path.",
        )


def _once(check: Callable[..., Problems]) -> Callable[..., list[GradsieveError]]:
    """The check, with its problems cached in the context."""

    @wraps(check)
    def kept(context: Context, *arguments: Any) -> list[GradsieveError]:
        return context.once((check.__name__, *arguments), lambda: [*check(context, *arguments)])

    return kept


@_once
def targets(context: Context) -> Problems:
    """Targets that can't be read, or have no usable example."""
    problems = list(_by_target(context, lambda part: part.targets))
    yield from problems
    if not problems and not models(context):
        for target in context.targets:
            yield from problem_of(partial(context.target_rows, target))


@_once
def test_sets(context: Context) -> Problems:
    """Held-out questions that can't be read."""
    yield from _by_target(context, lambda part: part.full_test_sets)


def _by_target(context: Context, read: Callable[[Context], object]) -> Problems:
    """Read all targets; if that fails, read each target separately."""
    if not list(problem_of(lambda: read(context))):
        return
    for part in context.recipe.targets:
        one = context.recipe.model_copy(update={"targets": [part]})
        alone = Context(one, context.run, context.progress, context.in_memory)
        yield from problem_of(partial(read, alone))


@_once
def configuration(context: Context) -> Problems:
    """A model without a configuration; without a network the hub's client tries for 23 s."""
    yield from problem_of(context.model.config)


@_once
def models(context: Context) -> Problems:
    """Problems with the configuration, weights, tokenizer or template of a context's model."""
    if problems := configuration(context):
        yield from problems
        return
    yield from problem_of(context.model.check_weights)
    yield from problem_of(lambda: context.template)


@_once
def vocabulary(context: Context) -> Problems:
    """A tokenizer with more tokens than the model has embeddings."""
    if not models(context):
        tokenizer = context.template.tokenizer
        yield from problem_of(lambda: check_vocabulary(context.model.meta_model(), tokenizer))


@_once
def adapted_models(context: Context) -> Problems:
    """Problems of `models` and `vocabulary`, and with the model's adapter or checkpoints."""
    yield from models(context)
    if configuration(context):
        return
    problems: list[GradsieveError] = [
        ModelError(
            "A checkpoint of warmup.checkpoints does not exist.",
            folder,
            "Name folders that exist, relative to where gradsieve is started.",
        )
        for folder in context.recipe.warmup.checkpoints or ()
        if not Path(folder).is_dir()
    ]
    problems = problems or list(check_support(context.model, context.recipe.warmup))
    yield from problems or vocabulary(context)


@_once
def students(context: Context) -> Problems:
    """Problems with the model to train, which may differ from the selection model (LESS-T)."""
    student = context.student
    full = context.recipe.train_or_default.full_parameters
    found = [*models(student), *vocabulary(student)] if full else adapted_models(student)
    yield from found if student is context else map(partial(_of_train_model, student), found)


KEYS_OF_STUDENTS = {"model.name": "train.model", "model.chat_template": "train.chat_template"}


def _of_train_model(student: Context, problem: GradsieveError) -> GradsieveError:
    """Name `train.model` in its problem; its adapter has the selection model's settings."""
    own = copy.copy(problem)
    for key, here in KEYS_OF_STUDENTS.items():
        own.where, own.todo = own.where.replace(key, here), own.todo.replace(key, here)
    if "train.model" not in own.where:
        own.where = f"train.model {student.recipe.model.name}, {own.where}"
    if "warmup.lora.target_modules" in own.where:
        own.todo += (
            " The adapters of both models have these target_modules: all-linear fits both, or "
            "a regular expression."
        )
    return own


def methods(recipe: Recipe, libraries: bool = False) -> Problems:
    """Methods that are unknown, don't fit `features.mode`, or lack their library."""
    gradients = []
    for name in all_members(recipe):
        try:
            method = find_method(name, recipe)
        except GradsieveError as error:
            yield error
            continue
        if "gradients" in method.uses:
            gradients.append(name)
        if not libraries:
            continue
        library, check = (getattr(method, part, None) for part in ("library", "check"))
        missing = list(problem_of(partial(installed, library, "baselines"))) if library else []
        yield from missing
        if check is not None and not missing:
            yield from problem_of(partial(check, recipe))
    if recipe.features.mode == "exact" and set(gradients) - {"less"}:
        yield UsageError(
            "Exact mode takes LESS's cosines only.",
            f"features.mode: exact, score.methods: {', '.join(gradients)}",
            "Use features.mode: store or both, or leave the other methods out.",
        )


def trackers(recipe: Recipe) -> Problems:
    """Libraries of `report_to` that are not installed."""
    if recipe.warmup.report_to:
        yield from problem_of(partial(check_trackers, recipe.warmup.report_to))
