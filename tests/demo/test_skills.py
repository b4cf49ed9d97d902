"""The demo's skills are correct, equally frequent, and can't be distinguished by words."""

from collections import Counter
from itertools import pairwise

import pytest

from gradsieve.demo.model import make_tokenizer
from gradsieve.demo.skills import SKILLS, make_examples, make_rows

ORDERED = {"copy", "reverse", "ascending", "descending", "rotate left", "rotate right"}
CHECKS = {  # each rule again, implemented independently
    "copy": lambda items, said: said == items,
    "reverse": lambda items, said: list(reversed(said)) == items,
    "ascending": lambda items, said: all(a < b for a, b in pairwise(said)),
    "descending": lambda items, said: all(a > b for a, b in pairwise(said)),
    "first": lambda items, said: items.index(said[0]) == 0,
    "last": lambda items, said: items.index(said[0]) == len(items) - 1,
    "greatest": lambda items, said: all(item <= said[0] for item in items),
    "least": lambda items, said: all(item >= said[0] for item in items),
    "rotate left": lambda items, said: [said[-1], *said[:-1]] == items,
    "rotate right": lambda items, said: [*said[1:], said[0]] == items,
}


def test_answers_are_right() -> None:
    assert CHECKS.keys() == SKILLS.keys()
    for row in make_rows(500, 0):
        items, said = row.question.split(" : ")[1].split(), row.answer.split()
        assert sorted(said) == sorted(items) if row.skill in ORDERED else len(said) == 1
        assert CHECKS[row.skill](items, said), row


def test_same_seed_same_rows() -> None:
    assert make_rows(50, 3) == make_rows(50, 3)
    assert make_rows(50, 3) != make_rows(50, 4)


def test_skills_are_in_equal_parts_and_in_several_wordings() -> None:
    rows = make_rows(1000, 1)
    assert set(Counter(row.skill for row in rows).values()) == {100}
    for skill in SKILLS:
        asked = {row.question.split(" : ")[0] for row in rows if row.skill == skill}
        assert asked == set(SKILLS[skill].wordings)
    assert len({row.source for row in rows}) == 3


@pytest.mark.parametrize("twins", [("copy", "reverse"), ("ascending", "descending")])
def test_twins_have_the_same_words_in_another_order(twins: tuple[str, str]) -> None:
    one, other = (SKILLS[name].wordings for name in twins)
    for style in (0, 1):
        assert one[style] != other[style]
        assert sorted(one[style].split()) == sorted(other[style].split())


def test_words_alone_find_no_more_than_half() -> None:
    """Word overlap with the target's examples can't distinguish the skill from its twin."""
    examples = make_examples("reverse", 10, 0)
    known = Counter(word for row in examples for word in {*row.question.split()})
    rows = make_rows(1200, 0)

    def overlap(words: str) -> float:
        return sum(known[word] for word in {*words.split()}) / len({*words.split()})

    top = sorted(rows, key=lambda row: -overlap(row.question))[: len(rows) // 20]
    assert sum(row.skill == "reverse" for row in top) / len(top) <= 0.6
    assert {row.skill for row in top} >= {"reverse", "copy"}


def test_every_word_has_a_token_and_rows_are_short() -> None:
    tokenizer = make_tokenizer()
    for row in make_rows(300, 0):
        messages = [
            {"role": "user", "content": row.question},
            {"role": "assistant", "content": row.answer},
        ]
        encoded = tokenizer.apply_chat_template(
            messages, return_dict=True, return_assistant_tokens_mask=True
        )
        assert tokenizer.unk_token_id not in encoded["input_ids"]
        assert len(encoded["input_ids"]) < 64
        learnt = [
            token
            for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
            if mask
        ]
        assert tokenizer.decode(learnt) == f"{row.answer} </s>"
