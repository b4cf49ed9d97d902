"""Supervised characters: header, answer and end of every assistant turn, and nothing else."""

from pathlib import Path
from typing import Any

import pytest
import trl
from transformers import AutoTokenizer

from conversations import SHORT, TOOLS, byte_tokenizer, calls, parts, result, said, system, user
from gradsieve.data.examples import Example
from gradsieve.data.template import ChatTemplate, Refusal

FOLDER = Path(trl.__file__).parent / "chat_templates"
Q = user("What is two?")

CHATML = """{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
MARKED = """{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}
{% endfor %}"""  # noqa: E501


def template_of(text: str) -> ChatTemplate:
    return ChatTemplate(byte_tokenizer([text], text), max_length=100_000)


def shipped(name: str) -> ChatTemplate:
    return template_of((FOLDER / f"{name}.jinja").read_text(encoding="utf-8"))


def example(*turns: dict[str, Any], **more: Any) -> Example:
    return Example("s", "1", turns, **more)  # type: ignore[arg-type]


def supervised(template: ChatTemplate, *turns: dict[str, Any], **more: Any) -> list[str]:
    rendered = template.render(example(*turns, **more))
    return [rendered.text[start:end] for start, end in rendered.spans]


def reason(template: ChatTemplate, *turns: dict[str, Any], **more: Any) -> str:
    [refused] = template.try_encode_all([example(*turns, **more)])
    assert isinstance(refused, Refusal)
    return refused.reason


@pytest.mark.parametrize("answer", [*SHORT, "analysis", "channel", "start", "im_end", "\n\n"])
@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("qwen3", "<think>\n\n</think>\n\n", "<|im_end|>\n"),
        ("gptoss", "<|channel|>final<|message|>", "<|return|>"),
        ("cohere2", "", "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"),
        ("nemotron_3_nano", "</think>", "<|im_end|>\n"),
        ("muse_glimmer", " to=user<|message|>", "<|eot|>"),
    ],
)
def test_short_answers(name: str, before: str, after: str, answer: str) -> None:
    trimmed = {"qwen3": answer.lstrip("\n"), "nemotron_3_nano": answer.strip()}
    found = supervised(shipped(name), Q, said(answer))
    assert found == [f"{before}{trimmed.get(name, answer)}{after}"]


def test_an_end_token_that_is_not_special() -> None:
    template = ChatTemplate(byte_tokenizer([], CHATML), max_length=100)
    assert supervised(template, Q, said("two"), Q, said("2")) == [
        "two<|im_end|>\n",
        "2<|im_end|>\n",
    ]
    assert template.end_texts == ["<|im_end|>"]
    assert template.warnings == ()


def test_special_ends_are_tokens_and_no_texts() -> None:
    template = shipped("gptoss")
    names = template.tokenizer.convert_ids_to_tokens(template.ends)
    assert names == ["</s>", "<|return|>", "<|end|>"]
    assert template.end_texts == []


def test_a_template_that_writes_no_end_is_reported() -> None:
    template = shipped("glm4moe")
    assert supervised(template, Q, said("two")) == ["\n<think></think>\ntwo"]
    assert len(template.warnings) == 1
    assert "writes nothing after an answer" in template.warnings[0]


def test_text_after_all_turns_ends_the_last() -> None:
    found = supervised(shipped("phi3"), Q, said("two"), Q, said("2"))
    assert found == ["two<|end|>\n", "2<|end|>\n</s>"]


@pytest.mark.parametrize(
    ("name", "end"),
    [("qwen2_5", "<|im_end|>\n"), ("llama3", "<|eot_id|>"), ("qwen3", "<|im_end|>\n")],
)
def test_the_assistant_first(name: str, end: str) -> None:
    first, second = supervised(shipped(name), said("Hello."), Q, said("two"))
    assert first == f"Hello.{end}"
    assert second.endswith(f"two{end}")


@pytest.mark.parametrize("start", ["", "<think>\n"])
@pytest.mark.parametrize("name", ["qwen3_5_think", "qwen3_6", "qwen3", "nemotron_3_nano"])
def test_thinking_where_the_prompt_ends_in_its_start(name: str, start: str) -> None:
    """The text is what the template writes after the generation prompt."""
    template = shipped(name)
    answer = f"{start}I count.\n</think>\n\nIt is two."
    [found] = supervised(template, Q, said(answer))
    assert found.endswith("I count.\n</think>\n\nIt is two.<|im_end|>\n") or (
        name == "nemotron_3_nano" and "I count." in found and "It is two.<|im_end|>" in found
    )
    rendered = template.render(example(Q, said(answer)))
    prompt = template.tokenizer.apply_chat_template([Q], add_generation_prompt=True, tokenize=False)
    shared = rendered.text[: rendered.spans[0][0]]
    assert prompt.startswith(shared)


def test_reasoning_that_the_template_drops() -> None:
    answer = "<think>\nI count.\n</think>\n\ntwo"
    template = shipped("deepseek_r1_distill")
    assert supervised(template, Q, said(answer)) == ["\n\ntwo<｜end▁of▁sentence｜>"]


def test_reasoning_in_a_field_of_its_own() -> None:
    found = supervised(shipped("qwen3"), Q, said("two", reasoning_content="I count."))
    assert found == ["<think>\nI count.\n</think>\n\ntwo<|im_end|>\n"]
    [found] = supervised(shipped("gptoss"), Q, said("two", thinking="I count."))
    assert found.startswith("<|channel|>analysis<|message|>I count.<|end|>")


@pytest.mark.parametrize("content", ["", None])
def test_a_call_is_supervised_and_its_result_is_not(content: str | None) -> None:
    turns = [Q, said(content, tool_calls=calls("Oslo")), result("-3 C"), said("cold")]
    first, second = supervised(shipped("qwen2_5"), *turns, tools=tuple(TOOLS))
    assert '{"name": "weather", "arguments": {"city": "Oslo"}}' in first
    assert second == "cold<|im_end|>\n"
    text = shipped("qwen2_5").render(example(*turns, tools=tuple(TOOLS))).text
    assert "Weather of a city" in text


def test_a_call_that_the_template_drops_is_refused() -> None:
    turns = [Q, said("I look.", tool_calls=calls("Oslo"))]
    assert reason(shipped("phi3"), *turns) == "it does not write the call of weather"
    assert reason(template_of(MARKED), *turns) == "it does not write the call of weather"


@pytest.mark.parametrize("text", [CHATML, MARKED], ids=["found", "marked"])
def test_turns_that_are_not_in_the_loss(text: str) -> None:
    turns = [Q, said("no"), Q, said("yes"), Q, said("no")]
    flags = (False, False, False, True, False, False)
    [found] = supervised(template_of(text), *turns, supervised=flags)
    assert found.rstrip() == "yes<|im_end|>"
    assert supervised(template_of(text), *turns, supervised=(False,) * 6) == []


@pytest.mark.parametrize("empty", ["", " \n"])
def test_an_empty_system_prompt_is_no_turn(empty: str) -> None:
    template = template_of(CHATML)
    flags = (False, False, True)
    assert supervised(template, system(empty), Q, said("two"), supervised=flags) == [
        "two<|im_end|>\n"
    ]
    assert "system" not in template.render(example(system(empty), Q, said("two"))).text
    assert supervised(shipped("gemma"), system(empty), Q, said("2")) == ["2<end_of_turn>\n"]


def test_content_in_the_form_that_the_template_takes() -> None:
    in_parts = [user(parts("What is two?")), said([*parts("It is "), *parts("two.")])]
    assert supervised(shipped("qwen3_instruct_2507"), *in_parts) == ["It is two.<|im_end|>\n"]
    assert supervised(shipped("llama3"), *in_parts) == ["It is two.<|eot_id|>"]
    assert supervised(shipped("smolvlm"), Q, said("two")) == [" two<end_of_utterance>\n"]
    assert "{" not in shipped("llama3").render(example(*in_parts)).text


def test_a_template_without_a_loop_over_messages() -> None:
    text = (
        "{{ messages[0].content }} -> "
        "{% if messages|length > 1 %}{{ messages[1].content }};{% endif %}"
        "{% if messages|length > 2 %}{{ messages[2].content }} -> {% endif %}"
        "{% if messages|length > 3 %}{{ messages[3].content }};{% endif %}"
    )
    assert supervised(template_of(text), user("a"), said("b"), user("c"), said("d")) == ["b;", "d;"]
    assert "as it is" in reason(template_of("{{ messages[0].content }}"), Q, said("2"))


def test_a_template_whose_turns_cannot_be_distinguished() -> None:
    text = "{{ messages | map(attribute='content') | join('|') }} ({{ messages | length }} turns)"
    assert "{% generation %}" in reason(template_of(text), Q, said("2"), Q, said("3"))


def test_text_that_a_macro_writes_belongs_to_its_turn() -> None:
    text = (
        "{% macro one(m) %}<{{ m.role }}>{% for c in m.content %}{{ c }}{% endfor %}</s>"
        "{% endmacro %}"
        "{% for i in range(messages|length) %}{% set m = messages[i] %}"
        "{% if m.role == 'system' %}{% continue %}{% endif %}{{ one(m) }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    found = supervised(template_of(text), system("s"), Q, said("two"), Q, said("2"))
    assert found == ["two</s>", "2</s>"]


@pytest.mark.parametrize("name", ["gpt2", "pythia", "mistral-v1"])
def test_generation_marks_are_transformers_masks(shared_data: Path, name: str) -> None:
    """A token that overlaps a span is part of it: here the space precedes the mark."""
    text = (
        "{% for m in messages %}{% if m.role == 'assistant' %}\nAnswer: {% generation %}"
        "{{ m.content }}{{ eos_token }}{% endgeneration %}\n{% else %}\nQuestion: {{ m.content }}\n"
        "{% endif %}{% endfor %}"
    )
    made = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / name)
    made.chat_template = text
    turns = [Q, said("B"), Q, said("Seven is one."), Q, said("é 日")]
    theirs = made.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
    ours = ChatTemplate(made).encode(example(*turns))
    assert ours.input_ids.tolist() == theirs["input_ids"]
    assert [label != -100 for label in ours.labels] == [bool(m) for m in theirs["assistant_masks"]]


def test_dates_are_fixed_and_known() -> None:
    template = shipped("gptoss")
    assert "Current date: 2024-07-26\n" in template.render(example(Q, said("2"))).text
    assert template.date == "2024-07-26"
    assert template_of(CHATML).date is None
    formats = "{{ strftime_now('%A %-d. %B %Y, %H:%M 100%%') }}{{ messages[0].content }}</s>"
    written = template_of(formats).prompt([Q])
    assert written.startswith("Friday 26. July 2024, 00:00 100%What is two?")
