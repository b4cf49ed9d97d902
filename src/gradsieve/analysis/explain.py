"""Why one example of the pool was selected, or was not.

In: a finished run, a target, an example's id. Out: an `Explanation`: its scores by target, subtask
and checkpoint, its rank, whether and why it was selected, the contributions of the target's
examples and the examples of the pool with the most similar updates. `notes` list what is missing
and why (a method without gradients, exact mode, moved files, stages that are out of date).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from gradsieve.analysis.decompose import can_decompose, decompose, similarities
from gradsieve.analysis.explanation import Contribution, Explanation, Neighbor, TargetScore
from gradsieve.data.content import text_of
from gradsieve.data.examples import Example
from gradsieve.data.pool import Pool
from gradsieve.errors import DataError, RunError, UsageError, did_you_mean
from gradsieve.io import read_lines
from gradsieve.models.ambient import torch_defaults
from gradsieve.recipe.load import load_recipe
from gradsieve.recipe.schema import SelectionName
from gradsieve.runs.context import Context
from gradsieve.runs.folder import RunFolder
from gradsieve.runs.lineage import outdated, update
from gradsieve.runs.score_table import ScoreTable
from gradsieve.store import Store

NEIGHBORS = 5
"""Number of most similar examples shown."""

CONTRIBUTIONS = 5
"""Number of target examples shown per subtask, positive and negative ones each."""

SUBTASKS = 3
"""Number of subtasks whose examples are shown: those with the highest scores."""

IDS = 10_000
"""Maximum number of ids to compare with an unknown id."""


@torch_defaults()
def explain(
    run: RunFolder | str | Path,
    target: str | None = None,
    *,
    id: str | int,
    source: str | None = None,
    method: str | None = None,
    context: Context | None = None,
) -> Explanation:
    """Explain the score of one example of the pool, and whether it was selected.

    Args:
        run: The run folder.
        target: A target's name; None if there is only one.
        id: The example's id.
        source: The example's source, if the id occurs in several.
        method: The selection method; by default the recipe's first.
        context: Inputs that are already loaded, or in memory.

    Raises:
        RunError: If the folder is not a run, or has no scores.
        UsageError: If an example, target, source or method is unknown, or several examples match.

    Example:
        >>> import gradsieve
        >>> found = gradsieve.explain("runs/first", target="legal", id="00005")
        >>> 1 <= found.score.rank <= found.score.of
        True
        >>> found.positive[0].value >= found.positive[1].value
        True
    """
    run = run if isinstance(run, RunFolder) else RunFolder(run)
    context = context or Context(load_recipe(run.checked_recipe()), run)
    recipe = context.recipe
    context.run.require("score")
    target = _one_of(target, [t.name for t in recipe.targets], "--target")
    selections = recipe.selections_for(target)
    names = {name.method: name for name in reversed(selections)}  # the first of several sizes
    names |= {name.short: name for name in selections}
    method = _one_of(method or recipe.score.methods[0], list(names), "--method")
    return _Explainer(context, names[method]).explain(_find(context.pool, str(id), source))


def _one_of(name: str | None, known: Sequence[str], option: str) -> str:
    if name is None and len(known) == 1:
        return known[0]
    if name in known:
        return str(name)
    what = f"There is no {option[2:]} {name}." if name else f"The run has several {option[2:]}s."
    raise UsageError(what, option, did_you_mean(name or "", known))


def _find(pool: Pool, id: str, source: str | None) -> int:
    """The row number of an example in the pool."""
    if source is not None:
        _one_of(source, pool.source_names, "--source")
    sources = pool.find(id)
    wanted = [number for name, number in sources.items() if source in (None, name)]
    if len(wanted) == 1:
        return wanted[0]
    if wanted:
        todo = "Say which one: --source (in Python, source=...)."
        raise UsageError(f"Several rows have the id {id}.", f"sources {', '.join(sources)}", todo)
    where = "the pool" if source is None else f"source {source}"
    todo = f"It is in {', '.join(sources)}." if sources else _nearest_id(pool, id)
    raise UsageError(f"There is no row with the id {id!r}.", where, todo)


def _nearest_id(pool: Pool, id: str) -> str:
    """A hint with the closest ids: among those with the same start, in a small pool among all."""
    ids = alike = pool.table["id"]
    if len(pool) > IDS:
        start = id[:2].encode("utf-8", "surrogatepass")  # arguments may be invalid UTF-8
        alike = ids.filter(pc.starts_with(ids, start))
    near = get_close_matches(id, alike[:IDS].to_pylist(), n=3)
    return f"Did you mean {', '.join(near)}?" if near else f"The first id is {ids[0]}."


class _Explainer:
    """Reads a run's data on an example, for one target and method."""

    def __init__(self, context: Context, name: SelectionName) -> None:
        self._context, self._pool, self._artifacts = context, context.pool, context.artifacts
        self._target, self._method, self._selection = name.target, name.method, name.short
        changed = outdated(context.run)
        command = update(context.run, changed)
        self._notes = [
            f"{stage} is out of date: {reason}; run `{command}` with the run's recipe"
            for stage, reason in changed.items()
            if stage in ("score", "select")
        ]

    def explain(self, number: int) -> Explanation:
        (key,) = self._pool.keys([number])
        names = [target.name for target in self._context.recipe.targets]
        tables = {name: self._table(name) for name in names}
        targets = {
            name: _score(table, line)
            for name, table in tables.items()
            if (line := table.find(*key)) is not None
        }
        rank, reason = self._selected(*key)
        by_checkpoint: dict[str, list[float]] = {}
        contributions: list[Contribution] = []
        neighbors: list[Neighbor] = []
        if (score := targets.get(self._target)) is not None:
            by_checkpoint, contributions = self._decomposed(number, score)
            neighbors = self._neighbors(number, tables[self._target])
        return Explanation(
            *key,
            target=self._target,
            method=self._selection,
            selected=rank,
            reason=self._skip_reason(*key) if score is None else reason,
            tokens=int(self._pool.lengths[number]),
            targets=targets,
            selected_by_subtask=self._selected_by_subtask(),
            checkpoints=by_checkpoint,
            positive=_strongest([one for one in contributions if one.value > 0]),
            negative=_strongest([one for one in contributions if one.value < 0]),
            neighbors=neighbors,
            messages=list(self._pool.messages([number])[0]),
            notes=self._notes,
        )

    def _table(self, target: str) -> ScoreTable:
        scores = self._artifacts.scores
        if f"{target}/{self._method}" not in scores.metadata["tables"]:  # the recipe has grown
            raise RunError(
                "There are no scores of this target and method.",
                str(scores.table_file(target, self._method)),
                "Run `gradsieve score` with the run's recipe.",
            )
        return scores.table(target, self._method)

    def _skip_reason(self, source: str, id: str) -> str:
        skipped = self._artifacts.scores.skipped(self._pool, self._method)
        found = skipped.filter((pc.field("source") == source) & (pc.field("id") == id))
        return found["skip_reason"][0].as_py() if len(found) else "it was not scored"

    def _selected(self, source: str, id: str) -> tuple[int | None, str | None]:
        """The example's rank in the selection, or the reason why it has none."""
        files = self._artifacts.selections.of(self._context.recipe, self._target, self._selection)
        if self._context.run.metadata("select") is None or not files.messages.is_file():
            return None, "nothing has been selected yet"
        count = 0
        for record in read_lines(files.messages):
            count += 1
            if (record["source"], record["id"]) == (source, id):
                if self._context.recipe.select.together and record["subtask"]:
                    self._notes.append(
                        "all targets have one selection (select.together); this row was taken for "
                        + record["subtask"]
                    )
                return record["rank"], None
        for record in read_lines(files.dropped):
            if (record["source"], record.get("id")) == (source, id):
                return None, record["reason"]
        return None, f"the {count} selected rows rank before it"

    def _selected_by_subtask(self) -> dict[str, int]:
        """The number of selected rows for each subtask, largest first."""
        recipe, metadata = self._context.recipe, self._context.run.metadata("select") or {}
        if recipe.select.together:  # its subtasks are those of all targets
            return {}
        facts = metadata.get("targets", {}).get(self._target, {}).get(self._selection, {})
        return dict(facts.get("subtasks", {}))

    def _decomposed(
        self, number: int, score: TargetScore
    ) -> tuple[dict[str, list[float]], list[Contribution]]:
        """What each checkpoint adds, by subtask, and each target example's contribution."""
        method, can = self._method, can_decompose(self._context.recipe, self._method)
        if not can and method != "less":
            self._notes.append(f"scores of {method} can't be decomposed by target example")
            return {}, []
        store = self._last_store()
        if store is None or self._position(store, number) < 0:
            self._notes.append("the features were made again since, and lack this example")
            return {}, []
        if not can:
            self._notes.append(
                "features.mode: exact keeps no gradients to decompose scores by target example"
            )
            return self._exact(number, score), []
        found = decompose(self._context, self._target, np.array([number]), method)
        values, of = found.values[:, 0], np.array(found.subtasks)
        if best := score.best_examples:  # the others contribute nothing
            pairs = zip(found.ids, found.subtasks, strict=True)
            values = values * [best[subtask] == id for id, subtask in pairs]
        by_subtask = {
            name: values[:, of == name].sum(axis=1).tolist() for name in sorted(set(of.tolist()))
        }
        if method == "less" and self._target in self._artifacts.features.exact_targets:
            by_subtask = self._exact(number, score)
            self._notes.append(
                "scores are exact; contributions of target examples are estimates from the "
                "datastore (features.mode: both)"
            )
        examples = self._target_examples()
        total = values.sum(axis=0).tolist()
        contributions = [
            Contribution(id, subtask, value, *examples.get((subtask, id), (None, "")))
            for id, subtask, value in zip(found.ids, found.subtasks, total, strict=True)
        ]
        scores = score.compared
        contributions.sort(key=lambda one: (-scores[one.subtask], one.subtask, -abs(one.value)))
        return by_subtask, contributions

    def _exact(self, number: int, score: TargetScore) -> dict[str, list[float]]:
        """What each checkpoint adds, by subtask, from the stored cosines of exact mode."""
        by_subtask: dict[str, list[float]] = {}
        checkpoints = self._artifacts.features.checkpoints
        for checkpoint, weight in zip(checkpoints, self._artifacts.warmup.weights, strict=True):
            store = checkpoint.store("exact")
            cosines = store.read(np.array([self._position(store, number)]))[0].tolist()
            columns = store.settings["exact"]["columns"]
            for (owner, subtask, *example), cosine in zip(columns, cosines, strict=True):
                best = score.best_examples.get(subtask)
                if owner == self._target and example == ([] if best is None else [best]):
                    by_subtask.setdefault(subtask, []).append(float(weight) * cosine)
        return by_subtask

    def _neighbors(self, number: int, table: ScoreTable) -> list[Neighbor]:
        """The scored examples with the largest cosines to this one at the last checkpoint."""
        store = self._last_store()
        own = -1 if store is None or "exact" in store.settings else self._position(store, number)
        if store is None or own < 0:
            self._notes.append("there is no datastore with its gradient, so it has no neighbors")
            return []
        row = store.read(np.array([own]))
        direction = row / max(float(np.linalg.norm(row)), 1e-30)
        numbers = table.numbers(self._pool)
        lines = np.flatnonzero((numbers >= 0) & (numbers != number))
        positions = store.positions(self._pool.store_keys(numbers[lines]))
        lines, positions = lines[positions >= 0], positions[positions >= 0]
        cosines = similarities(store, direction, positions)[0][:, 0]
        # Lines are in order of (source, id), and so are neighbors with equal cosines.
        best = np.argsort(-cosines, kind="stable")[:NEIGHBORS]
        lines, cosines = lines[best], cosines[best].tolist()
        scores, ranks = table.total[lines].tolist(), table.ranks[lines].tolist()
        examples = self._pool.examples(numbers[lines])
        return [
            Neighbor(one.source, one.id, cosine, score, rank, _text(one))
            for one, cosine, score, rank in zip(examples, cosines, scores, ranks, strict=True)
        ]

    def _last_store(self) -> Store | None:
        """The datastore at the last checkpoint, with plain gradients if the method uses them."""
        if self._context.run.metadata("features") is None:
            return None
        features = self._artifacts.features
        kind = "pool-sgd" if self._method == "sgd" else "pool"
        kinds = [kind] if kind in features.kinds else features.kinds
        return features.checkpoints[-1].store(kinds[0])

    def _position(self, store: Store, number: int) -> int:
        return int(store.positions(self._pool.store_keys([number]))[0])

    def _target_examples(self) -> dict[tuple[str, str], tuple[str, str]]:
        """Text and place of the target's examples, by subtask and id."""
        try:
            targets = self._context.targets
        except DataError as error:
            why = f"{error.what} ({error.where})"
            self._notes.append(f"the target's examples can't be read any more: {why}")
            return {}
        own = next(target.examples for target in targets if target.name == self._target)
        return {(one.subtask, one.id): (_text(one), one.where) for one in own}


def _score(table: ScoreTable, line: int) -> TargetScore:
    subtasks = dict(zip(table.subtasks, table.by_subtask[line].tolist(), strict=True))
    standardized: dict[str, float] = {}
    if table.standardized is not None:
        standardized = dict(zip(table.subtasks, table.standardized[line].tolist(), strict=True))
    best = {
        name: id
        for column, name in enumerate(table.subtasks)
        if (id := table.best_example(line, column)) is not None
    }
    total, rank = float(table.total[line]), int(table.ranks[line])
    return TargetScore(total, rank, len(table.total), subtasks, standardized, best)


def _strongest(contributions: Sequence[Contribution]) -> list[Contribution]:
    """The first few contributions of each of the first few subtasks."""
    counts: Counter[str] = Counter()
    shown = []
    for one in contributions:
        counts[one.subtask] += 1
        if len(counts) <= SUBTASKS and counts[one.subtask] <= CONTRIBUTIONS:
            shown.append(one)
    return shown


def _text(example: Example) -> str:
    return "\n".join(f"{turn['role']}: {text_of(turn['content'])}" for turn in example.messages)
