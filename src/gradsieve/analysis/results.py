"""The paper's table: how models trained on each method's selection do on each target.

In: the folders of runs with an evaluate stage. Out: a `Comparison`: method x target with mean and
deviation over seeds, the difference to `random` with an interval, the overlap of selections and
each method's cost. A method's seeds (`random`, `random-1`, ...) and the training's seeds count as
repetitions of one method, and so do several runs. Results of an earlier selection are left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gradsieve.analysis.bootstrap import difference
from gradsieve.analysis.tables import Cell, Comparison
from gradsieve.errors import RunError
from gradsieve.io import differences, first_few, read_lines
from gradsieve.methods import split_seed
from gradsieve.recipe.load import load_recipe
from gradsieve.recipe.schema import TOGETHER, Effect
from gradsieve.runs.artifacts import Artifacts
from gradsieve.runs.folder import RunFolder
from gradsieve.runs.lineage import outdated

UNTRAINED = ("base", "warmed_up")
"""Models that runs may share: one model is no repetition of itself."""

DECISIVE: tuple[Effect, ...] = ("yes", "contents")
"""Effects of keys in which repetitions must agree; seeds, methods and targets may differ."""

SELECTED = pa.schema(
    [("source", pa.string()), ("id", pa.string()), ("score", pa.float64()),
     ("subtask", pa.string()), ("reason", pa.string())]
)  # fmt: skip
AT_ONCE = 10_000
"""Records of a file read at a time."""


def compare(runs: Sequence[str | Path]) -> Comparison:
    """Read runs and compare their methods.

    Args:
        runs: Folders of runs.

    Raises:
        RunError: If a run has not been evaluated, or not since its selections changed, or two on
            different questions of a target.
    """
    folders = [RunFolder(run) for run in runs]
    comparison = Comparison()
    by_run = [_results(run, comparison.notes) for run in folders]
    comparison.notes.extend(_differing(folders, by_run))
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for result in (result for found in by_run for result in found):
        key = (result["target"], result["metric"], split_seed(result["method"])[0])
        group = groups.setdefault(key, [])
        same = (other["by_question"] == result["by_question"] for other in group)
        if result["method"] not in UNTRAINED or not any(same):
            group.append(result)
    for (target, metric, method), found in groups.items():
        random = _random_of(groups, target, metric, method)
        cell = _cell(found, random)
        comparison.cells.setdefault(target, {}).setdefault(metric, {})[method] = cell
    for run in folders:
        _add_selections(comparison, run)
    return comparison


def _random_of(
    groups: Mapping[tuple[str, str, str], list[dict[str, Any]]],
    target: str,
    metric: str,
    method: str,
) -> list[dict[str, Any]]:
    """The results of `random`, of the same size where selections have several."""
    base, mark, size = method.partition("@")
    random = f"random{mark}{size}"
    return groups.get((target, metric, random), []) if base != "random" else []


def records_of(file: Path) -> Iterator[pa.Table]:
    """Sources, ids, scores, subtasks and reasons of the records of a selection's file, in blocks.

    `selected.jsonl` may have an id of the row's own; read `messages.jsonl`.
    """
    records = read_lines(file)
    while block := list(islice(records, AT_ONCE)):
        yield pa.Table.from_pylist(block, schema=SELECTED)
    yield SELECTED.empty_table()


def _results(run: RunFolder, notes: list[str]) -> list[dict[str, Any]]:
    """The current rows of results.json, each with its numbers by question."""
    run.require("evaluate")
    artifact, stale = Artifacts(run).results, _outdated_models(run)
    found: list[dict[str, Any]] = []
    left_out: dict[str, None] = {}
    for row in artifact.rows():
        if row["method"] not in UNTRAINED and f"{row['target']}/{row['method']}" in stale:
            left_out[f"{row['target']}/{row['method']}"] = None
            continue
        result = artifact.result(artifact.name(row))
        row["by_question"] = result["metrics"][row["metric"]]
        own = row["metric"] == "target_loss"  # of the target's examples, not of the questions
        row["weights"], row["ids"] = (
            None if own else result.get(key) for key in ("weights", "ids")
        )
        row["run"] = str(run.path)
        found.append(row)
    todo = f"run `gradsieve run` with its recipe and --out {run.path}"
    if left_out and all(row["method"] in UNTRAINED for row in found):
        raise RunError(
            "The results are out of date: they are of models trained on earlier selections.",
            f"{run.stage('evaluate')}: {', '.join(left_out)}",
            f"To train and evaluate on the current selections, {todo}.",
        )
    if left_out:
        notes.append(
            f"{run.path}: results of {', '.join(left_out)} are out of date and left out: the "
            f"selections have changed since; {todo}"
        )
    notes += [
        f"{run.path}: {stage} is out of date: {reason}; {todo}"
        for stage, reason in outdated(run).items()
        if stage in ("score", "select")
    ]
    return found


def _outdated_models(run: RunFolder) -> set[str]:
    """TARGET/METHOD of the evaluated models whose selection is another one now."""
    trained = (run.metadata("train") or {}).get("inputs", {}).get("selections", {})
    models = (run.metadata("train") or {}).get("models", {})
    evaluated = run.require("evaluate").get("inputs", {}).get("models", {})
    selected = (run.metadata("select") or {}).get("selections", {})
    targets = (run.metadata("evaluate") or {}).get("inputs", {}).get("targets", {})
    found = set()
    for name, weights in evaluated.items():
        target, method, _ = name.split("/")
        selection = f"{target}/{method}"
        now = selected.get(selection)
        if now is None or trained.get(selection) != now or models.get(name) != weights:
            found |= {f"{one}/{method}" for one in (targets if target == TOGETHER else [target])}
    return found


def _differing(runs: Sequence[RunFolder], results: Sequence[list[dict[str, Any]]]) -> list[str]:
    """Notes on runs that count as repetitions of each other though their settings differ."""
    selections = [
        {(row["target"], row["method"]) for row in found if row["method"] not in UNTRAINED}
        for found in results
    ]
    notes = []
    for (one, first), (other, second) in combinations(zip(runs, selections, strict=True), 2):
        settings, others = _settings(one), _settings(other)
        shared = settings["targets"].keys() & others["targets"].keys()
        for one_run in (settings, others):
            one_run["targets"] = {name: one_run["targets"][name] for name in shared}
        changes = differences(settings, others)
        if changes and first & second:
            notes.append(
                f"{one.path} and {other.path} count as repetitions of each other and differ in "
                + first_few(changes)
            )
    return notes


def _settings(run: RunFolder) -> dict[str, Any]:
    """The keys of a run's recipe that change its results, as they are marked in the schema."""
    if not run.recipe.is_file():
        return {"targets": {}}
    recipe = load_recipe(run.checked_recipe())
    return {
        **recipe.results(DECISIVE),
        "pool": {source.name: source.results(DECISIVE) for source in recipe.pool},
        "targets": {target.name: target.results(DECISIVE) for target in recipe.targets},
    }


def _cell(found: list[dict[str, Any]], random: list[dict[str, Any]]) -> Cell:
    _check_questions([*found, *random])
    values = [result["value"] for result in found]
    gap, weights = None, found[0]["weights"]
    if random and weights is not None:
        gap = difference(_by_question(found), _by_question(random), np.array(weights))
    return Cell(
        values=values,
        mean=statistics.fmean(values),
        deviation=statistics.stdev(values) if len(values) > 1 else None,
        over_random=gap,
        higher_is_better=found[0]["higher_is_better"],
    )


def _check_questions(results: list[dict[str, Any]]) -> None:
    """Refuse results of which the numbers don't stand for the same questions in the same order."""
    first = results[0]
    for other in results[1:]:
        if other["ids"] != first["ids"]:
            pairs = zip_longest(first["ids"], other["ids"])
            one, two = next(pair for pair in pairs if pair[0] != pair[1])
            raise RunError(
                "The runs were evaluated on different questions.",
                f"target {first['target']}: {len(first['ids'])} in {first['run']}, "
                f"{len(other['ids'])} in {other['run']}; the first to differ: {one}, {two}",
                "Compare runs with the same target, test file and evaluate.limit.",
            )


def _by_question(results: list[dict[str, Any]]) -> NDArray[np.float64]:
    """A row per model [m, Q]; NaN where it wasn't asked."""
    table = [[np.nan if v is None else v for v in result["by_question"]] for result in results]
    return np.array(table, dtype=np.float64)


def _add_selections(comparison: Comparison, run: RunFolder) -> None:
    """Sizes, overlaps and costs of a run's selections."""
    scores, select = Artifacts(run).scores, run.require("select")
    steps = [meta["seconds"] for name in ("warmup", "features") if (meta := run.metadata(name))]
    for name, facts in scores.metadata["methods"].items():
        cost = facts["seconds"] + (sum(steps) if scores.reads_gradients(name) else 0)
        comparison.seconds.setdefault(split_seed(name)[0], cost)
    for name, methods in select["targets"].items():
        shares = _overlaps(run, name, methods)
        for target in list(comparison.cells) if name == TOGETHER else [name]:
            for method, facts in methods.items():
                rows = comparison.rows.setdefault(target, {})
                rows.setdefault(split_seed(method)[0], facts["rows"])
            for (one, other), share in shares.items():
                found = comparison.overlap.setdefault(target, {}).setdefault(one, {})
                found.setdefault(other, share)


def _overlaps(
    run: RunFolder, name: str, methods: Mapping[str, Any]
) -> dict[tuple[str, str], float]:
    """Shared rows over the smaller selection, for each two methods; of their seeds the first."""
    selections = Artifacts(run).selections
    chosen = {
        method: pa.concat_tables(records_of(selections.selection(name, method).messages)).select(
            ["source", "id"]
        )
        for method in methods
        if method == split_seed(method)[0] != "full"
    }
    return {
        (one, other): overlap(chosen[one], chosen[other])
        for one, other in combinations(chosen, 2)
        if one.partition("@")[2] == other.partition("@")[2]  # of the same size
    }


def overlap(one: pa.Table, other: pa.Table) -> float:
    """Shared rows over the smaller selection, of tables of sources and ids."""
    shared = one.join(other, one.column_names, join_type="inner")
    return len(shared) / min(len(one), len(other))
