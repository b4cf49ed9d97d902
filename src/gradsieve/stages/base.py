"""The interface of a stage, used by the pipeline, `plan`, the command line and the report."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from gradsieve.errors import GradsieveError
from gradsieve.io import differences
from gradsieve.recipe.schema import Recipe
from gradsieve.runs.context import Context
from gradsieve.stages.estimate import Estimate

Inputs = Mapping[str, Any]
"""JSON data that a stage's outputs depend on."""


def same_but(old: Inputs, new: Inputs, *keys: str) -> bool:
    """Whether inputs differ at most in these keys; a key with the value None may be missing."""
    without = dict.fromkeys(keys)
    return not differences({**old, **without}, {**new, **without})


class Stage(ABC):
    """One step of a run. Stages never import each other: they exchange data only on disk.

    Attributes:
        name: As in `runs.folder.STAGES`; names its file, command, recipe section and run folder.
        distributed: Whether several processes can share it (`accelerate launch`).
        refreshes_pool: Whether a run that starts with it brings the pool up to date first.
        reads: The stage whose outputs this one requires, if a recipe may leave out both.
        optional_before: Earlier stages that need not be finished for this one to run alone.
        undo_failed: Whether new outputs are removed and the archived ones restored if a run with
            other settings fails; otherwise the new outputs are kept, to be resumed.
    """

    name: ClassVar[str]
    distributed: ClassVar[bool] = False
    refreshes_pool: ClassVar[bool] = False
    reads: ClassVar[str | None] = None
    optional_before: ClassVar[tuple[str, ...]] = ()
    undo_failed: ClassVar[bool] = False

    def needed(self, recipe: Recipe) -> bool:
        """Whether a run of this recipe includes the stage; by default always."""
        return True

    @abstractmethod
    def fingerprint_inputs(self, context: Context) -> dict[str, Any]:
        """Everything that its outputs depend on, as JSON data."""

    def check(self, context: Context) -> Iterator[GradsieveError]:
        """Yield problems with its inputs, before any expensive work is done."""
        yield from ()

    def check_pool(self, context: Context) -> Iterator[GradsieveError]:
        """Yield problems that only the pool reveals; called once the pool is up to date."""
        yield from ()

    @abstractmethod
    def run(self, context: Context) -> dict[str, Any]:
        """Make the outputs that do not exist yet.

        Returns:
            The metadata for `meta.json`, including `output`, a fingerprint of the outputs.
        """

    def reuse(self, archived: Path, folder: Path) -> None:  # noqa: B027 - optional
        """Take over archived outputs that are still valid; by default none."""

    def after_run(self, context: Context) -> Iterator[str]:
        """Yield warnings at the end of a run that included the stage; by default none."""
        yield from ()

    def estimate(self, context: Context) -> Estimate:
        """The cost of running it; by default nothing worth counting."""
        return Estimate()

    def can_extend(self, old: Inputs, new: Inputs) -> bool:
        """Whether outputs made for the old inputs can be kept for the new ones."""
        return False
