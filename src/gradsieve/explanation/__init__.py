"""Why one row of the pool was selected, or was not: `gather` finds out, `show` prints it."""

from gradsieve.explanation.gather import explain
from gradsieve.explanation.told import Explanation, Neighbor, Pull, TargetScore

__all__ = ["Explanation", "Neighbor", "Pull", "TargetScore", "explain"]
