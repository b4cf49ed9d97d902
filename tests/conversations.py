"""Conversations of many shapes, and a stand-in tokenizer with every template's special tokens."""

import re
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

TAG = re.compile(
    r"<\|[^|<>\s']+\|?>|<｜[^｜]+｜>|<[^|<>\s']+\|>|</?(?:s|think|tool_call)>|\[/?INST\]"
)


def byte_tokenizer(templates: list[str], template: str | None = None) -> PreTrainedTokenizerBase:
    """A tokenizer with one token per byte, so labels are readable, and one per template tag."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tags = sorted({tag for text in templates for tag in TAG.findall(text)})
    backend.add_special_tokens([AddedToken(tag, special=True) for tag in tags])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", chat_template=template
    )


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def calls(*cities: str) -> list[dict[str, Any]]:
    return [
        {
            "id": f"call{i}",
            "type": "function",
            "function": {"name": "weather", "arguments": {"city": city}},
        }
        for i, city in enumerate(cities)
    ]


def result(text: str, number: int = 0) -> dict[str, Any]:
    return {"role": "tool", "name": "weather", "tool_call_id": f"call{number}", "content": text}


def parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]

Q, A = user("What is two?"), said("It is two.")
COLD = user("Is it cold in Oslo?")
SHORT = ("hi", "in", "k", "A", "7", "final", "think", "assistant", "end", ">")

SHAPES: dict[str, list[dict[str, Any]]] = {
    **{f"the answer {text!r}": [Q, said(text)] for text in SHORT},
    "one turn": [Q, A],
    "a system prompt": [system("Be brief."), Q, A],
    "two turns": [Q, A, user("And three?"), said("It is three.")],
    "three turns": [Q, A, Q, said("two"), Q, said("2")],
    "a system prompt, two turns": [system("Be brief."), Q, A, Q, A],
    "the same answer twice": [Q, A, Q, A],
    "the answer is the question": [Q, said(Q["content"])],
    "several lines": [Q, said("It is\n\ntwo.\n- so\n")],
    "white space around": [Q, said("  two \n"), Q, said("\ttwo\n\n")],
    "other scripts": [user("二は?"), said("二つ é 😀 हिन्दी")],
    "an empty answer": [Q, said("")],
    "an empty answer before": [Q, said(""), Q, A],
    "braces": [Q, said("{{ two }} {% if %} {# 2 #}")],
    "the assistant first": [said("Hello, how can I help?"), Q, A],
    "the assistant twice": [Q, said("One."), said("Two.")],
    "the user twice": [Q, user("Well?"), A],
    "a system prompt within": [Q, A, system("Be long."), Q, A],
    "thinking in the text": [Q, said("<think>\nI count.\n</think>\n\nIt is two.")],
    "thinking without its start": [Q, said("I count.\n</think>\n\nIt is two.")],
    "thinking in both texts": [Q, said("<think>\na\n</think>\n\nb"), Q, said("<think>c</think>d")],
    "thinking in the first text": [Q, said("<think>\na\n</think>\n\nb"), Q, said("d")],
    "reasoning_content": [Q, said("It is two.", reasoning_content="I count.")],
    "reasoning_content, earlier": [Q, said("b", reasoning_content="a"), Q, said("d")],
    "thinking": [Q, said("It is two.", thinking="I count.")],
    "a call": [COLD, said("", tool_calls=calls("Oslo")), result("-3 C"), said("Yes, -3 C.")],
    "a call, no content": [COLD, said(None, tool_calls=calls("Oslo")), result("-3"), said("Yes")],
    "a call with text": [COLD, said("I look.", tool_calls=calls("Oslo")), result("-3"), said("Y")],
    "a call with reasoning": [
        COLD,
        said("", tool_calls=calls("Oslo"), reasoning_content="I look."),
        result("-3 C"),
        said("Yes."),
    ],
    "a call at the end": [COLD, said("", tool_calls=calls("Oslo"))],
    "two calls at once": [
        COLD,
        said("", tool_calls=calls("Oslo", "Rome")),
        result("-3 C"),
        result("20 C", 1),
        said("Yes."),
    ],
    "two calls in turn": [
        COLD,
        said("", tool_calls=calls("Oslo")),
        result("-3 C"),
        said("", tool_calls=calls("Rome")),
        result("20 C"),
        said("Yes."),
        user("Thanks."),
        said("Bye."),
    ],
    "content in parts": [user(parts("What is two?")), said(parts("It is two."))],
    "content in two parts": [Q, said([*parts("It is "), *parts("two.")])],
}
