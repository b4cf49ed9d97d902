"""How prompts are written: within the model's positions, with as many shots as fit."""

from types import SimpleNamespace
from typing import Any

import pytest

from gradsieve.data.examples import Example
from gradsieve.data.template import ChatTemplate
from gradsieve.demo.model import make_tokenizer
from gradsieve.evaluation.prompts import Prompts, write_prompts
from gradsieve.recipe.schema import EvaluateConfig
from gradsieve.tasks import Question, QuestionSet, Shots

SHOTS = ("head : a b -> a ", "head : c d -> c ", "head : e f -> e ")


def context(positions: int | None, shots: bool = True, max_length: int = 16) -> Any:
    template = ChatTemplate(make_tokenizer(), max_length=max_length)
    recipe = SimpleNamespace(evaluate=EvaluateConfig(shots=shots))
    return SimpleNamespace(template=template, positions=positions, recipe=recipe)


def questions(asked: list[str], answer: str = "a", choices: tuple[str, ...] = ()) -> QuestionSet:
    made = []
    for number, text in enumerate(asked):
        turns = ({"role": "user", "content": text}, {"role": "assistant", "content": answer})
        example = Example("t", str(number), turns, {})
        made.append(Question(example, (answer,), choices, Shots("", SHOTS, text)))
    return QuestionSet(tuple(made), ("exact_match",), max_tokens=4)


def shots_of(asked: Prompts) -> list[int]:
    return [prompt.count("->") for prompt in asked.texts]


def test_all_worked_examples_if_there_is_room() -> None:
    """Training may use a lower max_length than the model supports; questions don't have to."""
    asked = write_prompts(context(64), questions(["head : g h"]))
    assert (shots_of(asked), asked.fewer, asked.cut) == ([3], 0, 0)
    assert (asked.max_length, asked.max_tokens) == (64, 4)
    tokens = make_tokenizer()(asked.texts[0], add_special_tokens=False)["input_ids"]
    assert asked.lengths == [len(tokens)]


def test_worked_examples_are_left_out_from_the_last_as_far_as_it_takes() -> None:
    few = write_prompts(context(64), questions(["head : g h"]))
    positions = few.lengths[0] + 4 - 1  # one too few
    asked = write_prompts(context(positions), questions(["head : g h", "head :", "a " * 40]))
    assert shots_of(asked) == [2, 3, 0]
    assert (asked.fewer, asked.cut) == (2, 1)
    said = f"of {len(asked.texts)}: 2 with fewer few-shot examples, 1 without their start"
    assert said in str(asked.warning)
    assert all(n <= positions - 4 for n in asked.lengths[:2])
    assert asked.texts[0].index(SHOTS[0]) < asked.texts[0].index(SHOTS[1])


def test_without_worked_examples_if_so_asked() -> None:
    assert shots_of(write_prompts(context(64, shots=False), questions(["head : g h"]))) == [0]


def test_an_answer_takes_at_most_half_of_the_positions() -> None:
    asked = write_prompts(context(6), questions(["head : g h"]))
    assert (asked.max_tokens, asked.cut) == (3, 1)


def test_a_model_that_does_not_say_its_positions_is_asked_as_it_is_trained() -> None:
    assert write_prompts(context(None), questions(["head"])).max_length == 16


@pytest.mark.parametrize(("answer", "least"), [("a b c d e f", 6), ("a", 1)])
def test_an_answer_of_ones_own_has_room_for_the_longest_right_one(answer: str, least: int) -> None:
    given = questions(["head"], answer)
    free = QuestionSet(given.questions, ("exact_match",), max_tokens=None)
    assert least <= write_prompts(context(64), free).max_tokens <= least + 8


def test_room_for_a_choice() -> None:
    asked = write_prompts(context(64), questions(["head"], choices=("a", "b c")))
    assert 2 <= asked.max_tokens <= 10
