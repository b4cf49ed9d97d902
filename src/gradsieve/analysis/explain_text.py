"""An explanation on a terminal: tables in color, or plain lines where it is no terminal.

What a terminal would obey in text of the data is replaced (`gradsieve.console`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gradsieve.analysis.provenance import Explanation, Pull
from gradsieve.console import clean

CUT = 160
"""Characters of an example's or neighbor's text; the row's own is cut later."""

OWN_CUT = 2000


class _Part(NamedTuple):
    """A table; numbers are on the right."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def plain(told: Explanation) -> str:
    """As lines of text, columns padded."""
    lines = [_headline(told)]
    for part in _parts(told):
        lines += ["", part.title]
        widths = [max(map(len, column)) for column in zip(part.head, *part.rows, strict=True)]
        for row in (part.head, *part.rows):
            cells = (_aligned(cell, width) for cell, width in zip(row, widths, strict=True))
            lines.append(("  " + "  ".join(cells)).rstrip())
    lines += ["", *(f"note: {clean(note)}" for note in told.notes)] if told.notes else []
    return "\n".join([*lines, "", *_own_text(told)])


def print_rich(told: Explanation) -> None:
    """As tables on standard output."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    console = Console()
    console.print(Text(_headline(told), style="bold"))
    for part in _parts(told):
        table = Table(title=part.title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
        for name, *cells in zip(part.head, *part.rows, strict=True):
            is_number = all(map(_is_number, cells))
            table.add_column(name, justify="right" if is_number else "left", no_wrap=is_number)
        for row in part.rows:
            table.add_row(*map(Text, row))
        console.print(table)
    for note in told.notes:
        console.print(Text(f"note: {clean(note)}", style="dim"))
    console.print(Panel(Text("\n".join(_own_text(told))), title="the row", title_align="left"))


def cut(text: str | None, most: int = CUT) -> str:
    """The start of a text, on one line."""
    if text is None:
        return "-"
    line = clean(text[: 2 * most])
    return line if len(line) <= most and len(text) <= 2 * most else line[: most - 3] + "..."


def _headline(told: Explanation) -> str:
    name = f"{clean(told.source)} {clean(told.id)}, {told.tokens} tokens"
    asked = f"target {told.target}, method {told.method}"
    if told.selected is not None:
        return f"{name}: selected for {asked}, as number {told.selected}"
    return f"{name}: not selected for {asked}: {clean(told.reason or '')}"


def _parts(told: Explanation) -> list[_Part]:
    parts = [
        _Part(
            "Scores",
            ("target", "score", "rank", "of"),
            [
                (name, _number(its.score), str(its.rank), str(its.of))
                for name, its in told.targets.items()
            ],
        ),
        _subtasks(told),
        _pulls(f"Examples of {told.target} that pull it in", told.pulls),
        _pulls(f"Examples of {told.target} that push it away", told.pushes),
        _Part(
            "Nearest rows of the pool (cosine of updates at the last checkpoint)",
            ("source", "id", "cosine", "score", "rank", "text"),
            [
                (*map(clean, (n.source, n.id)), _number(n.cosine), _number(n.score), str(n.rank),
                 cut(n.text))
                for n in told.neighbors
            ],
        ),
    ]  # fmt: skip
    return [part for part in parts if part.rows]


def _subtasks(told: Explanation) -> _Part:
    """Subtasks in order of score; a column for what each checkpoint adds."""
    its = told.score
    scores = sorted(its.subtasks.items(), key=lambda one: -one[1]) if its else []
    count = max((len(parts) for parts in told.checkpoints.values()), default=0)
    head = ("subtask", "score", *(f"checkpoint {number + 1}" for number in range(count)))
    rows = [
        (clean(name), _number(score), *map(_number, told.checkpoints.get(name, ())))
        for name, score in scores
    ]
    return _Part(f"Subtasks of {told.target}, and what each checkpoint adds", head, rows)


def _pulls(title: str, pulls: Sequence[Pull]) -> _Part:
    rows = [(clean(p.id), clean(p.subtask), _number(p.part), cut(p.text)) for p in pulls]
    return _Part(title, ("example", "subtask", "part", "text"), rows)


def _own_text(told: Explanation) -> list[str]:
    if told.messages is None:
        return ["(its text cannot be read)"]
    lines = []
    for turn in told.messages:
        text = "\n".join(clean(line) for line in turn["content"][:OWN_CUT].split("\n"))
        more = len(turn["content"]) - OWN_CUT
        lines.append(f"{turn['role']}: {text}" + (f" ... ({more} more)" if more > 0 else ""))
    return lines


def _number(value: float) -> str:
    return f"{value:+.4f}"


def _is_number(cell: str) -> bool:
    return cell.removeprefix("+").removeprefix("-").replace(".", "", 1).isdigit()


def _aligned(cell: str, width: int) -> str:
    return cell.rjust(width) if _is_number(cell) else cell.ljust(width)
