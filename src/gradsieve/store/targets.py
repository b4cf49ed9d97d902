"""Target gradients at one checkpoint: one safetensors file per target, next to each datastore.

Each datastore has its own files: rows that were scaled before projection need target gradients with
the inverse scales, and rows of plain gradients need plain ones.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import safe_open, save_file
from torch import Tensor

from gradsieve.errors import StoreError
from gradsieve.gradients.similarity import Norms, divided
from gradsieve.io import atomic


@dataclass(frozen=True)
class TargetGradients:
    """A target's gradients at one checkpoint.

    Attributes:
        identity: Fingerprint of the target.
        gradient_norms: Norms before scaling and projection [k].
        mean_norms: Norm of each subtask's mean before scaling and projection [S]; None if nothing
            was scaled.
    """

    ids: list[str]
    subtasks: list[str]
    rows: Tensor
    identity: str
    gradient_norms: Tensor
    mean_norms: Tensor | None = None

    @property
    def norms(self) -> Norms | None:
        """Norms used for cosines; None means the norms of the projected rows."""
        return None if self.mean_norms is None else Norms(self.gradient_norms, self.mean_norms)

    def units(self) -> Tensor:
        """Rows [k, d] whose inner product with a row of norm 1 is the cosine."""
        return divided(self.rows, self.norms and self.norms.of_rows)


def target_file(checkpoint: Path, store: str, target: str) -> Path:
    """The file of a target's gradients for a datastore: `targets/` for `pool`, `targets-sgd/`..."""
    return checkpoint / store.replace("pool", "targets", 1) / f"{target}.safetensors"


def read_target_gradients(file: Path) -> TargetGradients:
    """Read a file that `write_target_gradients` wrote.

    Raises:
        StoreError: If it is damaged or missing.
    """
    try:
        with safe_open(file, "pt") as opened:
            about = json.loads(opened.metadata()["gradsieve"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return TargetGradients(**about, rows=tensors.pop("features"), **tensors)
    except (FileNotFoundError, SafetensorError, ValueError, LookupError, TypeError):
        raise StoreError(
            "The gradients of a target are missing or damaged.",
            str(file),
            "Delete that file and run `gradsieve features` again: it makes only what is missing.",
        ) from None


def write_target_gradients(file: Path, gradients: TargetGradients) -> None:
    """Write a target's gradients to a file."""
    about = {name: getattr(gradients, name) for name in ("identity", "ids", "subtasks")}
    # A single key: safetensors writes several in an order that changes from run to run.
    metadata = {"gradsieve": json.dumps(about)}
    tensors = {"features": gradients.rows, "gradient_norms": gradients.gradient_norms}
    if gradients.mean_norms is not None:
        tensors["mean_norms"] = gradients.mean_norms
    with atomic(file, hashed=True) as temporary:
        save_file(tensors, temporary, metadata)
