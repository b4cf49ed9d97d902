"""Stage 5: the best rows, given back as they came in (method.md, step 5).

In: scores and the pool. Out, in `04-select/TARGET/METHOD/` (or `together/METHOD/`):
`selected.jsonl` (rows in rank order, plus rank, score, subtask and source), `messages.jsonl` (the
same rows as chat messages, alike whatever format they came in), `dropped.jsonl` (rows that could
not be scored or were passed over, with the reason) and `README.md`, a card for the hub; and
`leaks.jsonl`, the pool's rows that hold text of a test question. Equal scores are ordered by
(source, id), the same on every machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from gradsieve.data.pool import Pool
from gradsieve.errors import DataError, GradsieveError, RunError
from gradsieve.io import fingerprint, read_lines, write_text
from gradsieve.recipe.schema import TOGETHER, SelectConfig
from gradsieve.runs.artifacts import StageArtifact
from gradsieve.runs.context import Context
from gradsieve.selection.export import (
    Card,
    Selected,
    features_of,
    message_features,
    write_lines,
    write_selected,
)
from gradsieve.selection.ranking import Check, Choice, Ranking, choose, in_turns, together
from gradsieve.selection.rules import Leak, NearDuplicates, find_leaks
from gradsieve.stages import checks
from gradsieve.stages.base import Stage
from gradsieve.stages.estimate import Estimate, selected, selections
from gradsieve.store import Store, open_store

AT_ONCE = 4096
"""Rows read from the pool at a time."""

ENOUGH = 10
"""Of fewer rows one subtask easily takes most by chance."""


class Select(Stage):
    """The best examples by every method, for every target."""

    name = "select"
    refreshes_pool = True

    def artifact(self, context: Context) -> StageArtifact:
        """What it leaves."""
        return context.artifacts.selections

    def fingerprint_inputs(self, context: Context) -> dict[str, Any]:
        """What this stage depends on."""
        settings, features = context.recipe.select, None
        if settings.near_duplicates:
            features = context.artifacts.features.metadata["output"]
        return {
            "select": settings.results(),
            "scores": context.artifacts.scores.metadata["output"],
            "pool": context.pool_inputs,
            "features": features,
            "questions": {name: test.fingerprint for name, test in context.full_test_sets.items()},
        }

    def check(self, context: Context) -> Iterator[GradsieveError]:
        """Targets and questions; not more rows are selected than there are, once that is known."""
        yield from checks.methods(context.recipe)
        yield from checks.targets(context)
        yield from checks.test_sets(context)
        if metadata := context.run.metadata("pool"):
            _refuse_too_many(context, metadata["rows"])

    def estimate(self, context: Context) -> Estimate:
        """Looking for leaks in the pool, and writing each selection twice."""
        pool, methods = context.pool, context.recipe.score.methods
        text = sum(
            pc.sum(pc.binary_length(pool.table[name])).as_py() for name in ("row", "messages")
        )
        share = sum(selected(context, method) for method in methods) / len(pool)
        written = round(selections(context) * share * text)
        return Estimate(units=len(pool), disk_bytes=written)

    def run(self, context: Context, folder: Path) -> dict[str, Any]:
        """Select for every target, or for all together, by every method."""
        artifact, leaks = context.artifacts.selections, _leaks(context)
        facts: dict[str, dict[str, Any]] = {}
        prints: dict[str, str] = {}
        for target, method in _wanted(context):
            facts.setdefault(target, {})[method] = _select(context, target, method, leaks)
            prints[f"{target}/{method}"] = artifact.selection(target, method).fingerprint
        write_lines(artifact.leaks, _leak_records(context.pool, leaks))
        return {
            "targets": facts,
            "leaks": dict(Counter(leak.target for leak in leaks.values())),
            "selections": prints,
            "output": fingerprint(prints),
        }


def _refuse_too_many(context: Context, rows: int) -> None:
    count = context.recipe.select.count
    if count is not None and count > rows and set(context.recipe.score.methods) != {"full"}:
        raise DataError(
            "There are fewer rows than are to be selected.",
            f"select.count {count}, rows {rows}",
            "Lower select.count.",
        )


def _wanted(context: Context) -> list[tuple[str, str]]:
    """(target, method) of each selection."""
    recipe = context.recipe
    targets = [TOGETHER] if recipe.select.together else [target.name for target in recipe.targets]
    return [(target, method) for target in targets for method in recipe.score.methods]


def _select(
    context: Context, target: str, method: str, leaks: Mapping[int, Leak]
) -> dict[str, Any]:
    """Write one selection; returns what the metadata records of it."""
    out = context.artifacts.selections.selection(target, method)
    scored = _scored(context, target, method)
    choice = _chosen(context, method, scored, leaks)
    write_selected(scored.selected(choice.chosen), out.selected, out.messages)
    write_lines(out.dropped, chain(_unscored(context, method), scored.dropped(choice)))
    tokens, sources = int(scored.tokens[choice.chosen].sum()), scored.count(choice.chosen)
    subtasks = scored.count_subtasks(choice.chosen)
    if warning := dominated(subtasks, len(scored.ranking.subtasks)):
        context.progress.warn(f"{method}, target {target}: {warning}")
    card = Card(
        context.recipe,
        target,
        method,
        tokens,
        sources,
        scored.count(np.arange(len(scored.order))),
        {t.name: (len(t.examples), len(t.subtasks)) for t in context.targets},
        features_of(read_lines(out.selected)),
        message_features(read_lines(out.messages)),
        context.template.date,
    )
    write_text(out.card, card.text())
    return {
        "rows": len(choice.chosen),
        "tokens": tokens,
        "sources": sources,
        "subtasks": subtasks,
        "passed_over": len(choice.passed),
    }


def dominated(rows: Mapping[str, int], subtasks: int) -> str | None:
    """The warning of a selection of which one subtask takes most.

    The limit is half-way between an equal share and everything: 75% of two subtasks, 51% of 57.

    Args:
        rows: Selected rows by subtask, the most frequent first.
        subtasks: How many could have been chosen for.
    """
    total = sum(rows.values())
    if subtasks < 2 or total < ENOUGH:
        return None
    first, most = next(iter(rows.items()))
    if most / total <= (1 + 1 / subtasks) / 2:
        return None
    return (
        f"{most} of {total} selected rows are for the subtask {first}, one of {subtasks}; if its "
        "scores are only higher in general, use score.across_subtasks: standardized_max, or "
        "select.turns: subtasks"
    )


@dataclass(frozen=True)
class _Scored:
    """All scored rows, best first.

    Attributes:
        pool: The pool.
        ranking: Their scores.
        order: Their numbers in the pool [n].
        sources: Their sources, an index into `names` [n].
        names: Of the sources.
    """

    pool: Pool
    ranking: Ranking
    order: NDArray[np.int64]
    sources: NDArray[np.int32]
    names: Sequence[str]

    @property
    def tokens(self) -> NDArray[np.int32]:
        """Their lengths [n]."""
        return self.pool.lengths[self.order]

    def count(self, places: NDArray[np.int64]) -> dict[str, int]:
        """Rows of each source that has some, the most frequent first."""
        counts = np.bincount(self.sources[places], minlength=len(self.names)).tolist()
        named = {name: count for name, count in zip(self.names, counts, strict=True) if count}
        return dict(Counter(named).most_common())

    def count_subtasks(self, places: NDArray[np.int64]) -> dict[str, int]:
        """Rows of each subtask that has some, the most frequent first."""
        columns, names = self.ranking.columns[places], self.ranking.subtasks
        counts = np.bincount(columns[columns >= 0], minlength=len(names)).tolist()
        found: Counter[str] = Counter()
        for name, count in zip(names, counts, strict=True):
            found[name] += count
        return {name: count for name, count in found.most_common() if count}

    def selected(self, places: NDArray[np.int64]) -> Iterator[Selected]:
        """The rows at some places of the order, in that order."""
        rank = 0
        for part in _parts(places):
            examples = self.pool.examples(self.order[part])
            for place, example in zip(part.tolist(), examples, strict=True):
                rank += 1
                score, subtask = float(self.ranking.scores[place]), self.ranking.subtask(place)
                yield Selected(example, rank, score, subtask)

    def dropped(self, choice: Choice) -> Iterator[dict[str, Any]]:
        """The rows that were passed over, and why."""
        reasons = iter(choice.reasons)
        for part in _parts(choice.passed):
            for key in self.pool.keys(self.order[part]):
                yield {**key._asdict(), "reason": next(reasons)}


def _parts(places: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    return (places[start : start + AT_ONCE] for start in range(0, len(places), AT_ONCE))


def _scored(context: Context, target: str, method: str) -> _Scored:
    """All scored rows, best first; several targets take turns."""
    pool, recipe = context.pool, context.recipe
    names = [t.name for t in recipe.targets] if target == TOGETHER else [target]
    rankings = []
    for name in names:  # one table at a time: each may have 57 columns
        table = context.artifacts.scores.table(name, method)
        turns, examples = recipe.select.turns, None
        if turns == "examples":
            examples = context.artifacts.scores.examples(name, method)
        if examples is not None:
            rankings.append(in_turns(examples.values, examples.subtasks))
        elif turns == "subtasks" and table.subtasks:
            rankings.append(in_turns(table.by_subtask, table.subtasks))
        else:
            order = table.order
            rankings.append(Ranking(order, table.total[order], table.best[order], table.subtasks))
    ranking = together(rankings)
    order = table.numbers(pool)[ranking.lines]
    ends = np.cumsum([source.rows for source in pool.sources.values()])
    sources = np.searchsorted(ends, order, side="right").astype(np.int32)
    return _Scored(pool, ranking, order, sources, list(pool.sources))


def _chosen(context: Context, method: str, scored: _Scored, leaks: Mapping[int, Leak]) -> Choice:
    settings, order = context.recipe.select, scored.order
    if method == "full":  # whatever the recipe says; but what leaks stays out
        settings = SelectConfig(fraction=1.0, drop_leaks=settings.drop_leaks)
    else:
        _refuse_too_many(context, len(order))
    checks: list[Check] = []
    if settings.drop_leaks and leaks:
        reasons = {number: leak.reason for number, leak in leaks.items()}
        checks.append(lambda place: reasons.get(int(order[place])))
    if settings.near_duplicates is not None:
        cosine = settings.near_duplicates.cosine
        checks.append(NearDuplicates(_last_store(context), scored.pool, order, cosine))
    choice = choose(scored.sources, scored.tokens, scored.names, settings, checks)
    if not len(choice.chosen):
        (key,) = scored.pool.keys(order[:1])
        raise DataError(
            "Not even the best row can be selected.",
            f"select, {key.source} {key.id}: {scored.tokens[0]} tokens"
            + (f"; {choice.reasons[0]}" if choice.reasons else ""),
            "Raise select.tokens, or loosen the other keys of select.",
        )
    if settings.count is not None and len(choice.chosen) < settings.count:
        context.progress.warn(
            f"{method}: {len(choice.chosen)} rows instead of {settings.count}, since "
            f"{len(choice.passed)} were passed over; dropped.jsonl lists the reasons"
        )
    return choice


def _last_store(context: Context) -> Store:
    stores = context.artifacts.features.last_stores()
    if not stores:
        raise RunError(
            "There is no datastore to find near duplicates in: exact mode keeps none.",
            f"select.near_duplicates, {context.run.stage('features')}",
            "Run `gradsieve features` with features.mode: store first.",
        )
    return open_store(stores[0])


def _leaks(context: Context) -> dict[int, Leak]:
    """Rows of the pool that share text with test questions, by number; warns if there are some."""
    questions = {
        name: ((q.example.id, text) for q in test.questions for text in q.texts)
        for name, test in context.full_test_sets.items()
    }
    leaks = find_leaks(context.pool, questions)
    if leaks:
        first = next(_leak_records(context.pool, leaks))
        done = "are left out" if context.recipe.select.drop_leaks else "may be selected"
        context.progress.warn(
            f"{len(leaks)} rows of the pool share 13 words with test questions and {done} "
            f"(select.drop_leaks), e.g. {first['source']} {first['id']} with {first['target']} "
            f"{first['question']}; all in leaks.jsonl"
        )
    return leaks


def _leak_records(pool: Pool, leaks: Mapping[int, Leak]) -> Iterator[dict[str, Any]]:
    keys = pool.keys(list(leaks))
    return (key._asdict() | asdict(leak) for key, leak in zip(keys, leaks.values(), strict=True))


def _unscored(context: Context, method: str) -> Iterator[dict[str, Any]]:
    """Rows that a method can't score, and why."""
    for batch in context.artifacts.scores.skipped(context.pool, method).to_batches(AT_ONCE):
        for row in batch.to_pylist():
            yield {"source": row["source"], "id": row["id"], "reason": row["skip_reason"]}
    yield from read_lines(context.artifacts.pool.skipped)


STAGE = Select()
"""From scores to a selection: an order of rows, and what is passed over on the way."""
