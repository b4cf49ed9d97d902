"""Checks every input, then predicts a run's time, memory and disk use before it is started.

In: a recipe. Out: a `Plan`: counts of the pool and targets, and an estimate for each stage, with
seconds from a timed sample of this run (sample.py) or from a GPU's data sheet (gpus.py).
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import torch

from gradsieve.console import Progress, progress_for
from gradsieve.errors import GradsieveError, ModelError, RunError, UsageError, raise_all
from gradsieve.models.ambient import torch_defaults
from gradsieve.models.device import device, free_memory, slow_dtype
from gradsieve.pipeline.gpus import UTILIZATION, WIDE, Gpu, find_gpu
from gradsieve.pipeline.plan_text import plan_text, size
from gradsieve.pipeline.preflight import build_rows, check, existing, writable
from gradsieve.pipeline.run import STAGES, stages_of
from gradsieve.pipeline.sample import MOST_ANSWER_TOKENS, Samples
from gradsieve.pipeline.state import State, states
from gradsieve.recipe.load import as_recipe
from gradsieve.recipe.schema import Recipe
from gradsieve.runs.context import Context
from gradsieve.runs.folder import RunFolder
from gradsieve.stages.checks import problem_of
from gradsieve.stages.estimate import (
    Estimate,
    exact_columns,
    few_steps,
    folder_bytes,
    questions,
    selecting_shape,
    target_rows,
)

NOWHERE = Path("/nonexistent")
"""The run folder of a plan without one, so that no stage is up to date."""

MADE = ("done", "archived")
"""States of stages that need no work."""

CONTINUED = ("resume", "extend")
"""States of stages that keep existing outputs; how much work is left is unknown."""


@dataclass(frozen=True)
class StagePlan:
    """The prediction for one stage.

    Attributes:
        optimizer_steps: Total over all its trainings; None for stages that train nothing.
        seconds: Predicted, or measured if the stage is done; None if unknown.
        memory_bytes: Estimated peak of device memory; None if no model runs.
    """

    stage: str
    state: str
    why: str
    flops: float
    optimizer_steps: int | None
    seconds: float | None
    disk_bytes: int
    memory_bytes: int | None


@dataclass(frozen=True)
class SourcePlan:
    """One source of the pool: readable and unreadable rows, tokens and truncated examples among
    the examples that are used, and examples without a label token (skipped).
    """

    name: str
    rows: int
    bad_rows: int
    tokens: int
    truncated: int
    skipped: int


@dataclass(frozen=True)
class Plan:
    """The predicted time, memory and disk use of a run.

    Attributes:
        machine: The hardware that the seconds apply to.
        targets: Name, subtasks, examples, examples left out, and held-out questions.
        stages: The stages that the recipe needs, in order, without the report.
        seconds_reading: Measured time of reading and tokenizing the pool.
        seconds: Total of all stages to run; None if any of them is unknown.
        gpu_hours: Time that GPUs are allocated; None on a CPU, or if a stage's time is unknown.
        disk_bytes: Total of all stages to run.
        disk_free_bytes: Free space at the run folder's location; None without a run folder.
        trainable: Number of parameters of the adapter.
    """

    machine: str
    sources: tuple[SourcePlan, ...]
    targets: tuple[dict[str, Any], ...]
    stages: tuple[StagePlan, ...]
    seconds_reading: float
    seconds: float | None
    workers: int
    gpu_hours: float | None
    disk_bytes: int
    disk_free_bytes: int | None
    trainable: int
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """The plan as plain text, suitable for mail."""
        return plan_text(self)


@torch_defaults()
def plan(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    out: str | Path | None = None,
    *,
    gpu: str | None = None,
    workers: int = 1,
    calibrate: bool = True,
    progress: Progress | None = None,
) -> Plan:
    """Check every input, then predict a run's time, memory and disk use. Nothing is written.

    Args:
        recipe: A recipe, its file, or its sections as dicts.
        out: The run folder, to find which stages are up to date and how much disk is free.
        gpu: Name of the GPU in the table to predict for; None means this machine.
        workers: Number of the engine's workers, one GPU each.
        calibrate: Without `gpu`: time each stage on a sample; if False, predict no seconds.
        progress: Where to report progress; standard error by default.

    Raises:
        GradsieveError: With all problems found.
    """
    recipe = as_recipe(recipe)
    if workers < 1:
        raise UsageError("A run has at least one worker.", f"workers: {workers}", "Give 1 or more.")
    named = find_gpu(gpu) if gpu is not None else None
    folder = Path(out) if out is not None else None
    context = Context(recipe, RunFolder(folder or NOWHERE), progress_for(progress))
    # The report takes only seconds, so it is not planned.
    needed = [STAGES[name] for name in stages_of(recipe) if name != "report"]
    seconds_reading = 0.0

    def read() -> Iterator[GradsieveError]:
        """Read and tokenize the pool's rows."""
        nonlocal seconds_reading
        start = time.perf_counter()
        yield from problem_of(partial(build_rows, context, Path(scratch), STAGES["pool"]))
        seconds_reading = time.perf_counter() - start

    with context.progress.running([], None), TemporaryDirectory() as scratch:
        check(context, needed, chain(read(), writable(context.run) if folder else ()))
        raise_all(problem for stage in needed for problem in stage.check_pool(context))
        estimates = {stage.name: stage.estimate(context) for stage in needed}
        found = states(context, needed)
        free = shutil.disk_usage(existing(folder)).free if folder is not None else None
        raise_all(_what_does_not_fit(context, estimates, found, free, named))
        by = named or (Samples(context, Path(scratch)) if calibrate else None)
        stages = list(_stages(context, estimates, found, by, workers, seconds_reading))
    left = [stage for stage in stages if stage.state not in MADE]
    known = [stage.seconds for stage in left if stage.seconds is not None]
    seconds = sum(known) if len(known) == len(left) else None
    has_gpu = named is not None or _on_gpu()
    return Plan(
        machine=f"{workers} x {_machine(named)}" if workers > 1 else _machine(named),
        sources=tuple(_source(source.name, context) for source in recipe.pool),
        targets=tuple(_target(target, context) for target in context.targets),
        stages=tuple(stages),
        seconds_reading=seconds_reading,
        seconds=seconds,
        workers=workers,
        gpu_hours=None if seconds is None or not has_gpu else seconds * workers / 3600,
        disk_bytes=sum(stage.disk_bytes for stage in left),
        disk_free_bytes=free,
        trainable=selecting_shape(context).adapter,
        notes=tuple(_notes(context, stages, by)),
    )


def _stages(
    context: Context,
    estimates: Mapping[str, Estimate],
    found: Mapping[str, State],
    by: Gpu | Samples | None,
    workers: int,
    seconds_reading: float,
) -> Iterator[StagePlan]:
    with context.progress.counting("planning", len(estimates), "stages") as report:
        for done, (name, estimate) in enumerate(estimates.items(), start=1):
            state = found[name]
            if state.kind == "done":
                seconds = context.run.require(name)["seconds"]
            elif state.kind == "archived":
                seconds = 0.0
            elif by is None:
                seconds = None
            elif name == "pool":
                seconds = seconds_reading
            elif isinstance(by, Gpu):
                seconds = by.seconds(estimate, workers)
            else:
                seconds = by.seconds(name, estimate, workers)
            yield StagePlan(
                name,
                state.kind,
                state.why,
                estimate.flops,
                estimate.steps or None,
                seconds,
                estimate.disk_bytes,
                None if state.kind in MADE else estimate.memory_bytes,
            )
            report(done)


def _source(name: str, context: Context) -> SourcePlan:
    pool = context.pool
    of = np.array([one.partition("/")[0] == name for one in pool.source_names])[pool.source_codes]
    used = pool.usable[of[pool.usable]]
    return SourcePlan(
        name=name,
        rows=int(of.sum()),
        bad_rows=pool.sources[name].skipped,
        tokens=int(pool.lengths[used].sum()),
        truncated=int(pool.column("truncated")[used].sum()),
        skipped=int(of.sum()) - len(used),
    )


def _target(target: Any, context: Context) -> dict[str, Any]:
    test, usable = context.test_sets.get(target.name), len(context.target_rows(target))
    return {
        "name": target.name,
        "subtasks": len(target.subtasks),
        "examples": usable,
        "left_out": len(target.examples) - usable,
        "questions": len(test.questions) if test else 0,
    }


# --- refusals and notes -------------------------------------------------------------------------


def _what_does_not_fit(
    context: Context,
    estimates: Mapping[str, Estimate],
    found: Mapping[str, State],
    free: int | None,
    gpu: Gpu | None,
) -> Iterator[GradsieveError]:
    left = {name: one for name, one in estimates.items() if found[name].kind not in MADE}
    needed = sum(estimate.disk_bytes for estimate in left.values())
    needed += max((estimate.working_bytes for estimate in left.values()), default=0)
    kept = [context.run.stage(name) for name, state in found.items() if state.kind in CONTINUED]
    needed -= sum(map(folder_bytes, kept))
    if free is not None and needed > free:
        yield RunError(
            "The run does not fit on the disk.",
            f"{context.run.path}: {size(needed)} needed, {size(free)} free",
            "Free disk space, or lower features.bits, features.projection.dim or warmup.lora.r.",
        )
    memory, shape = _memory_there(gpu), selecting_shape(context)
    if shape.weight_bytes > memory:
        yield ModelError(
            "The model does not fit into memory.",
            f"{context.recipe.model.name}: weights {size(shape.weight_bytes)}, memory "
            f"{size(memory)}",
            "Take a smaller model (train.model may still be this one), or more memory.",
        )
    if context.recipe.features.mode != "store" and "features" in left:
        groups = Counter((row.example.source, row.example.subtask) for row in target_rows(context))
        # All directions, and at the start the gradients of one subtask's examples.
        wanted = 4 * (exact_columns(context) + max(groups.values())) * shape.adapter
        there = memory if gpu is not None else free_memory()
        if shape.weight_bytes + wanted > there:
            yield ModelError(
                "The targets' gradients don't fit into memory.",
                f"features.mode {context.recipe.features.mode}: {size(wanted)} needed next to "
                f"the model's {size(shape.weight_bytes)}, {size(there)} free",
                "Use features.mode: store, or fewer targets, or a smaller warmup.lora.r.",
            )


def _notes(
    context: Context, stages: Sequence[StagePlan], by: Gpu | Samples | None
) -> Iterator[str]:
    gpu = by if isinstance(by, Gpu) else None
    recipe, memory = context.recipe, _memory_there(gpu)
    steps = {stage.stage: stage.optimizer_steps for stage in stages}.get("warmup")
    if steps is not None and (warning := few_steps(steps)):
        yield warning
    if steps is not None and gpu is None and (warning := slow_dtype(recipe.model.dtype)):
        yield warning
    if gpu is not None:
        yield (
            f"{gpu.name}: {gpu.teraflops:g} TFLOP/s in bf16 ({gpu.source}), of which "
            f"{UTILIZATION:.0%} are reached by a model with a hidden size of {WIDE} or more, and "
            "less by a narrower one, in proportion: an assumption"
        )
    for stage in stages:
        if stage.memory_bytes is not None and stage.memory_bytes > 0.9 * memory:
            todo = f"set warmup.micro_batch_size (1 to {recipe.warmup.batch_size}, a divisor)"
            if stage.stage == "features":
                todo = "lower features.tokens_per_batch or model.max_length"
            elif stage.stage == "evaluate":
                todo = "lower evaluate.batch_size"
            yield (
                f"{stage.stage} may need {size(stage.memory_bytes)} of memory, there are "
                f"{size(memory)}: {todo}"
            )
    for kinds, reason in (
        (CONTINUED, "parts of their outputs are there"),
        (("wait",), "what they can keep is known once the stages before them are made"),
    ):
        if parts := [stage.stage for stage in stages if stage.state in kinds]:
            yield f"upper bounds, as {reason}: {', '.join(parts)}"
    if isinstance(by, Samples) and by.at_most:
        yield f"upper bounds, as larger samples would take too long: {', '.join(by.at_most)}"
    if recipe.select.near_duplicates:
        yield "the search for near duplicates is not part of select's time"
    if recipe.train or recipe.evaluate:
        yield "assumed: selected examples are as long as the pool's"
    if recipe.evaluate:
        most = max((one.answer for one in questions(context).values()), default=0)
        if most > (0 if gpu is not None else MOST_ANSWER_TOKENS):
            yield f"assumed: answers take as many tokens as they may, {most}"


def _memory_there(gpu: Gpu | None) -> float:
    if gpu is not None:
        return gpu.gib * 1e9  # data sheets count in powers of ten
    if _on_gpu():
        return float(torch.cuda.mem_get_info()[1])
    return float(psutil.virtual_memory().total)


def _on_gpu() -> bool:
    return device().type == "cuda"


def _machine(gpu: Gpu | None) -> str:
    if gpu is not None:
        return gpu.name
    if _on_gpu():
        return str(torch.cuda.get_device_name())
    return f"this CPU, threads: {torch.get_num_threads()}"
