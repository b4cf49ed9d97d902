"""What is told of one row of the pool: plain data, that turns into JSON and text."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from gradsieve.data.examples import Message


@dataclass(frozen=True)
class Pull:
    """What one of the target's examples adds to the row's score for its own subtask.

    Attributes:
        id: Of the example.
        subtask: Its subtask.
        part: Positive: it pulls the row in. A subtask's parts add up to the row's score for it.
        text: The example's turns, a line each; None if it can't be read any more.
    """

    id: str
    subtask: str
    part: float
    text: str | None


@dataclass(frozen=True)
class Neighbor:
    """A row whose update at the last checkpoint points nearly the same way.

    Attributes:
        source: Of the row.
        id: Of the row.
        cosine: Of the two updates, from the datastore.
        score: Of the row, for the target.
        rank: In order of score.
        text: As `Pull`.
    """

    source: str
    id: str
    cosine: float
    score: float
    rank: int
    text: str | None


@dataclass(frozen=True)
class TargetScore:
    """The row's score for one target.

    Attributes:
        score: Over subtasks, as `score.across_subtasks` says.
        rank: From 1, in order of score; equal scores by (source, id).
        of: Rows that were scored.
        subtasks: The score for each subtask; empty for methods that look at none.
    """

    score: float
    rank: int
    of: int
    subtasks: dict[str, float]


@dataclass(frozen=True)
class Explanation:
    """One row, as a run sees it.

    Attributes:
        source: The row's source.
        id: Its id.
        target: The target that is asked about.
        method: What scored.
        selected: Its place in the selection, from 1; None if it is not in it.
        reason: Why it is not in it; None if it is, or the run has not selected yet.
        tokens: Of the row, as the model's tokenizer counts them.
        targets: Its scores, by target; empty if it could not be scored.
        checkpoints: By subtask of the target, what each checkpoint adds to the score.
        pulls: The target's examples that add most, most first.
        pushes: Those that take away most, most first.
        neighbors: The nearest rows, nearest first.
        messages: The row's turns; None if they can't be read any more.
        notes: What could not be told, and why.
    """

    source: str
    id: str
    target: str
    method: str
    selected: int | None
    reason: str | None
    tokens: int
    targets: dict[str, TargetScore] = field(default_factory=dict)
    checkpoints: dict[str, list[float]] = field(default_factory=dict)
    pulls: list[Pull] = field(default_factory=list)
    pushes: list[Pull] = field(default_factory=list)
    neighbors: list[Neighbor] = field(default_factory=list)
    messages: list[Message] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def score(self) -> TargetScore | None:
        """For the target that is asked about; None if the row could not be scored."""
        return self.targets.get(self.target)

    def json(self) -> str:
        """As JSON, in ASCII: text of the data may hold what UTF-8 can't."""
        return json.dumps(asdict(self), indent=1)

    def __str__(self) -> str:
        from gradsieve.analysis.explain_text import plain

        return plain(self)
