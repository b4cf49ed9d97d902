"""Selection methods behind one call: LESS and the baselines.

In: a `ScoringTask`: the pool, the target examples, and for some methods gradients. Out: `Scores`
for each target. A method is an object with `source`, `uses` and `score`; the built-in ones are
below, others are found by the entry-point group `gradsieve.methods`.

A name may end in a number that seeds what is random in it: `random-1` is `random` with seed 1.
"""

from __future__ import annotations

import importlib
import re
from contextlib import suppress
from importlib.metadata import entry_points
from typing import cast

from gradsieve.errors import UsageError, did_you_mean
from gradsieve.methods.base import Features, Method, Scores, ScoringTask
from gradsieve.recipe.schema import Recipe

__all__ = [
    "METHODS",
    "Features",
    "Method",
    "Scores",
    "ScoringTask",
    "find_method",
    "needs_gradients",
    "split_seed",
    "uses_gradients",
]

METHODS = {
    "less": "influence:LESS",
    "dot": "influence:DOT",
    "sgd": "influence:SGD",
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
"""Name: module and object in this package. Imported when used: some need seconds to load."""

GROUP = "gradsieve.methods"
_SEEDED = re.compile(r"(.+?)-(\d+)")


def split_seed(name: str) -> tuple[str, int]:
    """`random-1` to ("random", 1), `less` to ("less", 0)."""
    found = _SEEDED.fullmatch(name)
    return (found[1], int(found[2])) if found else (name, 0)


def find_method(name: str) -> Method:
    """A method by its name in the recipe.

    Raises:
        UsageError: If there is none; it names the nearest.
    """
    base, _ = split_seed(name)
    if base in METHODS:
        module, _, attribute = METHODS[base].partition(":")
        return cast(Method, getattr(importlib.import_module(f"{__name__}.{module}"), attribute))
    others = {point.name: point for point in entry_points(group=GROUP)}
    if base in others:
        return cast(Method, others[base].load())
    todo = did_you_mean(base, [*METHODS, *others])
    raise UsageError(f"There is no method {base}.", "score.methods", todo)


def uses_gradients(name: str) -> bool:
    """Whether a method reads a datastore, of Adam's updates or of plain gradients."""
    return "gradients" in find_method(name).uses


def needs_gradients(recipe: Recipe) -> bool:
    """Whether a recipe needs a warm-up and features; an unknown method is no reason."""
    for name in recipe.score.methods:
        with suppress(UsageError):  # `check` reports it, with everything else that is wrong
            if uses_gradients(name):
                return True
    return recipe.select.near_duplicates is not None
