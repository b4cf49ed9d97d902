"""One share of the features, computed by one of several processes: a job array needs no engine.

In: a run folder with pool and warm-up, and the share's number and count. Out: that share's shards.
Only one process at a time starts or finishes the stage; the work between runs in parallel. The last
process to end finds that nothing is missing and finishes the stage; `gradsieve run` does so too.
"""

from __future__ import annotations

from pathlib import Path

from gradsieve.console import Progress
from gradsieve.pipeline.preflight import check
from gradsieve.pipeline.run import STAGES, run_stage, session, timed, warn_of_changes
from gradsieve.pipeline.state import clear_faults, find_state, prepare, refuse_faults
from gradsieve.recipe.schema import Recipe
from gradsieve.runs.context import Context
from gradsieve.runs.folder import RunFolder
from gradsieve.stages import features


def run_share(
    recipe: Recipe, out: str | Path, share: tuple[int, int], progress: Progress
) -> RunFolder:
    """Compute one share of the features; `share` is (number, count), counted from 1."""
    run, stage = RunFolder(out), STAGES["features"]
    context = Context(recipe, run, progress, share=share)
    with session(context, [stage.name], shared=True):
        with run.turn():
            for name in ("pool", "warmup"):
                run.require(name)
            refuse_faults(STAGES["warmup"], context)
            check(context, [STAGES["pool"], stage])
            warn_of_changes(context, ["warmup"], {})
            run_stage(STAGES["pool"], context)
            context.report_warnings()
            inputs = stage.fingerprint_inputs(context)
            state = find_state(stage, context, inputs)
            if state.kind == "done":
                progress.end(stage.name, "up to date")
                return run
            clear_faults(stage, context, state.faults)
            prepare(stage, state, context)
            run.begin(stage.name, inputs)
        with timed(context, stage.name):
            features.take_share(context)
        with run.turn():
            context.share = None
            done = f"share {share[0]} of {share[1]} is done"
            if features.is_missing(context):
                progress.end(stage.name, f"{done}, others are not")
            else:
                progress.say(f"{stage.name}: {done}, and so are all others")
                run_stage(stage, context)
    return run
