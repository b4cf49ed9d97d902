"""Target gradients at one checkpoint: one safetensors file per target, next to the datastore."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import safe_open, save_file
from torch import Tensor

from gradsieve.errors import StoreError
from gradsieve.io import atomic


@dataclass(frozen=True)
class TargetGradients:
    """A target's gradients at one checkpoint.

    Attributes:
        ids: Of its examples [k].
        subtasks: The subtask of each [k].
        rows: Projected gradients, float32 [k, d].
        identity: Fingerprint of the target that they are of.
    """

    ids: list[str]
    subtasks: list[str]
    rows: Tensor
    identity: str


def read_target_gradients(file: Path) -> TargetGradients:
    """Read `02-features/checkpoint-i/targets/NAME.safetensors`.

    Raises:
        StoreError: If it is damaged, or not there.
    """
    try:
        with safe_open(file, "pt") as opened:
            about = json.loads(opened.metadata()["gradsieve"])
            rows = opened.get_tensor("features")
        return TargetGradients(about["ids"], about["subtasks"], rows, about["identity"])
    except FileNotFoundError:
        what, todo = "The gradients of a target are not there.", "Run"
    except (SafetensorError, ValueError, LookupError, TypeError):
        what, todo = "The gradients of a target are damaged.", "Delete that file and run"
    raise StoreError(
        what, str(file), f"{todo} `gradsieve features` again: it makes only what is missing."
    )


def write_target_gradients(file: Path, gradients: TargetGradients, norms: Tensor) -> None:
    """Write a target's gradients; `norms` [k] are those before the projection."""
    about = {
        "identity": gradients.identity,
        "ids": gradients.ids,
        "subtasks": gradients.subtasks,
    }
    # One key: safetensors writes several in an order that changes from run to run.
    metadata = {"gradsieve": json.dumps(about)}
    with atomic(file) as temporary:
        save_file({"features": gradients.rows, "gradient_norms": norms}, temporary, metadata)
