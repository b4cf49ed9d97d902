"""The text of a message, whatever the form of its content.

In: one turn of a conversation. Out: its text, its reasoning, its answer without reasoning. The
module uses only strings and dicts, so any other module may import it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def text_of(content: Any) -> str:
    """The text of a turn's content, which may be a string, None, or a list of parts."""
    return content if isinstance(content, str) else "".join(parts_of(content))


def parts_of(content: Any) -> list[str]:
    """The texts among a content's parts; an empty list if the content is not a list."""
    if not isinstance(content, list | tuple):
        return []
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
    return [text for text in texts if isinstance(text, str)]


def in_parts(turn: Mapping[str, Any]) -> Mapping[str, Any]:
    """The turn, with a string content converted to a list of parts."""
    content = turn.get("content")
    if not isinstance(content, str):
        return turn
    return {**turn, "content": [{"type": "text", "text": content}]}


def in_text(turn: Mapping[str, Any]) -> Mapping[str, Any]:
    """The turn, with a list content converted to a string if all of its parts are text."""
    content = turn.get("content")
    if not isinstance(content, list | tuple) or len(parts_of(content)) < len(content):
        return turn
    return {**turn, "content": text_of(content)}


def reasoning_of(turn: Mapping[str, Any]) -> str:
    """The reasoning that a turn has in a separate field; empty if there is none."""
    reasoning = turn.get("reasoning_content") or turn.get("thinking")
    return reasoning if isinstance(reasoning, str) else ""


def after_reasoning(text: str) -> str:
    """An answer without the reasoning before it, which ends with `</think>` as in templates."""
    return text.rpartition("</think>")[2].strip() if "</think>" in text else text


def common_prefix(one: str, other: str) -> str:
    """The longest common prefix of two texts."""
    differ = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return one[: next(differ, min(len(one), len(other)))]
