"""Progress bars on a terminal, and their numbers, which plain lines show too.

In: rich's tasks, which record progress over time. Out: text such as `120/240 rows, 12 rows/s, 10 s
left`. Units done before counting began (by a run that was stopped) don't count for the rate.
"""

from __future__ import annotations

import sys

import psutil
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from gradsieve.console.lines import clean

SECONDS_OF_RATE = 600.0
"""Rates are measured over this time; steps of large models take minutes."""

LABEL = 26
"""Maximum characters of a bar's label; longer ones leave no room for numbers at 80 columns."""

STAGES = "stages"
"""The unit of the row that shows the stages of a run."""


def make_bars(console: Console, disable: bool) -> Progress:
    """Rows of label, bar and numbers, which disappear when the work is done."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        _Status(Column(no_wrap=True)),
        console=console,
        disable=disable,
        expand=True,
        redirect_stdout=False,
        refresh_per_second=4,
        speed_estimate_period=SECONDS_OF_RATE,
        transient=True,
    )


class _Status(ProgressColumn):
    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        """The numbers of a row."""
        if task.fields["unit"] != STAGES:
            return Text(status(task))
        return Text(f"{amount(task)}, {clock(task.elapsed or 0.0)}, {memory()}")


def amount(task: Task) -> str:
    """Units done, and the total if known, e.g. `1,204/5,329 rows`."""
    of = f"/{task.total:,.0f}" if task.total else ""
    return f"{_number(task.completed)}{of} {task.fields['unit']}"


def status(task: Task) -> str:
    """Units done, and the rate and time left if known."""
    parts = [amount(task)]
    if task.speed:
        parts.append(rate(task.speed, task.fields["unit"]))
        if also := task.fields.get("also"):
            parts.append(also)
        if task.remaining:
            parts.append(f"{clock(task.remaining / task.speed)} left")
    return ", ".join(parts)


def rate(per_second: float, unit: str) -> str:
    """A rate per second, minute or hour, the first that is at least 1: `1.7 epochs/min`."""
    for seconds, name in ((1, "s"), (60, "min")):
        if per_second * seconds >= 1:
            return f"{_number(per_second * seconds)} {unit}/{name}"
    return f"{_number(per_second * 3600)} {unit}/h"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def clock(seconds: float) -> str:
    """Seconds in readable units: 42 s, 3 min 20 s, 2 h 5 min."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def memory() -> str:
    """Memory of this process, and of a GPU if it uses one."""
    text = f"{psutil.Process().memory_info().rss / 2**30:.1f} GiB"
    torch = sys.modules.get("torch")  # if nothing has imported it, no GPU is in use
    if torch is not None and torch.cuda.is_initialized():
        free, total = torch.cuda.mem_get_info()
        text += f", GPU {(total - free) / 2**30:.1f}/{total / 2**30:.0f} GiB"
    return text


def shortened(label: str) -> str:
    """A label cut to leave room for bar and numbers; its end, where seeds differ, is kept."""
    label = clean(label)
    return label if len(label) <= LABEL else f"{label[: LABEL // 2 - 1]}…{label[-LABEL // 2 :]}"
