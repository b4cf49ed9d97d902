"""How far an order is gone down, and what is passed over on the way."""

import pytest

from gradsieve.recipe.schema import SelectConfig
from gradsieve.selection.choose import Candidate, choose


def order(sources: str, tokens: int = 10) -> list[Candidate]:
    return [Candidate((s, str(n)), -n, "", tokens) for n, s in enumerate(sources)]


def ids(chosen: list[Candidate]) -> str:
    return "".join(candidate.key[1] for candidate in chosen)


def test_how_many() -> None:
    assert ids(choose(order("abababab"), SelectConfig(fraction=0.25), 8)[0]) == "01"
    assert ids(choose(order("abababab"), SelectConfig(fraction=0.01), 8)[0]) == "0"
    assert ids(choose(order("abababab"), SelectConfig(count=3), 8)[0]) == "012"
    assert ids(choose(order("abababab"), SelectConfig(tokens=39), 8)[0]) == "012"
    assert ids(choose(order("ab"), SelectConfig(count=5), 2)[0]) == "01"


@pytest.mark.parametrize(
    ("cap", "expected"),
    [
        (2, "0134"),  # a, a, b, b
        (0.5, "0134"),  # of four rows
        ({"a": 1}, "0345"),
        ({"b": 0.25}, "0123"),
        (1, "03"),
    ],
)
def test_a_sources_cap(cap: object, expected: str) -> None:
    settings = SelectConfig.model_validate({"count": 4, "per_source": cap})
    chosen, passed = choose(order("aaabbb"), settings, 6)
    assert ids(chosen) == expected
    for row in passed:
        assert row.reason.startswith("per_source: ")
        assert row.key[1] not in expected


def test_a_cap_that_is_a_share_of_a_budget_is_in_tokens() -> None:
    settings = SelectConfig.model_validate({"tokens": 100, "per_source": 0.5})
    chosen, _ = choose(order("aaaaaaabbbbbbb", tokens=11), settings, 14)
    assert [c.key[0] for c in chosen] == list("aaaabbbb")


def test_only_rows_that_would_be_taken_are_checked() -> None:
    asked = []

    def check(key: tuple[str, str]) -> str | None:
        asked.append(key[1])
        return "odd" if int(key[1]) % 2 else None

    settings = SelectConfig.model_validate({"count": 3, "per_source": {"b": 1}})
    chosen, passed = choose(order("abbbaaaa"), settings, 8, [check])
    assert ids(chosen) == "024"
    assert asked == ["0", "1", "2", "4"]  # the second b is over its cap; after 4 it is full
    assert [(row.key[1], row.reason.split(":")[0]) for row in passed] == [
        ("1", "odd"),
        ("3", "per_source"),
    ]
