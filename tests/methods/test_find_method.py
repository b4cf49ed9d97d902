"""Methods are found by name, built-in or installed; errors name what is missing."""

import sys
from importlib.metadata import EntryPoint
from typing import Any

import numpy as np
import pytest

import pools
from gradsieve import methods
from gradsieve.errors import UsageError
from gradsieve.methods import METHODS, find_method, split_seed


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_where_it_is_from(name: str) -> None:
    method = find_method(name)
    assert len(method.source) > 10
    assert method.uses in ("data", "model", "gradients", "plain gradients")


@pytest.mark.parametrize(
    ("name", "split"),
    [("less", ("less", 0)), ("random-12", ("random", 12)), ("my-own", ("my-own", 0))],
)
def test_a_number_at_the_end_is_a_seed(name: str, split: tuple[str, int]) -> None:
    assert split_seed(name) == split


def test_a_misspelt_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        find_method("bm52")
    assert "bm25" in caught.value.todo


def test_a_name_that_ends_in_a_number_is_explained() -> None:
    with pytest.raises(UsageError, match="no method top") as caught:
        find_method("top-2@0.05")
    assert caught.value.where == "score.methods: top-2 is top with seed 2"


class Longest:
    """A third-party method: it prefers the longest rows."""

    source = "tests, this very file"
    uses = "data"

    def score(self, task: methods.ScoringTask) -> dict[str, methods.Scores]:
        lengths = task.pool.lengths[task.numbers].astype(np.float32)
        return {name: methods.Scores(lengths) for name in task.targets}


LONGEST = Longest()


class Needs(Longest):
    """Not a method: it can't be made without arguments."""

    def __init__(self, argument: str) -> None: ...


def test_a_third_partys_method_is_found_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    def installed(group: str) -> list[Any]:
        places = {"longest": "LONGEST", "class": "Longest", "none": "NONE", "needs": "Needs"}
        return [EntryPoint(name, f"test_find_method:{of}", group) for name, of in places.items()]

    monkeypatch.setattr(methods, "entry_points", installed)
    monkeypatch.setitem(sys.modules, "test_find_method", sys.modules[__name__])
    assert find_method("longest") is LONGEST
    assert isinstance(find_method("class"), Longest)
    assert find_method("class") is find_method("class")  # made once
    for wrong, what in {
        "none": "no attribute 'NONE'",
        "needs": "cannot be loaded: TypeError",
    }.items():
        with pytest.raises(UsageError, match=what) as caught:
            find_method(wrong)
        assert "entry point test_find_method:" in caught.value.where
    scores = find_method("longest-3").score(pools.task([pools.row("a"), pools.row("abc", "1")]))
    assert scores["t"].total.tolist() == [len("a\nyes"), len("abc\nyes")]
    with pytest.raises(UsageError) as caught:
        find_method("longst")
    assert "longest" in caught.value.todo


def test_a_library_that_is_missing_is_reported_with_what_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(UsageError) as caught:
        find_method("bm25").score(pools.task([pools.row("a")]))
    assert caught.value.todo == "pip install 'gradsieve[baselines]'"
