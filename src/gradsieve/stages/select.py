"""Stage 5: the best rows, in their original format (method.md, step 5).

In: scores and the pool. Out, in `04-select/TARGET/METHOD/` (or `together/METHOD/`; METHOD@SIZE if
the recipe asks for several sizes):
`selected.jsonl` (rows in rank order, plus rank, score, subtask and source), `messages.jsonl` (the
same rows as chat messages, whatever their original format), `dropped.jsonl` (rows that could
not be scored or were passed over, with the reason) and `README.md`, a card for the hub; and
`leaks.jsonl`, the pool's rows that contain text of a test question. Equal scores are ordered by
(source, id), the same on every machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, groupby
from operator import attrgetter
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from gradsieve.data.pool import Pool
from gradsieve.errors import DataError, GradsieveError, RunError, did_you_mean
from gradsieve.io import fingerprint, read_lines, write_text
from gradsieve.recipe.schema import TOGETHER, Budget, SelectConfig, SelectionName
from gradsieve.recipe.selecting import ACROSS_SUBTASKS, AcrossSubtasks
from gradsieve.runs.context import Context
from gradsieve.selection.export import (
    Card,
    Selected,
    features_of,
    message_features,
    write_lines,
    write_selected,
)
from gradsieve.selection.near_duplicates import NearDuplicates
from gradsieve.selection.ranking import Check, Choice, Ranked, Ranking, choose, in_turns, ranking_of
from gradsieve.selection.rules import Caps, Leak, find_leaks
from gradsieve.stages import checks
from gradsieve.stages.base import Stage
from gradsieve.stages.estimate import ROW_BYTES, Estimate, selected
from gradsieve.store import Store

AT_ONCE = 4096
"""Number of rows read from the pool at a time."""

ENOUGH = 10
"""Minimum rows for a warning: with fewer, one subtask easily has most of them by chance."""


class Select(Stage):
    """The best examples by every method, for every target."""

    name = "select"
    refreshes_pool = True

    def fingerprint_inputs(self, context: Context) -> dict[str, Any]:
        settings, features = context.recipe.select, None
        if settings.near_duplicates:
            features = context.artifacts.features.metadata["output"]
        return {
            "select": settings.results(),
            "scores": context.artifacts.scores.metadata["output"],
            "pool": context.pool_inputs,
            "features": features,
            "questions": {name: test.fingerprint for name, test in context.full_test_sets.items()},
            **({"bad_rows": bad_rows} if (bad_rows := context.artifacts.pool.bad_rows) else {}),
            **({"order": [t.name for t in context.targets]} if settings.together else {}),
            **({"turns": turns} if (turns := _turns(context)) else {}),
        }

    def check(self, context: Context) -> Iterator[GradsieveError]:
        yield from checks.methods(context.recipe)
        yield from checks.targets(context)
        yield from checks.test_sets(context)

    def check_pool(self, context: Context) -> Iterator[GradsieveError]:
        """Check that the pool has enough rows, and that caps fit its sources and leave rows."""
        settings, pool = context.recipe.select, context.pool
        caps, sources = settings.per_source, pool.source_names
        yield from checks.problem_of(partial(_refuse_too_many, context, len(pool)))
        for name in caps if isinstance(caps, dict) else ():  # others are checked with the recipe
            if "/" in name and name not in sources:
                where = f"select.per_source: {name}"
                yield DataError("No row is of this source.", where, did_you_mean(name, sources))
        for budget in settings.budgets:
            limits = Caps(caps, budget.rows(len(pool)), budget.tokens, sources)
            reasons = [limits.full(source, tokens=1) for source in range(len(sources))]
            if all(reasons):
                yield DataError(
                    "No row can be selected: no source may have one.",
                    f"a selection of {budget}: {reasons[0]}",
                    "Raise select.per_source, or select more rows.",
                )

    def estimate(self, context: Context) -> Estimate:
        """The search for leaks in the pool, and each selection written three times."""
        pool, names = context.pool, context.recipe.selections
        files = ("row", "messages", "messages")  # the last as prompts and completions
        text = sum(pc.sum(pc.binary_length(pool.table[name])).as_py() for name in files)
        each = text / len(pool) + ROW_BYTES * len(files)
        rows = sum(selected(context, name.budget) for name in names)
        return Estimate(units=len(pool), disk_bytes=round(rows * each))

    def run(self, context: Context) -> dict[str, Any]:
        artifact, leaks = context.artifacts.selections, _leaks(context)
        facts: dict[str, dict[str, Any]] = {}
        prints: dict[str, str] = {}
        order = attrgetter("target", "method")
        for (target, method), names in groupby(context.recipe.selections, order):
            scored = _scored(context, target, method)  # ranked once for all sizes
            for name in names:
                facts.setdefault(target, {})[name.short] = _select(context, name, scored, leaks)
                prints[f"{target}/{name.short}"] = artifact.selection(
                    target, name.short
                ).fingerprint
        write_lines(artifact.leaks, _leak_records(context.pool, leaks))
        return {
            "targets": facts,
            "leaks": dict(Counter(leak.target for leak in leaks.values())),
            "selections": prints,
            "output": fingerprint(prints),
        }


def _turns(context: Context) -> dict[str, list[str]]:
    """Ids of each target's examples in the order in which they take turns, if they do."""
    if context.recipe.select.turns != "examples":
        return {}
    return {target.name: [one.id for one in target.examples] for target in context.targets}


def _refuse_too_many(context: Context, rows: int) -> None:
    for name in context.recipe.selections:
        count = name.budget.count
        if count is not None and count > rows:
            raise DataError(
                "There are fewer rows than are to be selected.",
                f"select.count {count}, rows {rows}",
                "Lower select.count.",
            )


def _select(
    context: Context, name: SelectionName, scored: _Scored, leaks: Mapping[int, Leak]
) -> dict[str, Any]:
    """Write one selection; returns its metadata."""
    out = context.artifacts.selections.selection(name.target, name.short)
    choice = _chosen(context, name, scored, leaks)
    write_selected(scored.selected(choice), out.selected, out.messages, out.answers)
    write_lines(out.dropped, chain(_unscored(context, name.method), scored.dropped(choice)))
    tokens, sources = int(scored.tokens[choice.chosen].sum()), scored.count(choice.chosen)
    columns = choice.columns[choice.columns >= 0]
    leaked = (leaks.get(number) for number in scored.numbers[choice.chosen].tolist())
    subtasks = _counted(columns, scored.ranking.subtasks)
    across = context.recipe.score.across_subtasks
    if warning := dominated(subtasks, len(set(scored.ranking.subtasks)), across):
        context.progress.warn(f"{name.short}, target {name.target}: {warning}")
    targets = {target.name: context.target_rows(target) for target in context.targets}
    card = Card(
        context.recipe,
        name,
        tokens,
        sources,
        scored.count(slice(None)),
        {of: (len(rows), len({r.example.subtask for r in rows})) for of, rows in targets.items()},
        {
            "default": features_of(read_lines(out.selected)),
            "messages": message_features(read_lines(out.messages)),
            "prompt_completion": message_features(
                read_lines(out.answers), ("prompt", "completion")
            ),
        },
        context.template.date,
    )
    write_text(out.card, card.text())
    return {
        "rows": len(choice.chosen),
        "tokens": tokens,
        "sources": sources,
        "subtasks": subtasks,
        "passed_over": len(choice.passed),
        "leaks": dict(Counter(leak.target for leak in leaked if leak)),
    }


def dominated(rows: Mapping[str, int], subtasks: int, across: AcrossSubtasks) -> str | None:
    """A warning if one subtask has most of a selection's rows.

    The limit is halfway between an equal share and everything: 75% for 2 subtasks, 51% for 57.
    `rows` has the most frequent subtask first; `subtasks` is how many the scores distinguish.
    """
    total = sum(rows.values())
    if subtasks < 2 or total < ENOUGH:
        return None
    first, most = next(iter(rows.items()))
    if most / total <= (1 + 1 / subtasks) / 2:
        return None
    other = "" if across == ACROSS_SUBTASKS else f"score.across_subtasks: {ACROSS_SUBTASKS}, or "
    return (
        f"{most} of {total} selected rows are for the subtask {first}, one of {subtasks}; if its "
        f"scores are only higher in general, use {other}select.turns: subtasks"
    )


@dataclass(frozen=True)
class _Scored:
    """All scored rows, indexed by their lines in the score table."""

    pool: Pool
    ranking: Ranking
    numbers: NDArray[np.int64]  # row numbers in the pool [n]

    @property
    def sources(self) -> NDArray[np.int32]:
        """The source of each row, an index into `pool.source_names` [n]."""
        return self.pool.source_codes[self.numbers]

    @property
    def tokens(self) -> NDArray[np.int32]:
        """The number of tokens of each row [n]."""
        return self.pool.lengths[self.numbers]

    def count(self, lines: NDArray[np.int64] | slice) -> dict[str, int]:
        """The number of rows of each source that has any, the most frequent first."""
        return _counted(self.sources[lines], self.pool.source_names)

    def selected(self, choice: Choice) -> Iterator[Selected]:
        """The chosen rows, in order."""
        ranks = np.arange(len(choice.chosen))
        for part in _parts(ranks):
            examples = self.pool.examples(self.numbers[choice.chosen[part]])
            for rank, example in zip(part.tolist(), examples, strict=True):
                subtask = self.ranking.subtask(int(choice.columns[rank]))
                yield Selected(example, rank + 1, float(choice.scores[rank]), subtask)

    def dropped(self, choice: Choice) -> Iterator[dict[str, Any]]:
        """The rows that were passed over, with the reason."""
        reasons = iter(choice.reasons)
        for part in _parts(choice.passed):
            for key in self.pool.keys(self.numbers[part]):
                yield {**key._asdict(), "reason": next(reasons)}


def _counted(of: NDArray[np.int32], names: Sequence[str]) -> dict[str, int]:
    """The count of each name that occurs, the most frequent first; names may repeat."""
    found: Counter[str] = Counter()
    for name, count in zip(names, np.bincount(of, minlength=len(names)).tolist(), strict=True):
        found[name] += count
    return {name: count for name, count in found.most_common() if count}


def _parts(values: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    return (values[start : start + AT_ONCE] for start in range(0, len(values), AT_ONCE))


def _scored(context: Context, target: str, method: str) -> _Scored:
    """All scored rows; several targets take turns, each with its own subtasks."""
    pool, recipe = context.pool, context.recipe
    names = [t.name for t in recipe.targets] if target == TOGETHER else [target]
    scores, turns, parts = context.artifacts.scores, _turns(context), []
    for name in names:  # one table at a time: each may have 57 columns
        table = scores.table(name, method)
        numbers = table.numbers_in(pool)  # the same for each target
        if turns and (examples := scores.examples(name, method)) is not None:
            examples = examples.in_order(turns[name])
            part = in_turns(examples.values, examples.subtasks)
        elif recipe.select.turns == "subtasks" and table.subtasks:
            part = in_turns(table.within, table.subtasks)
        else:
            part = Ranked(table.total, table.best, table.subtasks)
        if target == TOGETHER:  # two targets may have a subtask of the same name
            part = part._replace(subtasks=[f"{name}/{subtask}" for subtask in part.subtasks])
        parts.append(part)
    return _Scored(pool, ranking_of(parts), numbers)


def _chosen(
    context: Context, name: SelectionName, scored: _Scored, leaks: Mapping[int, Leak]
) -> Choice:
    settings, budget, numbers = context.recipe.select, name.budget, scored.numbers
    if name.method == "full":  # ignores the recipe's limits, except for leaks
        settings = SelectConfig(fraction=1.0, drop_leaks=settings.drop_leaks)
    else:
        _refuse_too_many(context, len(numbers))
    checks: list[Check] = []
    if settings.drop_leaks and leaks:
        reasons = {number: leak.reason for number, leak in leaks.items()}
        checks.append(lambda line: reasons.get(int(numbers[line])))
    if settings.near_duplicates is not None:
        store, ahead = _last_store(context), scored.ranking.ahead
        cosine = settings.near_duplicates.cosine
        checks.append(NearDuplicates(context.engine, store, scored.pool, numbers, ahead, cosine))
    names = scored.pool.source_names
    choice = choose(scored.ranking, scored.sources, scored.tokens, names, settings, budget, checks)
    if not len(choice.chosen):
        raise _nothing_chosen(scored, choice, budget)
    wanted = budget.rows(len(numbers))
    if name.method != "full" and wanted is not None and len(choice.chosen) < wanted:
        context.progress.warn(
            f"{name.short}, target {name.target}: {len(choice.chosen)} rows instead of {wanted} "
            f"({len(choice.passed)} passed over); dropped.jsonl lists the reasons"
        )
    return choice


def _nothing_chosen(scored: _Scored, choice: Choice, budget: Budget) -> DataError:
    is_long = choice.too_long >= 0
    line = choice.too_long if is_long else int(choice.passed[0])
    (key,) = scored.pool.keys(scored.numbers[[line]])
    if is_long:
        return DataError(
            "Not even the best row can be selected.",
            f"select.tokens {budget.tokens}, {key.source} {key.id}: {scored.tokens[line]} tokens",
            "Raise select.tokens.",
        )
    return DataError(
        "No row can be selected: all are passed over.",
        f"{key.source} {key.id}: {choice.reasons[0]}",
        "Loosen that key of select, or select more rows.",
    )


def _last_store(context: Context) -> Store:
    store = context.artifacts.features.last_store()
    if store is None:
        raise RunError(
            "There is no datastore to find near duplicates in: exact mode keeps none.",
            f"select.near_duplicates, {context.run.stage('features')}",
            "Run `gradsieve features` with features.mode: store first.",
        )
    return store


def _leaks(context: Context) -> dict[int, Leak]:
    """Rows of the pool that share text with test questions, by number; warns if there are any."""
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
    """Rows that a method can't score, with the reason."""
    for batch in context.artifacts.scores.skipped(context.pool, method).to_batches(AT_ONCE):
        for row in batch.to_pylist():
            yield {"source": row["source"], "id": row["id"], "reason": row["skip_reason"]}
    yield from read_lines(context.artifacts.pool.skipped)


STAGE = Select()
