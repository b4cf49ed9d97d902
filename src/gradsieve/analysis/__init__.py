"""Why one row of the pool was selected, or was not: `gather` finds out, `show` prints it."""

from gradsieve.analysis.explain import explain
from gradsieve.analysis.provenance import Explanation, Neighbor, Pull, TargetScore

__all__ = ["Explanation", "Neighbor", "Pull", "TargetScore", "explain"]
