"""Around the tokenizer: texts that are not longer than need be, and labels by characters.

In: a text, a tokenizer, the characters that are supervised. Out: the text's start that is tokenized
instead of all of it, and labels. Without the former a row of 200 MB takes gigabytes although 2,048
tokens of it are kept.

The tokens that are kept stay the same. A text is cut between a letter and white space if one is
near: no token crosses that place in common vocabularies, and what a subword model does on the left
of a place that no token crosses doesn't depend on its right. In other places, and for vocabularies
with tokens of several words, the end of a cut text can differ: MARGIN tokens more than are kept
must be left.

Rejected: the tokenizer's own truncation, which comes after the full text was tokenized.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from typing import Any

from tokenizers import Encoding, Tokenizer

CHARACTERS_PER_TOKEN = 6
"""Of the first cut; English has about 4. It doubles until there are enough tokens."""

SHORTEST_CUT = 1 << 14
"""Texts of fewer characters are tokenized in full: cutting them would save nothing."""

_SEARCHED = 1 << 12
"""Characters before a cut in which a place between letter and white space is looked for."""

MARGIN = 256
"""Tokens beyond `max_length` that a shortened text must have: more than its end can change."""

_BORDER = re.compile(r"(?<=[^\W\d_])(?=\s)")


def shortened(text: str, tokenizer: Tokenizer, max_length: int) -> str:
    """A start of the text with the same first `max_length` tokens, and more than these."""
    characters = max(SHORTEST_CUT, max_length * CHARACTERS_PER_TOKEN)
    while characters < len(text):
        searched_from = max(0, characters - _SEARCHED)
        borders = [found.start() for found in _BORDER.finditer(text, searched_from, characters)]
        start = text[: borders[-1] if borders else characters]
        if len(tokenizer.encode(start, add_special_tokens=False)) > max_length + MARGIN:
            return start
        characters *= 2
    return text


def with_full_offsets(backend: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer whose tokens stand for their white space too.

    GPT-2's and others' leave it out of offsets, so that a newline stands for no character.
    """

    def untrimmed(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: key != "trim_offsets" and untrimmed(part[key]) for key in part}
        return [untrimmed(item) for item in part] if isinstance(part, list) else part

    steps = ("pre_tokenizer", "post_processor")
    return {**backend, **{step: untrimmed(backend.get(step)) for step in steps}}


def labels_of(ids: array[int], encoding: Encoding, spans: Sequence[tuple[int, int]]) -> array[int]:
    """The tokens that overlap a span; tokens without characters never do.

    Tokens are asked for by their characters: a list of all offsets takes ten times as long.
    """
    labels = array("i", [-100]) * len(ids)
    dropped = encoding.token_to_chars(len(ids))  # the first token that is not kept
    for start, end in spans:
        if dropped and dropped[1]:  # not a look-up for each of millions of characters after it
            end = min(end, dropped[1])
        first = _token_at(encoding, range(start, end))
        last = _token_at(encoding, range(end - 1, start - 1, -1))
        if first is None or last is None:
            continue
        # Several tokens may stand for the last character: its bytes, or white space before it.
        while (there := encoding.token_to_chars(last + 1)) and start < there[1] and there[0] < end:
            last += 1
        labels[first : last + 1] = ids[first : last + 1]
    return labels


def _token_at(encoding: Encoding, characters: range) -> int | None:
    """The first token of the first of some characters that has one."""
    found = (encoding.char_to_token(character) for character in characters)
    return next((token for token in found if token is not None), None)
