"""A small synthetic instruction pool, with the skill of each row as hidden ground truth.

In: a seed. Out: rows of ten skills on short lists of letters or numbers, in three sources. Words
don't identify a skill: opposite skills use the same words ("write it from left to right" and
"write it from right to left"), and each skill has several wordings without common words. Only the
relation between list and answer reveals the skill.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

LETTERS = tuple("abcdefghijklmnopqrst")
NUMBERS = tuple(str(number) for number in range(10, 30))
ITEMS = {"letters": LETTERS, "numbers": NUMBERS}
"""Two kinds of list items; both are ordered, so every skill applies to both."""

LENGTHS = (4, 7)
"""Minimum and maximum number of items in a list."""

Answer = Callable[[list[str]], list[str]]


@dataclass(frozen=True)
class Skill:
    """A rule from a list to an answer, and a wording for each source's style.

    The first two wordings of opposite skills share their words.
    """

    answer: Answer
    wordings: tuple[str, str, str]


SKILLS = {
    "copy": Skill(
        lambda items: items,
        ("write it from left to right", "start with the first and end with the last", "repeat"),
    ),
    "reverse": Skill(
        lambda items: items[::-1],
        ("write it from right to left", "start with the last and end with the first", "backwards"),
    ),
    "ascending": Skill(
        sorted,
        ("put small before large", "the least comes first and the greatest last", "rising"),
    ),
    "descending": Skill(
        lambda items: sorted(items, reverse=True),
        ("put large before small", "the greatest comes first and the least last", "falling"),
    ),
    "first": Skill(
        lambda items: items[:1],
        ("what comes before the others", "give the one that follows none", "head"),
    ),
    "last": Skill(
        lambda items: items[-1:],
        ("what comes after the others", "give the one that none follows", "tail"),
    ),
    "greatest": Skill(
        lambda items: [max(items)],
        ("which is above the others", "find the one that none exceeds", "top"),
    ),
    "least": Skill(
        lambda items: [min(items)],
        ("which is below the others", "find the one that exceeds none", "bottom"),
    ),
    "rotate left": Skill(
        lambda items: items[1:] + items[:1],
        ("move the front one to the back", "send the head behind the tail", "onward"),
    ),
    "rotate right": Skill(
        lambda items: items[-1:] + items[:-1],
        ("move the back one to the front", "send the tail behind the head", "inward"),
    ),
}


@dataclass(frozen=True)
class Row:
    """A row with its skill."""

    id: str
    source: int
    skill: str
    kind: str
    question: str
    answer: str


def make_rows(count: int, seed: int) -> list[Row]:
    """Rows with all skills in equal shares."""
    rng = random.Random(seed)
    names = sorted(SKILLS)
    return [_row(rng, f"{number:05d}", names[number % len(names)]) for number in range(count)]


def make_examples(skill: str, count: int, seed: int) -> list[Row]:
    """Target examples of one skill, in its first wording, `count` per kind of list."""
    return _of_kinds(random.Random(f"{seed} examples"), skill, count, wordings=1)


def make_questions(skill: str, count: int, seed: int) -> list[Row]:
    """Held-out questions for one skill in all its wordings, `count` per kind of list."""
    return _of_kinds(random.Random(f"{seed} questions"), skill, count, wordings=3)


def _of_kinds(rng: random.Random, skill: str, count: int, wordings: int) -> list[Row]:
    return [
        _row(rng, f"{kind}-{number}", skill, kind=kind, wording=number % wordings)
        for kind in ITEMS
        for number in range(count)
    ]


def vocabulary() -> list[str]:
    """All words that rows can contain."""
    words = {word for skill in SKILLS.values() for text in skill.wordings for word in text.split()}
    return sorted(words | {":"} | set(LETTERS) | set(NUMBERS))


def _row(rng: random.Random, id: str, name: str, kind: str = "", wording: int | None = None) -> Row:
    source = rng.randrange(3)
    # Most rows of a source have its style, some have the style of another.
    style = source if rng.random() < 0.7 else rng.randrange(3)
    style = style if wording is None else wording
    kind = kind or rng.choice(sorted(ITEMS))
    items = rng.sample(ITEMS[kind], rng.randint(*LENGTHS))
    skill = SKILLS[name]
    question = f"{skill.wordings[style]} : {' '.join(items)}"
    return Row(id, source, name, kind, question, " ".join(skill.answer(items)))
