"""Stage 5: the best rows, given back as they came in (method.md, step 5).

In: scores and the pool. Out, in `04-select/TARGET/METHOD/`: `selected.jsonl` (rows in rank order,
plus rank, score, subtask and source), `dropped.jsonl` (rows that could not be scored, with the
reason) and `README.md`. Equal scores are ordered by (source, id), the same on every machine.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gradsieve.context import Context
from gradsieve.errors import DataError
from gradsieve.methods import find_method
from gradsieve.recipe import Select
from gradsieve.rundir import file_fingerprint, fingerprint, write_text


def inputs(context: Context) -> dict[str, Any]:
    """What this stage depends on."""
    return {
        "select": context.recipe.select.model_dump(mode="json"),
        "scores": context.run.done("score")["output"],
        "pool": context.pool_inputs,
    }


def run(context: Context, folder: Path) -> dict[str, Any]:
    """Select for every target by every method."""
    rows = {
        (example.source, example.id): example.row
        for source in context.sources
        for example in source.examples
    }
    tokens, dropped = _tokens_and_dropped(context)
    facts: dict[str, dict[str, Any]] = {}
    prints: dict[str, str] = {}
    for target in context.recipe.targets:
        for method in context.recipe.score.methods:
            scored = _scores(context.run.stage("score") / target.name / f"{method}.parquet")
            everything = Select(fraction=1.0)
            chosen = take(scored, everything if method == "full" else context.recipe.select, tokens)
            out = folder / target.name / method
            write_text(out / "selected.jsonl", _lines(_annotated(rows, chosen)))
            write_text(out / "dropped.jsonl", _lines(dropped))
            write_text(
                out / "README.md", _card(context, target.name, method, chosen, scored, tokens)
            )
            prints[f"{target.name}/{method}"] = file_fingerprint(out / "selected.jsonl")
            facts.setdefault(target.name, {})[method] = {
                "rows": len(chosen),
                "tokens": sum(tokens[row["source"], row["id"]] for row in chosen),
                "sources": dict(Counter(row["source"] for row in chosen).most_common()),
            }
    return {
        "targets": facts,
        "dropped": len(dropped),
        "selections": prints,
        "output": fingerprint(prints),
    }


def take(
    scored: list[dict[str, Any]], settings: Select, tokens: Mapping[tuple[str, str], int]
) -> list[dict[str, Any]]:
    """The best rows, best first.

    Args:
        scored: source, id, score and subtask of each row.
        settings: How many: a share of the scored rows, a count, or a budget of tokens (rows are
            taken in order until the next one would exceed it).
        tokens: Tokens of each row.
    """
    ranked = sorted(scored, key=lambda row: (-row["score"], row["source"], row["id"]))
    if settings.fraction is not None:
        return ranked[: max(1, round(settings.fraction * len(ranked)))]
    if settings.count is not None:
        if settings.count > len(ranked):
            raise DataError(
                "There are fewer rows than are to be selected.",
                f"select.count {settings.count}, scored rows {len(ranked)}",
                "Lower select.count.",
            )
        return ranked[: settings.count]
    chosen, spent = [], 0
    for row in ranked:
        spent += tokens[row["source"], row["id"]]
        if settings.tokens is not None and spent > settings.tokens:
            break
        chosen.append(row)
    if not chosen:
        raise DataError(
            "Not even the best row fits the budget of tokens.",
            f"select.tokens {settings.tokens}, the best row has {spent}",
            "Raise select.tokens.",
        )
    return chosen


def _scores(file: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    columns = ["source", "id", "score", "subtask"]
    rows: list[dict[str, Any]] = pq.read_table(file, columns=columns).to_pylist()
    return rows


def _tokens_and_dropped(
    context: Context,
) -> tuple[dict[tuple[str, str], int], list[dict[str, Any]]]:
    """Tokens of each row, and one record for each row that could not be scored."""
    import pyarrow.parquet as pq

    file = context.run.stage("score") / "rows.parquet"
    rows = pq.read_table(file, columns=["source", "id", "tokens", "set_aside"]).to_pylist()
    dropped = [
        {"source": row["source"], "id": row["id"], "reason": row["set_aside"]}
        for row in rows
        if row["set_aside"]
    ]
    for source in context.sources:
        dropped += [
            {"source": source.name, "where": bad.where, "reason": bad.reason}
            for bad in source.bad_rows
        ]
    return {(row["source"], row["id"]): row["tokens"] for row in rows}, dropped


def _annotated(
    rows: Mapping[tuple[str, str], Mapping[str, Any]], chosen: Iterable[Mapping[str, Any]]
) -> Iterable[dict[str, Any]]:
    """Rows as they came in, plus what chose them; a row's own key is never overwritten."""
    for rank, scored in enumerate(chosen, start=1):
        row = rows[scored["source"], scored["id"]]
        added = {"rank": rank, **{key: scored[key] for key in ("score", "subtask", "source")}}
        renamed = {key if key not in row else f"gradsieve_{key}": added[key] for key in added}
        # A row without an id gets the one that names it everywhere else.
        yield {**({"id": scored["id"]} if row.get("id") is None else {}), **row, **renamed}


def _lines(records: Iterable[Mapping[str, Any]]) -> str:
    return "".join(_line(record) + "\n" for record in records)


def _line(record: Mapping[str, Any]) -> str:
    text = json.dumps(record, ensure_ascii=False, default=str)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: only an escape can hold it
        return json.dumps(record, default=str)
    return text


def _card(
    context: Context,
    target: str,
    method: str,
    chosen: list[dict[str, Any]],
    scored: list[dict[str, Any]],
    tokens: Mapping[tuple[str, str], int],
) -> str:
    """A card that says what the folder holds and how it was made."""
    picked, pool = (Counter(row["source"] for row in rows) for rows in (chosen, scored))
    table = "\n".join(
        f"| {name} | {picked[name]} | {picked[name] / len(chosen):.1%} | {pool[name]} | "
        f"{pool[name] / len(scored):.1%} |"
        for name in sorted(pool)
    )
    spent = sum(tokens[row["source"], row["id"]] for row in chosen)
    return f"""---
configs:
- config_name: default
  data_files: selected.jsonl
tags:
- gradsieve
- instruction-tuning
---

# Selected for {target}

{len(chosen)} of {len(scored)} rows ({spent} tokens), chosen with `{context.recipe.model.name}` by
`{method}`: {find_method(method).source}. Rows are as they came in, in order of rank, with `rank`,
`score`, `subtask` (the subtask of {target} that a row helps most) and `source` added. Rows that
could not be scored are in `dropped.jsonl`.

| source | selected | share of selection | in the pool | share of pool |
| --- | --- | --- | --- | --- |
{table}
"""
