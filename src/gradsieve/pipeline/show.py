"""Rows of a pool as the model reads them, with the text of their supervised tokens marked.

In: a recipe, and which rows to show. Out: each row's text in pieces, supervised or not, like
axolotl's preview of preprocessing. Sources are streamed; no model is loaded and nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from rich.text import Text

from gradsieve.console import Progress, clean_lines
from gradsieve.data.examples import Example
from gradsieve.data.sources import Rejected, examples_of
from gradsieve.data.template import ChatTemplate, Refusal
from gradsieve.data.values import LeftOut
from gradsieve.errors import UsageError
from gradsieve.recipe.schema import Recipe
from gradsieve.runs.context import Context
from gradsieve.runs.folder import RunFolder

OPEN, CLOSE = "[[", "]]"
"""Markers around supervised text if there are no colors."""


@dataclass(frozen=True)
class ShownRow:
    """A row to show.

    Attributes:
        name: Source and id; empty if the row can't be read.
        labels: Number of supervised tokens.
        pieces: Pieces of the text, each with a flag: whether it is supervised.
    """

    where: str
    name: str = ""
    tokens: int = 0
    labels: int = 0
    truncated: bool = False
    pieces: tuple[tuple[str, bool], ...] = ()
    skip_reason: str | None = None

    @property
    def heading(self) -> str:
        """A one-line summary of the row."""
        counts = f"{self.tokens} tokens, {self.labels} supervised" if self.tokens else ""
        parts = (self.name, counts, "truncated" if self.truncated else "", self.skip_reason)
        return f"{self.where}: {', '.join(part for part in parts if part)}"

    def __str__(self) -> str:
        text = "".join(f"{OPEN}{piece}{CLOSE}" if flag else piece for piece, flag in self.pieces)
        return f"{self.heading}\n{text}".rstrip() + "\n"

    def colored(self) -> Text:
        """The same, with supervised text in green."""
        text = Text(f"{clean_lines(self.heading)}\n", style="bold")
        for piece, flag in self.pieces:
            text.append(clean_lines(piece), "not bold green" if flag else "not bold dim")
        return text.append("\n")


def show(
    recipe: Recipe, *, id: str | None = None, first: int = 1, source: str | None = None
) -> Iterator[ShownRow]:
    """Yield rows of the pool.

    Args:
        recipe: Defines sources, model and chat template.
        id: Show the row with this id, or the row of each source that has it.
        first: Without `id`: how many rows to show from the start of each source.
        source: Show only rows of this source.

    Raises:
        UsageError: If there is no such row or source.
        GradsieveError: If a source or the tokenizer can't be read.
    """
    context = Context(recipe, RunFolder("unused"), Progress(quiet=True))
    specs = [spec for spec in context.source_specs if source in (None, spec.name)]
    if not specs:
        known = ", ".join(spec.name for spec in context.source_specs)
        raise UsageError(f"There is no source {source}.", "--source", f"One of {known}.")
    found = False
    bad: list[Rejected] = []
    for spec in specs:
        rows = examples_of(spec, LeftOut())
        for row in islice(rows, first) if id is None else islice(_with_id(rows, id, bad), 1):
            found = True
            yield _shown(row, context.template)
    if id is not None and not found:
        where = ", ".join(spec.place for spec in specs)
        if bad:  # one of them may have this id
            where += f"; rows that cannot be read: {len(bad)}, the first {': '.join(bad[0])}"
        todo = "Give the id of a row, or --first 3. A row without an id gets one when it is read."
        raise UsageError(f"There is no row with the id {id!r}.", where, todo)


def _with_id(rows: Iterable[Example | Rejected], id: str, bad: list[Rejected]) -> Iterator[Example]:
    """The rows with an id; rows that can't be read, and so have no id, are added to `bad`."""
    for row in rows:
        if isinstance(row, Rejected):
            bad.append(row)
        elif row.id == id:
            yield row


def _shown(row: Example | Rejected, template: ChatTemplate) -> ShownRow:
    if isinstance(row, Rejected):
        return ShownRow(row.where, skip_reason=row.reason)
    name = f"{row.source} {row.id}"
    rendered = template.try_render(row)
    if isinstance(rendered, Refusal):
        return ShownRow(row.where, name, skip_reason=rendered.skip_reason)
    encoded, pieces = template.in_pieces(rendered)
    labels = sum(label != -100 for label in encoded.labels)
    counts = (len(encoded.input_ids), labels, encoded.truncated)
    return ShownRow(row.where, name, *counts, tuple(pieces), encoded.skip_reason)
