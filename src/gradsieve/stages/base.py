"""What a stage declares; the pipeline, `plan`, the command line and the report follow from it."""

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
    """Whether inputs differ in these keys at most; one that is None may be missing."""
    without = dict.fromkeys(keys)
    return not differences({**old, **without}, {**new, **without})


class Stage(ABC):
    """One step of a run. Stages never import each other: they meet only on disk.

    Attributes:
        name: As in `runs.folder.STAGES`: its file, command, recipe section and run folder.
        distributed: Whether several processes can share it (`accelerate launch`).
        refreshes_pool: Whether a run that starts with it brings the pool up to date first.
        reads: The stage whose outputs it can't do without, where a recipe may leave out both.
        optional_before: Earlier stages that need not be finished for this one to run alone.
        undo_failed: Whether what replaces archived outputs is removed when it fails, and they come
            back; otherwise it is kept, to be resumed.
    """

    name: ClassVar[str]
    distributed: ClassVar[bool] = False
    refreshes_pool: ClassVar[bool] = False
    reads: ClassVar[str | None] = None
    optional_before: ClassVar[tuple[str, ...]] = ()
    undo_failed: ClassVar[bool] = False

    def needed(self, recipe: Recipe) -> bool:
        """Whether a run of this recipe has the stage; by default always."""
        return True

    @abstractmethod
    def fingerprint_inputs(self, context: Context) -> dict[str, Any]:
        """What its outputs depend on, as JSON data."""

    def check(self, context: Context) -> Iterator[GradsieveError]:
        """What is wrong with its inputs, found before anything is spent."""
        yield from ()

    def check_pool(self, context: Context) -> Iterator[GradsieveError]:
        """What is wrong that only the pool shows; called once the pool is up to date."""
        yield from ()

    @abstractmethod
    def run(self, context: Context) -> dict[str, Any]:
        """Make its outputs, as far as they are not there yet.

        Returns:
            What `meta.json` records, `output` (a fingerprint of the outputs) among it.
        """

    def reuse(self, archived: Path, folder: Path) -> None:  # noqa: B027 - optional
        """Take over from archived outputs what still holds; by default nothing."""

    def after_run(self, context: Context) -> Iterator[str]:
        """Warnings at the end of a run that had the stage; by default none."""
        yield from ()

    def estimate(self, context: Context) -> Estimate:
        """What it would take; by default nothing worth counting."""
        return Estimate()

    def can_extend(self, old: Inputs, new: Inputs) -> bool:
        """Whether outputs made for the old inputs are kept for the new ones."""
        return False
