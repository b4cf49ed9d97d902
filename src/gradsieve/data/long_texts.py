"""Shortening a text before it is tokenized to what the first `max_length` tokens can need.

In: a text and a tokenizer. Out: the text's start, to be tokenized instead. Without this a row of
200 MB takes gigabytes although 2,048 tokens of it are kept.

The tokens that are kept stay the same. A text is cut between a letter and white space if one is
near: no token crosses that place in common vocabularies, and what a subword model does on the left
of a place that no token crosses doesn't depend on its right. In other places, and for vocabularies
with tokens of several words, the end of a cut text can differ: MARGIN tokens more than are kept
must be left.

Rejected: the tokenizer's own truncation, which comes after the full text was tokenized.
"""

from __future__ import annotations

import re

from tokenizers import Tokenizer

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
        start = text[: _border(text, characters)]
        encoding = tokenizer.encode(start, add_special_tokens=False)
        if len(encoding) > max_length + MARGIN:
            return start
        characters *= 2
    return text


def _border(text: str, characters: int) -> int:
    """Where to cut: the last place between a letter and white space before `characters`."""
    searched_from = max(0, characters - _SEARCHED)
    borders = [found.start() for found in _BORDER.finditer(text, searched_from, characters)]
    return borders[-1] if borders else characters
