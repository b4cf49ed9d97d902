"""A plan as text.

In: a `Plan`. Out: lines for people, of plain characters, so that they can be mailed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gradsieve.console import clock

if TYPE_CHECKING:
    from gradsieve.pipeline.planning import Plan, StagePlan


def table(plan: Plan) -> str:
    """The pool by source, the targets, the stages, and sums."""
    parts = [_pool(plan), _targets(plan), _stages(plan), _sums(plan)]
    if plan.notes:
        parts.append("\n".join(f"note: {note}" for note in plan.notes))
    return "\n\n".join(parts)


def _pool(plan: Plan) -> str:
    rows = [
        (s.name, s.rows, s.bad_rows, s.tokens, _share(s.truncated, s.rows),
         _share(s.set_aside, s.rows))
        for s in plan.sources
    ]  # fmt: skip
    if len(rows) > 1:
        every = sum(s.rows for s in plan.sources)
        rows.append(
            ("all", every, sum(s.bad_rows for s in plan.sources),
             sum(s.tokens for s in plan.sources),
             _share(sum(s.truncated for s in plan.sources), every),
             _share(sum(s.set_aside for s in plan.sources), every))
        )  # fmt: skip
    head = ("pool", "rows", "bad", "tokens", "truncated", "set aside")
    return _aligned([head, *([_number(cell) for cell in row] for row in rows)])


def _targets(plan: Plan) -> str:
    keys = ("name", "subtasks", "examples", "left_out", "questions")
    rows = [[_number(target[key]) for key in keys] for target in plan.targets]
    return _aligned([("target", "subtasks", "examples", "left out", "questions"), *rows])


def _stages(plan: Plan) -> str:
    rows = [
        (s.stage, _state(s), f"{s.flops:.2g}", _time(s), size(s.disk_bytes),
         size(s.memory_bytes) if s.memory_bytes is not None else "")
        for s in plan.stages
    ]  # fmt: skip
    head = ("stage", "state", "FLOPs", "time", "disk", "GPU memory")
    keep = 6 if any(s.memory_bytes is not None for s in plan.stages) else 5
    return _aligned([row[:keep] for row in (head, *rows)])


def _state(stage: StagePlan) -> str:
    told = {"new": "to run", "resume": "resumes", "extend": "to extend",
            "redo": "to run again", "wait": "depends"}  # fmt: skip
    kind = told.get(stage.state, stage.state)
    return f"{kind}: {stage.why}" if stage.why else kind


def _time(stage: StagePlan) -> str:
    if stage.seconds is None:
        return "?"
    return f"took {clock(stage.seconds)}" if stage.state == "done" else clock(stage.seconds)


def _sums(plan: Plan) -> str:
    whole = "?" if plan.seconds is None else clock(plan.seconds)
    free = "" if plan.disk_free_bytes is None else f" ({size(plan.disk_free_bytes)} free)"
    lines = [
        f"to be done: {whole} on {plan.machine}, {size(plan.disk_bytes)} on disk{free}",
        f"trainable values: {plan.trainable:,}",
    ]
    if plan.memory_bytes is not None:
        lines.append(f"memory at its peak while parts were timed: {size(plan.memory_bytes)}")
    return "\n".join(lines)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns: the first to the left, as are those of words; numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    left = [column == 0 or not rows[-1][column][:1].isdigit() for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if to_left else cell.rjust(width)
            for cell, width, to_left in zip(row, widths, left, strict=True)
        ).rstrip()
        for row in rows
    )


def _number(cell: object) -> str:
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "0.0%"


def size(count: int) -> str:
    """Bytes as people say them."""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
