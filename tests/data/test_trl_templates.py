"""Labels for every chat template that TRL ships, compared with the masks of TRL and transformers.

TRL's training templates mark supervised text with `{% generation %}`; gradsieve finds the spans in
the models' own templates. Where both write the same text, labels are compared token for token.
Every difference is listed below with its reason; one that isn't listed fails.
"""

from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import pytest
import trl
from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from conversations import SHAPES, TOOLS, byte_tokenizer
from gradsieve.data.content import after_reasoning, parts_of, text_of
from gradsieve.data.examples import Example, TokenizedExample
from gradsieve.data.rendering import DATE, DATE_STRING
from gradsieve.data.template import ChatTemplate, Refusal

FOLDER = Path(trl.__file__).parent / "chat_templates"
TEMPLATES = {file.stem: file.read_text(encoding="utf-8") for file in sorted(FOLDER.glob("*.jinja"))}
OWN = {name: text for name, text in TEMPLATES.items() if not name.endswith("_training")}

CALLS = [shape for shape in SHAPES if "call" in shape]
THINKING = ["thinking in the text", "thinking without its start", "thinking in both texts"]
THINKING += ["thinking in the first text"]
EARLIER = ["two turns", "three turns", "a system prompt, two turns", "the same answer twice"]
EARLIER += ["white space around", "an empty answer before", "the assistant first"]
EARLIER += ["a system prompt within", "reasoning_content, earlier", "thinking in the first text"]
EARLIER += ["thinking in both texts", "two calls in turn"]

PROMPT = "prompt"
"""TRL also supervises text of the generation prompt (`<|start|>assistant`, `<think>`, a newline).
The prompt contains it, so the model never generates it."""

TEXT = "text"
"""TRL's training template writes different text: thinking in earlier turns, reasoning that the
model's template drops, the next role's tag as the end. gradsieve keeps the model's own text."""

CALL = "call"
"""The template drops a function call. The row is refused, not supervised without it."""

ARGUMENTS = "arguments"
"""The model's template accepts a call's arguments only as text; TRL's also as an object."""

CHARACTER = "character"
"""transformers' mask omits all but the first token of a span's last character."""

STOP = "stop"
"""The model stops at `<|tool_response>` to get a call's result; TRL omits that token."""

PARTS = "parts"
"""The template writes only the first part of a message's content. The row is refused."""

PROMPTED = ["deepseek_r1_distill", "deepseekv3", "gptoss", "muse_glimmer", "qwen2_5", "qwen3_8"]
PROMPTED += ["qwen3_5_nothink", "qwen3_5_think", "qwen3_6"]
PROMPTED += ["nemotron_3_nano", "nemotron_3_super", "nemotron_3_ultra", "nemotron_3_5_lightning"]

EVERYWHERE = {"glm4moe": TEXT} | dict.fromkeys(PROMPTED, PROMPT)
"""Differences in many shapes, by template."""

DROPS_CALLS = ["idefics3", "smolvlm", "lfm2", "phi3", "phi3_5", "llama3", "qwen2_5_vl"]
DROPS_CALLS += ["deepseek_r1_distill"]

DIFFERENCES: list[tuple[str, list[str], list[str]]] = [
    (CALL, DROPS_CALLS, CALLS),
    (CALL, ["cohere", "cohere2", "gemma", "gemma3", "llava_next"], ["a call at the end"]),
    (PARTS, ["llava_next"], ["content in two parts"]),
    (TEXT, ["deepseek_r1_distill"], THINKING),
    (TEXT, ["qwen3"], [*EARLIER, *CALLS, "the assistant twice"]),
    (TEXT, ["qwen3_5_nothink", "qwen3_5_think", "qwen3_6"], EARLIER),
    (ARGUMENTS, ["deepseekv3"], CALLS),
    (CHARACTER, ["diffusion_gemma"], ["other scripts"]),
    (STOP, ["diffusion_gemma"], ["a call at the end"]),
]
"""Differences in some shapes: reason, templates, shapes."""


@cache
def stand_in() -> PreTrainedTokenizerBase:
    return byte_tokenizer(list(TEMPLATES.values()))


def example(shape: str) -> Example:
    tools = tuple(TOOLS) if shape in CALLS else ()
    return Example("s", shape, tuple(SHAPES[shape]), tools=tools)  # type: ignore[arg-type]


def template_of(name: str) -> ChatTemplate:
    made = stand_in()
    made.chat_template = OWN[name]
    return ChatTemplate(made, max_length=100_000)


def masks_of_trl(template: ChatTemplate, name: str, shape: str) -> tuple[list[int], list[bool]]:
    """Tokens and mask from transformers, with TRL's training template."""
    training = TEMPLATES.get(f"{name}_training", OWN[name])
    with patch.object(chat_template_utils, "datetime", Mock(now=lambda: DATE)):
        found = stand_in().apply_chat_template(
            [dict(turn) for turn in template.turns(example(shape).messages)],
            tools=list(example(shape).tools) or None,
            chat_template=training,
            date_string=DATE_STRING,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
    return found["input_ids"], [bool(kept) for kept in found["assistant_masks"]]


def pieces(ids: Any, kept: list[bool]) -> list[str]:
    """The texts of consecutive tokens that are kept."""
    runs: list[list[int]] = [[]]
    for token, keep in zip(ids, kept, strict=True):
        if keep:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [stand_in().decode(run) for run in runs if run]


def compare(
    template: ChatTemplate, name: str, shape: str, ours: TokenizedExample | Refusal
) -> str | None:
    """The reason why labels differ; None if they are equal."""
    try:
        ids, theirs = masks_of_trl(template, name, shape)
    except Exception:
        assert isinstance(ours, Refusal), "TRL's template refuses it, the model's doesn't"
        return None
    if isinstance(ours, Refusal):
        known = {"write the call": CALL, "concatenate": ARGUMENTS, "an answer as it is": PARTS}
        return next((kind for text, kind in known.items() if text in ours.reason), ours.reason)
    if ours.input_ids.tolist() != ids:
        return TEXT
    mine = [label != -100 for label in ours.labels]
    if mine == theirs:
        return None
    more = pieces(ids, [a and not b for a, b in zip(mine, theirs, strict=True)])
    fewer = pieces(ids, [b and not a for a, b in zip(mine, theirs, strict=True)])
    asked = [dict(turn) for turn in template.turns([{"role": "user", "content": "?"}])]
    prompt = stand_in().apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    if not more and all(text in prompt for text in fewer):
        return PROMPT
    if not fewer and more == ["<|tool_response>"]:
        return STOP
    if not fewer and len(more) == 1 and set(more[0]) == {"\ufffd"}:
        return CHARACTER
    return f"only here: {more}, only in TRL: {fewer}"


def test_there_are_templates_and_shapes() -> None:
    assert sum(f"{name}_training" in TEMPLATES for name in OWN) >= 30
    assert len(SHAPES) >= 40
    listed = [name for _, names, _ in DIFFERENCES for name in names]
    assert {*EVERYWHERE, *listed} <= set(OWN)


@pytest.mark.parametrize("name", OWN)
def test_labels_are_trls_but_for_the_listed_differences(name: str) -> None:
    template = template_of(name)
    encoded = dict(
        zip(SHAPES, template.try_encode_all([example(shape) for shape in SHAPES]), strict=True)
    )
    for shape, ours in encoded.items():
        if isinstance(ours, TokenizedExample):
            check(shape, ours)
    if f"{name}_training" not in TEMPLATES and "{% generation" not in OWN[name]:
        return  # TRL has no mask for it
    found = {shape: compare(template, name, shape, ours) for shape, ours in encoded.items()}
    listed = {
        shape: kind
        for kind, names, shapes in DIFFERENCES
        for shape in shapes
        if name in names and found[shape] is not None
    }
    everywhere = EVERYWHERE.get(name)
    assert {s: kind for s, kind in found.items() if kind not in (None, everywhere)} == {
        s: kind for s, kind in listed.items() if kind != everywhere
    }
    assert everywhere is None or everywhere in found.values()


def check(shape: str, encoded: TokenizedExample) -> None:
    """The last answer is supervised together with an end token, and no question is."""
    kept = stand_in().decode([label for label in encoded.labels if label != -100])
    last = SHAPES[shape][-1]["content"]
    for text in parts_of(last) or [text_of(last)]:
        assert after_reasoning(text).strip() in kept
    if shape != "the answer is the question":
        assert not any(
            text_of(turn["content"]) in kept for turn in SHAPES[shape] if turn["role"] == "user"
        )
