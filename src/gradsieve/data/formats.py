"""From a row, in any of the usual formats, to its messages.

In: a row as it was read. Out: its turns, text untouched. Known formats, told apart by their keys:
`messages` (role, content), ShareGPT's `conversations` (from, value), `prompt`/`completion` (text or
lists of messages, as TRL has them) and Alpaca's `instruction`/`input`/`output`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gradsieve.data.examples import Message

ROLES = ("system", "user", "assistant", "tool")
SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
}
KNOWN = "messages, conversations, prompt/completion or instruction/input/output"


class BadRow(ValueError):
    """A row that holds no usable conversation; its text says why."""


def messages_of(row: Any) -> tuple[Message, ...]:
    """The turns of a row, the last one the assistant's and not empty.

    Raises:
        BadRow: Saying what was expected and what was found.
    """
    if not isinstance(row, Mapping):
        raise BadRow(f"expected an object, found {kind_of(row)}")
    for keys, read in _FORMATS:
        if all(row.get(key) is not None for key in keys):
            return _checked(read(row))
    raise BadRow(f"expected {KNOWN}; found the keys {', '.join(map(str, row)) or '(none)'}")


def _from_messages(row: Mapping[str, Any]) -> list[Message]:
    return [_turn(turn, "role", "content", {role: role for role in ROLES}) for turn in
            _turns(row["messages"], "messages")]  # fmt: skip


def _from_sharegpt(row: Mapping[str, Any]) -> list[Message]:
    turns = _turns(row["conversations"], "conversations")
    system = [_message("system", row["system"])] if isinstance(row.get("system"), str) else []
    return system + [_turn(turn, "from", "value", SHAREGPT_ROLES) for turn in turns]


def _from_prompt(row: Mapping[str, Any]) -> list[Message]:
    made: list[Message] = []
    for key, role in (("prompt", "user"), ("completion", "assistant")):
        value = row[key]
        made += [_message(role, value)] if isinstance(value, str) else _from_messages(
            {"messages": value}
        )  # fmt: skip
    return made


def _from_alpaca(row: Mapping[str, Any]) -> list[Message]:
    instruction, given, output = (row.get(key) for key in ("instruction", "input", "output"))
    for key, value in (("instruction", instruction), ("output", output)):
        if not isinstance(value, str):
            raise BadRow(f"expected text in {key}, found {kind_of(value)}")
    user = f"{instruction}\n\n{given}" if given else instruction
    return [_message("user", str(user)), _message("assistant", str(output))]


_FORMATS: tuple[tuple[tuple[str, ...], Callable[[Mapping[str, Any]], list[Message]]], ...] = (
    (("messages",), _from_messages),
    (("conversations",), _from_sharegpt),
    (("prompt", "completion"), _from_prompt),
    (("instruction", "output"), _from_alpaca),
)


def _turns(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list | tuple) and not hasattr(value, "tolist"):
        raise BadRow(f"expected a list of turns in {key}, found {kind_of(value)}")
    if len(value) == 0:
        raise BadRow(f"{key} is empty")
    return list(value)


def _turn(turn: Any, role_key: str, text_key: str, roles: Mapping[str, str]) -> Message:
    if not isinstance(turn, Mapping) or role_key not in turn or text_key not in turn:
        found = f"keys {', '.join(turn)}" if isinstance(turn, Mapping) else kind_of(turn)
        raise BadRow(f"expected a turn with {role_key} and {text_key}, found {found}")
    role = turn[role_key]
    if not isinstance(role, str) or role not in roles:
        raise BadRow(f"unknown role {role!r}; known: {', '.join(roles)}")
    return _message(roles[role], turn[text_key])


def _message(role: str, content: Any) -> Message:
    if not isinstance(content, str):
        raise BadRow(f"expected text in the {role}'s turn, found {kind_of(content)}")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        half = f"{content[error.start]!a} at character {error.start + 1}"
        raise BadRow(
            f"the {role}'s turn is no Unicode text: half of a surrogate pair, {half}"
        ) from None
    return {"role": role, "content": content}


def _checked(messages: list[Message]) -> tuple[Message, ...]:
    last = messages[-1]
    if last["role"] != "assistant":
        raise BadRow(f"the last turn is the {last['role']}'s; expected the assistant's")
    if not last["content"].strip():
        raise BadRow("the answer is empty")
    return tuple(messages)


def is_unicode(text: str) -> bool:
    """False if half of a surrogate pair is in it, which no file but JSON can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def kind_of(value: Any) -> str:
    """What a JSON value is, as people say it."""
    names = {"NoneType": "null", "str": "text", "dict": "an object", "list": "a list"}
    name = type(value).__name__
    return names.get(name, name)
