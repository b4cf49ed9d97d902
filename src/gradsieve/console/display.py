"""What a terminal shows of a run: its stages, the running one with a bar, and the memory in use.

In: the stages' names, then what happens. Out: lines at the foot of the terminal, drawn anew a few
times a second; whatever is said meanwhile is printed above them. Only here rich is imported.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from gradsieve.console.count import Count, clock

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

REFRESHES_A_SECOND = 4


class Display:
    """The foot of the terminal; a context manager.

    Args:
        stages: Names in order; none for work outside a run.
    """

    def __init__(self, stages: Sequence[str]) -> None:
        from rich.console import Console
        from rich.live import Live

        # The stream itself: while lm-eval works, sys.stderr is another one.
        self._console: Console = Console(file=sys.stderr, highlight=False)
        self._stages = dict.fromkeys(stages, "")
        self._running: str | None = None
        self._since = 0.0
        self._counts: list[Count] = []
        self._live = Live(
            self,
            console=self._console,
            refresh_per_second=REFRESHES_A_SECOND,
            redirect_stdout=False,
        )

    def __enter__(self) -> Display:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def begin(self, stage: str) -> None:
        """A stage starts."""
        self._running, self._since = stage, time.monotonic()

    def end(self, stage: str, how: str) -> None:
        """A stage has ended."""
        self._stages[stage] = how
        self._running = None

    def print(self, text: str) -> None:
        """A line above."""
        self._console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def counting(self, count: Count) -> Iterator[None]:
        """Show a bar while the block lasts."""
        self._counts.append(count)
        try:
            yield
        finally:
            self._counts.remove(count)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it (rich calls this)."""
        from rich.text import Text

        for stage, how in self._stages.items():
            if stage == self._running:
                spent = clock(time.monotonic() - self._since)
                yield Text.assemble(("> ", "bold"), (f"{stage:10}", "bold"), f" {spent}")
                yield from map(_bar, self._counts)
            elif how:
                yield Text.assemble(("+ ", "green"), f"{stage:10} {how}")
            else:
                yield Text(f"  {stage}", style="dim")
        if not self._stages:
            yield from map(_bar, self._counts)
        waits = self._stages and not self._running and not any(self._stages.values())
        yield Text(f"  memory {_memory()}{'; checking the inputs' * bool(waits)}", style="dim")


def _bar(count: Count) -> Any:
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    line = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=count.total, completed=count.done, width=24)
    line.add_row(f"    {count.what}", bar, str(count))
    return line


def _memory() -> str:
    """What this process holds, and of a GPU where it uses one."""
    import psutil

    told = f"{psutil.Process().memory_info().rss / 2**30:.1f} GiB"
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "cuda") and torch.cuda.is_initialized():
        free, total = torch.cuda.mem_get_info()
        told += f", GPU {(total - free) / 2**30:.1f} of {total / 2**30:.1f} GiB"
    return told
