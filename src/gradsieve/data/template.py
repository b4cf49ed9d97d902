"""From messages to token ids and labels, by a chat template.

In: examples and a tokenizer. Out: token ids, and labels that are -100 where nothing is learnt.
Every assistant turn is learnt, its end-of-turn token included.

The conversation is rendered once, as text with the character spans that are learnt, and tokenized
once; a token is learnt if it starts within a span. Spans come from the template's own
`{% generation %}` where it has it. Elsewhere a turn starts where the rendering of the turns before
it, with a generation prompt, ends; and it ends with the special token that follows its text.

Rejected: tokenizing prefixes and counting tokens (slow on long conversations, and wrong where a
token spans the border); TRL's patched templates (known models only).
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from gradsieve.data.examples import Example, Message
from gradsieve.data.long_texts import shortened
from gradsieve.errors import DataError, ModelError
from gradsieve.io import fingerprint

TULU = Path(__file__).parent / "templates" / "tulu.jinja"
"""The format of the paper's training data (open-instruct's Tulu)."""

FIXED_DATE = "26 Jul 2024"
"""Given as `date_string`: Llama 3's template writes today's date otherwise, and its own default is
this one. Tokens must not change from day to day."""

_REFUSALS = (
    *(jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError),
    *(ArithmeticError, RecursionError),
)
"""What a template, a program of somebody else's, may raise for an example."""

TEXTS_AT_ONCE = 1000
"""Texts a call of the tokenizer; bounds memory."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text.

    Attributes:
        text: All turns.
        spans: (start, end) of the characters that are learnt, in order.
    """

    text: str
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tokenized conversation.

    Attributes:
        input_ids: At most max_length of them; 32-bit, since a pool's tokens are held in memory.
        labels: The token where it is learnt, -100 elsewhere.
        truncated: Whether tokens were cut off on the right.
    """

    input_ids: array[int]
    labels: array[int]
    truncated: bool = False

    @property
    def n_labels(self) -> int:
        """Labels that are predicted: the first position never is."""
        return sum(label != -100 for label in self.labels[1:])


def set_aside_reason(encoded: Encoded) -> str | None:
    """Why an example has no gradient; None if it has one."""
    if encoded.n_labels:
        return None
    if encoded.truncated:
        return f"no label token within the first {len(encoded.input_ids)} tokens"
    return "no label token"


class ChatTemplate:
    """A tokenizer with the template that its conversations are written in.

    Args:
        tokenizer: Never changed.
        template: `tokenizer` (its own), `tulu`, or the path of a Jinja file.
        max_length: Tokens that are kept.

    Raises:
        ModelError: If the tokenizer has no template, no offsets, or no end-of-sequence token where
            the template needs one.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str = "tokenizer",
        max_length: int = 2048,
    ) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self.template = _template_text(tokenizer, template)
        # A chat template writes special tokens itself; the paper's leaves it to the tokenizer.
        self.adds_special_tokens = template == "tulu"
        self._marks_generation = re.search(r"\{%-?\s*generation\s*-?%\}", self.template) is not None
        if not tokenizer.is_fast:
            raise ModelError(
                "The tokenizer cannot tell which characters a token stands for.",
                type(tokenizer).__name__,
                "Use a model with a fast tokenizer (tokenizer.json).",
            )
        if template == "tulu" and tokenizer.eos_token is None:
            raise ModelError(
                "The tulu format needs an end-of-sequence token, and the tokenizer has none.",
                type(tokenizer).__name__,
                "Set eos_token in tokenizer_config.json, or give a template file.",
            )
        # Tokens may be cut and padded as the tokenizer's last call asked; here neither is asked.
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        self._vocabulary = fingerprint({**backend, "truncation": None, "padding": None})

    @cached_property
    def fingerprint(self) -> str:
        """Changes if the same messages would give other tokens or labels."""
        special = {key: str(token) for key, token in self.tokenizer.special_tokens_map.items()}
        how = [self.template, self.adds_special_tokens, self.max_length]
        return fingerprint([*how, self._vocabulary, special])

    def encode(self, example: Example) -> Encoded:
        """Tokenize one example."""
        return self.encode_all([example])[0]

    def encode_all(self, examples: Sequence[Example]) -> list[Encoded]:
        """Tokenize examples, in order.

        Raises:
            DataError: If the template refuses an example; it names the example.
        """
        found: list[Encoded] = []
        for start in range(0, len(examples), TEXTS_AT_ONCE):
            some = examples[start : start + TEXTS_AT_ONCE]
            found += self._tokenize([self.render(example) for example in some])
        return found

    def render(self, example: Example) -> Rendered:
        """The text of an example and what of it is learnt.

        Raises:
            DataError: If the template refuses the example.
        """
        try:
            if example.answer_prefix is not None:
                return self._render_answer(example, example.answer_prefix)
            if self._marks_generation:
                return self._render_marked(example.messages)
            return self._render_by_prefix(example.messages)
        except _REFUSALS as error:
            raise DataError(
                f"The chat template refuses an example: {error}",
                f"{example.source}, {example.id}: {[turn['role'] for turn in example.messages]}",
                "Mend the row, or set model.chat_template to one that takes it.",
            ) from None

    @cached_property
    def ends(self) -> list[int]:
        """Tokens that end an answer: the tokenizer's, and the one that closes a turn."""
        turns: list[Message] = [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": "xyzzy"},
        ]
        try:
            text = self._write(turns)
        except _REFUSALS:  # it wants other turns
            text = ""
        said_at = text.rfind("xyzzy")
        closing = self._special_tokens.match(text, said_at + len("xyzzy")) if said_at >= 0 else None
        tokens = [self.tokenizer.eos_token, closing[0].strip() if closing else None]
        return [self.tokenizer.convert_tokens_to_ids(token) for token in tokens if token]

    def prompt(self, messages: Sequence[Message], answer_start: str = "") -> str:
        """The text that asks for an answer, up to where what is generated starts."""
        return self._write(messages, add_generation_prompt=True) + answer_start

    def _tokenize(self, texts: Sequence[Rendered]) -> Iterator[Encoded]:
        backend = self.tokenizer.backend_tokenizer
        tokens = self.tokenizer(
            [shortened(rendered.text, backend, self.max_length) for rendered in texts],
            add_special_tokens=self.adds_special_tokens,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        for rendered, ids, offsets in zip(
            texts, tokens["input_ids"], tokens["offset_mapping"], strict=True
        ):
            kept = array("i", ids[: self.max_length])
            labels = _labels(kept, offsets, rendered.spans)
            yield Encoded(kept, labels, truncated=len(ids) > len(kept))

    def _render_answer(self, example: Example, prefix: str) -> Rendered:
        """A target's example: only what follows the prefix in the last turn is learnt."""
        *before, last = example.messages
        if not last["content"].startswith(prefix):
            raise ValueError(f"the answer does not start with {prefix!r}")
        start = self._write(before, add_generation_prompt=True) + prefix
        text = start + last["content"].removeprefix(prefix)
        return Rendered(text, ((len(start), len(text)),))

    def _render_marked(self, messages: Sequence[Message]) -> Rendered:
        rendered, indices = render_jinja_template(
            [list(messages)],
            chat_template=self.template,
            return_assistant_tokens_mask=True,
            **self._variables,
        )
        return Rendered(rendered[0], tuple((int(start), int(end)) for start, end in indices[0]))

    def _render_by_prefix(self, messages: Sequence[Message]) -> Rendered:
        text = self._write(messages)
        spans: list[tuple[int, int]] = []
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._write(messages[:turn], add_generation_prompt=True)
            if not text.startswith(before):
                raise ValueError(
                    "what it writes before an answer depends on the answer; give a template with "
                    "{% generation %} around what the assistant says"
                )
            spans.append((len(before), self._end_of_turn(text, message["content"], len(before))))
        return Rendered(text, tuple(spans))

    def _end_of_turn(self, text: str, content: str, start: int) -> int:
        """Where a turn ends: after its text and the special token that follows it."""
        found = text.find(content.strip(), start)
        if found < 0:
            raise ValueError("it does not write an answer as it is")
        end = found + len(content.strip())
        special = self._special_tokens.match(text, end)
        return special.end() if special else end

    @cached_property
    def _special_tokens(self) -> re.Pattern[str]:
        """One special token, after white space that the template may put before it."""
        tokens = {str(token) for token in self.tokenizer.all_special_tokens}
        added = self.tokenizer.added_tokens_decoder.values()
        tokens |= {token.content for token in added if token.special}
        either = "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True))
        return re.compile(rf"\s*(?:{either})" if either else r"(?!)")

    @property
    def _variables(self) -> dict[str, Any]:
        special = {key: str(token) for key, token in self.tokenizer.special_tokens_map.items()}
        return {**special, "date_string": FIXED_DATE}

    def _write(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        rendered, _ = render_jinja_template(
            [list(messages)],
            chat_template=self.template,
            add_generation_prompt=add_generation_prompt,
            **self._variables,
        )
        return str(rendered[0])


def _template_text(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    if template == "tokenizer":
        own = tokenizer.chat_template
        if isinstance(own, dict):
            own = own.get("default")
        if not own:
            raise ModelError(
                "The tokenizer has no chat template.",
                f"model.chat_template: tokenizer, {tokenizer.name_or_path}",
                "Set model.chat_template to tulu (the paper's format) or to a Jinja file.",
            )
        _check_syntax(str(own), f"the chat template of {tokenizer.name_or_path}")
        return str(own)
    file = TULU if template == "tulu" else Path(template)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        todo = "Give tokenizer, tulu, or the path of a Jinja file."
        said = getattr(error, "strerror", "it is not UTF-8 text")
        raise ModelError(
            f"The chat template cannot be read: {said}.",
            f"model.chat_template: {template}",
            todo,
        ) from None
    _check_syntax(text, template)
    return text


def _check_syntax(text: str, where: str) -> None:
    """Refuse what is not Jinja, before the first example is written."""
    try:
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_without_generation(text))
    except jinja2.TemplateSyntaxError as error:
        raise ModelError(
            f"The chat template is not Jinja: {(error.message or '').rstrip('.')}.",
            f"{where}:{error.lineno}",
            "Mend the template, or set model.chat_template to tulu or another file.",
        ) from None


def _without_generation(text: str) -> str:
    """A template without the block that only transformers' Jinja knows."""
    return re.sub(r"\{%-?\s*(?:end)?generation\s*-?%\}", "", text)


def _labels(
    ids: array[int],
    offsets: Sequence[tuple[int, int]],
    spans: Sequence[tuple[int, int]],
) -> array[int]:
    """The tokens that start in a span; tokens without characters are never learnt."""
    labels = array("i", [-100]) * len(ids)
    waiting = iter(spans)
    start, end = next(waiting, (0, 0))
    for position, (token, (first, last)) in enumerate(zip(ids, offsets, strict=False)):
        while first >= end > 0:
            start, end = next(waiting, (0, 0))
        if start <= first < end and last > first:
            labels[position] = token
    return labels
