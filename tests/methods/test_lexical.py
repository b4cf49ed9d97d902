"""BM25 compared with its formula, and DSIR's weights with a count by hand."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

import pools
from gradsieve.errors import DataError
from gradsieve.methods import find_method

TEXTS = ["the cat sat", "a dog ran and ran", "the cat and the dog", "fish swim in the wide sea"]
ROWS = [pools.row(text, str(number)) for number, text in enumerate(TEXTS)]


def bm25(query: list[str], document: list[str], documents: list[list[str]]) -> float:
    """Lucene's variant, the default of bm25s, reimplemented."""
    mean = sum(map(len, documents)) / len(documents)
    total = 0.0
    for word in query:
        holding = sum(word in other for other in documents)
        idf = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
        count = document.count(word)
        total += idf * count / (count + 1.5 * (1 - 0.75 + 0.75 * len(document) / mean))
    return total


def test_bm25_is_the_formula() -> None:
    questions = ["the cat ran", "wide sea", "dog"]
    subtasks = ["land", "water", "land"]
    target = [pools.row(q, subtask=s) for q, s in zip(questions, subtasks, strict=True)]
    scores = find_method("bm25").score(pools.task(ROWS, {"t": target}))["t"]
    # Single letters are not tokens (bm25s); all turns count: "yes" is a word too.
    documents = [[w for w in f"{text} yes".split() if len(w) > 1] for text in TEXTS]
    by_question = np.array(
        [
            [bm25(f"{q} yes".split(), document, documents) for q in questions]
            for document in documents
        ]
    )
    expected = np.stack([by_question[:, [0, 2]].mean(1), by_question[:, 1]], axis=1)
    assert list(scores.subtasks) == ["land", "water"]
    assert scores.by_subtask == pytest.approx(expected, rel=1e-5)
    assert scores.total == pytest.approx(expected.max(1), rel=1e-5)
    assert scores.subtasks[scores.best[3]] == "water"


def test_a_target_without_shared_words_scores_zero() -> None:
    target = [pools.row("quantum")]
    rows = [pools.row(text, str(n)) for n, text in enumerate(["cat sat", "dog ran"])]
    scores = find_method("bm25").score(pools.task(rows, {"t": target}))["t"]
    assert scores.total[0] == pytest.approx(scores.total[1])  # both say "yes", as does the target


WORDS = ["red", "green", "blue", "stone", "river", "cloud"]


def texts(words: list[str], count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(words, 12)) for _ in range(count)]


def test_dsir_samples_in_proportion_to_its_weights() -> None:
    colors, things = texts(WORDS[:3], 50, 0), texts(WORDS[3:], 450, 1)
    rows = [pools.row(text, f"{n:03}") for n, text in enumerate(colors + things)]
    target = [pools.row(text) for text in texts(WORDS[:3], 20, 2)]
    tops = []
    for seed in range(3):
        task = pools.task(rows, {"t": target}, seed=seed)
        order = np.argsort(-find_method("dsir").score(task)["t"].total)[:25]
        tops.append({key.id for key in task.pool.keys(order)})
        counts = Counter(key < "050" for key in tops[-1])
        assert counts[True] == 25
    assert tops[0] != tops[1]  # a sample, not a ranking


def test_dsir_of_several_targets_is_that_of_each_alone() -> None:
    rows = [pools.row(text, f"{n:02}") for n, text in enumerate(texts(WORDS, 40, 0))]
    targets = {"a": [pools.row(texts(WORDS[:3], 1, 1)[0])], "b": [pools.row(texts(WORDS, 1, 2)[0])]}
    together = find_method("dsir").score(pools.task(rows, targets))
    for name, examples in targets.items():
        alone = find_method("dsir").score(pools.task(rows, {name: examples}))
        assert (together[name].total == alone[name].total).all()
    assert (together["a"].total != together["b"].total).any()


def test_bm25_without_a_word() -> None:
    """Single letters are not words: without words, scores are 0, and a pool can't be ranked."""
    turns = ({"role": "user", "content": "2 + 3 ?"}, {"role": "assistant", "content": "5"})
    row = pools.row("")
    bare = replace(row, example=replace(row.example, messages=turns))
    task = pools.task(ROWS, {"t": [bare]})
    assert not find_method("bm25").score(task)["t"].total.any()
    with pytest.raises(DataError, match="no word of two letters"):
        find_method("bm25").score(pools.task([bare], {"t": ROWS}))


MEANT = {  # a question, a row with the same words, and one that shares only letters and marks
    "hindi": ("भारत की राजधानी", "नई दिल्ली भारत की राजधानी है", "किताबें और राजा भीतर आधा नीला"),
    "chinese": ("中国的首都", "北京是中国首都", "都市里的国首席中间"),
    "japanese": ("日本の首都はどこ", "東京は日本の首都です", "本日は都合が悪い首相"),
    "thai": ("เมืองหลวงของไทย", "กรุงเทพเป็นเมืองหลวง", "ลมหนาวมาเยือน"),
}


@pytest.mark.parametrize("method", ["bm25", "dsir"])
@pytest.mark.parametrize("script", MEANT)
def test_words_of_every_script(script: str, method: str) -> None:
    question, near, far = MEANT[script]
    rows = [pools.row(near, f"near{n}") for n in range(4)]
    rows += [pools.row(far, f"far{n}") for n in range(20)]
    task = pools.task(rows, {"t": [pools.row(question)]})
    best = np.argsort(-find_method(method).score(task)["t"].total)[:4]
    assert {key.id for key in task.pool.keys(best)} == {f"near{n}" for n in range(4)}


def test_bm25_is_the_formula_in_other_scripts() -> None:
    """A word with vowel signs is one word; a text without spaces is split into character pairs."""
    texts = ["हिन्दी भाषा", "日本国", "हिन्दी किताब 日本"]
    documents = [["हिन्दी", "भाषा"], ["日本", "本国"], ["हिन्दी", "किताब", "日本"]]
    documents = [[*document, "yes"] for document in documents]
    target = [pools.row("हिन्दी 日本")]
    rows = [pools.row(text, str(n)) for n, text in enumerate(texts)]
    scores = find_method("bm25").score(pools.task(rows, {"t": target}))["t"]
    query = ["हिन्दी", "日本", "yes"]
    expected = [bm25(query, document, documents) for document in documents]
    assert scores.total == pytest.approx(expected, rel=1e-5)
