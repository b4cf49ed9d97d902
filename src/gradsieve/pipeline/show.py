"""Rows of a pool as the model reads them, with the text of their supervised tokens marked.

In: a recipe, and which rows. Out: each row's text in pieces, supervised or not, as axolotl's
preview of preprocessing shows them. Sources are read in a stream; no model is loaded and nothing is
written.
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
"""Around supervised text, where there are no colors."""


@dataclass(frozen=True)
class ShownRow:
    """A row.

    Attributes:
        name: Source and id; empty if the row can't be read.
        labels: Those of them that are supervised.
        pieces: The text of the tokens, and whether they are supervised.
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
        """What it is, in a line."""
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
    """Rows of the pool.

    Args:
        recipe: Names sources, model and chat template.
        id: Show the row, or rows of several sources, with this id.
        first: Without an id: show the first rows of each source.
        source: Of this source alone.

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
        if bad:  # one of them may have it
            where += f"; rows that cannot be read: {len(bad)}, the first {': '.join(bad[0])}"
        todo = "Give the id of a row, or --first 3. A row without an id gets one when it is read."
        raise UsageError(f"There is no row with the id {id!r}.", where, todo)


def _with_id(rows: Iterable[Example | Rejected], id: str, bad: list[Rejected]) -> Iterator[Example]:
    """The rows with an id; those that have none, since they can't be read, are added to `bad`."""
    for row in rows:
        if isinstance(row, Rejected):
            bad.append(row)
        elif row.id == id:
            yield row


def _shown(row: Example | Rejected, template: ChatTemplate) -> ShownRow:
    if isinstance(row, Rejected):
        return ShownRow(row.where, skip_reason=row.reason)
    name = f"{row.source} {row.id}"
    [encoded] = template.try_encode_all([row])
    if isinstance(encoded, Refusal):
        return ShownRow(row.where, name, skip_reason=encoded.skip_reason)
    labels = sum(label != -100 for label in encoded.labels)
    counts = (len(encoded.input_ids), labels, encoded.truncated)
    pieces = tuple(template.pieces(row))
    return ShownRow(row.where, name, *counts, pieces, encoded.skip_reason)
