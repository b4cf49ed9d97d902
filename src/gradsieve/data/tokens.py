"""Helpers around the tokenizer: shortening of long texts, and labels from character spans.

In: a text, a tokenizer, and the supervised spans of characters. Out: a prefix of the text that is
tokenized in place of the full text, and labels. Without shortening, a row of 200 MB takes gigabytes
of memory, although only 2,048 of its tokens are kept.

The tokens that are kept stay the same. A text is cut between a letter and white space if there is
such a boundary nearby: in common vocabularies no token crosses it, and a subword model's tokens to
the left of a boundary that no token crosses don't depend on the text to its right. At other places,
and for vocabularies with multi-word tokens, the last tokens of the prefix can differ, so it must
have more than MARGIN tokens beyond those that are kept.

Rejected: the tokenizer's own truncation, which is applied after the full text was tokenized.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from typing import Any

from tokenizers import Encoding, Tokenizer

CHARACTERS_PER_TOKEN = 6
"""Assumed for the first cut; English has about 4. The length doubles until tokens suffice."""

SHORTEST_CUT = 1 << 14
"""Texts of fewer characters are tokenized in full: cutting them would save nothing."""

_SEARCHED = 1 << 12
"""Characters before a cut that are searched for a boundary between a letter and white space."""

MARGIN = 256
"""Tokens beyond `max_length` that a shortened text must have: more than a cut can change."""

_BORDER = re.compile(r"(?<=[^\W\d_])(?=\s)")


def shortened(text: str, tokenizer: Tokenizer, max_length: int) -> str:
    """The text, or a prefix with the same first `max_length` tokens and MARGIN more."""
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
    """A tokenizer's JSON, changed so that the tokens' offsets include white space.

    GPT-2's and other tokenizers trim it from offsets, so that a newline covers no character.
    """

    def untrimmed(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: key != "trim_offsets" and untrimmed(part[key]) for key in part}
        return [untrimmed(item) for item in part] if isinstance(part, list) else part

    steps = ("pre_tokenizer", "post_processor")
    return {**backend, **{step: untrimmed(backend.get(step)) for step in steps}}


def labels_of(ids: array[int], encoding: Encoding, spans: Sequence[tuple[int, int]]) -> array[int]:
    """Labels: the ids of tokens that overlap a span; tokens without characters never do.

    Tokens are looked up by their characters: a list of all offsets takes ten times as long.
    """
    labels = array("i", [-100]) * len(ids)
    dropped = encoding.token_to_chars(len(ids))  # the first token that is not kept
    for start, end in spans:
        if dropped and dropped[1]:  # avoids a lookup for each of millions of characters after it
            end = min(end, dropped[1])
        first = _token_at(encoding, range(start, end))
        last = _token_at(encoding, range(end - 1, start - 1, -1))
        if first is None or last is None:
            continue
        # Several tokens may cover the last character: its bytes, or white space before it.
        while (there := encoding.token_to_chars(last + 1)) and start < there[1] and there[0] < end:
            last += 1
        labels[first : last + 1] = ids[first : last + 1]
    return labels


def _token_at(encoding: Encoding, characters: range) -> int | None:
    """The token of the first of these characters that has one."""
    found = (encoding.char_to_token(character) for character in characters)
    return next((token for token in found if token is not None), None)
