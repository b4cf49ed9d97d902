"""A text that is cut before tokenization gives the same tokens as the full text."""

import random
import re
from array import array
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
from tokenizers import Tokenizer

from gradsieve.data.tokens import (
    CHARACTERS_PER_TOKEN,
    MARGIN,
    SHORTEST_CUT,
    labels_of,
    shortened,
)

MAX_LENGTH = 300
LENGTH = 60_000
SENTENCE = "the answer of seven naïve waves 三十 is not 1234567890 (or: 'it'll be') —\n\n  \tWhy?"
WORDS = re.split(" ", SENTENCE)


def random_words(rng: random.Random) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(LENGTH // 4))


TEXTS: dict[str, Callable[[random.Random], str]] = {
    "words": random_words,
    "no spaces": lambda rng: random_words(rng).replace(" ", "").replace("\n", ""),
    "one letter": lambda rng: "a" * LENGTH,
    "pairs": lambda rng: "".join(rng.choice("ab") for _ in range(LENGTH)),
    "digits": lambda rng: "".join(rng.choice("0123456789") for _ in range(LENGTH)),
    "Chinese": lambda rng: "".join(rng.choice("三十人大中国文") for _ in range(LENGTH)),
    "emoji": lambda rng: "".join(rng.choice("😀🏽👩‍🚀") for _ in range(LENGTH)),
    "white space": lambda rng: "".join(rng.choice(" \n\t") for _ in range(LENGTH)),
    "code": lambda rng: "".join(f"{' ' * rng.randrange(40)}x[{i}] = f(x)\n" for i in range(3000)),
}


@pytest.mark.parametrize("name", ["gpt2", "mistral-v1", "pythia", "../models/stories260K"])
@pytest.mark.parametrize("kind", TEXTS)
def test_tokens_are_the_same(shared_data: Path, name: str, kind: str) -> None:
    tokenizer = Tokenizer.from_file(str(shared_data / "tokenizers" / name / "tokenizer.json"))
    text = "<|user|>\n" + TEXTS[kind](random.Random(0))
    cut = shortened(text, tokenizer, MAX_LENGTH)
    assert text.startswith(cut)
    of_cut, of_text = (tokenizer.encode(one) for one in (cut, text))
    assert of_cut.ids[:MAX_LENGTH] == of_text.ids[:MAX_LENGTH]
    assert of_cut.offsets[:MAX_LENGTH] == of_text.offsets[:MAX_LENGTH]
    if len(of_text) > 40 * MAX_LENGTH:
        assert len(cut) < len(text)
        assert len(of_cut) > MAX_LENGTH + MARGIN


def test_short_texts_are_tokenized_in_full(shared_data: Path) -> None:
    tokenizer = Tokenizer.from_file(str(shared_data / "tokenizers" / "gpt2" / "tokenizer.json"))
    text = "a b " * (SHORTEST_CUT // 4)
    assert shortened(text, tokenizer, MAX_LENGTH) == text
    assert SHORTEST_CUT > MAX_LENGTH * CHARACTERS_PER_TOKEN


@pytest.mark.parametrize("name", ["gpt2", "mistral-v1"])
def test_characters_of_tokens_that_are_not_kept_are_not_looked_up(
    shared_data: Path, name: str
) -> None:
    tokenizer = Tokenizer.from_file(str(shared_data / "tokenizers" / name / "tokenizer.json"))
    encoding = tokenizer.encode(random_words(random.Random(0)), add_special_tokens=False)
    kept = array("i", encoding.ids[:MAX_LENGTH])
    asked = Mock(wraps=encoding)
    labels = labels_of(kept, asked, [(10, 200_000)])
    assert labels[0] == -100
    assert labels[10:] == kept[10:]
    assert asked.char_to_token.call_count < 100
