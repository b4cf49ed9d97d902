"""Columns and orders take turns; how far down an order goes, and which lines are passed over."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gradsieve.recipe.schema import SelectConfig
from gradsieve.selection.ranking import (
    Check,
    Choice,
    Ranked,
    Ranking,
    choose,
    in_turns,
    ranking_of,
    round_robin,
)


def pairs(scores: np.ndarray) -> list[tuple[int, int]]:
    """Each line, and the column whose turn it was; columns take turns like subtasks."""
    found = walk([in_turns(scores, list(map(str, range(scores.shape[1]))))])
    assert round_robin(scores).tolist() == [line for line, _, _ in found]
    return [(line, int(column)) for line, _, column in found]


def lines(scores: list[list[float]]) -> list[tuple[int, int]]:
    return pairs(np.array(scores, dtype=np.float32))


def test_by_hand() -> None:
    # Column 0 takes line 0, column 1 line 1; next come column 0 with line 2, column 1 with line 3.
    assert lines([[9, 1], [8, 9], [7, 8], [1, 7]]) == [(0, 0), (1, 1), (2, 0), (3, 1)]


def test_a_line_that_is_taken_is_passed_over() -> None:
    assert lines([[9, 9], [1, 2], [2, 1]]) == [(0, 0), (1, 1), (2, 0)]


def test_equal_scores_go_in_order_of_lines() -> None:
    assert [line for line, _ in lines([[0, 0, 0]] * 4)] == [0, 1, 2, 3]


@given(arrays(np.float32, (13, 4), elements=st.integers(0, 5)))
def test_each_column_gets_its_share(scores: np.ndarray) -> None:
    chosen = pairs(scores)
    assert sorted(line for line, _ in chosen) == list(range(13))
    for turn, (line, column) in enumerate(chosen):
        assert column == turn % 4
        left = [other for other in range(13) if other not in [r for r, _ in chosen[:turn]]]
        assert scores[line, column] == max(scores[other, column] for other in left)


def test_an_order_is_arrays() -> None:
    assert round_robin(np.zeros((3, 2), dtype=np.float32)).dtype == np.int64


def walk(parts: list[Ranked], passed: tuple[int, ...] = ()) -> list[tuple[int, float, str]]:
    """Line, score and subtask of all lines in order, passing over the lines in `passed`."""
    ranking = ranking_of(parts)
    found = []
    while (offer := ranking.offer()) is not None:
        if offer.line not in passed:
            ranking.end_turn()
            found.append((offer.line, round(offer.score, 5), ranking.subtask(offer.column)))
    return found


def test_targets_take_turns_with_their_own_scores_and_subtasks() -> None:
    first = in_turns(np.array([[9, 1], [8, 9], [7, 8]], dtype=np.float32), ["x", "y"])
    scores, columns = np.array([0.1, 0.2, 0.3], dtype=np.float32), np.array([0, -1, 0], np.int32)
    second = Ranked(scores, columns, ["z"])
    assert walk([first, second]) == [(0, 9, "x"), (2, 0.3, "z"), (1, 9, "y")]
    assert walk([second, first]) == [(2, 0.3, "z"), (0, 9, "x"), (1, 0.2, "")]
    assert walk([second]) == [(2, 0.3, "z"), (1, 0.2, ""), (0, 0.1, "z")]


def test_a_line_that_is_passed_over_does_not_cost_a_turn() -> None:
    scores = np.array([[9, 1], [8, 2], [7, 3], [1, 9], [2, 8]], dtype=np.float32)
    part = in_turns(scores, ["x", "y"])
    assert walk([part]) == [(0, 9, "x"), (3, 9, "y"), (1, 8, "x"), (4, 8, "y"), (2, 7, "x")]
    # Without line 0, x takes its next best line at once: x and y keep alternating.
    assert walk([part], (0,)) == [(1, 8, "x"), (3, 9, "y"), (2, 7, "x"), (4, 8, "y")]
    # Line 3 is the third of x and the first of y.
    assert walk([part], (3,)) == [(0, 9, "x"), (4, 8, "y"), (1, 8, "x"), (2, 3, "y")]


@given(
    arrays(np.float32, (13, 3), elements=st.integers(0, 5)), st.sets(st.integers(0, 12), max_size=6)
)
def test_shares_are_equal_whatever_is_passed_over(scores: np.ndarray, passed: set[int]) -> None:
    found = walk([in_turns(scores, ["a", "b", "c"])], tuple(passed))
    assert [name for _, _, name in found] == (["a", "b", "c"] * 5)[: 13 - len(passed)]
    left = set(range(13)) - passed
    for turn, (line, _, _) in enumerate(found):
        assert scores[line, turn % 3] == max(scores[other, turn % 3] for other in left)
        left.remove(line)


def taken(
    sources: str, settings: SelectConfig, checks: list[Check] | None = None, tokens: int = 10
) -> Choice:
    names = sorted(set(sources))
    codes = np.array([names.index(source) for source in sources], dtype=np.int32)
    lengths = np.full(len(sources), tokens, dtype=np.int32)
    falling = -np.arange(len(sources), dtype=np.float32)
    ranking = ranking_of([Ranked(falling, np.full(len(sources), -1, np.int32), [])])
    return choose(ranking, codes, lengths, names, settings, settings.budgets[0], checks or [])


def places(sources: str, settings: SelectConfig) -> str:
    return "".join(map(str, taken(sources, settings).chosen.tolist()))


def test_how_many() -> None:
    assert places("abababab", SelectConfig(fraction=0.25)) == "01"
    assert places("abababab", SelectConfig(fraction=0.01)) == "0"
    assert places("abababab", SelectConfig(count=3)) == "012"
    assert places("abababab", SelectConfig(tokens=39)) == "012"
    assert places("ab", SelectConfig(count=5)) == "01"


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
    choice = taken("aaabbb", settings)
    assert "".join(map(str, choice.chosen.tolist())) == expected
    assert len(choice.passed) == len(choice.reasons)
    assert all(reason.startswith("per_source: ") for reason in choice.reasons)
    assert not set(map(str, choice.passed.tolist())) & set(expected)


def test_what_a_cap_says() -> None:
    rows = SelectConfig.model_validate({"count": 4, "per_source": {"a": 1}})
    assert taken("aab", rows).reasons == ["per_source: 1 rows of a are selected already"]
    share = SelectConfig.model_validate({"count": 2, "per_source": 0.5})
    reason = "per_source: more than {}% of the selection would be of a"
    assert taken("aab", share).reasons == [reason.format(50)]
    small = SelectConfig.model_validate({"count": 9, "per_source": {"a": 0.004}})
    assert taken("aab", small).reasons == [reason.format(0.4)] * 2


def test_a_cap_that_is_a_share_of_a_budget_is_in_tokens() -> None:
    settings = SelectConfig.model_validate({"tokens": 100, "per_source": 0.5})
    chosen = taken("aaaaaaabbbbbbb", settings, tokens=11).chosen
    assert ["aaaaaaabbbbbbb"[place] for place in chosen.tolist()] == list("aaaabbbb")


def test_only_rows_that_would_be_taken_are_checked() -> None:
    asked = []

    def check(place: int) -> str | None:
        asked.append(place)
        return "odd" if place % 2 else None

    settings = SelectConfig.model_validate({"count": 3, "per_source": {"b": 1}})
    choice = taken("abbbaaaa", settings, [check])
    assert choice.chosen.tolist() == [0, 2, 4]
    assert asked == [0, 1, 2, 4]  # the second b exceeds its cap; after 4 all are selected
    assert choice.passed.tolist() == [1, 3]
    assert [reason.split(":")[0] for reason in choice.reasons] == ["odd", "per_source"]


@pytest.mark.parametrize("turns", [False, True])
def test_lines_ahead_are_those_that_come_next(turns: bool) -> None:
    """This includes similar columns, where most of a column's best lines are already taken."""
    chance = np.random.default_rng(0)
    scores = chance.normal(size=(300, 1)) + 0.1 * chance.normal(size=(300, 9))
    columns = in_turns(scores.astype(np.float32), [""] * 9)
    one = Ranked(columns.scores[:, 0], np.zeros(300, np.int32), [""])
    ranking, undisturbed = (ranking_of([columns if turns else one]) for _ in range(2))
    for _ in range(5):
        ahead = ranking.ahead(50).tolist()
        assert ahead == [take_next(ranking) for _ in range(50)]
        assert ahead == [take_next(undisturbed) for _ in range(50)]
    assert len(ranking.ahead(100)) == 50


def take_next(ranking: Ranking) -> int:
    found = ranking.offer()
    assert found is not None
    ranking.end_turn()
    return found.line
