"""Which stages of a run belong together, and which are out of date.

In: the metadata of finished stages. A stage's inputs contain fingerprints of the outputs that it
read, so later changes to these outputs are detected. Neither models nor data are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gradsieve.io import agree
from gradsieve.runs.folder import STAGE_NAMES, RunFolder

MADE_BY = {
    "pool": ("pool", "output"),
    "checkpoints": ("warmup", "output"),
    "features": ("features", "output"),
    "scores": ("score", "output"),
    "selections": ("select", "selections"),
    "models": ("train", "models"),
}
"""Keys under which a stage's inputs hold fingerprints of an earlier stage's outputs, each with that
stage's name and the key of its metadata that has the current fingerprints."""


def outdated(run: RunFolder, stages: Sequence[str] = STAGE_NAMES) -> dict[str, str]:
    """The finished stages whose inputs have changed since they ran, and what changed, in order.

    `stages` are the first of all stages: no metadata of later ones is read.

    A warm-up stays valid when the pool changes (`--from features`), and so do features: those of
    removed rows are ignored, and scoring asks for those of new rows (`--from score`).
    """
    found: dict[str, str] = {}
    for name in stages:
        if name == "warmup":
            continue
        for other, (then, now) in _read_by(run, name).items():
            if other in found:
                found.setdefault(name, f"{other} is out of date")
            elif now is None:
                found.setdefault(name, f"{other} is not finished")
            elif not _holds(other, then, now) and (name, other) != ("features", "pool"):
                found.setdefault(name, f"{other} has changed since")
    return found


def update(run: RunFolder, stale: Iterable[str]) -> str:
    """The command that updates these stages, outdated and in order, but keeps an earlier warm-up.

    Instead of with scores it starts with the features that they read: new rows have none yet.
    """
    first = next(iter(stale), "train")
    reads_features = first == "score" and "features" in _read_by(run, first)
    return f"gradsieve run --from {'features' if reads_features else first}"


def upstream(run: RunFolder, name: str) -> set[str]:
    """The stage and all stages whose outputs it has read, directly or through another stage."""
    return {name}.union(*(upstream(run, other) for other in _read_by(run, name)))


def _read_by(run: RunFolder, name: str) -> dict[str, tuple[Any, Any]]:
    """Output fingerprints, then and now, of each earlier stage that a finished stage has read."""
    inputs = (run.metadata(name) or {}).get("inputs", {})
    earlier = STAGE_NAMES[: STAGE_NAMES.index(name)]
    found = {}
    for key, (other, output) in MADE_BY.items():
        if other in earlier and inputs.get(key):
            found[other] = inputs[key], (run.metadata(other) or {}).get(output)
    for other, then in inputs.get("stages", {}).items():
        found[other] = then, (run.metadata(other) or {}).get("output")
    return found


def _holds(stage: str, then: Any, now: Any) -> bool:
    """Whether the outputs read are unchanged; entries may come or go, except in the pool."""
    if stage != "pool" and isinstance(then, Mapping) and isinstance(now, Mapping):
        return agree(then, now)
    return bool(then == now)
