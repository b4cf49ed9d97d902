"""From scores to a selection: an order of rows, and what is passed over on the way."""

from gradsieve.selection.choose import Candidate, Passed, choose
from gradsieve.selection.duplicates import NearDuplicates
from gradsieve.selection.leaks import Leaks, find_leaks
from gradsieve.selection.order import interleave, round_robin

__all__ = [
    "Candidate",
    "Leaks",
    "NearDuplicates",
    "Passed",
    "choose",
    "find_leaks",
    "interleave",
    "round_robin",
]
