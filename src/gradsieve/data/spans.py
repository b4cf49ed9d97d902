"""Finds the supervised characters of a rendered conversation.

In: turns, and which of them are in the loss. Out: the text and the supervised spans.

Everything that a model must generate itself is supervised: all text of an assistant turn after the
generation prompt, i.e. a header that the prompt doesn't have (gpt-oss' channel, Qwen3's empty
think block), the answer, and the end of the turn. TRL's training templates do the same;
tests/data/test_trl_templates.py lists where they differ. A template's own `{% generation %}`
blocks are used as they are.

Each turn is verified: its supervised text contains the answer and something that ends it. A
conversation that can't be verified is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jinja2

from gradsieve.data.content import (
    after_reasoning,
    common_prefix,
    in_parts,
    in_text,
    parts_of,
    text_of,
)
from gradsieve.data.rendering import Renderer, Span, Turn, Turns

PLACEHOLDER = "q7xq0answer0qx7q"
"""Replaces an answer where only the text that a template writes around it matters."""

TEMPLATE_ERRORS = (
    *(jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError),
    *(ArithmeticError, RecursionError, MemoryError),
)
"""Exceptions that a template, which is a program, may raise for a conversation."""

_PROBE: tuple[Turn, ...] = (
    {"role": "user", "content": "?"},
    {"role": "assistant", "content": PLACEHOLDER},
)


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text, and the spans (start, end) of the supervised characters."""

    text: str
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Conversation:
    """The input of a chat template; `supervised` states for each turn whether it is in the loss."""

    turns: tuple[Turn, ...]
    tools: tuple[Any, ...]
    supervised: tuple[bool, ...]


class SpanFinder:
    """Finds the supervised spans of conversations rendered by one template."""

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer

    def find(self, conversation: Conversation) -> Rendered:
        """A conversation's text and supervised spans.

        Raises:
            ValueError: If the template writes something that can't be verified.
            Exception: One of `TEMPLATE_ERRORS`, if it refuses the conversation.
        """
        if self.renderer.marks_generation:
            return self._by_generation(conversation)
        turns, tools = conversation.turns, conversation.tools
        text = self.renderer.write(turns, tools)
        found = self.renderer.write_turns(turns, tools)
        marks_hold = found.text == text
        spans: list[Span] = []
        for turn in (n for n, supervised in enumerate(conversation.supervised) if supervised):
            if marks_hold and found.of(turn):
                own = self._by_marks(conversation, found, turn)
            else:
                own = [self._by_prefix(conversation, text, turn)]
            self._verify(conversation, turn, "".join(text[start:end] for start, end in own))
            spans += own
        return Rendered(text, tuple(spans))

    def _by_generation(self, conversation: Conversation) -> Rendered:
        text, spans = self.renderer.write_generation(conversation.turns, conversation.tools)
        spoken = [turn["role"] == "assistant" for turn in conversation.turns]
        if list(conversation.supervised) == spoken:
            said = "".join(text[start:end] for start, end in spans)
            for turn in conversation.turns:
                _verify_calls(turn, said)
            return Rendered(text, tuple(spans))
        found = self.renderer.write_turns(conversation.turns, conversation.tools)
        if found.text != text or not found.pieces:
            raise ValueError(
                "some turns are not in the loss, and which turn a {% generation %} block belongs "
                "to is ambiguous"
            )
        return Rendered(text, tuple(s for s in spans if conversation.supervised[found.owner(*s)]))

    def _by_marks(self, conversation: Conversation, found: Turns, turn: int) -> list[Span]:
        pieces = found.of(turn)
        if turn == len(conversation.turns) - 1 and found.text[found.end :].strip():
            # Text after all turns ends the last one: Phi-3's end-of-sequence token.
            pieces[-1] = (pieces[-1][0], len(found.text))
        start = self._start(conversation, found, turn, pieces[0][0])
        # In many vocabularies, a space after the end is part of the next turn's first token.
        last = len(found.text[: pieces[-1][1]].rstrip(" "))
        return [(max(first, start), min(end, last)) for first, end in pieces if end > start]

    def _by_prefix(self, conversation: Conversation, text: str, turn: int) -> Span:
        """For templates without loops over messages: the text that one more turn adds."""
        turns, tools = conversation.turns, conversation.tools
        prompt = self.renderer.write(turns[:turn], tools, generation_prompt=True)
        with_answer = self.renderer.write(turns[: turn + 1], tools)
        if not (with_answer.startswith(prompt) and text.startswith(with_answer)):
            raise ValueError(
                "which text belongs to an answer is ambiguous; give a template with "
                "{% generation %} around what the assistant says"
            )
        return len(prompt), len(with_answer)

    def _start(self, conversation: Conversation, found: Turns, turn: int, first: int) -> int:
        """Where the generation prompt ends in a turn's text, and the supervised text starts."""
        before, tools = conversation.turns[:turn], conversation.tools
        try:
            prompt = self.renderer.write(before, tools, generation_prompt=True)
        except TEMPLATE_ERRORS:  # the template requires a user turn first
            return first + self._header(conversation, found, turn, self.generation_prompt)
        if len(prompt) > first and found.text.startswith(prompt):
            return len(prompt)
        if prompt == found.text[:first]:
            # The prompt adds nothing for this turn (after a tool's result, in Gemma's templates).
            cue = self.generation_prompt
            return first + len(cue) * found.text.startswith(cue, first)
        # Earlier turns are written differently here, or the prompt has another end (R1's <think>).
        shorter = self.renderer.write_turns(before, tools, generation_prompt=True)
        own = prompt[shorter.end :] if shorter.text == prompt else ""
        if own and found.text.startswith(own, first):
            return first + len(own)
        return first + self._header(conversation, found, turn, own or self.generation_prompt)

    def _header(self, conversation: Conversation, found: Turns, turn: int, prompt: str) -> int:
        """Number of characters of a turn's text that are also in the generation prompt.

        They end where the answer starts, regardless of the answer's first characters.
        """
        turns = list(conversation.turns)
        has_parts = isinstance(turns[turn].get("content"), list | tuple)
        answer = {**turns[turn], "content": PLACEHOLDER}
        turns[turn] = in_parts(answer) if has_parts else answer
        other = self.renderer.write_turns(turns, conversation.tools)
        starts = [turns.text[slice(*turns.of(turn)[0])] for turns in (found, other)]
        shared = common_prefix(*starts)
        header = shared[: starts[1].find(PLACEHOLDER) if PLACEHOLDER in starts[1] else None]
        if prompt and prompt in header:
            # The start of the full text (a BOS token) may precede the turn's own header.
            return header.index(prompt) + len(prompt)
        return len(common_prefix(prompt, header))

    @cached_property
    def generation_prompt(self) -> str:
        """The text that the template adds after a user turn to ask for an answer."""
        asked = {"role": "user", "content": PLACEHOLDER}
        for user in (asked, in_parts(asked)):
            try:
                with_prompt = self.renderer.write([user], generation_prompt=True)
                without = self.renderer.write([user])
            except TEMPLATE_ERRORS:
                continue
            return with_prompt[len(common_prefix(with_prompt, without)) :]
        return ""

    @cached_property
    def ending(self) -> str:
        """The text that the template writes after the answer in a last turn."""
        return self.around(_PROBE[:1])[1]

    @cached_property
    def ending_within(self) -> str:
        """The text that the template writes after the answer in a turn before another turn."""
        try:
            found = self.renderer.write_turns(self.in_form([*_PROBE, _PROBE[0]]))
        except TEMPLATE_ERRORS:
            return ""
        said = "".join(found.text[start:end] for start, end in found.of(1))
        return said.partition(PLACEHOLDER)[2]

    def in_form(self, turns: Sequence[Turn]) -> list[Turn]:
        """The turns, with content as text or in parts if the template renders only one of them."""
        as_text, as_parts = self._written
        if as_text == as_parts:
            return list(turns)
        return [in_text(turn) if as_text else in_parts(turn) for turn in turns]

    @cached_property
    def _written(self) -> tuple[bool, bool]:
        """Whether the template renders content as text, and whether it renders content in parts."""
        return self._writes(_PROBE), self._writes([in_parts(turn) for turn in _PROBE])

    def _writes(self, turns: Sequence[Turn]) -> bool:
        try:
            text = self.renderer.write(turns)
        except TEMPLATE_ERRORS:
            return False
        # In quotes it is Python's `str` of a list of parts, not the parts' text.
        return PLACEHOLDER in text and repr(PLACEHOLDER) not in text

    def around(self, turns: Sequence[Turn], tools: Sequence[Any] = ()) -> tuple[str, str]:
        """The text before and after an answer to these turns; empty if the template refuses."""
        try:
            text = self.renderer.write(self.in_form([*turns, _PROBE[1]]), tools)
        except TEMPLATE_ERRORS:  # the template requires other turns
            return "", ""
        before, _, after = text.rpartition(PLACEHOLDER)
        return before, after

    def _verify(self, conversation: Conversation, turn: int, said: str) -> None:
        message = conversation.turns[turn]
        _verify_calls(message, said)
        if message.get("tool_calls"):
            return  # some templates treat text next to a call as reasoning, and drop it later
        at = 0
        for text in parts_of(message.get("content")) or [text_of(message.get("content"))]:
            end = _end_of(text, said, at)
            if end is None:
                raise ValueError("it does not write an answer as it is")
            at = end
        after = conversation.turns[turn + 1 : turn + 2]
        goes_on = bool(after) and after[0]["role"] == "assistant"
        if self.ending.strip() and not goes_on and not said[at:].strip():
            raise ValueError("it does not write an end after an answer")


def _verify_calls(turn: Turn, said: str) -> None:
    for call in turn.get("tool_calls") or ():
        name = call["function"]["name"]  # the form that `formats` gives all calls
        if name not in said:
            raise ValueError(f"it does not write the call of {name}")


def _end_of(answer: str, said: str, start: int) -> int | None:
    """Where an answer ends in a turn's text; None if the text doesn't contain it.

    Templates trim answers, and may write their reasoning in another form or not at all.
    """
    for text in (answer.strip(), after_reasoning(answer).strip()):
        at = said.find(text, start)
        if at >= 0:
            return at + len(text)
    return None
