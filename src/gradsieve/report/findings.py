"""What results say about each target: verdict, curve over sizes, steps, validation of scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from gradsieve.analysis.tables import Comparison
from gradsieve.analysis.validation import Validation
from gradsieve.report.numbers import short


def findings(comparison: Comparison, validation: Sequence[Validation]) -> dict[str, dict[str, Any]]:
    """By target, as JSON; empty without results and without validation."""
    targets = dict.fromkeys([*comparison.cells, *(one.target for one in validation)])
    return {
        target: {
            "verdict": _data(comparison.verdicts.get(target)),
            "curve": _data(comparison.curves.get(target)),
            "steps": comparison.steps.get(target, {}),
            "validation": [_validated(one) for one in validation if one.target == target],
        }
        for target in targets
    }


def _data(found: Any) -> dict[str, Any] | None:
    return None if found is None else asdict(found)


def _validated(one: Validation) -> dict[str, Any]:
    points = zip(one.summed, one.losses, strict=True)
    return {
        "method": one.method,
        "text": one.meaning,
        "loss": one.loss,
        "points": [[short(score), short(loss)] for score, loss in points],
    }
