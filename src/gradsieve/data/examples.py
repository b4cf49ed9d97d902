"""One instruction example, in the form that all of gradsieve uses.

A pool's rows and a target's examples have the same form: a conversation, with the row that it was
read from, so that a selection contains the original rows.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

import numpy as np


class Message(TypedDict):
    """One turn, in the format of transformers' chat templates.

    `role` is system, user, assistant or tool. Other keys are passed to the template unchanged.
    """

    role: str
    content: Any
    tool_calls: NotRequired[list[Any]]
    reasoning_content: NotRequired[str]
    thinking: NotRequired[str]
    name: NotRequired[str]
    tool_call_id: NotRequired[str]


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation that ends in an assistant turn.

    Attributes:
        source: Name of the pool's source, or of the target.
        id: Unique within the source, and stable: kept from the row or made from its content.
        row: The row as it was read; a selection contains it unchanged.
        subtask: For target examples only: the subtask that the example belongs to.
        answer_prefix: If None, every assistant turn is supervised, with its end-of-turn token. If a
            string, only the text after this prefix in the last assistant turn is supervised, with
            no end-of-turn token, as in the paper's targets (e.g. "The answer is:" then " B").
        tools: Descriptions of the functions that the model may call, for the chat template.
        supervised: For each turn, whether it is in the loss; only assistant turns can be. None
            means every assistant turn.
        where: File and line that the row was read from, for messages.
    """

    source: str
    id: str
    messages: tuple[Message, ...]
    row: Mapping[str, Any] = field(default_factory=dict)
    subtask: str = ""
    answer_prefix: str | None = None
    tools: tuple[Any, ...] = ()
    supervised: tuple[bool, ...] | None = None
    where: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """A tokenized conversation.

    Attributes:
        input_ids: At most max_length token ids, 32-bit as in the pool on disk.
        labels: The token id where the token is supervised, -100 elsewhere.
        truncated: Whether tokens were cut off on the right.
    """

    input_ids: array[int]
    labels: array[int]
    truncated: bool = False

    @property
    def n_labels(self) -> int:
        """The number of labels that are predicted; the first position never is."""
        return int(np.count_nonzero(np.asarray(self.labels)[1:] != -100))

    @property
    def skip_reason(self) -> str | None:
        """Why the example has no gradient; None if it has one."""
        if self.n_labels:
            return None
        within = f" within the first {len(self.input_ids)} tokens" if self.truncated else ""
        return f"no label token{within}"


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the pool: the example and its tokens, or the reason why it has no gradient."""

    example: Example
    encoded: TokenizedExample
    skip_reason: str | None
