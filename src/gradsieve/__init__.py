"""gradsieve: find the few per cent of an instruction pool that teach a model a chosen skill.

It implements LESS (Xia et al., "LESS: Selecting Influential Data for Targeted Instruction Tuning",
ICML 2024). Names are imported when first used, so that `import gradsieve` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradsieve.errors import GradsieveError
    from gradsieve.explanation import Explanation, explain
    from gradsieve.in_memory import Selection, select
    from gradsieve.model.moments import KeepMoments
    from gradsieve.pipeline import plan, run
    from gradsieve.progress import Progress
    from gradsieve.recipe import Recipe, load_recipe
    from gradsieve.store import open_store

__all__ = [
    "Explanation",
    "GradsieveError",
    "KeepMoments",
    "Progress",
    "Recipe",
    "Selection",
    "explain",
    "load_recipe",
    "open_store",
    "plan",
    "run",
    "select",
]

_HOMES = {
    "Explanation": "gradsieve.explanation",
    "GradsieveError": "gradsieve.errors",
    "KeepMoments": "gradsieve.model.moments",
    "Progress": "gradsieve.progress",
    "Recipe": "gradsieve.recipe",
    "Selection": "gradsieve.in_memory",
    "explain": "gradsieve.explanation",
    "load_recipe": "gradsieve.recipe",
    "open_store": "gradsieve.store",
    "plan": "gradsieve.pipeline",
    "run": "gradsieve.pipeline",
    "select": "gradsieve.in_memory",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
