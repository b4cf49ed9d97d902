"""The stages in order: skip what is done, go on with what was started, say why if done again.

This page is the whole run. A stage is done if its `meta.json` was written with the same inputs; it
goes on in its folder if it was started with them; otherwise its folder is moved to `RUN/old/` and
it starts anew. Since inputs hold the outputs of the stages before, followers do the same.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

from safetensors import SafetensorError

from gradsieve.console import Progress, clock
from gradsieve.errors import DataError, GradsieveError, RunError, UsageError
from gradsieve.io import differences, fingerprint, first_few, write_text
from gradsieve.methods import uses_gradients
from gradsieve.models import distributed
from gradsieve.pipeline.planning import Plan, find_gpu, make_plan
from gradsieve.pipeline.preflight import check, problem_of, rows, writable
from gradsieve.recipe.load import dump_recipe, load_recipe
from gradsieve.recipe.schema import Recipe
from gradsieve.runs.context import Context
from gradsieve.runs.folder import STAGES, RunDir, State
from gradsieve.stages import evaluate, features, report, score, select, train, warmup


class Stage(Protocol):
    """What a stage's module offers."""

    def inputs(self, context: Context) -> dict[str, Any]:
        """What the stage depends on; JSON data."""

    def run(self, context: Context, folder: Path) -> dict[str, Any]:
        """Do it; returns what `meta.json` tells, `output` (a fingerprint) among it."""


FLOW = cast(
    dict[str, Stage],
    dict(zip(STAGES, (warmup, features, score, select, train, evaluate, report), strict=True)),
)
"""1. warm up; 2. take gradient features; 3. score; 4. select; 5. train on it; 6. evaluate;
7. report."""

TRAINING = ("warmup", "train")
"""Stages that several processes can share: `accelerate launch -m gradsieve train ...`."""

NOWHERE = Path("/nonexistent")
"""A plan without a run's folder looks here for what is done."""

PACKAGES = ("gradsieve", "torch", "transformers", "peft", "accelerate", "datasets", "numpy")


def run(
    recipe: Recipe | str | Path,
    out: str | Path,
    *,
    first: str | None = None,
    last: str | None = None,
    progress: Progress | None = None,
) -> RunDir:
    """Run a recipe's stages; what is done already is kept.

    Args:
        recipe: A recipe or its file.
        out: The run's folder.
        first: Take the stages before this one as they are, whatever has changed since.
        last: Stop after this stage; by default after the report. Training and evaluation are made
            if the recipe has a section for them.
        progress: Where to tell what is being done; standard error by default.

    Raises:
        GradsieveError: For anything that the user can mend.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    progress = progress or Progress()
    progress = progress if distributed.is_first() else Progress(quiet=True)
    return run_stages(Context(recipe, RunDir(out), progress), first, last)


def run_stages(context: Context, first: str | None = None, last: str | None = None) -> RunDir:
    """As `run`, with inputs that may have been read, or given in memory, already."""
    recipe = context.recipe
    needed = stages_of(recipe)
    asked = _stages_between(first, last)
    wanted = [name for name in asked if name in needed or name in (first, last)]
    _check_processes(wanted)
    log = context.run.path / "log.txt" if distributed.is_first() else None
    # Under `accelerate launch` the first process reads what is done, and writes.
    with (
        context.run.locked() if distributed.is_first() else nullcontext(),
        context.progress.running(wanted, log),
        _noted(context.progress),
        _telling_disk_errors(context.run),
    ):
        for name in needed:
            # A report tells of the training what there is of it.
            optional = wanted[0] == "report" and name in ("train", "evaluate")
            if STAGES.index(name) < STAGES.index(wanted[0]) and not optional:
                context.run.done(name)
        check(context, wanted, [_stage_checks])
        for name in wanted:
            _run_stage(name, FLOW[name], context)
        if distributed.is_first():
            write_text(context.run.recipe, dump_recipe(recipe))
    return context.run


def plan(
    recipe: Recipe | str | Path,
    out: str | Path | None = None,
    *,
    gpu: str | None = None,
    calibrate: bool = True,
    progress: Progress | None = None,
) -> Plan:
    """Check every input, then predict what a run would take. Nothing is written.

    Args:
        recipe: A recipe or its file.
        out: The run's folder: tells what is done already, and the disk's free space.
        gpu: Predict for a GPU of the table; None: for the machine at hand.
        calibrate: Load the model and time parts of the work; otherwise no seconds are told.
        progress: Where to tell what is being done; standard error by default.

    Raises:
        GradsieveError: With all problems that were found.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    named = find_gpu(gpu) if gpu is not None else None
    folder = Path(out) if out is not None else None
    context = Context(recipe, RunDir(folder or NOWHERE), progress or Progress())
    # The report takes seconds: nobody needs to know how many before it is made.
    needed = [name for name in stages_of(recipe) if name != "report"]
    with context.progress.running([], None):
        check(context, needed, [_stage_checks, rows, *([writable] if folder else [])])
        found = states(context, needed)
        return make_plan(context, found, out=folder, gpu=named, calibrate=calibrate)


def stages_of(recipe: Recipe) -> list[str]:
    """The stages that a recipe needs, in order: methods without gradients need no warm-up."""
    gradients = any(map(_uses_gradients, recipe.score.methods))
    return [
        *(["warmup", "features"] if gradients or recipe.select.near_duplicates else []),
        "score",
        "select",
        *(["train"] if recipe.train or recipe.evaluate else []),
        *(["evaluate"] if recipe.evaluate else []),
        "report",
    ]


def _uses_gradients(method: str) -> bool:
    try:
        return uses_gradients(method)
    except UsageError:
        return False  # `check` tells of it, with all else that is wrong


def _stage_checks(context: Context, stages: Sequence[str]) -> Iterator[GradsieveError]:
    """What a stage's own `check` refuses."""
    for name in stages:
        yield from problem_of(partial(getattr(FLOW[name], "check", lambda _: None), context))


def _check_processes(wanted: Sequence[str]) -> None:
    """Refuse stages that several processes can't share."""
    alone = [name for name in wanted if name not in TRAINING]
    if distributed.count() > 1 and alone:
        raise UsageError(
            f"Several processes can share a training, not the stage {alone[0]}.",
            f"started by a launcher with {distributed.count()} processes",
            "Use the launcher for `gradsieve warmup` or `gradsieve train` alone, and start the "
            "others without it.",
        )


def _stages_between(first: str | None, last: str | None) -> Sequence[str]:
    start = STAGES.index(first) if first else 0
    stop = STAGES.index(last) + 1 if last else len(STAGES)
    if start >= stop:
        raise UsageError(
            f"The stage to start from comes after the last one: {first}, {last}.",
            "--from, --until",
            f"The order is {', '.join(STAGES)}.",
        )
    return STAGES[start:stop]


@contextmanager
def _noted(progress: Progress) -> Iterator[None]:
    """The log also tells what was asked, by which versions, and how it ended."""
    versions = ", ".join(f"{name} {version}" for name, version in _versions().items())
    progress.note(f"--- {' '.join(sys.argv)} ({versions})")
    try:
        yield
    except BaseException as error:
        progress.note(f"stopped: {type(error).__name__} {error}".rstrip())
        raise


def states(context: Context, names: Sequence[str]) -> dict[str, State]:
    """What a run would find, stage by stage; nothing is changed."""
    found: dict[str, State] = {}
    for name in names:
        waits_for = next((other for other, state in found.items() if state.kind != "done"), None)
        if waits_for is None:
            found[name] = _state(name, FLOW[name], context, FLOW[name].inputs(context))
        elif context.run.started(name) is None:
            found[name] = State("new")
        else:
            found[name] = State("later", f"{waits_for} comes first")
    return found


def _state(name: str, stage: Stage, context: Context, inputs: dict[str, Any]) -> State:
    run = context.run
    meta, old = run.meta(name), run.started(name)
    if meta is not None and meta.get("fingerprint") == fingerprint(inputs):
        lost: list[str] = getattr(stage, "lost", lambda _: [])(run.stage(name))
        if not lost:
            return State("done")
        return State("going on", f"{len(lost)} files are not there any more, e.g. {lost[0]}")
    if old is None:
        return State("new")
    changes = differences(old, inputs)
    if not changes:
        return State("going on")
    completes = getattr(stage, "goes_on_with", lambda *_: False)(old, inputs)
    return State("completing" if completes else "again", first_few(changes))


def _run_stage(name: str, stage: Stage, context: Context) -> None:
    run, progress, first = context.run, context.progress, distributed.is_first()
    inputs = stage.inputs(context)
    state = _state(name, stage, context, inputs) if first else State("new")
    if distributed.agreed(state.kind == "done"):
        progress.end(name, "done already")
        return
    notes = run.notes(name)
    # What is completed cost what it took before, too.
    before = (run.meta(name) or {}).get("seconds", 0.0) if state.kind == "completing" else 0.0
    kept = _make_room(name, state, context) if first else None
    progress.begin(name)
    if first:
        write_text(run.recipe, dump_recipe(context.recipe))
    start = time.monotonic()
    folder = run.begin(name, inputs) if first else run.stage(name)
    there = _written(folder) if first else {}
    try:
        facts = stage.run(context, folder)
    except GradsieveError:
        # A mistake leaves what was there as it was.
        if first and _written(folder) == there:
            run.take_back(name, notes, kept)
        raise
    seconds = time.monotonic() - start
    if not first:
        return
    run.finish(
        name,
        {
            "fingerprint": fingerprint(inputs),
            "inputs": inputs,
            "seconds": round(before + seconds, 3),
            "versions": _versions(),
            **facts,
        },
    )
    progress.end(name, f"done in {clock(seconds)}")


def _written(folder: Path) -> dict[Path, tuple[int, int] | None]:
    """What is in a folder, and of files when they were written: one written over was made too."""
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_size) if path.is_file() else None
        for path in folder.rglob("*")
    }


def _make_room(name: str, state: State, context: Context) -> Path | None:
    """Say why a stage is done again, and move what was made with other settings aside.

    Returns:
        Where it was moved to.
    """
    say = context.progress.say
    if state.kind == "going on":
        say(f"{name}: {state.why}" if state.why else f"{name}: going on where it was stopped")
    elif state.kind == "completing":
        say(f"{name}: to be completed, because of {state.why}")
    elif state.kind == "again":
        kept = context.run.set_aside(name)
        say(f"{name}: to be done again, because of {state.why} (the old one is in {kept})")
        return kept
    return None


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        versions[package] = importlib.metadata.version(package)
    return versions


@contextmanager
def _telling_disk_errors(run: RunDir) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        ours = error.filename is None or str(run.path) in str(error.filename)
        raise (RunError if ours else DataError)(
            f"A file cannot be read or written: {error.strerror or error}.",
            str(error.filename or run.path),
            MAKE_ROOM,
        ) from error
    except (RuntimeError, SafetensorError) as error:
        if not any(words in str(error) for words in _UNWRITTEN):
            raise
        raise RunError("A file cannot be written to its end.", str(run.path), MAKE_ROOM) from error


MAKE_ROOM = "Make room or give access, then run the same command again: what is done is kept."

_UNWRITTEN = ("inline_container", "iostream error", "Error while serializing: I/O error")
"""What torch.save and safetensors, which raise no OSError, say where a disk is full."""
