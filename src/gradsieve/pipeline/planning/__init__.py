"""What a run would take, before it is started: counts, operations, time, memory, disk.

In: a run's context, checked, and what is done already. Out: a `Plan`. `work` counts, `shape` and
`costs` turn counts into operations and bytes, `calibration` into seconds on the machine at hand,
`gpus` on one that isn't; `table` shows it, and `timing` has what is common to them.
"""

from __future__ import annotations

import resource
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradsieve.errors import ErrorGroup, GradsieveError, ModelError, RunError
from gradsieve.pipeline.planning.calibration import Calibration
from gradsieve.pipeline.planning.costs import Costs
from gradsieve.pipeline.planning.gpus import Gpu, find_gpu
from gradsieve.pipeline.planning.work import Work
from gradsieve.runs.context import Context
from gradsieve.runs.folder import State

__all__ = ["Plan", "find_gpu", "make_plan"]


@dataclass(frozen=True)
class StagePlan:
    """One stage.

    Attributes:
        stage: Its name.
        state: As `State.kind`.
        why: As `State.why`.
        flops: Operations in all.
        seconds: What it will take (or took, if it is done); None if that isn't known.
        disk_bytes: What it leaves on disk.
        memory_bytes: GPU memory at its peak, an estimate; None on a CPU.
    """

    stage: str
    state: str
    why: str
    flops: float
    seconds: float | None
    disk_bytes: int
    memory_bytes: int | None


@dataclass(frozen=True)
class SourcePlan:
    """One source of the pool.

    Attributes:
        name: As the recipe has it.
        rows: Rows that could be read.
        bad_rows: Rows that could not, and are left out.
        tokens: Of the rows that are used.
        truncated: Rows that are used, cut to the longest length.
        set_aside: Rows without anything to learn from.
    """

    name: str
    rows: int
    bad_rows: int
    tokens: int
    truncated: int
    set_aside: int


@dataclass(frozen=True)
class Plan:
    """What a run would take.

    Attributes:
        machine: Where the seconds are of.
        sources: The pool's.
        targets: Name, subtasks, examples, and questions to evaluate on.
        stages: Those that the recipe needs, in order.
        seconds_reading: What reading and tokenizing has taken here, just now.
        seconds: Of all that is to be done; None if a stage's isn't known.
        disk_bytes: Of all that is to be done.
        disk_free_bytes: Where the run's folder is or would be; None without one.
        memory_bytes: This process's peak while parts were timed; None if none were.
        trainable: Values of the adapter.
        notes: Assumptions, and what may go wrong.
    """

    machine: str
    sources: tuple[SourcePlan, ...]
    targets: tuple[dict[str, Any], ...]
    stages: tuple[StagePlan, ...]
    seconds_reading: float
    seconds: float | None
    disk_bytes: int
    disk_free_bytes: int | None
    memory_bytes: int | None
    trainable: int
    notes: tuple[str, ...]

    def table(self) -> str:
        """For people."""
        from gradsieve.pipeline.planning.table import table

        return table(self)


def make_plan(
    context: Context,
    states: Mapping[str, State],
    *,
    out: Path | None,
    gpu: Gpu | None = None,
    calibrate: bool = True,
) -> Plan:
    """Count, and predict.

    Args:
        context: Checked; what is not tokenized yet will be.
        states: What is done already, of the stages that are wanted.
        out: The run's folder, for the disk's free space.
        gpu: Predict for this one; None: for the machine at hand.
        calibrate: Time parts of the work here, unless a GPU is named.

    Raises:
        GradsieveError: If the run would not fit on the disk, or the model into memory.
    """
    start = time.perf_counter()
    work = Work(context, list(states))
    work.lengths  # noqa: B018 - tokenized here, so that it is timed
    reading = time.perf_counter() - start
    costs = Costs(work)
    open_stages = [name for name, state in states.items() if state.kind != "done"]
    free = shutil.disk_usage(_existing(out)).free if out is not None else None
    _refuse_what_does_not_fit(costs, open_stages, out, free, gpu)
    calibration = Calibration(work, costs.width) if calibrate and gpu is None else None
    stages: list[StagePlan] = []
    with context.progress.counting("planning", len(states), "stages") as report:
        for name, state in states.items():
            if state.kind == "done":
                stages.append(_done(name, costs, context))
            else:
                before = reading if name == open_stages[0] else 0.0
                stages.append(_stage(name, state, costs, calibration, gpu, before))
            report(len(stages))
    left = [stage.seconds for stage in stages if stage.state != "done"]
    known = [seconds for seconds in left if seconds is not None]
    return Plan(
        machine=_machine(gpu),
        sources=tuple(_source(source.name, source.skipped, context)
                      for source in context.pool.sources.values()),
        targets=tuple(_target(target, context) for target in context.targets),
        stages=tuple(stages),
        seconds_reading=reading,
        seconds=sum(known) if len(known) == len(left) else None,
        disk_bytes=sum(costs.disk_bytes(name) for name in open_stages),
        disk_free_bytes=free,
        memory_bytes=_peak_memory() if calibration is not None else None,
        trainable=costs.shape.adapter,
        notes=tuple(_notes(costs, stages, gpu)),
    )  # fmt: skip


def _stage(
    name: str,
    state: State,
    costs: Costs,
    calibration: Calibration | None,
    gpu: Gpu | None,
    reading: float,
) -> StagePlan:
    seconds = None
    if gpu is not None:
        seconds = costs.gpu_seconds(name, gpu) + reading
    elif calibration is not None:
        timed = calibration.seconds(name)
        seconds = None if timed is None else timed + reading
    memory = costs.memory_bytes(name) if gpu is not None or _on_gpu() else None
    return StagePlan(
        name, state.kind, state.why, costs.flops(name), seconds, costs.disk_bytes(name), memory
    )


def _done(name: str, costs: Costs, context: Context) -> StagePlan:
    took = context.run.require(name)["seconds"]
    return StagePlan(name, "done", "", costs.flops(name), took, costs.disk_bytes(name), None)


def _source(name: str, bad_rows: int, context: Context) -> SourcePlan:
    rows = [row for row in context.rows if row.example.source == name]
    used = [row.encoded for row in rows if not row.skip_reason]
    return SourcePlan(
        name=name,
        rows=len(rows),
        bad_rows=bad_rows,
        tokens=sum(len(encoded.input_ids) for encoded in used),
        truncated=sum(encoded.truncated for encoded in used),
        set_aside=len(rows) - len(used),
    )


def _target(target: Any, context: Context) -> dict[str, Any]:
    test = context.test_sets.get(target.name)
    return {
        "name": target.name,
        "subtasks": len(target.subtasks),
        "examples": len(context.target_rows(target)),
        "left_out": len(target.examples) - len(context.target_rows(target)),
        "questions": len(test.questions) if test else 0,
    }


def _refuse_what_does_not_fit(
    costs: Costs, stages: list[str], out: Path | None, free: int | None, gpu: Gpu | None
) -> None:
    from gradsieve.models.device import free_memory

    problems: list[GradsieveError] = []
    needed = sum(costs.disk_bytes(name) for name in stages)
    needed += max((costs.working_bytes(name) for name in stages), default=0)
    if free is not None and needed > free:
        problems.append(
            RunError(
                "The run does not fit on the disk.",
                f"{out}: {needed / 2**30:.1f} GiB wanted, {free / 2**30:.1f} GiB free",
                "Make room, or lower features.bits, features.projection.dim or warmup.lora.r.",
            )
        )
    memory = _memory_there(gpu)
    if costs.shape.weight_bytes > memory:
        problems.append(
            ModelError(
                "The model does not fit into memory.",
                f"{costs.work.context.recipe.model.name}: weights "
                f"{costs.shape.weight_bytes / 2**30:.1f} GiB, memory {memory / 2**30:.1f} GiB",
                "Take a smaller model (train.model may still be this one), or more memory.",
            )
        )
    if costs.work.context.recipe.features.mode == "exact" and "features" in stages:
        problems += _too_large_directions(costs, memory if gpu is not None else free_memory())
    if problems:
        raise problems[0] if len(problems) == 1 else ErrorGroup(problems)


def _too_large_directions(costs: Costs, free: float) -> Iterator[ModelError]:
    """Exact mode holds each subtask's direction, and at first one subtask's examples' gradients."""
    context = costs.work.context
    groups = Counter(
        (target.name, row.example.subtask)
        for target in context.targets
        for row in context.target_rows(target)
    )
    wanted = 4 * (len(groups) + max(groups.values())) * costs.shape.adapter
    if costs.shape.weight_bytes + wanted > free:
        yield ModelError(
            "The targets' gradients don't fit into memory.",
            f"features.mode exact: {wanted / 2**30:.1f} GiB wanted beside the model's "
            f"{costs.shape.weight_bytes / 2**30:.1f} GiB, {free / 2**30:.1f} GiB free",
            "Use features.mode: store, or fewer targets, or a smaller warmup.lora.r.",
        )


def _notes(costs: Costs, stages: Sequence[StagePlan], gpu: Gpu | None) -> list[str]:
    from gradsieve.pipeline.planning.gpus import UTILISATION

    notes = []
    recipe = costs.work.context.recipe
    if gpu is not None:
        notes.append(
            f"{gpu.name}: {gpu.teraflops:g} TFLOP/s in bf16 ({gpu.source}), of which "
            f"{UTILISATION:.0%} are reached: an assumption"
        )
    memory = _memory_there(gpu)
    for stage in stages:
        if stage.memory_bytes is not None and stage.memory_bytes > 0.9 * memory:
            todo = {"features": "lower features.tokens_per_batch or model.max_length"}.get(
                stage.stage,
                f"set warmup.micro_batch_size (1 to {recipe.warmup.batch_size}, a divisor)",
            )
            notes.append(
                f"{stage.stage} may need {stage.memory_bytes / 2**30:.0f} GiB of memory, there "
                f"are {memory / 2**30:.0f}: {todo}"
            )
    if recipe.select.near_duplicates and "select" in {s.stage for s in stages}:
        notes.append("looking for near duplicates is not counted in select's time")
    if recipe.train or recipe.evaluate:
        notes.append("assumed: selections are as long as the pool's rows")
    if recipe.evaluate and gpu is None:
        notes.append("assumed: answers are as long as before training")
    return notes


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return folder if folder.exists() else _existing(folder.parent)


def _memory_there(gpu: Gpu | None) -> float:
    import psutil
    import torch

    if gpu is not None:
        return gpu.gib * 1e9  # data sheets count in powers of ten
    if _on_gpu():
        return float(torch.cuda.mem_get_info()[1])
    return float(psutil.virtual_memory().total)


def _peak_memory() -> int:
    import torch

    if _on_gpu():
        return int(torch.cuda.max_memory_reserved())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _on_gpu() -> bool:
    from gradsieve.models.device import device

    return device().type == "cuda"


def _machine(gpu: Gpu | None) -> str:
    import torch

    if gpu is not None:
        return gpu.name
    if _on_gpu():
        return str(torch.cuda.get_device_name())
    return f"this CPU, {torch.get_num_threads()} threads"
