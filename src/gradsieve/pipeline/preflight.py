"""Everything that the user gave, checked before a model is loaded; all problems told at once.

In: a run's context and the stages that are wanted. Out: nothing, or one error that holds every
problem. What is read here (pool, targets, template) stays in the context, so that a run reads it
once; only where something is wrong are the parts read again one by one, to find all that is.
Rejected: checks in the stages alone, where a mistake in the last section shows after hours.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from packaging.requirements import Requirement

from gradsieve.data.pool import SourceSpec, build_pool, source_key
from gradsieve.data.readers import read_source
from gradsieve.errors import DataError, ErrorGroup, GradsieveError, RunError, UsageError
from gradsieve.io import installed
from gradsieve.methods import find_method
from gradsieve.models.load import check_vocabulary
from gradsieve.models.support import check_support
from gradsieve.models.training import check_trackers
from gradsieve.runs.context import Context
from gradsieve.stages import evaluate, warmup
from gradsieve.stages.base import Stage


def check(context: Context, wanted: Sequence[Stage], also: Sequence[Check] = ()) -> None:
    """Check all that these stages need.

    Args:
        context: Of the run.
        wanted: The stages.
        also: More checks, whose problems are reported together with the others.

    Raises:
        GradsieveError: The problem, or `ErrorGroup` where there are several.
    """
    found: list[GradsieveError] = []
    stages = [stage.name for stage in wanted]
    for part in CHECKS:
        found += part(context, stages)
    for stage in wanted:
        found += _reported(stage, context)
    for part in also:
        found += part(context, stages)
    if found and "pool" in stages:  # otherwise the stage itself reports rows that are wrong
        found += _bad_rows(context)
    _raise(found)


def check_stages(context: Context, wanted: Sequence[Stage]) -> None:
    """The stages' own checks.

    Raises:
        GradsieveError: As `check`.
    """
    _raise([problem for stage in wanted for problem in _reported(stage, context)])


def _raise(found: Sequence[GradsieveError]) -> None:
    found = list({str(problem): problem for problem in found}.values())  # reported once
    if len(found) == 1:
        raise found[0]
    if found:
        raise ErrorGroup(found)


def _reported(stage: Stage, context: Context) -> Iterator[GradsieveError]:
    """What a stage's own check finds; what it raises on the way counts too."""
    try:
        yield from stage.check(context)
    except GradsieveError as error:
        yield error


Check = Callable[[Context, Sequence[str]], Iterator[GradsieveError]]


def problem_of(call: Callable[[], object]) -> Iterator[GradsieveError]:
    """The problem that a call meets, if it meets one."""
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


# --- software -----------------------------------------------------------------------------------


def _versions(context: Context, stages: Sequence[str]) -> Iterator[GradsieveError]:
    """Installed packages against the ranges that this package needs; extras are not needed."""
    for line in importlib.metadata.requires("gradsieve") or ():
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue  # of an extra, or of another system
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            continue  # its import says so, if it is not there under another name
        if not wanted.specifier.contains(version, prereleases=True):
            yield UsageError(
                f"The installed version of {wanted.name} does not fit.",
                f"{wanted.name} {version}, gradsieve needs {wanted.specifier}",
                f"pip install '{wanted.name}{wanted.specifier}'",
            )


def _methods(context: Context, stages: Sequence[str]) -> Iterator[GradsieveError]:
    """Every method is known and fits `features.mode`, and its library is there."""
    gradients = []
    for name in context.recipe.score.methods:
        try:
            method = find_method(name)
        except GradsieveError as error:
            yield error
            continue
        if "gradients" in method.uses:
            gradients.append(name)
        library = getattr(method, "library", None)
        if library is not None and "score" in stages:
            yield from problem_of(partial(installed, library, "baselines"))
    if context.recipe.features.mode == "exact" and set(gradients) - {"less"}:
        yield UsageError(
            "Exact mode takes LESS's cosines only.",
            f"features.mode: exact, score.methods: {', '.join(gradients)}",
            "Use features.mode: store, or leave the other methods out.",
        )


def _trackers(context: Context, stages: Sequence[str]) -> Iterator[GradsieveError]:
    names = context.recipe.warmup.report_to
    if names and {"warmup", "train"} & set(stages):
        yield from problem_of(partial(check_trackers, names))


# --- data ---------------------------------------------------------------------------------------


def _pool(context: Context, stages: Sequence[str]) -> Iterator[GradsieveError]:
    """Every source can be read; its rows are checked by the stage itself."""
    if "pool" in stages:
        for spec in context.source_specs:
            yield from problem_of(partial(source_key, spec))


def _targets(context: Context, stages: Sequence[str]) -> Iterator[GradsieveError]:
    yield from _each(context, "targets", lambda part: part.targets)


def _questions(context: Context, stages: Sequence[str]) -> Iterator[GradsieveError]:
    """The targets' held-out questions; to evaluate on, and to look for leaks of."""
    if not {"select", "evaluate"} & set(stages):
        return
    problems = list(_each(context, "targets", lambda part: part.whole_test_sets))
    yield from problems
    if problems or "evaluate" not in stages:
        return
    if evaluate.asks_questions(context):
        yield from problem_of(partial(installed, "lm_eval", "evaluate"))


def _each(
    context: Context, key: str, read: Callable[[Context], object]
) -> Iterator[GradsieveError]:
    """Read all parts of a section; if one is wrong, each by itself, so that all are told."""
    if not list(problem_of(lambda: read(context))):
        return
    for part in getattr(context.recipe, key):
        one = context.recipe.model_copy(update={key: [part]})
        yield from problem_of(
            partial(read, Context(one, context.run, context.progress, context.in_memory))
        )


# --- models -------------------------------------------------------------------------------------


def _model(context: Context, stages: Sequence[str]) -> Iterator[GradsieveError]:
    """The model that selects, its tokenizer and template, its adapter or checkpoints."""
    recipe = context.recipe
    adapts = bool({"warmup", "features"} & set(stages))
    if "train" in stages and context.student.recipe.model == recipe.model:
        adapts = adapts or not (recipe.train and recipe.train.full_parameters)
    problems = list(_one_model(context, adapts))
    yield from problems
    if not problems:
        targets = list(problem_of(lambda: context.targets))
        for target in () if targets else context.targets:
            yield from problem_of(partial(context.target_rows, target))


def _student(context: Context, stages: Sequence[str]) -> Iterator[GradsieveError]:
    """The model that is trained, where it is another one (LESS-T)."""
    student = context.student.recipe.model
    if {"train", "evaluate"} & set(stages) and student != context.recipe.model:
        full = bool(context.recipe.train and context.recipe.train.full_parameters)
        fresh = context.recipe.warmup.model_copy(update={"checkpoints": None})
        recipe = context.recipe.model_copy(update={"model": student, "warmup": fresh})
        inputs = context.student.in_memory
        other = Context(recipe, context.run, context.progress, inputs, context.warnings)
        yield from _one_model(other, not full)


def _one_model(context: Context, adapts: bool) -> Iterator[GradsieveError]:
    """Kind, weights, tokenizer, template and adapter of a model."""
    model = context.model
    problems = list(problem_of(model.config))
    if problems:
        yield from problems
        return
    yield from problem_of(model.check_weights)
    template = list(problem_of(lambda: context.template))
    yield from template
    for folder in (context.recipe.warmup.checkpoints or ()) if adapts else ():
        problems += problem_of(partial(warmup.existing, Path(folder)))
    if adapts and not problems:
        problems = list(check_support(model, context.recipe.warmup))
    yield from problems
    if not template and not problems:
        tokenizer = context.template.tokenizer
        yield from problem_of(lambda: check_vocabulary(model.meta_model(), tokenizer))


# --- the run folder -----------------------------------------------------------------------------


def rows(context: Context, folder: Path) -> Iterator[GradsieveError]:
    """Every row of the pool can be used; the pool is built in `folder`, unless it is in the run."""
    if context.run.metadata("pool") is not None:
        return
    if not list(problem_of(partial(_build, context, context.source_specs, folder / "all"))):
        return
    for spec in context.source_specs:
        yield from problem_of(partial(_build, context, [spec], folder / spec.name))


def _bad_rows(context: Context) -> Iterator[GradsieveError]:
    """Rows of each source that can't be read, whether or not there is a chat template."""
    policy = context.recipe.on_bad_row
    for spec in context.source_specs:
        read = partial(read_source, split=spec.split, revision=spec.revision)
        rows = partial(read, spec.name, spec.path, on_bad_row=policy, supervise=spec.supervise)
        yield from problem_of(rows)


def _build(context: Context, specs: Sequence[SourceSpec], folder: Path) -> None:
    context.pool = build_pool(folder, specs, context.template, on_bad_row=context.recipe.on_bad_row)


def writable(context: Context, stages: Sequence[str]) -> Iterator[GradsieveError]:
    """The run's folder can be made or written in, and is a run's; nothing is written."""
    run = context.run
    folder = run.path
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        yield RunError(
            "The run folder cannot be written.",
            f"{run.path}: {folder} is {'not writable' if folder.is_dir() else 'not a folder'}",
            "Give --out a folder that you may write to.",
        )
    else:
        yield from problem_of(run.check_is_run)


CHECKS: tuple[Check, ...] = (
    _versions, _methods, _trackers, _pool, _targets, _questions, _model, _student
)  # fmt: skip
