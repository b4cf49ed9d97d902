"""The paper's table: how models trained on each method's selection perform on each target.

In: the folders of runs. Out: a `Comparison`: method x target with mean and deviation over seeds,
differences to `random`, all rows and the untrained model with intervals, a verdict, the overlap of
selections, each method's cost, and the results of the `validate` stage. A method's seeds (`random`,
`random-1`, ...) and the training's seeds count as repetitions of one method, and so do several
runs, except for models that they share. Results for outdated selections are left out.
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
from gradsieve.analysis.tables import Comparison
from gradsieve.analysis.validation import read_validation
from gradsieve.analysis.verdict import REFERENCES, TARGET, UNTRAINED, Cell, curve, verdict
from gradsieve.errors import RunError, UsageError, first_few
from gradsieve.io import differences, read_lines
from gradsieve.methods import split_seed
from gradsieve.recipe.load import load_recipe
from gradsieve.recipe.schema import TOGETHER
from gradsieve.recipe.section import Effect
from gradsieve.runs.artifacts import Artifacts
from gradsieve.runs.folder import STAGE_NAMES, RunFolder
from gradsieve.runs.lineage import outdated, update

Result = dict[str, Any]
"""A row of results.json with its values by question, the questions' ids and weights, its run."""

Run = RunFolder | str | Path
"""A run, or its folder."""

Group = tuple[str, str, str]
"""The target, metric and method that repetitions share."""

DECISIVE: tuple[Effect, ...] = ("yes", "contents")
"""Effects of keys in which repetitions must agree; seeds, methods and targets may differ."""

SELECTED = pa.schema(
    [("source", pa.string()), ("id", pa.string()), ("score", pa.float64()),
     ("subtask", pa.string()), ("reason", pa.string())]
)  # fmt: skip
AT_ONCE = 10_000
"""Number of records read from a file at a time."""


def compare(runs: Run | Sequence[Run]) -> Comparison:
    """Read one or several runs, and compare their methods.

    Raises:
        UsageError: If there are no runs.
        RunError: If a run has not been evaluated, or not since its selections changed, or if two
            runs were evaluated on different questions of a target.
    """
    runs = [runs] if isinstance(runs, Run) else runs
    named = [run if isinstance(run, RunFolder) else RunFolder(run) for run in runs]
    # A run that is listed twice is not a repetition of itself.
    folders = [*{run.path.resolve(): run for run in named}.values()]
    if not folders:
        raise UsageError("There is nothing to compare.", "runs: []", "Name one run or more.")
    comparison = Comparison()
    by_run = [_results(run, comparison.notes) for run in folders]
    comparison.notes.extend(_differing(folders, by_run))
    groups: dict[Group, list[Result]] = {}
    first: dict[tuple[str, str], Result] = {}
    for result in (result for found in by_run for result in found):
        target, metric = result["target"], result["metric"]
        _check_questions(first.setdefault((target, metric), result), result)
        group = groups.setdefault((target, metric, split_seed(result["method"])[0]), [])
        # Runs may share a model, untrained or trained on the same rows: it counts once.
        if result["model"] is None or all(result["model"] != other["model"] for other in group):
            group.append(result)
    for (target, metric, method), found in groups.items():
        cell = _cell(found, _references(groups, target, metric, method))
        comparison.cells.setdefault(target, {}).setdefault(metric, {})[method] = cell
    for run, results in zip(folders, by_run, strict=True):
        if results:
            _add_selections(comparison, run, is_alone=len(folders) == 1)
        _add_validation(comparison, run)
    for target, metrics in comparison.cells.items():
        selections, steps = comparison.selections.get(target, {}), comparison.steps.get(target, {})
        leaks = comparison.leaks.get(target, {})
        if found_verdict := verdict(metrics, selections, steps, leaks):
            comparison.verdicts[target] = found_verdict
        if found_curve := curve(metrics, comparison.rows.get(target, {})):
            comparison.curves[target] = found_curve
    return comparison


def _references(
    groups: Mapping[Group, list[Result]], target: str, metric: str, method: str
) -> dict[str, list[Result]]:
    """The results to compare a method with; `random` at its own size if there are several."""
    base, mark, size = method.partition("@")
    named = {name: f"{name}{mark}{size}" if name == "random" else name for name in REFERENCES}
    found = {name: groups.get((target, metric, other)) for name, other in named.items()}
    return {name: results for name, results in found.items() if results and name != base}


def records_of(file: Path) -> Iterator[pa.Table]:
    """Sources, ids, scores, subtasks and reasons of the records in a selection's file, in blocks.

    Use `messages.jsonl`: in `selected.jsonl`, `id` may be a key of the original row.
    """
    records = read_lines(file)
    while block := list(islice(records, AT_ONCE)):
        yield pa.Table.from_pylist(block, schema=SELECTED)
    yield SELECTED.empty_table()


def _results(run: RunFolder, notes: list[str]) -> list[Result]:
    """The up-to-date rows of results.json, each with its values by question."""
    run.stages_there()
    if run.stage("validate").is_dir() and run.metadata("evaluate") is None:
        run.require("validate")
        return []
    inputs = run.require("evaluate").get("inputs", {})
    artifact, stale = Artifacts(run).results, _outdated_models(run, inputs)
    found: list[Result] = []
    left_out: dict[str, None] = {}
    for row in artifact.rows():
        selection = f"{row['target']}/{row['method']}"
        if row["method"] not in UNTRAINED and selection in stale:
            left_out[selection] = None
            continue
        result = artifact.result(artifact.name(row))
        own = row["metric"] == TARGET  # on the target's examples, not on questions
        about = dict.fromkeys(("ids", "weights", "questions"))
        if not own:
            about["ids"], about["weights"] = result["ids"], artifact.weights(result, row["metric"])
            about["questions"] = inputs.get("questions", {}).get(row["target"])
        about["model"] = _model(row, inputs)
        by_question = result["metrics"][row["metric"]]
        found.append({**row, **about, "by_question": by_question, "run": str(run.path)})
    changed = outdated(run, STAGE_NAMES[: STAGE_NAMES.index("train")])
    todo = f"run `{update(run, changed)}` with its recipe and --out {run.path}"
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
        for stage, reason in changed.items()
        if stage in ("score", "select")
    ]
    return found


def _model(row: Result, inputs: Mapping[str, Any]) -> Any:
    """The fingerprint of a result's model; None if unknown."""
    models, name = inputs.get("models", {}), f"{row['method']}/seed-{row['seed']}"
    own = [
        models[of] for target in (row["target"], TOGETHER) if (of := f"{target}/{name}") in models
    ]
    return own[0] if own else inputs.get(row["method"])  # `base` and `warmed_up`


def _outdated_models(run: RunFolder, inputs: Mapping[str, Any]) -> set[str]:
    """TARGET/METHOD of the evaluated models whose selection has changed since."""
    evaluated, targets = inputs.get("models", {}), inputs.get("targets", {})
    train = run.require("train") if evaluated else {}
    trained, models = train.get("inputs", {}).get("selections", {}), train.get("models", {})
    selected = (run.metadata("select") or {}).get("selections", {})
    found = set()
    for name, weights in evaluated.items():
        target, method, _ = name.split("/")
        selection = f"{target}/{method}"
        now = selected.get(selection)
        if now is None or trained.get(selection) != now or models.get(name) != weights:
            found |= {f"{one}/{method}" for one in (targets if target == TOGETHER else [target])}
    return found


def _differing(runs: Sequence[RunFolder], results: Sequence[list[Result]]) -> list[str]:
    """Notes on runs that count as repetitions although their settings or rows differ."""
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
        changes = [*differences(settings, others), *_other_rows(one, other)]
        if changes and first & second:
            notes.append(
                f"{one.path} and {other.path} count as repetitions of each other and differ in "
                + first_few(changes, separator="; ")
            )
    return notes


def _other_rows(one: RunFolder, other: RunFolder) -> list[str]:
    """Sources and targets that have the same name but different rows in two runs."""
    read, others = ((run.metadata("score") or {}).get("inputs", {}) for run in (one, other))
    return [
        f"the {what} `{name}`"
        for key, what in (("pool", "rows of source"), ("targets", "examples of target"))
        for name in sorted(read.get(key, {}).keys() & others.get(key, {}).keys())
        if read[key][name] != others[key][name]
    ]


def _settings(run: RunFolder) -> dict[str, Any]:
    """The recipe keys that change a run's results, according to their marks in the schema."""
    if not run.recipe.is_file():
        return {"targets": {}}
    recipe = load_recipe(run.checked_recipe())
    return {
        **recipe.results(DECISIVE),
        "pool": {source.name: source.results(DECISIVE) for source in recipe.pool},
        "targets": {target.name: target.results(DECISIVE) for target in recipe.targets},
    }


def _cell(found: list[Result], references: Mapping[str, list[Result]]) -> Cell:
    values, weights = [result["value"] for result in found], found[0]["weights"]
    by_question = _by_question(found)
    over = {
        name: gap
        for name, others in references.items()
        if weights is not None
        if (gap := difference(by_question, _by_question(others), np.array(weights)))
    }
    return Cell(
        values=values,
        mean=statistics.fmean(values),
        deviation=statistics.stdev(values) if len(values) > 1 else None,
        questions=int((~np.isnan(by_question).any(0)).sum()),
        higher_is_better=found[0]["higher_is_better"],
        over=over,
    )


def _check_questions(one: Result, other: Result) -> None:
    """Raise if results are not for the same questions in the same order."""
    if one["ids"] != other["ids"]:
        pairs = zip_longest(one["ids"], other["ids"], fillvalue="no question")
        first, second = next(pair for pair in pairs if pair[0] != pair[1])
        why = f"the first to differ are {first} and {second}"
    elif one["questions"] != other["questions"]:
        why = "the ids are the same; the texts, few-shot examples or answers are not"
    else:
        return
    raise RunError(
        "The runs were evaluated on different questions.",
        f"target {one['target']}: {len(one['ids'])} in {one['run']}, "
        f"{len(other['ids'])} in {other['run']}; {why}",
        "Compare runs with the same target, test file, few-shot examples and evaluate.limit.",
    )


def _by_question(results: list[Result]) -> NDArray[np.float64]:
    """Values by model and question [m, Q]; NaN if the model didn't get the question."""
    table = [[np.nan if v is None else v for v in result["by_question"]] for result in results]
    return np.array(table, dtype=np.float64)


def _add_validation(comparison: Comparison, run: RunFolder) -> None:
    """Add the results of the `validate` stage, if they are for the current scores."""
    if run.metadata("validate") is None:
        return
    if reason := outdated(run).get("validate"):
        comparison.notes.append(f"{run.path}: validate is out of date and left out: {reason}")
    else:
        comparison.validation[str(run.path)] = read_validation(Artifacts(run).validation)


def _add_selections(comparison: Comparison, run: RunFolder, is_alone: bool) -> None:
    """Add the sizes, folders, steps, overlaps and costs of a run's selections."""
    scores, selections = Artifacts(run).scores, Artifacts(run).selections
    before = [meta["seconds"] for name in ("warmup", "features") if (meta := run.metadata(name))]
    trained = (run.metadata("train") or {}).get("steps_by_model", {})
    for name, facts in scores.metadata["methods"].items():
        cost = facts["seconds"] + (sum(before) if scores.reads_gradients(name) else 0)
        comparison.seconds.setdefault(split_seed(name)[0], cost)
    for name, methods in run.require("select")["targets"].items():
        shares = _overlaps(run, name, methods)
        for target in list(comparison.cells) if name == TOGETHER else [name]:
            for method, facts in methods.items():
                base, folder = split_seed(method)[0], selections.selection(name, method).folder
                folder = folder.relative_to(run.path) if is_alone else folder
                comparison.rows.setdefault(target, {}).setdefault(base, facts["rows"])
                comparison.selections.setdefault(target, {}).setdefault(base, str(folder))
                if leaks := facts.get("leaks", {}).get(target):
                    comparison.leaks.setdefault(target, {}).setdefault(base, leaks)
                steps = [n for of, n in trained.items() if of.startswith(f"{name}/{method}/")]
                if steps:
                    comparison.steps.setdefault(target, {}).setdefault(base, steps[0])
            for (one, other), share in shares.items():
                found = comparison.overlap.setdefault(target, {}).setdefault(one, {})
                found.setdefault(other, share)


def _overlaps(
    run: RunFolder, name: str, methods: Mapping[str, Any]
) -> dict[tuple[str, str], float]:
    """Shared rows as a fraction of the smaller selection, by pair of methods (first seeds only)."""
    selections, first = Artifacts(run).selections, dict[str, str]()
    for method in methods:
        first.setdefault(split_seed(method)[0], method)
    chosen = {
        base: pa.concat_tables(records_of(file)).select(["source", "id"])
        for base, method in first.items()
        if base != "full"
        for file in [selections.selection(name, method).messages]
    }
    return {
        (one, other): overlap(chosen[one], chosen[other])
        for one, other in combinations(chosen, 2)
        if one.partition("@")[2] == other.partition("@")[2]  # of the same size
    }


def overlap(one: pa.Table, other: pa.Table) -> float:
    """Shared rows as a fraction of the smaller selection, from tables of the rows' keys."""
    shared = one.join(other, one.column_names, join_type="inner")
    return len(shared) / min(len(one), len(other))
