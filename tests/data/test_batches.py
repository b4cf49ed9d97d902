"""Batches hold every example once, stay within the token budget, and pad on the right."""

from array import array

from hypothesis import given
from hypothesis import strategies as st

from gradsieve.data.batching import collate, length_sorted_batches
from gradsieve.data.examples import TokenizedExample


def encoded(input_ids: list[int], labels: list[int]) -> TokenizedExample:
    return TokenizedExample(array("i", input_ids), array("i", labels))


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 200))
def test_every_example_once_and_within_the_tokens(lengths: list[int], tokens: int) -> None:
    batches = length_sorted_batches(lengths, tokens)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = max(lengths[i] for i in batch) * len(batch)
        assert padded <= tokens or len(batch) == 1
    flat = [lengths[i] for batch in batches for i in batch]
    assert flat == sorted(flat)


def test_collate_pads_on_the_right() -> None:
    made = collate([encoded([1, 2, 3], [-100, 2, 3]), encoded([4], [-100])])
    assert made["input_ids"].tolist() == [[1, 2, 3], [4, 0, 0]]
    assert made["labels"].tolist() == [[-100, 2, 3], [-100, -100, -100]]
    assert made["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
