"""Each of the usual formats gives the same messages; what is wrong with a row is said."""

import pytest

from gradsieve.data.formats import BadRow, conversation_of

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Hi\u2028there "},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "Bye!\n"},
]
NAMES = {"system": "system", "user": "human", "assistant": "gpt"}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TURNS},
        {"conversations": [{"from": NAMES[t["role"]], "value": t["content"]} for t in TURNS]},
        {
            "system": "Be brief.",
            "conversations": [{"from": NAMES[t["role"]], "value": t["content"]} for t in TURNS[1:]],
        },
        {"prompt": TURNS[:4], "completion": TURNS[4:]},
    ],
)
def test_conversations(row: dict) -> None:
    assert list(conversation_of(row).messages) == TURNS


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Ask\n\nthis", "completion": "So"},
        {"instruction": "Ask", "input": "this", "output": "So"},
        {"instruction": "Ask\n\nthis", "input": "", "output": "So"},
        {"instruction": "Ask\n\nthis", "output": "So"},
        {"instruction": "Ask\n\nthis", "input": None, "output": "So", "extra": 1},
    ],
)
def test_questions_and_answers(row: dict) -> None:
    assert list(conversation_of(row).messages) == [
        {"role": "user", "content": "Ask\n\nthis"},
        {"role": "assistant", "content": "So"},
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([1], "expected an object, found a list"),
        ({"text": "x"}, "found the keys text"),
        ({}, "(none)"),
        ({"messages": []}, "messages is empty"),
        ({"messages": "x"}, "expected a list of turns in messages, found text"),
        ({"messages": ["x"]}, "expected a turn with role and content, found text"),
        ({"messages": [{"role": "user"}]}, "found keys role"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "unknown role 'bot'"),
        ({"messages": [{"role": "user", "content": 3}]}, "found int"),
        ({"messages": TURNS[:2]}, "the last turn is the user's"),
        ({"messages": [{"role": "assistant", "content": " \n"}]}, "the answer is empty"),
        ({"instruction": "x", "output": 5}, "expected text in output, found int"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, "unknown role 'alien'"),
        ({"messages": None, "prompt": "x"}, "expected messages, conversations"),
    ],
)
def test_what_is_wrong_is_said(row: object, said: str) -> None:
    with pytest.raises(BadRow) as caught:
        conversation_of(row)
    assert said in str(caught.value)
