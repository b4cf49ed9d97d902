"""The stages, one class per file. They never import each other: they exchange data only on disk,
through `gradsieve.runs.artifacts`.
"""

from __future__ import annotations

import importlib

from gradsieve.runs.folder import STAGE_NAMES
from gradsieve.stages.base import Stage


def all_stages() -> dict[str, Stage]:
    """The stages of `runs.folder.STAGES` by name, in order."""
    modules = (importlib.import_module(f"{__name__}.{name}") for name in STAGE_NAMES)
    return {module.STAGE.name: module.STAGE for module in modules}
