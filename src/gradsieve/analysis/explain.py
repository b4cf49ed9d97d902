"""Why one row of the pool was selected, or was not.

In: a finished run, a target, a row's id. Out: an `Explanation`: the row's scores by target, subtask
and checkpoint, its rank and what became of it, the target's examples that pull it in and push it
away, and the rows whose updates point most nearly the same way. What a run cannot tell (a method
without gradients, exact mode, files that have moved) is said in `notes`; the rest is told.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gradsieve.analysis.decompose import attribute, can_attribute, row_keys
from gradsieve.analysis.provenance import Explanation, Neighbor, Pull, TargetScore
from gradsieve.data.examples import Example, Message
from gradsieve.data.pool import Pool
from gradsieve.errors import DataError, RunError, UsageError
from gradsieve.io import read_lines
from gradsieve.recipe.load import load_recipe
from gradsieve.recipe.schema import Recipe
from gradsieve.runs.artifacts import Artifacts
from gradsieve.runs.context import Context
from gradsieve.runs.folder import RunFolder
from gradsieve.runs.score_table import read_scores

if TYPE_CHECKING:
    from gradsieve.store import RowKey

NEIGHBORS = 5
"""Nearest rows that are told."""

PULLS = 5
"""Target examples told on each side."""

Key = tuple[str, str]
"""(source, id) of a row."""


def explain(
    run: RunFolder | str | Path,
    target: str | None,
    id: str,
    source: str | None = None,
    method: str | None = None,
    *,
    context: Context | None = None,
) -> Explanation:
    """Explain one row of a run whose scores are there.

    Args:
        run: The run's folder.
        target: A target's name; None will do if there is one only.
        id: The row's id.
        source: The row's source, where the id alone is in several.
        method: What scored; by default the recipe's first.
        context: Inputs that have been read, or were given in memory.

    Raises:
        RunError: If the run has no scores.
        UsageError: If there is no such row, target, source or method, or several such rows.

    Example:
        >>> import gradsieve
        >>> told = gradsieve.explain("runs/first", target="legal", id="00005")
        >>> 1 <= told.score.rank <= told.score.of
        True
        >>> told.pulls[0].part >= told.pulls[1].part
        True
    """
    context = context or _context(run)
    recipe = context.recipe
    context.run.require("score")
    scores = context.artifacts.scores
    target = _one_of(target, [t.name for t in recipe.targets], "--target")
    method = _one_of(method or recipe.score.methods[0], recipe.score.methods, "--method")
    number = _find(context.pool, id, source)
    key = context.pool.keys([number])[0]
    texts = _Texts(context)
    tables = {t.name: _Table(scores.table_file(t.name, method)) for t in recipe.targets}
    targets = {name: table.of(key) for name, table in tables.items() if key in table}
    place, reason = _selected(context.run, recipe, target, method, key)
    checkpoints: dict[str, list[float]] = {}
    pulls: list[Pull] = []
    neighbors: list[Neighbor] = []
    if targets:
        checkpoints, pulls = _parts(context.run, recipe, target, method, key, texts)
        neighbors = _neighbors(context.run, method, key, tables[target], texts)
    else:
        skipped = scores.skipped(context.pool).to_pylist()
        reason = next(row["skip_reason"] for row in skipped if (row["source"], row["id"]) == key)
    messages = texts.messages(key)
    return Explanation(
        *key,
        target=target,
        method=method,
        selected=place,
        reason=reason,
        tokens=int(context.pool.lengths[number]),
        targets=targets,
        checkpoints=checkpoints,
        pulls=[pull for pull in pulls if pull.part > 0][:PULLS],
        pushes=[pull for pull in reversed(pulls) if pull.part < 0][:PULLS],
        neighbors=neighbors,
        messages=messages,
        notes=texts.notes,
    )


def _context(run: RunFolder | str | Path) -> Context:
    run = run if isinstance(run, RunFolder) else RunFolder(run)
    if not run.recipe.is_file():
        todo = "Give the folder that was --out of `gradsieve run`."
        raise RunError("This is no run's folder: it has no recipe.yaml.", str(run.path), todo)
    return Context(load_recipe(run.recipe), run)


def _one_of(name: str | None, known: Sequence[str], option: str) -> str:
    if name is None and len(known) == 1:
        return known[0]
    if name in known:
        return str(name)
    what = f"There is no {option[2:]} {name}." if name else f"The run has several {option[2:]}s."
    raise UsageError(what, option, _nearest(name or "", known))


def _nearest(given: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(given, known, n=3)
    some = near or known[:5]
    more = f" and {len(known) - len(some)} more" if not near and len(known) > len(some) else ""
    return (
        f"{'Did you mean' if near else 'There are'} {', '.join(some)}{more}{'?' if near else '.'}"
    )


def _find(pool: Pool, id: str, source: str | None) -> int:
    """The number of the example with an id."""
    if source is not None:
        _one_of(source, sorted(pool.sources), "--source")
    sources = [name for name in sorted(pool.sources) if pool.find(name, id) is not None]
    wanted = [name for name in sources if source in (None, name)]
    if len(wanted) == 1:
        number = pool.find(wanted[0], id)
        assert number is not None
        return number
    if wanted:
        todo = "Say which one: --source (in Python, source=...)."
        raise UsageError(f"Several rows have the id {id}.", f"sources {', '.join(sources)}", todo)
    where = "the pool" if source is None else f"source {source}"
    ids = pool.take(pool.order, ["id"])["id"]
    todo = f"It is in {', '.join(sources)}." if sources else _nearest(id, ids.to_pylist())
    raise UsageError(f"There is no row with the id {id!r}.", where, todo)


class _Table:
    """A target's scores by a method."""

    def __init__(self, file: Path) -> None:
        if not file.is_file():
            todo = "Run `gradsieve score` with the run's recipe."
            raise RunError("There are no scores of this target and method.", str(file), todo)
        self._table = read_scores(file)

    def __contains__(self, key: Key) -> bool:
        return self._table.find(*key) is not None

    def of(self, key: Key) -> TargetScore:
        line, table = self._table.find(*key), self._table
        assert line is not None
        subtasks = dict(zip(table.subtasks, table.by_subtask[line].tolist(), strict=True))
        return TargetScore(float(table.total[line]), int(table.ranks[line]), len(table), subtasks)


class _Texts:
    """What rows and examples say, read when first asked for; a note where it can't be."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.notes: list[str] = []
        self._targets: dict[Key, Example] | None = None

    def messages(self, key: Key) -> list[Message] | None:
        found = self._row(key)
        return None if found is None else list(found.messages)

    def row(self, key: Key) -> str | None:
        return _text(self._row(key))

    def _row(self, key: Key) -> Example | None:
        pool = self._context.pool
        number = pool.find(*key)
        return None if number is None else pool.example(number)

    def example(self, target: str, id: str) -> str | None:
        if self._targets is None:
            self._targets = self._read_targets()
        return _text(self._targets.get((target, id)))

    def _read_targets(self) -> dict[Key, Example]:
        try:
            targets = self._context.targets
        except DataError as error:
            what, where = error.what, error.where
            self.notes.append(f"the targets' examples cannot be read any more: {what} ({where})")
            return {}
        return {(target.name, e.id): e for target in targets for e in target.examples}


def _text(example: Example | None) -> str | None:
    if example is None:
        return None
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in example.messages)


def _selected(
    run: RunFolder, recipe: Recipe, target: str, method: str, key: Key
) -> tuple[int | None, str | None]:
    """The row's place in the selection; or why it has none."""
    files = Artifacts(run).selections.of(recipe, target, method)
    if run.metadata("select") is None or not files.messages.is_file():
        return None, "nothing has been selected yet"
    chosen = 0
    for record in read_lines(files.messages):
        chosen += 1
        if (record["source"], record["id"]) == key:
            return record["rank"], None
    for record in read_lines(files.dropped):
        if (record["source"], record.get("id")) == key:
            return None, record["reason"]
    return None, f"the {chosen} rows of the selection come before it"


def _parts(
    run: RunFolder, recipe: Recipe, target: str, method: str, key: Key, texts: _Texts
) -> tuple[dict[str, list[float]], list[Pull]]:
    """By subtask what each checkpoint adds; and each example's part, most first."""
    comes_apart = can_attribute(recipe, method)
    if not comes_apart and method != "less":
        texts.notes.append(f"scores of {method} don't come apart by checkpoint or target example")
        return {}, []
    name = _row_keys(run).get(key)
    if name is None:
        texts.notes.append("the features that are there now are not those of the scores")
        return {}, []
    if not comes_apart:
        texts.notes.append("features.mode: exact keeps no gradients to take scores apart with")
        return _exact_parts(run, target, name), []
    found = attribute(run, recipe, target, [key], method)
    parts, of = found.parts[:, 0], np.array(found.subtasks)
    by_subtask = {
        name: parts[:, of == name].sum(axis=1).tolist() for name in sorted(set(found.subtasks))
    }
    pulls = [
        Pull(id, subtask, part, texts.example(target, id))
        for id, subtask, part in zip(
            found.ids, found.subtasks, parts.sum(axis=0).tolist(), strict=True
        )
    ]
    return by_subtask, sorted(pulls, key=lambda pull: -pull.part)


def _exact_parts(run: RunFolder, target: str, name: RowKey) -> dict[str, list[float]]:
    """What each checkpoint adds, from the cosines that exact mode keeps."""
    artifacts = Artifacts(run)
    by_subtask: dict[str, list[float]] = {}
    checkpoints, weights = artifacts.features.checkpoints, artifacts.warmup.weights
    for checkpoint, weight in zip(checkpoints, weights, strict=True):
        store = checkpoint.store("exact")
        cosines = store.read(store.find([name]))[0]
        for (owner, subtask), cosine in zip(
            store.settings["exact"]["columns"], cosines.tolist(), strict=True
        ):
            if owner == target:
                by_subtask.setdefault(subtask, []).append(float(weight) * cosine)
    return by_subtask


def _neighbors(
    run: RunFolder, method: str, key: Key, table: _Table, texts: _Texts
) -> list[Neighbor]:
    """The rows with the largest cosines to this one at the last checkpoint."""
    from gradsieve.store import open_store

    path = _last_store(run, method)
    names = _row_keys(run)
    if path is None or key not in names:
        texts.notes.append("there is no datastore with its gradient, so no neighbors can be told")
        return []
    store = open_store(path)
    row = store.read(store.find([names[key]]))
    direction = row / max(float(np.linalg.norm(row)), 1e-30)
    # Features may be newer than scores, and have rows that have none yet.
    others = [name for of, name in names.items() if of in table and of != key]
    at = dict(zip(store.find(others).tolist(), others, strict=True))
    found = [
        (cosine, at[position].source, at[position].id)
        for block in store.similarities(direction, np.array(list(at), dtype=np.int64))
        for position, cosine in zip(
            block.positions.tolist(), block.cosines[:, 0].tolist(), strict=True
        )
    ]
    nearest = sorted(found, key=lambda one: (-one[0], one[1:]))[:NEIGHBORS]
    neighbors = []
    for cosine, *other in nearest:
        its_key: Key = (other[0], other[1])
        its = table.of(its_key)
        neighbors.append(Neighbor(*its_key, cosine, its.score, its.rank, texts.row(its_key)))
    return neighbors


def _last_store(run: RunFolder, method: str) -> Path | None:
    """The datastore at the last checkpoint, of plain gradients for the method that uses them."""
    if run.metadata("features") is None:
        return None
    stores = Artifacts(run).features.last_stores()
    own = [store for store in stores if (store.name == "pool-sgd") == (method == "sgd")]
    return next(iter(own or stores), None)


def _row_keys(run: RunFolder) -> dict[Key, RowKey]:
    """The datastore's key of each example that has a feature; none while features are made."""
    return {} if run.metadata("features") is None else row_keys(run)
