"""Reading finished runs: explanations of single examples, and comparisons of methods."""

from gradsieve.analysis.explain import explain
from gradsieve.analysis.explanation import Contribution, Explanation, Neighbor, TargetScore

__all__ = ["Contribution", "Explanation", "Neighbor", "TargetScore", "explain"]
