"""A plan as text: tables of the pool, the targets and the stages, made by rich."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from gradsieve.console import clock

if TYPE_CHECKING:
    from gradsieve.pipeline.plan import Plan, StagePlan

STATES = {"new": "to run", "resume": "resumes", "extend": "to extend", "redo": "to run again",
          "archived": "in archive/"}  # fmt: skip


def plan_text(plan: Plan) -> str:
    """The tables of a plan."""
    keys = ("name", "subtasks", "examples", "left_out", "questions")
    targets = [[target[key] for key in keys] for target in plan.targets]
    head = ["stage", "state", "FLOPs", "steps", "time", "disk", "memory"]
    stages = [
        [
            stage.stage,
            f"depends: {stage.why}"
            if stage.state == "wait"
            else STATES.get(stage.state, stage.state),
            f"{stage.flops:.2g}",
            "" if stage.optimizer_steps is None else stage.optimizer_steps,
            _time(stage),
            size(stage.disk_bytes),
            "" if stage.memory_bytes is None else size(stage.memory_bytes),
        ]
        for stage in plan.stages
    ]
    parts = [
        _aligned(["pool", "rows", "bad", "tokens", "truncated", "skipped"], _pool(plan)),
        _aligned(["target", "subtasks", "examples", "left out", "questions"], targets),
        _aligned(head, stages, left=2),
        "\n".join(  # below the table: a change of settings can take a long line
            f"{one.stage}: {one.why}" for one in plan.stages if one.why and one.state != "wait"
        ),
        "\n".join(_sums(plan)),
        "\n".join(f"note: {note}" for note in plan.notes),
    ]
    return "\n\n".join(filter(None, parts))


def _pool(plan: Plan) -> Iterator[list[Any]]:
    lines = [astuple(source) for source in plan.sources]
    if len(lines) > 1:
        _, *columns = zip(*lines, strict=True)
        lines.append(("all", *map(sum, columns)))
    for name, count, bad, tokens, *parts in lines:
        shares = (f"{part / count if count else 0:.1%}" for part in parts)
        yield [name, count, bad, tokens, *shares]


def _time(stage: StagePlan) -> str:
    if stage.seconds is None:
        return "?"
    return f"took {clock(stage.seconds)}" if stage.state == "done" else clock(stage.seconds)


def _sums(plan: Plan) -> Iterator[str]:
    seconds = "?" if plan.seconds is None else clock(plan.seconds)
    free = "" if plan.disk_free_bytes is None else f" ({size(plan.disk_free_bytes)} free)"
    held = "" if plan.gpu_hours is None else f" ({plan.gpu_hours:,.1f} GPU-hours)"
    yield f"to run: {seconds} on {plan.machine}{held}, {size(plan.disk_bytes)} on disk{free}"
    if plan.trainable:
        yield f"trainable parameters: {plan.trainable:,}"


def _aligned(head: Sequence[str], rows: Any, left: int = 1) -> str:
    """A table: the first `left` columns are aligned to the left, the others to the right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for place, name in enumerate(head):
        table.add_column(name, justify="left" if place < left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else cell for cell in row))
    file = io.StringIO()
    Console(file=file, width=1000, markup=False, highlight=False, emoji=False).print(table)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def size(value: float) -> str:
    """A number of bytes in readable units."""
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
