"""Settings of finished stages that differ from the recipe's.

In: a stage's metadata, and a recipe. Out: the differences. Neither models nor data are read, except
for checkpoints whose paths in the recipe have changed.
"""

from __future__ import annotations

from pathlib import Path

from gradsieve.io import differences
from gradsieve.models.checkpoints import checkpoint_fingerprint
from gradsieve.recipe.schema import Recipe
from gradsieve.recipe.section import CHANGES
from gradsieve.runs.folder import RunFolder


def changed_settings(run: RunFolder, recipe: Recipe, name: str) -> list[str]:
    """Settings of a stage, if finished, that change results and differ from the recipe's.

    Each is a line such as `select.count: 9 -> 10`.
    """
    metadata = run.metadata(name)
    if metadata is None:
        return []
    # A stage's inputs hold the settings that its results depend on, under its section's name.
    inputs = metadata.get("inputs", {})
    made = {key: dict(inputs[key]) for key in (name, "training") if inputs.get(key)}
    now = {
        key: section.results((*CHANGES, "adds"))
        for key in made
        if (section := getattr(recipe, key)) is not None
    }
    if name == "warmup":  # its checkpoints are trained, or named by the recipe
        used = metadata["checkpoints"] if inputs.get("checkpoints") else None
        named = [str(Path(folder).resolve()) for folder in recipe.warmup.checkpoints or ()]
        if used and named != used and [*map(_print, named)] == metadata.get("fingerprints"):
            named = used  # the same checkpoints at another path
        made["warmup"] = {**made.get("warmup", {}), "checkpoints": used}
        now["warmup"] = {**recipe.warmup.results(), "checkpoints": named or None}
    return differences(
        {key: made[key] for key in now},
        {key: {part: values.get(part) for part in made[key]} for key, values in now.items()},
    )


def _print(folder: str) -> str | None:
    return checkpoint_fingerprint(Path(folder)) if Path(folder).is_dir() else None
