"""Which stages of a run belong together, and which are out of date.

In: the metadata that finished stages left. A stage's inputs hold fingerprints of the outputs that
it read, so a later change of any of them shows. Neither models nor data are read.
"""

from __future__ import annotations

from collections.abc import Mapping
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
"""Keys under which a stage's inputs hold fingerprints of an earlier stage's outputs: which stage,
and where its metadata has them."""


def outdated(run: RunFolder) -> dict[str, str]:
    """The finished stages whose inputs have changed since, and what changed, in order.

    A warm-up serves a pool that has changed since (`--from features`), and so do features: those of
    removed rows are ignored, and scoring asks for those of new ones (`--from score`).
    """
    found: dict[str, str] = {}
    for name in STAGE_NAMES:
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


def upstream(run: RunFolder, name: str) -> set[str]:
    """The stage, and all whose outputs it has read, directly or through another stage."""
    return {name}.union(*(upstream(run, other) for other in _read_by(run, name)))


def _read_by(run: RunFolder, name: str) -> dict[str, tuple[Any, Any]]:
    """For each earlier stage that a finished one has read: fingerprints then, and now."""
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
    """Whether what was read is still there; all but the pool may have become more, or less."""
    if stage != "pool" and isinstance(then, Mapping) and isinstance(now, Mapping):
        return agree(then, now)
    return bool(then == now)
