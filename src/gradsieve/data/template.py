"""Converts messages to token ids and labels, with a chat template.

In: examples and a tokenizer. Out: token ids, and labels that are -100 for unsupervised tokens.

A conversation is rendered once, as text with the supervised character spans (`spans`), and
tokenized once. A token that overlaps a span is supervised, as in transformers' masks.

Rejected: tokenizing prefixes and counting tokens (slow on long conversations, and wrong where a
token crosses the border); TRL's patched templates (known models only).
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from operator import itemgetter

from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from gradsieve.data.content import common_prefix, text_of
from gradsieve.data.examples import Example, Message, TokenizedExample
from gradsieve.data.readers import LIMITS
from gradsieve.data.rendering import DATE, DATE_STRING, Renderer, Turn, render_limit, template_text
from gradsieve.data.sources import LISTED_AT_ONCE, list_first
from gradsieve.data.spans import TEMPLATE_ERRORS, Conversation, Rendered, SpanFinder
from gradsieve.data.tokens import labels_of, shortened, with_full_offsets
from gradsieve.errors import DataError, ModelError
from gradsieve.io import fingerprint
from gradsieve.recipe.schema import LimitsConfig, OnBadRow

LABELS_VERSION = 2
"""Part of fingerprints; incremented when the choice of label tokens changes."""

TEXTS_AT_ONCE = 1000
"""Texts per call of the tokenizer; bounds memory."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An example that the template refuses, or renders in a form whose labels can't be verified."""

    example: Example
    reason: str

    @property
    def where(self) -> str:
        """Source and id, after file and line if they are known."""
        key = f"{self.example.source}, {self.example.id}"
        return f"{self.example.where} ({key})" if self.example.where else key

    @property
    def skip_reason(self) -> str:
        """Why the example is skipped."""
        return f"the chat template refuses it: {self.reason}"


def refused_error(refused: Sequence[Refusal], count: int) -> DataError:
    """The error that lists the first refusals."""
    listed = [
        f"{one.where}: {[turn['role'] for turn in one.example.messages]}: {one.reason}"
        for one in refused[:LISTED_AT_ONCE]
    ]
    return DataError(
        f"The chat template refuses {len(refused)} of {count} examples.",
        list_first(listed, len(refused)),
        "Fix the rows, set model.chat_template (of train.model: train.chat_template) to one that "
        "takes them, or set on_bad_row: skip to leave them out.",
    )


class ChatTemplate:
    """A tokenizer with the chat template that renders its conversations.

    Args:
        tokenizer: A fast tokenizer, which is not modified.
        template: `tokenizer` (its own), `tulu`, or the path of a Jinja file.
        max_length: Number of tokens that are kept.
        limits: Limits on the rendering of a conversation, in seconds and characters.

    Raises:
        ModelError: If the tokenizer has no template, no offsets, or no end-of-sequence token where
            the template needs one.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str = "tokenizer",
        max_length: int = 2048,
        limits: LimitsConfig = LIMITS,
    ) -> None:
        self.tokenizer, self.max_length, self._limits = tokenizer, max_length, limits
        self.template = template_text(tokenizer, template)
        # A chat template writes special tokens itself; the paper's leaves them to the tokenizer.
        self.adds_special_tokens = template == "tulu"
        if not tokenizer.is_fast:
            raise ModelError(
                "The tokenizer does not report which characters a token stands for.",
                type(tokenizer).__name__,
                "Use a model with a fast tokenizer (tokenizer.json).",
            )
        if template == "tulu" and tokenizer.eos_token is None:
            raise ModelError(
                "The tulu format needs an end-of-sequence token, and the tokenizer has none.",
                type(tokenizer).__name__,
                "Set eos_token in tokenizer_config.json, or give a template file.",
            )
        special = {key: str(token) for key, token in tokenizer.special_tokens_map.items()}
        self._finder = SpanFinder(Renderer(self.template, special, limits.render_characters))
        # A tokenizer keeps the truncation and padding of its last call; here both are turned off.
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        backend |= {"truncation": None, "padding": None}
        how = [self.template, self.adds_special_tokens, max_length, LABELS_VERSION, DATE_STRING]
        self.fingerprint: str = fingerprint([*how, fingerprint(backend), special])
        """Changes if the same messages would give different tokens or labels."""
        self._backend = Tokenizer.from_str(json.dumps(with_full_offsets(backend)))

    @property
    def date(self) -> str | None:
        """The fixed date used as today's in every conversation; None if the template has none."""
        dated = "strftime_now" in self.template or "date_string" in self.template
        return DATE.date().isoformat() if dated else None

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """Messages for the user about how the template writes answers."""
        with render_limit(self._limits, "a question of one turn"):
            before, after = self._finder.around(({"role": "user", "content": "?"},))
        refused = not (before or after)
        if refused or after.strip() or self._finder.renderer.marks_generation:
            return ()
        return (
            "the chat template writes nothing after an answer: its end is not supervised, and a "
            "model trained so may not stop",
        )

    def encode(self, example: Example) -> TokenizedExample:
        """Tokenize one example; raises `DataError` if the template refuses it."""
        rendered = self.render(example)
        [encoding] = self._tokenize([rendered])
        return self._labeled(rendered, encoding)

    def try_encode_all(
        self, examples: Sequence[Example], on_bad_row: OnBadRow = "skip"
    ) -> list[TokenizedExample | Refusal]:
        """Tokenize examples, in order; one that the template refuses gives a `Refusal`.

        Raises:
            DataError: If the template refuses some, and `on_bad_row` is "fail".
        """
        found: list[TokenizedExample | Refusal] = []
        for start in range(0, len(examples), TEXTS_AT_ONCE):
            rendered = [self.try_render(example) for example in examples[start:][:TEXTS_AT_ONCE]]
            texts = [text for text in rendered if isinstance(text, Rendered)]
            encodings = iter(self._tokenize(texts))
            found += [
                text if isinstance(text, Refusal) else self._labeled(text, next(encodings))
                for text in rendered
            ]
        refused = [one for one in found if isinstance(one, Refusal)]
        if refused and on_bad_row == "fail":
            raise refused_error(refused, len(found))
        return found

    def render(self, example: Example) -> Rendered:
        """The text of an example and its supervised spans."""
        rendered = self.try_render(example)
        if isinstance(rendered, Refusal):
            raise refused_error([rendered], 1)
        return rendered

    def try_render(self, example: Example) -> Rendered | Refusal:
        """The text of an example and its supervised spans, or a `Refusal`."""
        try:
            with render_limit(self._limits, f"{example.source} {example.id}"):
                if example.answer_prefix is not None:
                    return self._render_answer(example, example.answer_prefix)
                return self._finder.find(self._conversation(example))
        except TEMPLATE_ERRORS as error:
            return Refusal(example, str(error) or type(error).__name__)

    def in_pieces(self, rendered: Rendered) -> tuple[TokenizedExample, list[tuple[str, bool]]]:
        """The tokens of a text, and their text in pieces, each with whether it is supervised."""
        [encoding] = self._tokenize([rendered])
        encoded = self._labeled(rendered, encoding)
        at, pieces = 0, list[tuple[str, bool]]()
        flags = [label != -100 for label in encoded.labels]
        for flag, tokens in groupby(zip(flags, encoding.offsets, strict=False), itemgetter(0)):
            end = max(at, *(last for _, (_, last) in tokens))
            pieces.append((rendered.text[at:end], flag))
            at = end
        return encoded, [piece for piece in pieces if piece[0]]

    @cached_property
    def ends(self) -> list[int]:
        """Token ids that end an answer: EOS, and added tokens at the start of a turn's end."""
        first = (self._first_token(text.lstrip()) for text in self._endings)
        added = [token for token in first if token in self.tokenizer.added_tokens_decoder]
        ends = dict.fromkeys([self.tokenizer.eos_token_id, *added])
        return [token for token in ends if token is not None]

    @cached_property
    def end_texts(self) -> list[str]:
        """Texts that end an answer, if a turn's end doesn't start with a special token."""
        added = self.tokenizer.added_tokens_decoder.items()
        special = {None, *(number for number, token in added if token.special)}
        texts = dict.fromkeys(text.strip() for text in self._endings)
        return [text for text in texts if self._first_token(text) not in special]

    @property
    def _endings(self) -> tuple[str, str]:
        return self._finder.ending, self._finder.ending_within

    def _first_token(self, text: str) -> int | None:
        return next(iter(self._backend.encode(text, add_special_tokens=False).ids), None)

    def prompt(
        self, messages: Sequence[Message], answer_start: str = "", answer: Message | None = None
    ) -> str:
        """The prompt for an answer, up to the point where generation starts.

        It includes what the template writes before an answer (an empty think block, a channel).

        Args:
            messages: The turns before the answer.
            answer_start: How the answer starts (a benchmark's "The answer is:").
            answer: The reference answer. If it has reasoning, the model must generate reasoning.

        Raises:
            DataError: If the template refuses the messages.
        """
        try:
            with render_limit(self._limits, "a question"):
                turns = self.turns(messages)
                prompt = self._finder.renderer.write(turns, generation_prompt=True)
                before, _ = self._finder.around(turns)
                if not before or answer_start:
                    return (before or prompt) + answer_start
                if answer is not None:
                    written = self._finder.renderer.write([*turns, *self.turns([answer])])
                    if not written.startswith(before):
                        return common_prefix(prompt, written)
        except TEMPLATE_ERRORS as error:
            roles = [turn["role"] for turn in messages]
            what = f"The chat template refuses a question: {error}"
            todo = "Set model.chat_template to one that takes it."
            raise DataError(what, f"a question of {roles}", todo) from None
        # In many vocabularies, white space before an answer is part of its token: it is generated.
        shared = len(common_prefix(prompt, before))
        return before[: max(shared, len(before.rstrip()))]

    def turns(self, messages: Sequence[Message]) -> list[Turn]:
        """The messages in the form that the template takes; empty system prompts are dropped."""
        # As in transformers, keys without a value are dropped.
        turns = [
            {key: value for key, value in turn.items() if value is not None}
            for turn in messages
            if not _is_empty_system(turn)
        ]
        return self._finder.in_form(turns)

    def _conversation(self, example: Example) -> Conversation:
        marks = example.supervised or [True] * len(example.messages)
        supervised = [
            mark and turn["role"] == "assistant"
            for mark, turn in zip(marks, example.messages, strict=True)
            if not _is_empty_system(turn)
        ]
        return Conversation(tuple(self.turns(example.messages)), example.tools, tuple(supervised))

    def _tokenize(self, texts: Sequence[Rendered]) -> list[Encoding]:
        try:
            return self._backend.encode_batch(
                [shortened(rendered.text, self._backend, self.max_length) for rendered in texts],
                add_special_tokens=self.adds_special_tokens,
            )
        except Exception as error:  # errors of the Rust code have no other class
            raise ModelError(
                "The tokenizer cannot tokenize a text.",
                f"{self.tokenizer.name_or_path}: {error}",
                "Give the tokenizer that the model was trained with.",
            ) from None

    def _labeled(self, rendered: Rendered, encoding: Encoding) -> TokenizedExample:
        ids = encoding.ids
        kept = array("i", ids[: self.max_length])
        labels = labels_of(kept, encoding, rendered.spans)
        return TokenizedExample(kept, labels, truncated=len(ids) > len(kept))

    def _render_answer(self, example: Example, prefix: str) -> Rendered:
        """A target's example: only the text after the prefix in the last turn is supervised."""
        *before, last = example.messages
        content = text_of(last["content"])
        if not content.startswith(prefix):
            raise ValueError(f"the answer does not start with {prefix!r}")
        turns = self.turns(before)
        start, _ = self._finder.around(turns, example.tools)
        start = start or self._finder.renderer.write(turns, example.tools, generation_prompt=True)
        text = start + content
        return Rendered(text, ((len(start + prefix), len(text)),))


def _is_empty_system(turn: Message) -> bool:
    return turn["role"] == "system" and not text_of(turn.get("content")).strip()
