"""The stages in order: skip what is up to date, resume what was started, report why one is redone.

This module is the whole run. A stage is up to date if its `meta.json` was written with the same
inputs; it resumes in its folder if it was started with them; otherwise its folder moves to
`RUN/archive/` and it starts again. Since inputs include the outputs of earlier stages, later stages
follow.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from gradsieve.console import Progress, clock, progress_for
from gradsieve.errors import DataError, GradsieveError, RunError, UsageError, first_few, raise_all
from gradsieve.io import fingerprint
from gradsieve.models import distributed
from gradsieve.models.ambient import torch_defaults
from gradsieve.pipeline.preflight import check
from gradsieve.pipeline.state import clear_faults, find_state, prepare, refuse_faults
from gradsieve.recipe.load import as_recipe
from gradsieve.recipe.schema import Recipe
from gradsieve.runs.context import Context
from gradsieve.runs.folder import SECONDS, STAGE_NAMES, RunFolder, check_stage_names
from gradsieve.runs.lineage import outdated
from gradsieve.runs.settings import changed_settings
from gradsieve.stages import all_stages, features
from gradsieve.stages.base import Stage

STAGES = all_stages()

PACKAGES = ("gradsieve", "torch", "transformers", "peft", "accelerate", "datasets", "numpy")


def run(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    out: str | Path,
    *,
    first: str | None = None,
    last: str | None = None,
    progress: Progress | None = None,
) -> RunFolder:
    """Run a recipe's stages; stages that are up to date are kept.

    Args:
        recipe: A recipe, its file, or its sections as dicts.
        out: The run folder.
        first: Start with this stage; earlier stages are used as they are, even if outdated.
        last: Stop after this stage; by default after the report. Training and evaluation run if the
            recipe has a section for them.
        progress: Where to report progress; standard error by default.

    Raises:
        GradsieveError: For anything that the user can fix.
    """
    recipe, progress = as_recipe(recipe), progress_for(progress)
    progress = progress if distributed.is_first() else Progress(quiet=True)
    return run_stages(Context(recipe, RunFolder(out), progress), first, last)


@torch_defaults()
def run_stages(context: Context, first: str | None = None, last: str | None = None) -> RunFolder:
    """Like `run`, with inputs that may be in memory."""
    recipe, run = context.recipe, context.run
    needed = stages_of(recipe)
    asked = _stages_between(first, last)
    # A stage named by `--until` runs with the stage it reads, even if the recipe needs neither.
    reads = STAGES[last].reads if last else None
    wanted = [name for name in asked if name in needed or name in (first, last, reads)]
    _check_processes(wanted)
    start = wanted[0]
    if STAGES[start].refreshes_pool:
        wanted = ["pool", *wanted]
    # Under `accelerate launch` only the first process checks what is up to date, and writes.
    leads = distributed.is_first()
    with _session(context, wanted):
        earlier = STAGE_NAMES[: STAGE_NAMES.index(start)]
        taken = [name for name in needed if name in earlier and name not in wanted]
        for name in list(taken):
            if name not in STAGES[start].optional_before:
                run.require(name)
            elif run.metadata(name) is None:
                taken.remove(name)
                context.progress.warn(f"{name} is not finished, and left out: {run.stage(name)}")
        for name in wanted if leads else ():
            if damage := run.repair(name):
                context.progress.warn(damage)
        check(context, [STAGES[name] for name in wanted])
        _warn_of_changes(context, taken, outdated(run, earlier))
        for name in taken if leads else ():
            refuse_faults(STAGES[name], context)
        for name in wanted:
            if leads:
                _run_stage(STAGES[name], context)
            elif STAGES[name].distributed:
                _take_part(STAGES[name], context)
            context.report_warnings()
            distributed.wait()
            if name == "pool":
                raise_all(problem for n in wanted for problem in STAGES[n].check_pool(context))
        for name in wanted if leads else ():
            for warning in STAGES[name].after_run(context):
                context.progress.warn(warning)
        if leads:
            run.write_recipe(context.recipe_text)
    return run


def run_share(
    recipe: Recipe, out: str | Path, share: tuple[int, int], progress: Progress
) -> RunFolder:
    """Compute one share of the features, for one of several processes: a job array needs no engine.

    Only one process at a time starts or finishes the stage; the work between runs in parallel. The
    last process to end finds that nothing is missing and finishes the stage; `run` does so, too.

    Args:
        recipe: The recipe.
        out: A run folder with pool and warm-up.
        share: The share's number, counted from 1, and the number of shares.
        progress: Where to report progress.
    """
    run, stage = RunFolder(out), STAGES["features"]
    context = Context(recipe, run, progress, share=share)
    with _session(context, [stage.name], shared=True):
        with run.turn():
            for name in ("pool", "warmup"):
                run.require(name)
            refuse_faults(STAGES["warmup"], context)
            check(context, [STAGES["pool"], stage])
            _warn_of_changes(context, ["warmup"], {})
            _run_stage(STAGES["pool"], context)
            context.report_warnings()
            inputs = stage.fingerprint_inputs(context)
            state = find_state(stage, context, inputs)
            if state.kind == "done":
                progress.end(stage.name, "up to date")
                return run
            clear_faults(stage, context, state.faults)
            prepare(stage, state, context)
            run.begin(stage.name, inputs)
        with _timed(context, stage.name):
            features.take_share(context)
        with run.turn():
            context.share = None
            done = f"share {share[0]} of {share[1]} is done"
            if features.is_missing(context):
                progress.end(stage.name, f"{done}, others are not")
            else:
                progress.say(f"{stage.name}: {done}, and so are all others")
                _run_stage(stage, context)
    return run


@contextmanager
def _session(context: Context, stages: Sequence[str], shared: bool = False) -> Iterator[None]:
    """What surrounds a command's stages: the lock, the log, messages about the disk."""
    run, leads = context.run, shared or distributed.is_first()
    with (
        run.locked(shared) if leads else nullcontext(),
        context.progress.running(stages, run.log if leads else None),
        _logged(context.progress),
        _reporting_disk_errors(run),
        closing(context),
    ):
        yield


def _warn_of_changes(context: Context, taken: Sequence[str], stale: Mapping[str, str]) -> None:
    """Warn about stages used as they are that were made with other settings."""
    for name in taken:
        changes = changed_settings(context.run, context.recipe, name)
        if name in stale:
            changes.append(f"{name} is out of date, because {stale[name]}")
        if changes:
            found = first_few(changes, separator="; ")
            context.progress.warn(
                f"{name} is taken as it is, though settings differ: {found}. "
                "To update it: `gradsieve run` with this recipe, without --from"
            )


def stages_of(recipe: Recipe) -> list[str]:
    """The stages that a recipe needs, in order."""
    return [name for name, stage in STAGES.items() if stage.needed(recipe)]


def _run_stage(stage: Stage, context: Context) -> None:
    """Run a stage if it is not up to date."""
    run, progress, name = context.run, context.progress, stage.name
    inputs = stage.fingerprint_inputs(context)
    state = find_state(stage, context, inputs)
    clear_faults(stage, context, state.faults)
    done = state.kind == "done"
    if stage.distributed:
        distributed.agreed(done)
    if done:
        progress.end(name, "up to date")
        return
    snapshot = run.snapshot(name)
    archived = prepare(stage, state, context)
    progress.begin(name)
    run.write_recipe(context.recipe_text)
    start = time.monotonic()
    folder = run.begin(name, inputs)
    if archived:
        stage.reuse(archived, folder)
    existing = _written(folder)
    try:
        with _timed(context, name):
            metadata = stage.run(context)
    except GradsieveError:
        # A user's error leaves earlier outputs unchanged.
        if (archived and stage.undo_failed) or _written(folder) == existing:
            run.restore(name, snapshot, archived)
            if archived:
                progress.say(f"{name}: the old outputs are back in {folder}")
        raise
    run.clear_temporary(folder)  # left by workers that were killed
    run.finish(
        name,
        {
            "fingerprint": fingerprint(inputs),
            "inputs": inputs,
            "seconds": run.seconds(name),
            "versions": _versions(),
            "workers": context.take_work(),
            **metadata,
        },
    )
    progress.end(name, f"done in {clock(time.monotonic() - start)}")


def _take_part(stage: Stage, context: Context) -> None:
    """Take part in a stage that the first process runs, if it is not up to date."""
    stage.fingerprint_inputs(context)
    if not distributed.agreed(False):
        stage.run(context)


@contextmanager
def _timed(context: Context, name: str) -> Iterator[None]:
    """Record the seconds that a stage has taken so far, including those before it was resumed.

    Of shares that run at the same time, the one that ends last leaves the time since it started.
    """
    before, start = context.run.seconds(name), time.monotonic()

    def keep() -> None:
        context.run.keep_seconds(name, before + time.monotonic() - start)

    with context.progress.on_line(keep):
        try:
            yield
        finally:
            keep()


def _written(folder: Path) -> dict[Path, tuple[int, int] | None]:
    """The paths in a folder, files with mtime and size, so that overwritten files show."""
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_size) if path.is_file() else None
        for path in folder.rglob("*")
        if path.name != SECONDS
    }


def _check_processes(wanted: Sequence[str]) -> None:
    """Refuse stages that several processes can't share."""
    alone = [name for name in wanted if not STAGES[name].distributed]
    if distributed.count() > 1 and alone:
        raise UsageError(
            f"Several processes can share a training, not the stage {alone[0]}.",
            f"started by a launcher with {distributed.count()} processes",
            "Use the launcher for `gradsieve warmup` or `gradsieve train` alone, and start the "
            "others without it.",
        )


def _stages_between(first: str | None, last: str | None) -> Sequence[str]:
    check_stage_names(filter(None, (first, last)), "first, last")
    start = STAGE_NAMES.index(first) if first else 0
    stop = STAGE_NAMES.index(last) + 1 if last else len(STAGE_NAMES)
    if start >= stop:
        raise UsageError(
            f"The stage to start from comes after the last one: {first}, {last}.",
            "--from, --until",
            f"The order is {', '.join(STAGE_NAMES)}.",
        )
    return STAGE_NAMES[start:stop]


@contextmanager
def _logged(progress: Progress) -> Iterator[None]:
    """Log the command, the versions, and the error that ends the block, if any."""
    versions = ", ".join(f"{name} {version}" for name, version in _versions().items())
    progress.note(f"--- {' '.join(sys.argv)} ({versions})")
    try:
        yield
    except BaseException as error:
        progress.note(f"stopped: {type(error).__name__} {error}".rstrip())
        raise


@cache
def _versions() -> dict[str, str]:
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **packages}


@contextmanager
def _reporting_disk_errors(run: RunFolder) -> Iterator[None]:
    """Turn file system errors, including a full disk, into messages."""
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


MAKE_ROOM = "Free disk space or give access, then run the same command again: it resumes."

_UNWRITTEN = ("inline_container", "iostream error", "Error while serializing: I/O error")
"""Texts of torch's and safetensors' errors on a full disk, which are not OSErrors."""
