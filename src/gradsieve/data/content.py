"""The text of a message: what it says, whatever form its content has.

In: one turn of a conversation. Out: its text, its reasoning, its answer without reasoning. Only
strings and dicts, so that every module may import it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def text_of(content: Any) -> str:
    """The text of a turn's content, which may be none, or parts of which some are text."""
    return content if isinstance(content, str) else "".join(parts_of(content))


def parts_of(content: Any) -> list[str]:
    """The texts among a content's parts; none if it is a string."""
    if not isinstance(content, list | tuple):
        return []
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
    return [text for text in texts if isinstance(text, str)]


def in_parts(turn: Mapping[str, Any]) -> Mapping[str, Any]:
    """A turn whose content is a list of parts."""
    content = turn.get("content")
    if not isinstance(content, str):
        return turn
    return {**turn, "content": [{"type": "text", "text": content}]}


def in_text(turn: Mapping[str, Any]) -> Mapping[str, Any]:
    """A turn whose content is a string, if all of its parts are text."""
    content = turn.get("content")
    if not isinstance(content, list | tuple) or len(parts_of(content)) < len(content):
        return turn
    return {**turn, "content": text_of(content)}


def reasoning_of(turn: Mapping[str, Any]) -> str:
    """The reasoning that a turn holds in a field of its own."""
    reasoning = turn.get("reasoning_content") or turn.get("thinking")
    return reasoning if isinstance(reasoning, str) else ""


def after_reasoning(text: str) -> str:
    """An answer without the reasoning that a model wrote before it, as templates know it."""
    return text.rpartition("</think>")[2].strip() if "</think>" in text else text


def common_prefix(one: str, other: str) -> str:
    """The characters with which both texts start."""
    differ = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return one[: next(differ, min(len(one), len(other)))]
