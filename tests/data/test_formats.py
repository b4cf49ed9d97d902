"""All common formats give the same messages; errors name what is wrong with a row."""

import json

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


CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"c": "Oslo"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
ASKED = {"role": "user", "content": "Cold?"}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "-3 C", "name": "weather", "tool_call_id": "c1"}
ANSWER = {"role": "assistant", "content": "Yes."}
AS_TEXT = {**CALL, "function": {"name": "weather", "arguments": '{"c": "Oslo"}'}}


@pytest.mark.parametrize("content", ["", None])
@pytest.mark.parametrize("calls", [[CALL], [AS_TEXT], json.dumps([CALL]), [json.dumps(CALL)]])
@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), [json.dumps(TOOL)]])
def test_tools_and_calls_are_kept(content: object, calls: object, tools: object) -> None:
    calling = {**CALLING, "content": content, "tool_calls": calls}
    told = conversation_of({"messages": [ASKED, calling, RESULT, ANSWER], "tools": tools})
    assert list(told.messages) == [ASKED, CALLING, RESULT, ANSWER]
    assert told.tools == (TOOL,)
    assert told.supervised is None
    assert list(conversation_of({"messages": [ASKED, calling]}).messages) == [ASKED, CALLING]


def test_keys_that_arrow_fills_with_null_are_none() -> None:
    """Parquet gives each turn, tool and call the union of all their keys."""
    none = {"tool_calls": None, "name": None, "reasoning_content": None, "weight": None}
    function = {"name": "weather", "arguments": {"c": "Oslo", "unit": None}}
    filled = {**CALLING, "name": None, "tool_calls": [{**CALL, "function": function}]}
    tool = {**TOOL, "function": {**TOOL["function"], "description": None}}
    turns = [{**none, **ASKED}, filled, {**ANSWER, **none}]
    told = conversation_of({"messages": turns, "tools": [tool], "system": None, "functions": None})
    assert list(told.messages) == [ASKED, CALLING, ANSWER]
    assert told.tools == (TOOL,)


def test_no_tools() -> None:
    for tools in ("", " ", "[]", [], None):
        assert conversation_of({"messages": [ASKED, ANSWER], "tools": tools}).tools == ()


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "name", "something_else"])
def test_other_keys_of_a_turn_are_handed_on(key: str) -> None:
    answer = {**ANSWER, key: "Six sevens."}
    assert conversation_of({"messages": [ASKED, answer]}).messages == (ASKED, answer)


def test_sharegpt_with_function_calls() -> None:
    """LLaMA-Factory's roles; `tools` is JSON text."""
    call = {"name": "weather", "arguments": {"c": "Oslo"}}
    row = {
        "conversations": [
            {"from": "human", "value": "Cold?"},
            {"from": "function_call", "value": json.dumps(call)},
            {"from": "observation", "value": "-3 C"},
            {"from": "gpt", "value": "Yes."},
        ],
        "system": "",
        "tools": json.dumps([TOOL]),
    }
    told = conversation_of(row)
    assert [turn["role"] for turn in told.messages] == ["user", "assistant", "tool", "assistant"]
    assert told.messages[1]["tool_calls"] == [{"type": "function", "function": call}]
    assert (told.tools, told.supervised) == ((TOOL,), None)
    as_messages = {"conversations": [ASKED, ANSWER]}
    assert list(conversation_of(as_messages).messages) == [ASKED, ANSWER]


def test_parts_of_text_are_joined() -> None:
    parts = [{"type": "text", "text": "Co", "image": None}, {"text": "ld"}, "?"]
    told = conversation_of({"messages": [{"role": "user", "content": parts}, ANSWER]})
    assert list(told.messages) == [ASKED, ANSWER]


def test_alpaca_with_history_and_system() -> None:
    row = {
        "instruction": "And Spain?",
        "input": "",
        "output": "Madrid.",
        "system": "One word.",
        "history": [["France?", "Paris."], ["Italy?", "Rome."]],
    }
    texts = ["One word.", "France?", "Paris.", "Italy?", "Rome.", "And Spain?", "Madrid."]
    roles = ["system", *["user", "assistant"] * 3]
    told = conversation_of(row)
    assert [(turn["role"], turn["content"]) for turn in told.messages] == list(
        zip(roles, texts, strict=True)
    )
    assert told.supervised is None
    del row["history"], row["system"]
    bare = {**row, "history": [], "system": " "}
    assert conversation_of(bare) == conversation_of(row)


@pytest.mark.parametrize(
    ("given", "text"), [(0, "x\n\n0"), (1.5, "x\n\n1.5"), (None, "x"), ("", "x"), ("0", "x\n\n0")]
)
def test_alpaca_input_that_is_a_number(given: object, text: str) -> None:
    row = {"instruction": "x", "input": given, "output": "y"}
    assert conversation_of(row).messages[0]["content"] == text


def test_system_prompts() -> None:
    system = {"role": "system", "content": "Be brief."}
    empty = {**system, "content": ""}
    for row in (
        {"messages": [system, ASKED, ANSWER]},
        {"messages": [ASKED, ANSWER], "system": "Be brief."},
        {"messages": [system, ASKED, ANSWER], "system": "Be brief."},
        {"messages": [empty, ASKED, ANSWER], "system": "Be brief."},
    ):
        assert list(conversation_of(row).messages) == [system, ASKED, ANSWER]
    assert list(conversation_of({"messages": [empty, ASKED, ANSWER]}).messages) == [ASKED, ANSWER]


@pytest.mark.parametrize(
    ("off", "on"),
    [
        ({"weight": 0}, {"weight": 1}),
        ({"weight": 0.0}, {}),
        ({"train": False}, {"train": True}),
        ({"training": False}, {}),
        ({"loss": False}, {"loss": True}),
        ({"weight": 1, "train": False}, {"weight": None}),
    ],
)
def test_a_turn_is_taken_out_of_the_loss(off: dict, on: dict) -> None:
    told = conversation_of({"messages": [ASKED, {**ANSWER, **off}, ASKED, {**ANSWER, **on}]})
    assert list(told.messages) == [ASKED, ANSWER, ASKED, ANSWER]
    assert told.supervised == (False, False, False, True)
    assert conversation_of({"messages": [ASKED, {**ANSWER, **on}]}).supervised is None


def test_sharegpt_weights() -> None:
    turns = [("human", 0), ("gpt", 0), ("human", 0), ("gpt", 1)]
    row = {"conversations": [{"from": name, "value": "a", "weight": w} for name, w in turns]}
    assert conversation_of(row).supervised == (False, False, False, True)


def test_of_prompt_and_completion_the_completion_is_supervised() -> None:
    row = {"prompt": [ASKED, ANSWER, ASKED], "completion": [ANSWER]}
    assert conversation_of(row).supervised == (False, False, False, True)
    assert conversation_of(row, "all").supervised is None
    assert conversation_of({"prompt": "a", "completion": "b"}).supervised is None
    completion = [CALLING, RESULT, ANSWER]
    told = conversation_of({"prompt": [ASKED], "completion": completion})
    assert told.supervised is None
    told = conversation_of({"prompt": [ASKED, ANSWER, ASKED], "completion": completion})
    assert told.supervised == (False, False, False, True, False, True)


def test_supervise_is_of_prompt_and_completion_alone() -> None:
    row = {"messages": [ASKED, ANSWER, ASKED, ANSWER]}
    assert conversation_of(row) == conversation_of(row, "all")


OFF = {**ANSWER, "weight": 0}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": [ASKED, OFF]}, "no turn is supervised"),
        ({"messages": [ASKED, {**ANSWER, "weight": 0.5}]}, "expected weight 0 or 1 in the assi"),
        ({"messages": [ASKED, {**ANSWER, "train": "no"}]}, "expected train 0 or 1"),
        ({"messages": [{**ASKED, "train": True}, ANSWER]}, "train is true in the user's turn"),
        ({"messages": [ASKED, {**ANSWER, "train_detail": [1]}]}, "has train_detail, which is not"),
        ({"messages": [ASKED, {**ANSWER, "loss_scale": 0}]}, "has loss_scale, which is not supp"),
        ({"messages": [ASKED, {**ANSWER, "function_call": {"name": "f"}}]}, "write tool_calls"),
        ({"messages": [ASKED, ANSWER], "functions": [TOOL]}, "the row has functions"),
        (
            {"messages": [ASKED, ANSWER], "chat_template_kwargs": {"enable_thinking": False}},
            "the row has chat_template_kwargs, which is not supported",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}, ANSWER]},
            "expected parts of text in the user's turn, found a part of type image",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}, ANSWER]},
            "found a part of null",
        ),
        ({"messages": [ASKED, {**ANSWER, "content": None}]}, "in the assistant's turn, found null"),
        ({"messages": [ASKED, {**ANSWER, "thinking": ["a"]}]}, "expected text in thinking, found"),
        ({"messages": [ASKED, {**CALLING, "tool_calls": "{"}]}, "expected JSON in tool_calls"),
        ({"messages": [ASKED, {**CALLING, "tool_calls": 3}]}, "expected a list in tool_calls"),
        ({"messages": [ASKED, {**CALLING, "tool_calls": [None]}]}, "objects in tool_calls, found"),
        ({"messages": [ASKED, {**CALLING, "tool_calls": [{"id": "a"}]}]}, "the name of a function"),
        ({"messages": [ASKED, {**CALLING, "tool_calls": []}]}, "the answer is empty"),
        (
            {"messages": [ASKED, {**CALLING, "tool_calls": [{"name": "f", "arguments": "no"}]}]},
            "expected JSON in the arguments of tool_calls, found 'no'",
        ),
        ({"messages": [ASKED, ANSWER], "tools": "get_weather(city)"}, "expected JSON in tools"),
        ({"messages": [ASKED, ANSWER], "tools": {"a": 1}}, "expected a list in tools, found an"),
        ({"messages": [ASKED, ANSWER], "tools": ["1"]}, "expected objects in tools, found int"),
        ({"messages": [ASKED, ANSWER], "system": ["a"]}, "expected text in system, found a list"),
        (
            {"messages": [{"role": "system", "content": "a"}, ASKED, ANSWER], "system": "b"},
            "two system prompts",
        ),
        ({"messages": [{"role": "system", "content": ""}]}, "there is none; expected the"),
        ({"instruction": "x", "input": [1], "output": "y"}, "number in input, found a list"),
        ({"instruction": "x", "input": {"a": 1}, "output": "y"}, "in input, found an object"),
        ({"instruction": "x", "input": True, "output": "y"}, "number in input, found bool"),
        ({"instruction": "x", "history": ["a", "b"], "output": "y"}, "expected pairs"),
        ({"instruction": "x", "history": [["a", None]], "output": "y"}, "found null"),
        (
            {"conversations": [{"from": "function_call", "value": ""}]},
            "expected a call in the turn of function_call",
        ),
        (
            {"messages": [ASKED, {**ANSWER, "reasoning_content": "\ud800"}]},
            "the assistant's turn is no Unicode text",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_by_name(row: dict, said: str) -> None:
    with pytest.raises(BadRow) as caught:
        conversation_of(row)
    assert said in str(caught.value)
