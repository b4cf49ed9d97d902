"""Stage 4: the influence of each row of the pool on each subtask (method.md, steps 4 and 5).

In: the datastores and the targets' gradients. Out: `03-score/TARGET/METHOD.parquet` with columns
source, id, score, subtask (the one that gave the maximum) and one column a subtask, in order of
(source, id). All targets are scored in one pass over each checkpoint's datastore.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gradsieve.context import Context
from gradsieve.errors import StoreError
from gradsieve.rundir import atomic, fingerprint, folder_fingerprint
from gradsieve.store import RowKey, open_store

if TYPE_CHECKING:
    from numpy.typing import NDArray

Column = tuple[str, str]
"""(target, subtask) of a column of scores."""

Blocks = Iterator[tuple[list[RowKey], "NDArray[np.float32]"]]
"""Keys of rows, and their cosines [n, S]."""


def inputs(context: Context) -> dict[str, Any]:
    """What this stage depends on."""
    features = context.run.done("features")
    return {
        "score": context.recipe.score.model_dump(mode="json"),
        "features": features["output"],
        "learning_rates": context.run.done("warmup")["learning_rates"],
        "targets": [target.name for target in context.recipe.targets],
    }


def run(context: Context, folder: Path) -> dict[str, Any]:
    """Score every row for every target."""
    keys = _pool_keys(context.run.stage("features") / "rows.parquet")
    position = {key: index for index, key in enumerate(keys)}
    rates = np.array(context.run.done("warmup")["learning_rates"], dtype=np.float64)
    names: list[Column] = []
    scores = np.zeros((0, 0))
    for number, weight in enumerate(rates / rates.sum(), start=1):
        where = context.run.stage("features") / f"checkpoint-{number}"
        names, blocks = _cosines(context, where, set(position))
        scores = scores if scores.size else np.zeros((len(keys), len(names)), dtype=np.float64)
        added = np.zeros(len(keys), dtype=bool)
        what = f"scores, checkpoint {number} of {len(rates)}"
        with context.progress.counting(what, len(keys), "rows") as report:
            for block, cosines in blocks:
                here = [position[key] for key in block]
                scores[here] += weight * cosines
                added[here] = True
                report(int(added.sum()))
        if not added.all():
            raise _rows_missing(where, keys, added)
    means = {
        target.name: _write(context, folder, target.name, keys, names, scores)
        for target in context.recipe.targets
    }
    return {"rows": len(keys), "targets": means, "output": fingerprint(_prints(context, folder))}


def _pool_keys(file: Path) -> list[RowKey]:
    """The rows that have features, in order of (source, id)."""
    import pyarrow.parquet as pq

    rows = pq.read_table(file, columns=["source", "id", "content"]).to_pylist()
    return sorted(RowKey(**row) for row in rows if row["content"])


def _directions(context: Context, folder: Path) -> tuple[list[Column], NDArray[np.float32]]:
    """The columns and the direction of each, all targets side by side."""
    from safetensors.torch import safe_open

    from gradsieve.influence.similarity import subtask_directions

    names: list[Column] = []
    parts = []
    for target in context.recipe.targets:
        with safe_open(folder / f"{target.name}.safetensors", "pt") as file:
            subtasks = json.loads(file.metadata()["gradsieve"])["subtasks"]
            rows = file.get_tensor("features")
        found, directions = subtask_directions(rows, subtasks, context.recipe.score.target_mean)
        names += [(target.name, subtask) for subtask in found]
        parts.append(directions.numpy())
    return names, np.concatenate(parts)


def _cosines(context: Context, where: Path, wanted: set[RowKey]) -> tuple[list[Column], Blocks]:
    """The columns at one checkpoint, and blocks of rows with their cosine to each."""
    if context.recipe.features.mode == "store":
        names, directions = _directions(context, where / "targets")
        return names, open_store(where / "pool").similarities(directions, wanted)
    store = open_store(where / "exact")
    names = [(target, subtask) for target, subtask in store.settings["exact"]["columns"]]
    blocks = store.shards(wanted)
    return names, ((b.keys, b.directions * b.feature_norms[:, None]) for b in blocks)


def _rows_missing(where: Path, keys: list[RowKey], added: NDArray[np.bool_]) -> StoreError:
    missing = keys[int(np.flatnonzero(~added)[0])]
    return StoreError(
        f"The datastore lacks {int((~added).sum())} of {len(added)} rows.",
        f"{where}, e.g. {missing.source} {missing.id}",
        "Run `gradsieve features` again: it adds only what is missing.",
    )


def _write(
    context: Context,
    folder: Path,
    target: str,
    keys: list[RowKey],
    names: list[Column],
    scores: NDArray[np.float64],
) -> dict[str, float]:
    """Write one target's table; returns the distribution of its scores."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    settings = context.recipe.score
    columns = [index for index, (owner, _) in enumerate(names) if owner == target]
    subtasks = [names[index][1] for index in columns]
    own = scores[:, columns].astype(np.float32)
    best = own.argmax(axis=1)
    total = own.max(axis=1) if settings.across_subtasks == "max" else own.mean(axis=1)
    table = {
        "source": [key.source for key in keys],
        "id": [key.id for key in keys],
        "score": total,
        "subtask": [subtasks[index] for index in best],
    }
    # A subtask may be called like one of the columns above.
    named = {f"subtask:{name}" if name in table else name: name for name in subtasks}
    per_subtask = {column: own[:, i] for i, column in enumerate(named)}
    with atomic(folder / target / f"{settings.method}.parquet") as temporary:
        pq.write_table(pa.table({**table, **per_subtask}), temporary)
    quantiles = {"lowest": 0.0, "median": 0.5, "top 5%": 0.95, "highest": 1.0}
    return {name: float(np.quantile(total, share)) for name, share in quantiles.items()}


def _prints(context: Context, folder: Path) -> list[str]:
    return [folder_fingerprint(folder / target.name) for target in context.recipe.targets]
