"""The state of a stage's folder, and how it is prepared before the stage runs.

In: a stage, its current fingerprint inputs, and its folder. Out: whether it is up to date, resumes,
is extended or starts again, and why. Files that differ from what the stage wrote are archived.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gradsieve.errors import first_few
from gradsieve.io import differences, fingerprint
from gradsieve.runs.artifacts import damaged_error
from gradsieve.runs.context import Context
from gradsieve.runs.files import Fault, Read
from gradsieve.stages.base import Stage


@dataclass(frozen=True)
class State:
    """The state of a stage before it runs.

    Attributes:
        kind: `done`; `new`; `resume`: continues in its folder where it stopped; `extend`: adds to
            outputs for fewer examples, targets, methods or seeds; `redo`: starts again in a new
            folder; `archived`: restored from the archive; `wait`: an earlier stage runs first, and
            determines what can be kept.
        why: What has changed, or which stage runs first.
        faults: Files that differ from what the finished stage wrote.
    """

    kind: Literal["done", "new", "resume", "extend", "redo", "archived", "wait"]
    why: str = ""
    faults: Sequence[Fault] = ()


def states(context: Context, stages: Sequence[Stage]) -> dict[str, State]:
    """The state of each stage as a run would find it; nothing is changed."""
    found: dict[str, State] = {}
    for stage in stages:
        name = stage.name
        waits_for = next((other for other, state in found.items() if state.kind != "done"), None)
        if waits_for is None:
            inputs = stage.fingerprint_inputs(context)
            state = state_of(stage, context, inputs, read="none")
            if state.kind in ("new", "redo") and context.run.can_take_back(name, inputs):
                state = State("archived")
            found[name] = state
        elif context.run.started_with(name) is None:
            found[name] = State("new")
        else:
            found[name] = State("wait", f"{waits_for} comes first")
    return found


def find_state(stage: Stage, context: Context, inputs: dict[str, Any]) -> State:
    """The state of a stage about to run; archived outputs for these inputs are restored."""
    state = state_of(stage, context, inputs)
    if state.kind in ("new", "redo") and context.run.take_back(stage.name, inputs):
        context.progress.say(
            f"{stage.name}: these settings' outputs are taken back from the archive"
        )
        state = state_of(stage, context, inputs)
    return state


def state_of(stage: Stage, context: Context, inputs: dict[str, Any], read: Read = "all") -> State:
    """The state of a stage with these inputs; `read`: which files are read to find damage."""
    run, name = context.run, stage.name
    artifact = context.artifacts.of(name)
    metadata, old = run.metadata(name), run.started_with(name)
    if metadata is not None and metadata.get("fingerprint") == fingerprint(inputs):
        faults = artifact.faults(read)
        broken = [f for f in faults if f.what != "foreign" and artifact.matters(f)]
        if not broken:
            return State("done", faults=faults)
        more = f", and {len(broken) - 1} more files are" if broken[1:] else ""
        return State("resume", f"{broken[0]}{more}", faults)
    if old is None:
        return State("new")
    changes = differences(old, inputs)
    if not changes:
        return State("resume")
    if stage.can_extend(old, inputs):
        faults = artifact.faults(read) if metadata is not None else []
        return State("extend", first_few(changes, separator="; "), faults)
    return State("redo", first_few(changes, separator="; "))


def refuse_faults(stage: Stage, context: Context) -> None:
    """Refuse a stage that is used as it is if its files differ from what was written."""
    artifact = context.artifacts.of(stage.name)
    context.run.restore_inputs(stage.name)
    faults = artifact.faults("unnamed")
    if used := [*filter(artifact.matters, faults)]:
        raise damaged_error(used, stage.name)
    for fault in faults:
        if artifact.is_dispensable(fault.file):
            context.progress.warn(f"{stage.name}: {fault}; it was for display, and is left out")


def clear_faults(stage: Stage, context: Context, faults: Sequence[Fault]) -> None:
    """Archive files that differ from what was written, so that they are not used; warn."""
    artifact, warn = context.artifacts.of(stage.name), context.progress.warn
    for fault in faults:
        if fault.what == "foreign":
            if artifact.matters(fault):
                kept = context.run.archive_part(fault.file)
                warn(f"{stage.name}: {fault.file} was not written by this run: moved to {kept}")
            continue
        parts = artifact.made_with(fault.file)
        if artifact.is_dispensable(fault.file):
            warn(f"{stage.name}: {fault}; it was for display, and is left out")
            parts = [fault.file] if fault.what == "damaged" else []
        for part in parts:
            if part.exists() and part.is_relative_to(context.run.path):
                context.run.archive_part(part)


def prepare(stage: Stage, state: State, context: Context) -> Path | None:
    """Report why a stage runs again; archive outputs of other settings and return their folder."""
    archived = context.run.archive(stage.name) if state.kind == "redo" else None
    how = {
        "resume": state.why or "resuming where it stopped",
        "extend": f"updating ({state.why})",
        "redo": f"running again ({state.why}); the old outputs are in {archived}",
    }
    if state.kind in how:
        context.progress.say(f"{stage.name}: {how[state.kind]}")
    return archived
