"""The stages in order: skip what is done, go on with what was started, say why if done again.

This page is the whole run. A stage is done if its `meta.json` was written with the same inputs; it
goes on in its folder if it was started with them; otherwise its folder is moved to `RUN/old/` and
it starts anew. Since inputs hold the outputs of the stages before, followers do the same.
"""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol, cast

from gradsieve import processes
from gradsieve.context import Context
from gradsieve.errors import DataError, GradsieveError, RunError, UsageError
from gradsieve.methods import find_method
from gradsieve.progress import Progress, clock
from gradsieve.recipe import Recipe, dump_recipe, load_recipe
from gradsieve.rundir import STAGES, RunDir, differences, fingerprint, write_text
from gradsieve.stages import evaluate, features, score, select, train, warmup


class Stage(Protocol):
    """What a stage's module offers."""

    def inputs(self, context: Context) -> dict[str, Any]:
        """What the stage depends on; JSON data."""

    def run(self, context: Context, folder: Path) -> dict[str, Any]:
        """Do it; returns what `meta.json` tells, `output` (a fingerprint) among it."""


FLOW = cast(
    dict[str, Stage],
    dict(zip(STAGES, (warmup, features, score, select, train, evaluate), strict=True)),
)
"""1. warm up; 2. take gradient features; 3. score; 4. select; 5. train on it; 6. evaluate."""

TRAINING = ("warmup", "train")
"""Stages that several processes can share: `accelerate launch -m gradsieve train ...`."""

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
        last: Stop after this stage. By default the last one that the recipe has a section for.
        progress: Where to tell what is being done; standard error by default.

    Raises:
        GradsieveError: For anything that the user can mend.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    progress = progress or Progress()
    progress = progress if processes.is_first() else Progress(quiet=True)
    return run_stages(Context(recipe, RunDir(out), progress), first, last)


def run_stages(context: Context, first: str | None = None, last: str | None = None) -> RunDir:
    """As `run`, with inputs that may have been read, or given in memory, already."""
    recipe = context.recipe
    needed = stages_of(recipe)
    asked = _stages_between(first, last)
    wanted = [name for name in asked if name in needed or name in (first, last)]
    _check_processes(wanted)
    # Under `accelerate launch` the first process reads what is done, and writes.
    with context.run.locked() if processes.is_first() else nullcontext():
        for name in needed:
            if STAGES.index(name) < STAGES.index(wanted[0]):
                context.run.done(name)
        if processes.is_first():
            write_text(context.run.path / "recipe.yaml", dump_recipe(recipe))
        for name in wanted:
            try:
                _run_stage(name, FLOW[name], context)
            except OSError as error:
                raise _disk_error(error, context.run) from error
    return context.run


def stages_of(recipe: Recipe) -> list[str]:
    """The stages that a recipe needs, in order: methods without gradients need no warm-up.

    Raises:
        UsageError: If a method is not known, or doesn't fit `features.mode`.
    """
    methods = {name: find_method(name) for name in recipe.score.methods}
    gradients = [name for name, method in methods.items() if "gradients" in method.uses]
    if recipe.features.mode == "exact" and set(gradients) - {"less"}:
        raise UsageError(
            "Exact mode takes LESS's cosines only.",
            f"features.mode: exact, score.methods: {', '.join(gradients)}",
            "Use features.mode: store, or leave the other methods out.",
        )
    return [
        *(["warmup", "features"] if gradients or recipe.select.near_duplicates else []),
        "score",
        "select",
        *(["train"] if recipe.train or recipe.evaluate else []),
        *(["evaluate"] if recipe.evaluate else []),
    ]


def _check_processes(wanted: Sequence[str]) -> None:
    """Refuse stages that several processes can't share."""
    alone = [name for name in wanted if name not in TRAINING]
    if processes.count() > 1 and alone:
        raise UsageError(
            f"Several processes can share a training, not the stage {alone[0]}.",
            f"started by a launcher with {processes.count()} processes",
            "Use the launcher for `gradsieve warmup` or `gradsieve train` alone, and start the "
            "others without it.",
        )


def _stages_between(first: str | None, last: str | None) -> Sequence[str]:
    start = STAGES.index(first) if first else 0
    stop = STAGES.index(last) + 1 if last else len(STAGES)
    if start >= stop:
        raise RunError(
            f"The stage to start from comes after the last one: {first}, {last}.",
            "--from, --until",
            f"The order is {', '.join(STAGES)}.",
        )
    return STAGES[start:stop]


def _run_stage(name: str, stage: Stage, context: Context) -> None:
    run, say, first = context.run, context.progress.say, processes.is_first()
    inputs = stage.inputs(context)
    if processes.agreed(first and _is_done(name, stage, context, inputs)):
        say(f"{name}: done already")
        return
    if first:
        _make_room(name, stage, context, inputs)
    say(f"{name}: starting")
    start = time.monotonic()
    facts = stage.run(context, run.begin(name, inputs) if first else run.stage(name))
    seconds = time.monotonic() - start
    if not first:
        return
    run.finish(
        name,
        {
            "fingerprint": fingerprint(inputs),
            "inputs": inputs,
            "seconds": round(seconds, 3),
            "versions": _versions(),
            **facts,
        },
    )
    say(f"{name}: done in {clock(seconds)}")


def _is_done(name: str, stage: Stage, context: Context, inputs: dict[str, Any]) -> bool:
    meta = context.run.meta(name)
    if meta is None or meta["fingerprint"] != fingerprint(inputs):
        return False
    lost: list[str] = getattr(stage, "lost", lambda _: [])(context.run.stage(name))
    if lost:
        context.progress.say(f"{name}: {len(lost)} files are not there any more, e.g. {lost[0]}")
    return not lost


def _make_room(name: str, stage: Stage, context: Context, inputs: dict[str, Any]) -> None:
    """Say why a stage is done again, and move what was made with other settings aside."""
    old = context.run.started(name)
    if old is None:
        return
    changes = differences(old, inputs)
    if not changes:
        context.progress.say(f"{name}: going on where it was stopped")
        return
    told = "; ".join(changes[:3]) + (f"; and {len(changes) - 3} more" if changes[3:] else "")
    goes_on = getattr(stage, "goes_on_with", lambda *_: False)(old, inputs)
    if goes_on:
        context.progress.say(f"{name}: to be completed, because of {told}")
        return
    kept = context.run.set_aside(name)
    context.progress.say(f"{name}: to be done again, because of {told} (the old one is in {kept})")


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        versions[package] = importlib.metadata.version(package)
    return versions


def _disk_error(error: OSError, run: RunDir) -> GradsieveError:
    kind = RunError if error.filename is None or str(run.path) in str(error.filename) else DataError
    return kind(
        f"A file cannot be read or written: {error.strerror or error}.",
        str(error.filename or run.path),
        "Make room or give access, then run the same command again: what is done is kept.",
    )
