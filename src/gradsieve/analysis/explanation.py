"""An explanation of one example of the pool as plain data, with JSON, text and table output.

Control characters in the data are replaced before they reach a terminal (`gradsieve.console`).
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradsieve.console import clean, clean_lines
from gradsieve.data.content import text_of
from gradsieve.data.examples import Message
from gradsieve.runs.notebook import html_lines, html_table

CUT = 160
"""Number of characters shown of a target example's or neighbor's text."""

OWN_CUT = 2000
"""Number of characters shown of each turn of the explained example."""

WIDEST = 10_000
"""Columns of an explanation as a string: more than any table has, so that no line is wrapped."""


@dataclass(frozen=True)
class Contribution:
    """What one of the target's examples contributes to the score for its subtask.

    Attributes:
        value: Its contribution; those of a subtask's examples add up to the score for it.
        text: The target example's turns, one per line; None if it can't be read.
        where: Its file and line; empty if unknown.
    """

    id: str
    subtask: str
    value: float
    text: str | None
    where: str = ""


@dataclass(frozen=True)
class Neighbor:
    """An example of the pool with a similar update: its cosine at the last checkpoint."""

    source: str
    id: str
    cosine: float
    score: float
    rank: int
    text: str


@dataclass(frozen=True)
class TargetScore:
    """The example's score for one target.

    Attributes:
        score: The total over subtasks, according to `score.across_subtasks`.
        rank: Rank by score, from 1 to `of`; ties are in order of (source, id).
        subtasks: The score for each subtask; empty for methods without subtasks.
        standardized: The standardized score for each subtask; empty if scores aren't standardized.
        best_examples: Id of the target example that gave each subtask's score; empty unless
            `score.target_mean` is `none`.
    """

    score: float
    rank: int
    of: int
    subtasks: dict[str, float]
    standardized: dict[str, float] = field(default_factory=dict)
    best_examples: dict[str, str] = field(default_factory=dict)

    @property
    def compared(self) -> dict[str, float]:
        """The scores by which subtasks are compared."""
        return self.standardized or self.subtasks


Rows = list[Sequence[str]]
"""A table's rows; the first one is its head."""


@dataclass(frozen=True)
class Explanation:
    """Why an example of the pool was selected, or was not.

    Attributes:
        selected: Its rank in the selection, from 1; None if it was not selected.
        reason: Why it was not selected; None if it was.
        tokens: Its length in tokens.
        targets: Its scores, by target; empty if it could not be scored.
        selected_by_subtask: Number of selected rows for each subtask of the target.
        checkpoints: What each checkpoint adds to the score, by subtask of the target; empty for
            methods without checkpoints.
        positive: The target examples with the largest positive contributions, grouped by subtask,
            the subtask with the highest score first.
        negative: The same for negative contributions.
        neighbors: The examples with the most similar updates, most similar first.
        notes: What is out of date or unknown, and why.
    """

    source: str
    id: str
    target: str
    method: str
    selected: int | None
    reason: str | None
    tokens: int
    targets: dict[str, TargetScore] = field(default_factory=dict)
    selected_by_subtask: dict[str, int] = field(default_factory=dict)
    checkpoints: dict[str, list[float]] = field(default_factory=dict)
    positive: list[Contribution] = field(default_factory=list)
    negative: list[Contribution] = field(default_factory=list)
    neighbors: list[Neighbor] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def score(self) -> TargetScore | None:
        """The score for `target`; None if the example could not be scored."""
        return self.targets.get(self.target)

    def json(self) -> str:
        """The explanation as ASCII JSON, since data may contain text that UTF-8 can't encode."""
        return json.dumps(asdict(self), indent=1)

    def __str__(self) -> str:
        """The explanation as text with aligned columns."""
        console = Console(file=io.StringIO(), width=WIDEST, color_system=None, force_jupyter=False)
        with console.capture() as captured:
            self.print(console)
        return "\n".join(line.rstrip() for line in captured.get().split("\n")).rstrip()

    def print(self, console: Console | None = None) -> None:
        """Print colored tables, by default to standard output."""
        console = console or Console()
        console.print(Text(self._headline(), style="bold"))
        for title, rows in self._tables().items():
            table = Table(box=None)
            for name, *cells in zip(*rows, strict=True):
                is_number = all(map(_is_number, cells))
                table.add_column(name, justify="right" if is_number else "left", no_wrap=is_number)
            for row in rows[1:]:
                table.add_row(*map(Text, row))
            console.print(Text(f"\n{title}", style="bold"), table, sep="\n")
        for note in self.notes:
            console.print(Text(f"\nnote: {clean(note)}", style="dim"))
        console.print(Text("\n".join(["", *self._turns()])))

    def _repr_html_(self) -> str:
        """HTML tables for notebooks."""
        turns = [["role", "text"], *([t["role"], text_of(t["content"])] for t in self.messages)]
        tables = [html_table(title, rows) for title, rows in self._tables().items()]
        return "".join([html_table(self._headline(), turns), *tables, html_lines(self.notes)])

    def _headline(self) -> str:
        name = f"{clean(self.source)} {clean(self.id)}, {self.tokens} tokens"
        selection = f"target {self.target}, method {self.method}"
        if self.selected is not None:
            return f"{name}: selected for {selection}, rank {self.selected}"
        return f"{name}: not selected for {selection}: {clean(self.reason or '')}"

    def _tables(self) -> dict[str, Rows]:
        """The tables that have rows, by title."""
        also, of = ", and what each checkpoint adds" if self.checkpoints else "", self.target
        scores = [
            (name, _number(its.score), str(its.rank), str(its.of))
            for name, its in self.targets.items()
        ]
        neighbors = [
            (clean(n.source), clean(n.id), _number(n.cosine), _number(n.score), str(n.rank),
             cut(n.text))
            for n in self.neighbors
        ]  # fmt: skip
        tables: dict[str, Rows] = {
            "Scores": [("target", "score", "rank", "of"), *scores],
            f"Scores by subtask of {of}{also}": self._subtasks(),
            f"Positive contributions of examples of {of}": _contributions(self.positive),
            f"Negative contributions of examples of {of}": _contributions(self.negative),
            "Most similar examples of the pool (cosine of updates at the last checkpoint)": [
                ("source", "id", "cosine", "score", "rank", "text"), *neighbors
            ],
        }  # fmt: skip
        return {title: rows for title, rows in tables.items() if len(rows) > 1}

    def _subtasks(self) -> Rows:
        """A table of subtasks by score, with a column for each checkpoint if there are any."""
        score, taken = self.score or TargetScore(0, 0, 0, {}), self.selected_by_subtask
        names = sorted(score.compared, key=lambda name: -score.compared[name])
        columns = {"subtask": [clean(name) for name in names]}
        if score.standardized:
            columns["standardized"] = [_number(score.standardized[name]) for name in names]
        columns["score"] = [_number(score.subtasks[name]) for name in names]
        if score.best_examples:
            columns["best example"] = [clean(score.best_examples[name]) for name in names]
        if taken:
            columns["selected rows"] = [str(taken.get(name, 0)) for name in names]
        adds = [self.checkpoints[name] for name in names] if self.checkpoints else []
        for number, added in enumerate(zip(*adds, strict=True), start=1):
            columns[f"checkpoint {number}"] = [_number(value) for value in added]
        return [list(columns), *zip(*columns.values(), strict=True)]

    def _turns(self) -> Iterator[str]:
        for turn in self.messages:
            text = text_of(turn["content"])
            more = f" ... ({len(text) - OWN_CUT} more)" if len(text) > OWN_CUT else ""
            yield f"{clean(turn['role'])}: {clean_lines(text[:OWN_CUT])}{more}"


def cut(text: str | None) -> str:
    """The start of a text, on one line."""
    if text is None:
        return "-"
    line = clean(text[: 2 * CUT])
    return line if len(line) <= CUT and len(text) <= 2 * CUT else line[: CUT - 3] + "..."


def _contributions(found: Sequence[Contribution]) -> Rows:
    """A table of target examples, named by file and line if known, otherwise by id."""
    rows = (
        (clean(one.subtask), _number(one.value), clean(one.where or one.id), cut(one.text))
        for one in found
    )
    return [("subtask", "contribution", "example", "text"), *rows]


def _number(value: float) -> str:
    return f"{value:+.4f}"


def _is_number(cell: str) -> bool:
    return cell.removeprefix("+").removeprefix("-").replace(".", "", 1).isdigit()
