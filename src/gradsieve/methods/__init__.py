"""Selection methods behind one call: LESS and the baselines.

In: a `ScoringTask`: the pool, the target examples, and for some methods gradients. Out: `Scores`
for each target. A method is an object with `source`, `uses` and `score`. The built-in methods are
listed below; others come from the entry-point group `gradsieve.methods`, or from a file that the
recipe names (`my.py:Longest`).

A name may end in a random seed (`random-1` is `random` with seed 1), followed by the budget of a
selection (`random-1@0.05`).
"""

from __future__ import annotations

import importlib
import re
from contextlib import suppress
from importlib.metadata import entry_points
from typing import cast

from gradsieve.errors import UsageError, did_you_mean
from gradsieve.methods.base import Features, Method, Scores, ScoringTask
from gradsieve.methods.own import checked_method, load_method, score_by_own, users_code
from gradsieve.recipe.schema import Recipe

__all__ = [
    "METHODS",
    "Features",
    "Method",
    "Scores",
    "ScoringTask",
    "all_members",
    "find_method",
    "members",
    "needs_gradients",
    "score_by",
    "split_seed",
    "uses_gradients",
]

METHODS = {
    "less": "influence:LESS",
    "dot": "influence:DOT",
    "sgd": "influence:SGD",
    "gist": "influence:GIST",
    "knn_kde": "diverse:KNN_KDE",
    "less_greedy": "diverse:LESS_GREEDY",
    "fusion": "fusion:FUSION",
    "random": "random:RANDOM",
    "random_balanced": "random:RANDOM_BALANCED",
    "full": "random:FULL",
    "bm25": "lexical:BM25",
    "dsir": "lexical:DSIR",
    "rds": "embeddings:RDS",
    "rds_plus": "embeddings:RDS_PLUS",
    "embedding": "embeddings:EMBEDDING",
    "perplexity_middle": "perplexity:MIDDLE",
    "perplexity_top": "perplexity:TOP",
}
"""Maps names to `module:object` in this package; imported on use, since some take seconds."""

TAKEN = {*METHODS, "base", "warmed_up"}
"""Reserved names: methods, and the models that are evaluated before training."""

GROUP = "gradsieve.methods"
_SEEDED = re.compile(r"(.+?)-(\d+)(@.+)?")


def split_seed(name: str) -> tuple[str, int]:
    """`random-1` to ("random", 1), `less` to ("less", 0), `random-1@0.05` to ("random@0.05", 1)."""
    found = _SEEDED.fullmatch(name)
    return (found[1] + (found[3] or ""), int(found[2])) if found else (name, 0)


def find_method(name: str, recipe: Recipe | None = None) -> Method:
    """Find a method by its name in the recipe, or by the name of a selection.

    Raises:
        UsageError: If there is no such method; the message suggests the closest name.
    """
    name = name.partition("@")[0]
    base, seed = split_seed(name)
    files = recipe.score.files if recipe else {}
    if base in files:
        if base in TAKEN:
            raise UsageError(
                f"Your method has the reserved name {base}.",
                f"score.methods: {files[base]}",
                f"Give it another name, e.g. score.files: {{my_{base}: {files[base]}}}.",
            )
        return load_method(files[base])
    if base in METHODS:
        module, _, attribute = METHODS[base].partition(":")
        return cast(Method, getattr(importlib.import_module(f"{__name__}.{module}"), attribute))
    others = {point.name: point for point in entry_points(group=GROUP)}
    if base in others:
        where = f"score.methods: {base}, entry point {others[base].value}"
        with users_code(where):
            found = others[base].load()
        return checked_method(found, base, where)
    where = f"score.methods: {name} is {base} with seed {seed}" if name != base else "score.methods"
    todo = did_you_mean(base, [*METHODS, *others])
    raise UsageError(f"There is no method {base}.", where, todo)


def score_by(name: str, task: ScoringTask) -> dict[str, Scores]:
    """Score the pool with a method, for every target.

    Raises:
        UsageError: If a user's own method fails or returns anything but scores.
    """
    method, base = find_method(name, task.recipe), split_seed(name)[0]
    return method.score(task) if base in METHODS else score_by_own(method, base, task)


def members(name: str, recipe: Recipe) -> list[str]:
    """The methods that a method consists of: itself, or those in `score.fusion`."""
    return recipe.score.fusion if name.partition("@")[0] == "fusion" else [name]


def all_members(recipe: Recipe) -> list[str]:
    """All methods that must compute scores, without duplicates."""
    return list(dict.fromkeys(m for name in recipe.score.methods for m in members(name, recipe)))


def uses_gradients(name: str, recipe: Recipe) -> bool:
    """Whether a method reads a datastore (of Adam updates or of plain gradients)."""
    found = [find_method(member, recipe) for member in members(name, recipe)]
    return any("gradients" in method.uses for method in found)


def needs_gradients(recipe: Recipe) -> bool:
    """Whether a recipe needs a warm-up and features; unknown methods are ignored."""
    for name in all_members(recipe):
        with suppress(UsageError):  # `check` reports it together with all other errors
            if uses_gradients(name, recipe):
                return True
    return recipe.select.near_duplicates is not None
