"""Renders conversations with a chat template, and finds the characters that each turn wrote.

In: turns, tools, and a template's Jinja source. Out: text, and the position of each turn's text.

The start and end of a turn are not searched for in the text. Instead, the template's own loops over
messages are marked: each `{% for message in messages %}` gets a mark at the start and the end of
its body, which names the turn; the text in between belongs to that turn. The marks are then
removed, and the rest must equal the output of the unmarked template.

Rejected: searching for the answer's text (short answers also occur in text that templates insert),
and comparing renderings of shorter conversations (templates write a last turn differently).
"""

from __future__ import annotations

import datetime
import itertools
import math
import re
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

from gradsieve.errors import DataError, ModelError
from gradsieve.recipe.schema import LimitsConfig

TULU = Path(__file__).parent / "templates" / "tulu.jinja"
"""The format of the paper's training data (open-instruct's Tulu), as the released code writes it:
the newline after an assistant's end token is a label, also in the last turn."""

DATE = datetime.datetime(2024, 7, 26)
"""Replaces today's date in all templates, so that tokens don't change from day to day. It is the
default date of Llama 3's template."""

DATE_STRING = DATE.strftime("%d %b %Y")
"""The value of `date_string`, a variable of Llama 3's template."""

LARGEST_PRODUCT = 10**7
"""Maximum product of the constants in a multiplication or filter. Jinja evaluates constants, such
as a text three billion times, when it compiles a template: before the output can be counted."""

_OWN = "{# gradsieve #}\n"
"""Starts every template: transformers caches compiled ones, and the caller's must not change."""

_TURN = "gradsieve_turn"
_OPEN, _NAMED, _CLOSE = "\U000f5e00", "\U000f5e01", "\U000f5e02"
"""Private-use characters. A mark is OPEN, the loop's number, the turn's number, NAMED; or CLOSE,
the loop's number, NAMED."""

_MARK = re.compile(f"{_OPEN}([0-9]+) ([0-9]+){_NAMED}|{_CLOSE}([0-9]+){_NAMED}")
_TAG = re.compile(
    r"\{#.*?#\}"
    r"|\{%(?P<left>[-+]?)\s*(?P<inside>(?P<word>for|endfor|set)\b.*?)(?P<right>[-+]?)%\}",
    re.DOTALL,
)
_OVER = re.compile(r"for\s+(\w+)\s+in\s+(.*)", re.DOTALL)
_TAKEN = re.compile(r"set\s+(\w+)\s*=\s*[\w.]+\[\s*(\w+)(?:\s*[-+]\s*\d+)?\s*\]\s*$")
_GENERATION = re.compile(r"\{#.*?#\}|\{%[-+]?\s*generation\s*[-+]?%\}", re.DOTALL)

Span = tuple[int, int]
Turn = Mapping[str, Any]


class TooLongError(Exception):
    """Raised when a template has written more characters than allowed."""


@contextmanager
def render_limit(limits: LimitsConfig, where: str) -> Iterator[None]:
    """Stop a template, which is third-party code, if it runs too long or writes too much.

    The time limit uses a signal, so it doesn't apply outside the main thread or on Windows.

    Raises:
        DataError: When the time is over, or the renderer has raised `TooLongError`.
    """

    def error(what: str, key: str) -> DataError:
        todo = f"Set model.chat_template to another one, or raise limits.render_{key}."
        return DataError(f"The chat template {what} for a conversation.", where, todo)

    def stop(*_: object) -> None:
        raise error(f"takes more than {limits.render_seconds:g} s", "seconds")

    is_main = threading.current_thread() is threading.main_thread()
    works = is_main and hasattr(signal, "setitimer")
    if works:
        before = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, limits.render_seconds)
    try:
        yield
    except TooLongError:
        what = f"writes more than {limits.render_characters} characters"
        raise error(what, "characters") from None
    finally:
        if works:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def template_text(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """The Jinja source of a template.

    Args:
        tokenizer: Provides the template if `template` is `tokenizer`.
        template: `tokenizer`, `tulu`, or the path of a Jinja file.

    Raises:
        ModelError: If there is no template, or it can't be read, or is not Jinja.
    """
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
        return _checked(str(own), f"the chat template of {tokenizer.name_or_path}")
    file = TULU if template == "tulu" else Path(template)
    try:
        if not file.is_file():  # a pipe would be read forever
            raise OSError("it is a folder or a pipe" if file.exists() else "no such file")
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        todo = "Give tokenizer, tulu, or the path of a Jinja file."
        where = f"model.chat_template: {template}"
        raise ModelError(f"The chat template cannot be read: {error}.", where, todo) from None
    return _checked(text, template)


def _checked(text: str, where: str) -> str:
    """Reject text that is not Jinja, or computes large constants, before anything is rendered."""
    # Only transformers' Jinja knows the block `generation`.
    usual = re.sub(r"\{%[-+]?\s*(?:end)?generation\s*[-+]?%\}", "", text)
    todo = "Fix the template, or set model.chat_template to tulu or another file."
    try:
        tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(usual)
    except jinja2.TemplateSyntaxError as error:
        what = f"The chat template is not Jinja: {(error.message or '').rstrip('.')}."
        raise ModelError(what, f"{where}:{error.lineno}", todo) from None
    for node in tree.find_all((nodes.Mul, nodes.Pow, nodes.Filter)):
        numbers = [one.value for one in node.find_all(nodes.Const) if isinstance(one.value, int)]
        if isinstance(node, nodes.Pow) or math.prod(map(abs, numbers)) > LARGEST_PRODUCT:
            what = f"The chat template computes a power, or with numbers above {LARGEST_PRODUCT}."
            raise ModelError(what, f"{where}:{node.lineno}", todo)
    return text


@dataclass(frozen=True, slots=True)
class Turns:
    """A rendered conversation, by turn.

    Attributes:
        text: The full text.
        pieces: (turn, start, end) of the characters that each turn wrote, in the text's order.
    """

    text: str
    pieces: tuple[tuple[int, int, int], ...]

    def of(self, turn: int) -> list[Span]:
        """The spans that a turn wrote, without blank ones if there are others."""
        spans = [(start, end) for owner, start, end in self.pieces if owner == turn]
        return [span for span in spans if self.text[slice(*span)].strip()] or spans

    def owner(self, start: int, end: int) -> int:
        """The turn that wrote a span; a span after all turns belongs to the last turn."""
        end = max(end, start + 1)
        overlaps = (owner for owner, first, last in self.pieces if first < end and last > start)
        return next(overlaps, max((owner for owner, _, _ in self.pieces), default=0))

    @property
    def end(self) -> int:
        """Where the last turn's text ends."""
        return max((end for _, _, end in self.pieces), default=0)


class Renderer:
    """A chat template, and the variables that it may write into every conversation.

    Rendering raises `TooLongError` before it joins a text of more than `most_characters`.
    """

    def __init__(self, template: str, variables: Mapping[str, str], most_characters: int) -> None:
        self._most_characters = most_characters
        self.template = _OWN + template
        self._marked = _with_marks(self.template)
        self.variables = {**variables, "date_string": DATE_STRING}

    @cached_property
    def marks_generation(self) -> bool:
        """Whether the template itself marks the assistant's text, by `{% generation %}`."""
        return any(found[0][1] == "%" for found in _GENERATION.finditer(self.template))

    def write(
        self, turns: Sequence[Turn], tools: Sequence[Any] = (), *, generation_prompt: bool = False
    ) -> str:
        """The text of a conversation."""
        return self._render(self.template, turns, tools, add_generation_prompt=generation_prompt)[0]

    def write_turns(
        self, turns: Sequence[Turn], tools: Sequence[Any] = (), *, generation_prompt: bool = False
    ) -> Turns:
        """The text of a conversation, and the position of each turn's text."""
        named = [{**turn, _TURN: number} for number, turn in enumerate(turns)]
        text, _ = self._render(self._marked, named, tools, add_generation_prompt=generation_prompt)
        return _taken_apart(text)

    def write_generation(
        self, turns: Sequence[Turn], tools: Sequence[Any] = ()
    ) -> tuple[str, list[Span]]:
        """The text, and the spans within the template's own `{% generation %}` blocks."""
        self.write(turns, tools)  # enforces the limit; the call with the mask doesn't
        text, spans = self._render(self.template, turns, tools, return_assistant_tokens_mask=True)
        return text, [(int(start), int(end)) for start, end in spans]

    def _render(
        self, template: str, turns: Sequence[Turn], tools: Sequence[Any], **options: bool
    ) -> tuple[str, list[Span]]:
        environment = _compile_jinja_template(template).environment
        environment.concat = self._joined  # joins the output of a template or a macro
        environment.globals["strftime_now"] = DATE.strftime
        rendered, spans = render_jinja_template(
            [list(turns)],
            tools=list(tools) or None,
            chat_template=template,
            **options,
            **self.variables,
        )
        return str(rendered[0]), spans[0] if spans else []

    def _joined(self, pieces: Iterable[str]) -> str:
        kept, length = [], 0
        for piece in pieces:
            length += len(piece)
            if length > self._most_characters:
                raise TooLongError
            kept.append(piece)
        return "".join(kept)


def _with_marks(template: str) -> str:
    """The template, with marks around the text that a loop writes for each message.

    A `set` without effect is put where the loop's tag was next to the text after (or before) it, so
    that Jinja strips the same white space.
    """
    # For each open loop: its number, and the name of its message variable, or of its index.
    loops: list[tuple[int, str | None, str | None]] = []
    numbers = itertools.count()

    def marked(tag: re.Match[str]) -> str:
        number, word = next(numbers), tag["word"]
        if word is None:  # a comment
            return tag[0]
        left, inside, right = tag["left"], tag["inside"].rstrip(), tag["right"]
        if word == "endfor":
            loop, name, _ = loops.pop() if loops else (0, None, None)
            if name is None:
                return tag[0]
            closed = f"{{{{ '{_CLOSE}{loop}{_NAMED}' if {_is_turn(name)} }}}}"
            return f"{{%{left} set gradsieve_ = 0 %}}{closed}{{% endfor {right}%}}"
        name = None
        if word == "for":
            over = _OVER.match(inside)
            counts = over is not None and over[2].startswith("range(")
            name = over[1] if over and not counts else None
            loops.append((number, name, over[1] if over and counts else None))
        elif (taken := _TAKEN.match(inside)) and loops and loops[-1][2] == taken[2]:
            name = taken[1]
            loops[-1] = loops[-1][0], name, taken[2]
        if name is None:
            return tag[0]
        mark = f"'{_OPEN}{loops[-1][0]} ' ~ {name}.{_TURN} ~ '{_NAMED}'"
        opened = f"{{{{ {mark} if {_is_turn(name)} }}}}"
        return f"{{%{left} {inside} %}}{opened}{{% set gradsieve_ = 0 {right}%}}"

    return _TAG.sub(marked, template)


def _is_turn(name: str) -> str:
    return f"{name} is mapping and {name}.{_TURN} is defined"


def _taken_apart(marked: str) -> Turns:
    text: list[str] = []
    pieces: list[tuple[int, int, int]] = []
    open_turns: list[tuple[int, int]] = []  # loop, turn
    at = end = 0
    for mark in [*_MARK.finditer(marked), None]:
        text.append(marked[at : mark.start() if mark else None])
        start, end = end, end + len(text[-1])
        if start < end and open_turns:
            turn = open_turns[-1][1]
            if pieces and pieces[-1][0] == turn and pieces[-1][2] == start:
                start = pieces.pop()[1]  # merged with the previous piece
            pieces.append((turn, start, end))
        if mark is None:
            break
        at, loop = mark.end(), int(mark[1] or mark[3])
        # A turn that the template left by `continue` or `break` has no closing mark.
        loops = [number for number, _ in open_turns]
        if loop in loops:
            del open_turns[loops.index(loop) :]
        if mark[2] is not None:
            open_turns.append((loop, int(mark[2])))
    return Turns("".join(text), tuple(pieces))
