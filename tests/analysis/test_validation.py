"""The sentences that report validation results."""

from typing import Any

import pytest

from gradsieve.analysis.validation import Validation


def found(lds: Any, without: Any = None, subsets: int = 6) -> Validation:
    points = [0.0] * subsets
    return Validation("legal", "less", "held_out_loss", 40, 1, lds, without or {}, points, points)


@pytest.mark.parametrize(
    ("lds", "text"),
    [
        ((0.31, 0.05, 0.52), "LDS 0.31 [0.05, 0.52]: the scores predict which rows lower the "
         "loss."),
        ((0.1, -0.2, 0.4), "LDS 0.10 [-0.20, 0.40]: the interval includes 0, no evidence that the "
         "scores mean anything."),
        ((-0.4, -0.6, -0.1), "LDS -0.40 [-0.60, -0.10]: rows with higher scores raise the loss."),
        (None, "all scores, or all losses, are equal: there is nothing to validate."),
    ],
)  # fmt: skip
def test_the_interval_decides(lds: Any, text: str) -> None:
    assert found(lds).text() == f"legal, less: {text}"


def test_few_subsets_show_nothing() -> None:
    said = found((1.0, 1.0, 1.0), {"0.05": (-0.001, -0.1, 0.1)}, subsets=5).meaning
    assert said.startswith(
        "LDS 1.00 [1.00, 1.00]: too few subsets (5) to say anything; set validate.subsets to 32 or "
        "more. Without its best 5%"
    )


def test_what_leaving_out_the_best_rows_costs() -> None:
    text = found(
        (0.3, 0.1, 0.5), {"0.005": (0.0123, 0.004, 0.02), "0.05": (-0.001, -0.1, 0.1)}
    ).text()
    assert text.endswith(
        "Without its best 0.5% the loss is +0.0123 [+0.0040, +0.0200] against leaving out random "
        "rows. Without its best 5% the loss is -0.0010 [-0.1000, +0.1000] against leaving out "
        "random rows, no clear difference."
    )
