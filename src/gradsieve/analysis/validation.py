"""The results of the `validate` stage, in plain words.

In: `07-validate/results.json`. Out: for each target and method a `Validation` with a sentence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gradsieve.analysis.bootstrap import Interval, interval_text
from gradsieve.runs.artifacts import ValidationArtifact

FEWEST = 6
"""Minimum number of subsets for a meaningful interval: with random scores (300 simulations) it
excludes 0 in 37% of cases with 3 subsets, in 4 to 6% with 6 or more."""


@dataclass(frozen=True)
class Validation:
    """How well a method's scores predict the loss on a target after training.

    Attributes:
        loss: Which loss was measured: on held-out examples, or on the target's own.
        examples: Number of these examples.
        seeds: Number of trainings on each part of the pool.
        lds: Rank correlation of summed scores and negated loss over subsets, with its interval
            over subsets; None if the scores, or the losses, are all equal.
        without: Loss without the best rows minus loss without random rows, by the share left out,
            with its interval over examples and trainings.
        summed: For each subset, the sum of its rows' scores after subtracting the mean score.
        losses: The loss after training on each subset.
    """

    target: str
    method: str
    loss: str
    examples: int
    seeds: int
    lds: Interval | None
    without: Mapping[str, Interval]
    summed: Sequence[float]
    losses: Sequence[float]

    def text(self) -> str:
        """The result in a sentence or two."""
        return f"{self.target}, {self.method}: {self.meaning}"

    @property
    def meaning(self) -> str:
        """The result in words, without the names."""
        if self.lds is None:
            return "all scores, or all losses, are equal: there is nothing to validate."
        value, low, high = self.lds
        head = f"LDS {value:.2f} [{low:.2f}, {high:.2f}]"
        if len(self.losses) < FEWEST:
            first = (
                f"{head}: too few subsets ({len(self.losses)}) to say anything; set "
                "validate.subsets to 32 or more."
            )
        elif low > 0:
            first = f"{head}: the scores predict which rows lower the loss."
        elif high < 0:
            first = f"{head}: rows with higher scores raise the loss."
        else:
            first = f"{head}: the interval includes 0, no evidence that the scores mean anything."
        return " ".join([first, *(_left_out(share, gap) for share, gap in self.without.items())])


def _left_out(share: str, gap: Interval) -> str:
    doubt = "" if gap[1] > 0 or gap[2] < 0 else ", no clear difference"
    return (
        f"Without its best {100 * float(share):g}% the loss is {interval_text(gap, 4)} against "
        f"leaving out random rows{doubt}."
    )


def read_validation(artifact: ValidationArtifact) -> list[Validation]:
    """Read a finished stage's results."""
    return [Validation(**row) for row in artifact.rows()]
