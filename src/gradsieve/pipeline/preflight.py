"""Checks all inputs before a model is loaded, and reports all problems at once.

In: a run's context and the stages to run. Out: nothing, or one error that contains every problem.
Rejected: checks only in the stages, where a mistake in the last section appears after hours.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

from packaging.requirements import Requirement

from gradsieve.data.pool.build import build_pool, check_rows
from gradsieve.errors import GradsieveError, RunError, UsageError, raise_all
from gradsieve.io import installed
from gradsieve.pipeline.state import states
from gradsieve.runs.context import Context
from gradsieve.runs.folder import RunFolder
from gradsieve.stages.base import Stage
from gradsieve.stages.checks import configuration, problem_of


def check(context: Context, wanted: Sequence[Stage], also: Iterable[GradsieveError] = ()) -> None:
    """Check everything that these stages need; the problems in `also` are reported with the others.

    Raises:
        GradsieveError: The problem, or `ErrorGroup` where there are several.
    """
    found = list(_versions())
    if context.recipe.engine.kind == "ray":
        found += problem_of(partial(installed, "ray", "ray"))
    for stage in wanted:
        found += stage.check(context)
    found += also
    if found and any(stage.name == "pool" for stage in wanted):  # else `pool` reports bad rows
        skips = context.recipe.on_bad_row == "skip"
        found += check_rows(context.source_specs, skips=skips)
    raise_all(found)


def _versions() -> Iterator[GradsieveError]:
    """Installed packages outside the version ranges that this package requires, without extras."""
    for line in importlib.metadata.requires("gradsieve") or ():
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue  # for an extra or another system
        # Importing a missing one fails, unless it is installed under another name.
        with suppress(importlib.metadata.PackageNotFoundError):
            version = _version(wanted.name)
            if not wanted.specifier.contains(version, prereleases=True):
                yield UsageError(
                    f"The installed version of {wanted.name} does not fit.",
                    f"{wanted.name} {version}, gradsieve needs {wanted.specifier}",
                    f"pip install '{wanted.name}{wanted.specifier}'",
                )


_version = cache(importlib.metadata.version)  # each call reads and parses a file: 3 ms


def build_rows(context: Context, folder: Path, pool: Stage) -> None:
    """Build the pool in `folder` if the run's is not up to date."""
    if configuration(context):  # reported by the stages' own checks
        return
    if states(context, [pool])["pool"].kind != "done":
        specs, policy = context.source_specs, context.recipe.on_bad_row
        context.pool = build_pool(
            folder, specs, context.template, on_bad_row=policy, key_of=context.source_key
        )


def existing(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    there = folder.exists() or folder == folder.parent
    return folder if there else existing(folder.parent)


def writable(run: RunFolder) -> Iterator[GradsieveError]:
    """Problems with writing to the run folder, or if it is not a run; nothing is written."""
    folder = existing(run.path)
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        yield RunError(
            "The run folder cannot be written.",
            f"{run.path}: {folder} is {'not writable' if folder.is_dir() else 'not a folder'}",
            "Give --out a folder that you may write to.",
        )
    else:
        yield from problem_of(run.check_is_run)
