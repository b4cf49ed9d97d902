"""Stage 5: the best rows, given back as they came in (method.md, step 5).

In: scores and the pool. Out, in `04-select/TARGET/METHOD/` (or `together/METHOD/`):
`selected.jsonl` (rows in rank order, plus rank, score, subtask and source), `messages.jsonl` (the
same rows as chat messages, alike whatever format they came in), `dropped.jsonl` (rows that could
not be scored or were passed over, with the reason) and `README.md`, a card for the hub; and
`leaks.jsonl`, the pool's rows that hold text of a test question. Equal scores are ordered by
(source, id), the same on every machine.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gradsieve.data.examples import Example
from gradsieve.errors import DataError, GradsieveError, RunError
from gradsieve.io import fingerprint, read_lines, write_text
from gradsieve.methods import find_method, uses_gradients
from gradsieve.methods.base import whole_text
from gradsieve.recipe.schema import TOGETHER, SelectConfig
from gradsieve.runs.artifacts import StageArtifact
from gradsieve.runs.context import Context
from gradsieve.selection.card import Selected, card, message_features, weighted
from gradsieve.selection.choose import Candidate, Check, Key, Passed, choose
from gradsieve.selection.columns import features_of
from gradsieve.selection.duplicates import NearDuplicates
from gradsieve.selection.leaks import Leaks, find_leaks
from gradsieve.selection.order import interleave, round_robin
from gradsieve.stages.base import Stage


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
            "questions": {name: test.fingerprint for name, test in context.whole_test_sets.items()},
        }

    def check(self, context: Context) -> Iterator[GradsieveError]:
        """No more rows are to be selected than there are, as far as that is known by now."""
        yield from ()
        if metadata := context.run.metadata("pool"):
            _refuse_too_many(context, metadata["rows"])

    def run(self, context: Context, folder: Path) -> dict[str, Any]:
        """Select for every target, or for all together, by every method."""
        tokens, unscored = _tokens_and_unscored(context)
        leaks = _leaks(context)
        _tell(context, leaks)
        facts: dict[str, dict[str, Any]] = {}
        prints: dict[str, str] = {}
        for target, method in _wanted(context):
            names = [t.name for t in context.recipe.targets] if target == TOGETHER else [target]
            order = _order(context, names, method, tokens)
            chosen, passed = _chosen(context, method, order, leaks)
            out = context.artifacts.selections.selection(target, method)
            selected = _lines(_annotated(context.examples, chosen))
            write_text(out.selected, selected)
            conversations = list(_as_messages(context.examples, chosen))
            write_text(out.messages, _lines(conversations))
            dropped = [*unscored, *(_record(row) for row in passed)]
            write_text(out.dropped, _lines(dropped))
            told = Selected(
                context.recipe,
                target,
                method,
                find_method(method).source,
                uses_gradients(method),
                chosen,
                order,
                {t.name: (len(t.examples), len(t.subtasks)) for t in context.targets},
                features_of(map(json.loads, selected.split("\n")[:-1])),
                message_features(conversations),
                context.template.date,
            )
            write_text(out.card, card(told))
            prints[f"{target}/{method}"] = out.fingerprint
            facts.setdefault(target, {})[method] = {
                "rows": len(chosen),
                "tokens": sum(row.tokens for row in chosen),
                "sources": dict(Counter(row.key[0] for row in chosen).most_common()),
                "passed_over": len(passed),
            }
        write_text(
            context.artifacts.selections.leaks,
            _lines({"source": key[0], "id": key[1], **asdict(leak)} for key, leak in leaks.items()),
        )
        return {
            "targets": facts,
            "dropped": len(unscored),
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


def _leaks(context: Context) -> dict[Key, Leaks]:
    questions = {
        name: ((q.example.id, text) for q in test.questions for text in q.texts)
        for name, test in context.whole_test_sets.items()
    }
    return find_leaks(((row.key, whole_text(row.example)) for row in context.rows), questions)


def _tell(context: Context, leaks: Mapping[Key, Leaks]) -> None:
    if leaks:
        (source, id), first = next(iter(leaks.items()))
        done = "are left out" if context.recipe.select.drop_leaks else "may be selected"
        context.progress.warn(
            f"{len(leaks)} rows of the pool share 13 words with test questions and {done} "
            f"(select.drop_leaks), e.g. {source} {id} with {first.target} {first.question}; all in "
            "leaks.jsonl"
        )


def _order(
    context: Context, targets: Sequence[str], method: str, tokens: Mapping[Key, int]
) -> list[Candidate]:
    """All scored rows, best first; several targets take turns."""
    orders = [_order_for(context, target, method, tokens) for target in targets]
    if len(orders) == 1:
        return orders[0]
    by_key = [{row.key: row for row in order} for order in orders]
    turns = interleave([[row.key for row in order] for order in orders])
    return [by_key[number][key] for key, number in turns]


def _order_for(
    context: Context, target: str, method: str, tokens: Mapping[Key, int]
) -> list[Candidate]:
    table = context.artifacts.scores.table(target, method)
    scores = table.by_subtask
    keys = [(key["source"], key["id"]) for key in table.keys.to_pylist()]
    if context.recipe.select.round_robin and table.subtasks:
        return [
            Candidate(keys[row], float(scores[row, column]), table.subtasks[column],
                      tokens[keys[row]])
            for row, column in round_robin(scores)
        ]  # fmt: skip
    return [
        Candidate(keys[row], float(table.total[row]), table.subtask(row), tokens[keys[row]])
        for row in table.order.tolist()
    ]


def _chosen(
    context: Context, method: str, order: list[Candidate], leaks: Mapping[Key, Leaks]
) -> tuple[list[Candidate], list[Passed]]:
    settings = context.recipe.select
    if method == "full":  # whatever the recipe says; but what leaks stays out
        settings = SelectConfig(fraction=1.0, drop_leaks=settings.drop_leaks)
    if method != "full":
        _refuse_too_many(context, len(order))
    checks: list[Check] = []
    if settings.drop_leaks:
        checks.append(lambda key: _leak_reason(leaks.get(key)))
    if settings.near_duplicates is not None:
        checks.append(_near_duplicates(context, [row.key for row in order], settings))
    chosen, passed = choose(order, settings, len(order), checks)
    if not chosen:
        first = order[0]
        raise DataError(
            "Not even the best row can be selected.",
            f"select, {first.key[0]} {first.key[1]}: {first.tokens} tokens"
            + (f"; {passed[0].reason}" if passed else ""),
            "Raise select.tokens, or loosen the other keys of select.",
        )
    if settings.count is not None and len(chosen) < settings.count:
        context.progress.warn(
            f"{method}: {len(chosen)} rows instead of {settings.count}, since {len(passed)} were "
            "passed over; dropped.jsonl tells why"
        )
    return chosen, passed


def _leak_reason(leak: Leaks | None) -> str | None:
    if leak is None:
        return None
    return f'drop_leaks: shares "{leak.run}" with {leak.target}, {leak.question}'


def _near_duplicates(context: Context, order: list[Key], settings: SelectConfig) -> NearDuplicates:
    from gradsieve.store import open_store

    assert settings.near_duplicates is not None
    stores = context.artifacts.features.last_stores()
    if not stores:
        raise RunError(
            "There is no datastore to find near duplicates in: exact mode keeps none.",
            f"select.near_duplicates, {context.run.stage('features')}",
            "Run `gradsieve features` with features.mode: store first.",
        )
    store = open_store(stores[0])
    pool = context.pool
    found = store.positions(pool.store_keys(pool.usable)).tolist()
    keys = pool.keys(pool.usable)
    positions: dict[Key, int] = {
        key: place for key, place in zip(keys, found, strict=True) if place >= 0
    }
    return NearDuplicates(store, positions, order, settings.near_duplicates.cosine)


def _tokens_and_unscored(context: Context) -> tuple[dict[Key, int], list[dict[str, Any]]]:
    """Tokens of each row, and one record for each row that could not be scored."""
    pool = context.pool
    unscored = [
        {"source": row["source"], "id": row["id"], "reason": row["skip_reason"]}
        for row in context.artifacts.scores.skipped(pool).to_pylist()
    ]
    unscored += read_lines(context.artifacts.pool.skipped)
    lengths = pool.lengths[pool.order].tolist()
    return dict(zip(pool.keys(pool.order), lengths, strict=True)), unscored


def _record(passed: Passed) -> dict[str, Any]:
    source, id = passed.key
    return {"source": source, "id": id, "reason": passed.reason}


def _annotated(
    rows: Mapping[Key, Example], chosen: Iterable[Candidate]
) -> Iterable[dict[str, Any]]:
    """Rows as they came in, plus what chose them; a row's own key is never overwritten.

    What is added has `gradsieve_` before its name as often as it takes to be a new one.
    """
    for rank, candidate in enumerate(chosen, start=1):
        source, id = candidate.key
        row = {"id": None, **rows[candidate.key].row}
        if row["id"] is None:  # it gets the one that names it everywhere else
            row["id"] = id
        told = {"score": candidate.score, "subtask": candidate.subtask, "source": source}
        for key, value in {"rank": rank, **told}.items():
            while key in row:
                key = f"gradsieve_{key}"
            row[key] = value
        yield row


def _as_messages(
    rows: Mapping[Key, Example], chosen: Iterable[Candidate]
) -> Iterable[dict[str, Any]]:
    for rank, candidate in enumerate(chosen, start=1):
        source, id = candidate.key
        example = rows[candidate.key]
        yield {
            "messages": weighted(example),
            **({"tools": example.tools} if example.tools else {}),
            "source": source,
            "id": id,
            "rank": rank,
            "score": candidate.score,
            "subtask": candidate.subtask,
        }


def _lines(records: Iterable[Mapping[str, Any]]) -> str:
    return "".join(_line(record) + "\n" for record in records)


def _line(record: Mapping[str, Any]) -> str:
    text = json.dumps(record, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: only an escape can hold it
        return json.dumps(record)
    return text


STAGE = Select()
