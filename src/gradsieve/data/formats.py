"""Converts a row, in any of the common formats, to a conversation.

In: a row of JSON values. Out: its turns with text unchanged, its tools, the supervised turns.
Known formats, recognized by their keys: `messages` (role, content), ShareGPT's `conversations`
(from, value), `prompt`/`completion` (text or lists of messages, as in TRL) and Alpaca's
`instruction`/`input`/`output` with `history`; `system` and `tools` in any of them. A field that
affects supervision is either used, or the row is rejected with an error that names the field.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from gradsieve.data.examples import Message

Supervise = Literal["completion", "all"]
"""The supervised part of prompt/completion rows: the completion (TRL), or all assistant turns."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

ROLES = {role: role for role in ("system", "user", "assistant", "tool")}
FUNCTION_CALL = "function_call"
SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    FUNCTION_CALL: "assistant",
    "observation": "tool",
    "tool": "tool",
}
"""Role names as in axolotl and LLaMA-Factory."""

KNOWN = "messages, conversations, prompt/completion or instruction/input/output"

LOSS_KEYS = ("weight", "train", "training", "loss")
"""Keys of a turn, 0 or 1: whether it is in the loss (OpenAI, ShareGPT; axolotl; ms-swift)."""

REFUSED_IN_TURN = {
    "function_call": "it is OpenAI's older form; write tool_calls",
    "loss_scale": "a turn is in the loss or is not; write weight: 0 or 1",
    "train_detail": "parts of a turn cannot be weighted; write train: true or false",
    "training_detail": "parts of a turn cannot be weighted; write train: true or false",
}
REFUSED_IN_ROW = {
    "functions": "it is OpenAI's older form; write tools",
    "chat_template_kwargs": "the template's variables are the same for every row; remove the field",
}

FIELDS = (
    *("messages", "conversations", "prompt", "completion"),
    *("instruction", "input", "output", "history", "system", "tools", *REFUSED_IN_ROW),
)
"""Keys of a row that this module reads."""


class BadRow(ValueError):
    """Raised for a row without a usable conversation; the message states the reason."""


class Conversation(NamedTuple):
    """The conversation of a row; fields as in `Example`."""

    messages: tuple[Message, ...]
    tools: tuple[Any, ...]
    supervised: tuple[bool, ...] | None


class _Turn(NamedTuple):
    message: Message
    in_loss: bool = True


def conversation_of(row: Any, supervise: Supervise = "completion") -> Conversation:
    """The conversation of a row; raises `BadRow` with what was expected and what was found."""
    if not isinstance(row, Mapping):
        raise BadRow(f"expected an object, found {kind_of(row)}")
    for keys, read in _FORMATS:
        if all(row.get(key) is not None for key in keys):
            _refuse(row, REFUSED_IN_ROW, "the row")
            turns = _with_system(row.get("system"), read(row, supervise))
            return _checked(turns, _tools(row.get("tools")))
    raise BadRow(f"expected {KNOWN}; found the keys {', '.join(map(str, row)) or '(none)'}")


def renamed(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The row, with the keys that `columns` names renamed to those of a format.

    Keys of other formats, of which `columns` names no field, are removed: they hold another text.
    """
    needed = [keys for keys, _ in _FORMATS if not columns.keys().isdisjoint(keys)]
    others = {key for keys, _ in _FORMATS if needed and keys not in needed for key in keys}
    for name, key in columns.items():
        if key not in row and any(name in keys for keys in needed):
            keys = ", ".join(row) or "(none)"
            raise BadRow(
                f"there is no {key}, which columns names for {name}; found the keys {keys}"
            )
    kept = {key: value for key, value in row.items() if key not in others}
    return kept | {name: row[key] for name, key in columns.items() if key in row}


# --- formats ------------------------------------------------------------------------------------


def _from_messages(row: Mapping[str, Any], _: Supervise) -> list[_Turn]:
    return _turns(row["messages"], "messages", ("role", "content"), ROLES)


def _from_sharegpt(row: Mapping[str, Any], _: Supervise) -> list[_Turn]:
    turns = row["conversations"]
    first = turns[0] if isinstance(turns, list | tuple) and turns else None
    as_messages = isinstance(first, Mapping) and "role" in first and "from" not in first
    keys = ("role", "content") if as_messages else ("from", "value")
    return _turns(turns, "conversations", keys, SHAREGPT_ROLES)


def _from_prompt(row: Mapping[str, Any], supervise: Supervise) -> list[_Turn]:
    made: list[_Turn] = []
    for key, role in (("prompt", "user"), ("completion", "assistant")):
        value = row[key]
        if isinstance(value, str):
            made.append(_Turn(_message(role, value)))
        else:
            made += _turns(value, key, ("role", "content"), ROLES)
        if key == "prompt" and supervise == "completion":
            made = [turn._replace(in_loss=False) for turn in made]
    return made


def _from_alpaca(row: Mapping[str, Any], _: Supervise) -> list[_Turn]:
    instruction, output = row["instruction"], row["output"]
    for key, value in (("instruction", instruction), ("output", output)):
        if not isinstance(value, str):
            raise BadRow(f"expected text in {key}, found {kind_of(value)}")
    given = _alpaca_input(row.get("input"))
    user = f"{instruction}\n\n{given}" if given else instruction
    earlier = row.get("history") or []  # (question, answer) pairs, as in LLaMA-Factory
    if not isinstance(earlier, list | tuple) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 for pair in earlier
    ):
        raise BadRow("expected pairs of a question and an answer in history")
    return [
        _Turn(_message(role, text))
        for pair in [*earlier, (user, output)]
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def _alpaca_input(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRow(f"expected text or a number in input, found {kind_of(value)}")
    return json.dumps(value)


_FORMATS = (
    (("messages",), _from_messages),
    (("conversations",), _from_sharegpt),
    (("prompt", "completion"), _from_prompt),
    (("instruction", "output"), _from_alpaca),
)


# --- turns --------------------------------------------------------------------------------------


def _turns(value: Any, key: str, keys: tuple[str, str], roles: Mapping[str, str]) -> list[_Turn]:
    if not isinstance(value, list | tuple):
        raise BadRow(f"expected a list of turns in {key}, found {kind_of(value)}")
    if len(value) == 0:
        raise BadRow(f"{key} is empty")
    return [_turn(turn, *keys, roles) for turn in value]


def _turn(turn: Any, role_key: str, text_key: str, roles: Mapping[str, str]) -> _Turn:
    has_role = isinstance(turn, Mapping) and role_key in turn
    if not has_role or not (text_key in turn or turn.get("tool_calls")):
        found = f"keys {', '.join(turn)}" if isinstance(turn, Mapping) else kind_of(turn)
        raise BadRow(f"expected a turn with {role_key} and {text_key}, found {found}")
    name = turn[role_key]
    if not isinstance(name, str) or name not in roles:
        raise BadRow(f"unknown role {name!r}; known: {', '.join(roles)}")
    role = roles[name]
    content = turn.get(text_key)
    if len(turn) == 2 and isinstance(content, str) and name != FUNCTION_CALL:
        return _Turn(_message(role, content))  # a shortcut for nearly every turn: ten times as fast
    _refuse(turn, REFUSED_IN_TURN, f"the {role}'s turn")
    # Arrow gives each turn the keys of all turns; null means that this turn has no such key.
    more = {
        key: value
        for key, value in turn.items()
        if value is not None and key not in (role_key, text_key, "role", "content", *LOSS_KEYS)
    }
    if name == FUNCTION_CALL:
        content, more["tool_calls"] = "", content
    message = _message(role, content, more)
    if name == FUNCTION_CALL and "tool_calls" not in message:
        raise BadRow(f"expected a call in the turn of {FUNCTION_CALL}, found nothing")
    return _Turn(message, _in_loss(turn, role))


def _message(role: str, content: Any, more: Mapping[str, Any] = {}) -> Message:
    if isinstance(content, str) and not more:
        _refuse_half_pairs(content, f"the {role}'s turn")
        return {"role": role, "content": content}
    message: dict[str, Any] = {"role": role, "content": content, **more}
    if calls := _tool_calls(message.pop("tool_calls", None)):
        message["tool_calls"] = calls
        message["content"] = "" if content is None else content
    message["content"] = _text(role, message["content"])
    for key in ("reasoning_content", "thinking", "name", "tool_call_id"):
        if not isinstance(message.get(key, ""), str):
            raise BadRow(f"expected text in {key}, found {kind_of(message[key])}")
    _refuse_half_pairs(message, f"the {role}'s turn")
    return cast(Message, message)


def _text(role: str, content: Any) -> str:
    """Content as text; the parts of a list are joined, as in chat templates."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise BadRow(f"expected text in the {role}'s turn, found {kind_of(content)}")
    texts: list[str] = []
    for part in content:
        fields = part if isinstance(part, Mapping) else {"text": part}
        text, kind = fields.get("text"), fields.get("type") or "text"
        if kind != "text" or not isinstance(text, str):
            found = f"type {kind}" if kind != "text" else kind_of(text)
            raise BadRow(f"expected parts of text in the {role}'s turn, found a part of {found}")
        texts.append(text)
    return "".join(texts)


def _in_loss(turn: Mapping[str, Any], role: str) -> bool:
    """Whether a turn is in the loss according to its own fields (`LOSS_KEYS`)."""
    given = {key: turn[key] for key in LOSS_KEYS if turn.get(key) is not None}
    for key, value in given.items():
        if not isinstance(value, int | float) or value not in (0, 1):
            raise BadRow(f"expected {key} 0 or 1 in the {role}'s turn, found {value!r}")
        if value and role != "assistant" and key in ("train", "training"):
            raise BadRow(f"{key} is true in the {role}'s turn; only the assistant's is supervised")
    return all(given.values())


def _refuse(given: Mapping[str, Any], fields: Mapping[str, str], where: str) -> None:
    for field, why in fields.items():
        if given.get(field) not in (None, "", [], {}):
            raise BadRow(f"{where} has {field}, which is not supported: {why}")


def _with_system(text: Any, turns: list[_Turn]) -> list[_Turn]:
    """The turns, after the row's own system prompt if it has one; empty prompts are dropped."""
    if text is not None and not isinstance(text, str):
        raise BadRow(f"expected text in system, found {kind_of(text)}")
    prompts = [turn.message["content"] for turn in turns if turn.message["role"] == "system"]
    if text and text.strip() and text not in prompts[:1]:
        if any(prompt.strip() for prompt in prompts):
            raise BadRow("two system prompts: one in system, another one in a turn")
        turns = [_Turn(_message("system", text)), *turns]
    return [
        turn
        for turn in turns
        if turn.message["role"] != "system" or turn.message["content"].strip()
    ]


def _checked(turns: list[_Turn], tools: tuple[Any, ...]) -> Conversation:
    last = turns[-1].message if turns else None
    if last is None or last["role"] != "assistant":
        found = "there is none" if last is None else f"the last turn is the {last['role']}'s"
        raise BadRow(f"{found}; expected the assistant's")
    if not last["content"].strip() and "tool_calls" not in last:
        raise BadRow("the answer is empty")
    answers = [turn.in_loss for turn in turns if turn.message["role"] == "assistant"]
    if not any(answers):
        raise BadRow("no turn is supervised: each answer is taken out of the loss")
    flags = tuple(turn.in_loss and turn.message["role"] == "assistant" for turn in turns)
    messages = tuple(turn.message for turn in turns)
    return Conversation(messages, tools, None if all(answers) else flags)


# --- tools --------------------------------------------------------------------------------------


def _tools(value: Any) -> tuple[Any, ...]:
    """Descriptions of functions, from a list of objects or the same list as JSON text."""
    tools = _objects(value, "tools")
    _refuse_half_pairs(tools, "tools")
    return tuple(tools)


def _tool_calls(value: Any) -> list[dict[str, Any]]:
    """Calls in transformers' format: arguments are an object, not JSON text as in OpenAI's."""
    calls = []
    for call in _objects(value, "tool_calls"):
        function = call.get("function", call)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRow("expected the name of a function in each of tool_calls")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            arguments = _parsed(arguments or "{}", "the arguments of tool_calls")
        if not isinstance(arguments, dict):
            raise BadRow(f"expected an object of arguments, found {kind_of(arguments)}")
        function = {**function, "arguments": arguments}
        known = call if "function" in call else {"type": "function"}
        calls.append({**known, "function": function})
    return calls


def _objects(value: Any, key: str) -> list[dict[str, Any]]:
    if isinstance(value, str):
        value = _parsed(value, key) if value.strip() else None
    if key == "tool_calls" and isinstance(value, Mapping):  # a single function_call
        value = [value]
    if not isinstance(value, list | tuple | None):
        raise BadRow(f"expected a list in {key}, found {kind_of(value)}")
    items = [_parsed(item, key) if isinstance(item, str) else item for item in value or ()]
    if wrong := [item for item in items if not isinstance(item, Mapping)]:
        raise BadRow(f"expected objects in {key}, found {kind_of(wrong[0])}")
    return [_without_nulls(item) for item in items]


def _parsed(text: str, key: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BadRow(f"expected JSON in {key}, found {text[:40]!r}") from None


def _without_nulls(value: Any) -> Any:
    """The value with null keys removed from objects; Arrow adds such keys."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


# --- text ---------------------------------------------------------------------------------------


def _refuse_half_pairs(value: Any, where: str) -> None:
    """Reject text with half of a surrogate pair, which no tokenizer accepts."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if not is_unicode(text):
        half = next(letter for letter in text if not is_unicode(letter))
        raise BadRow(f"{where} is no Unicode text: it has half of a surrogate pair, {half!a}")


def parse_json(text: bytes) -> Any:
    """The value of JSON in UTF-8, with a `BadRow` in place of each NaN and infinity.

    Only white space of JSON may surround it: a pool keeps the text, and reads it again. Raises
    `BadRow`, with line and column, or the byte, if it is not JSON that can be read.
    """
    try:
        return _DECODER.decode(text.decode().rstrip(" \t\r\n"))
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 at byte {error.start + 1}"
    except json.JSONDecodeError as error:
        reason = f"not JSON: {error}".replace("line 1 ", "")  # messages name a JSON line's line
    except RecursionError:
        reason = "not JSON that can be read: nested too deeply"
    except ValueError:
        reason = "not JSON that can be read: a number of thousands of digits"
    raise BadRow(reason)


def file_json(file: Path) -> Any:
    """The value of a JSON file, as `parse_json` reads it; a byte order mark is ignored."""
    return parse_json(file.read_bytes().removeprefix(BYTE_ORDER_MARK))


def _bad_constant(name: str) -> BadRow:
    return BadRow(f"not JSON: {name} is not a JSON value; write null if there is none")


_DECODER = json.JSONDecoder(parse_constant=_bad_constant)


def is_unicode(text: str) -> bool:
    """Whether the text has no half of a surrogate pair, which only JSON files can contain."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def kind_of(value: Any) -> str:
    """The type of a value, in JSON's terms."""
    names = {"NoneType": "null", "str": "text", "dict": "an object", "list": "a list"}
    name = type(value).__name__
    return names.get(name, name)
