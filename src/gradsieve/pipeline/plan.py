"""Check every input, then predict what a run would take."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from gradsieve.console import Progress
from gradsieve.pipeline.planning import Plan, find_gpu, make_plan
from gradsieve.pipeline.preflight import check, rows, writable
from gradsieve.pipeline.run import STAGES, stages_of, states
from gradsieve.recipe.load import load_recipe
from gradsieve.recipe.schema import Recipe
from gradsieve.runs.context import Context
from gradsieve.runs.folder import RunFolder

NOWHERE = Path("/nonexistent")
"""A plan without a run folder looks here for what is up to date."""


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
        out: The run folder: shows what is up to date, and the disk's free space.
        gpu: Predict for a GPU of the table; None: for this machine.
        calibrate: Load the model and time parts of the work; otherwise there are no seconds.
        progress: Where to report progress; standard error by default.

    Raises:
        GradsieveError: With all problems that were found.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    named = find_gpu(gpu) if gpu is not None else None
    folder = Path(out) if out is not None else None
    context = Context(recipe, RunFolder(folder or NOWHERE), progress or Progress())
    # The report takes seconds: nobody needs to know how many before it is made.
    needed = [name for name in stages_of(recipe) if name != "report"]
    with context.progress.running([], None), TemporaryDirectory() as scratch:
        also = [lambda context, _: rows(context, Path(scratch)), *([writable] if folder else [])]
        check(context, [STAGES[name] for name in needed], also)
        found = states(context, needed)
        return make_plan(context, found, out=folder, gpu=named, calibrate=calibrate)
