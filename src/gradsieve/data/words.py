"""Splits text of any script into words, which BM25, DSIR and the leak check count and compare.

In: a text. Out: its words, normalized for case and for Unicode's equivalent spellings. A word is a
run of letters, digits and the marks that belong to them (accents, the vowel signs of Indic
scripts): the word characters of Unicode's UTS 18, annex C. Text in scripts without spaces between
words (Chinese, Japanese, Thai, Lao, Khmer, Burmese) is cut into overlapping pairs of characters, as
in Lucene's CJKAnalyzer. A character is a letter with its marks, so that a Thai consonant keeps its
tone; a single character between other scripts or spaces is a word.

Rejected: Python's `re`, whose word characters exclude marks, so that Hindi words are cut at vowel
signs; segmenters (ICU, jieba, PyThaiNLP), which cut the same words differently in other contexts,
so that overlaps between texts would be missed.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from itertools import pairwise

import regex

# "SA" is the line-breaking class of South East Asian scripts, which need a dictionary.
_UNSPACED = r"[[\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{Line_Break=SA}]&&[\p{L}\p{M}\p{N}]]"
_MARK = r"[\p{M}\p{Join_Control}]"  # also occurs in emoji; not a word on its own
_TOKEN = regex.compile(
    rf"(?P<unspaced>(?:[{_UNSPACED}--{_MARK}]{_MARK}*)+)"
    rf"|(?P<word>[\w--{_UNSPACED}--{_MARK}][\w--[{_UNSPACED}--{_MARK}]]*)"
    rf"|(?P<punctuation>(?:[^\w\s]|{_MARK})+)",
    regex.VERSION1,
)
# The same tokens for ASCII text, five times as fast.
_ASCII_WORD = re.compile(r"\w+", re.ASCII)
_ASCII_TOKEN = re.compile(r"\w+|[^\w\s]+", re.ASCII)
_CHARACTER = regex.compile(rf".{_MARK}*", regex.VERSION1)


def split_words(text: str) -> list[str]:
    """The words of a text, in order, without punctuation."""
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    return [token for kind, token in _tokens(text) if kind != "punctuation"]


def split_words_and_punctuation(text: str) -> list[str]:
    """The words of a text, and each run of other characters between them as one token."""
    if text.isascii():
        return _ASCII_TOKEN.findall(text.lower())
    return [token for _, token in _tokens(text)]


def _tokens(text: str) -> Iterator[tuple[str | None, str]]:
    normal = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    for found in _TOKEN.finditer(normal):
        characters = _CHARACTER.findall(found[0]) if found.lastgroup == "unspaced" else []
        if len(characters) > 1:
            yield from ((found.lastgroup, first + second) for first, second in pairwise(characters))
        else:
            yield found.lastgroup, found[0]
