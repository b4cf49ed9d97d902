"""gradsieve: find the few percent of an instruction pool that teach a model a chosen skill.

It implements LESS (Xia et al., "LESS: Selecting Influential Data for Targeted Instruction Tuning",
ICML 2024). Names are imported when first used, so that `import gradsieve` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradsieve.analysis.explain import explain as explain
    from gradsieve.analysis.explanation import Explanation as Explanation
    from gradsieve.analysis.results import compare as compare
    from gradsieve.analysis.tables import Comparison as Comparison
    from gradsieve.api import Selection as Selection
    from gradsieve.api import select as select
    from gradsieve.console import Progress as Progress
    from gradsieve.errors import GradsieveError as GradsieveError
    from gradsieve.models.moments import KeepMoments as KeepMoments
    from gradsieve.pipeline.plan import plan as plan
    from gradsieve.pipeline.run import run as run
    from gradsieve.recipe.load import load_recipe as load_recipe
    from gradsieve.recipe.schema import Recipe as Recipe
    from gradsieve.store import open_store as open_store

_HOMES = {
    "Comparison": "gradsieve.analysis.tables",
    "Explanation": "gradsieve.analysis.explanation",
    "GradsieveError": "gradsieve.errors",
    "KeepMoments": "gradsieve.models.moments",
    "Progress": "gradsieve.console",
    "Recipe": "gradsieve.recipe.schema",
    "Selection": "gradsieve.api",
    "compare": "gradsieve.analysis.results",
    "explain": "gradsieve.analysis.explain",
    "load_recipe": "gradsieve.recipe.load",
    "open_store": "gradsieve.store",
    "plan": "gradsieve.pipeline.plan",
    "run": "gradsieve.pipeline.run",
    "select": "gradsieve.api",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # takes 40 ms

        return version("gradsieve")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
