"""What all sections of the recipe share: frozen data, and a mark on each key.

Each field's description, with its unit and source, is what docs/recipe.md is made from. Each field
also carries one mark: whether it changes results (`Effect`). Fingerprints, the card of a selection,
`compare` and docs/recipe.md all read that mark, through `Section.results`.

Rejected: dataclasses with hand-written checks (pydantic's messages and JSON schema come free).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
"""A name that becomes part of a file name."""

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""A seed of training; NumPy's generator accepts no larger one."""

T = TypeVar("T")

TAGS = ONE, SEVERAL, SHARE, EACH = "(one)", "(several)", "(share)", "(each)"
"""Of unions whose values tell which member is meant; no part of a key's path in messages."""

OneOrSeveral = Annotated[
    Annotated[T, Tag(ONE)] | Annotated[list[T], Tag(SEVERAL), Field(min_length=1)],
    Discriminator(lambda value: SEVERAL if isinstance(value, list) else ONE),
]
"""A value, or a list of values; what is wrong is reported for the one that was written."""

Effect = Literal["yes", "no", "contents", "adds", "repeats"]
"""A key's effect on results: it changes them; it doesn't; only the contents that it names do (a
path); it adds results and keeps the others (methods, seeds); it makes a repetition (a seed)."""


def key(default: Any, description: str | None, effect: Effect = "yes", **limits: Any) -> Any:
    """A key of the recipe, with its mark; without a default it is `...`, required."""
    return Field(default, description=description, json_schema_extra={"effect": effect}, **limits)


CHANGES: tuple[Effect, ...] = ("yes", "repeats")
"""Effects of the keys that a fingerprint holds."""


def no_truth(value: Any) -> Any:
    """Refuse true and false, which Python and pydantic take for 1 and 0."""
    given = value if isinstance(value, list) else [value]
    if wrong := [one for one in given if isinstance(one, bool)]:
        word, others = ("true", "yes and on") if wrong[0] else ("false", "no and off")
        raise ValueError(f"{word} is not allowed here; YAML also reads {others} as {word}")
    return value


class Section(BaseModel):
    """A part of the recipe: frozen, and any key that it doesn't know is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        takes_truth = cls.model_fields[str(info.field_name)].annotation is bool
        return value if takes_truth else no_truth(value)

    @classmethod
    def effect(cls, key: str) -> Effect:
        """A key's effect on results."""
        extra = cls.model_fields[key].json_schema_extra
        return cast(Effect, extra["effect"]) if isinstance(extra, dict) else "yes"

    def results(self, effects: Collection[Effect] = CHANGES) -> dict[str, Any]:
        """The keys with these effects and their values, as JSON data, in all sections below."""
        return {
            key: value.results(effects) if isinstance(value, Section) else dumped
            for (key, value), dumped in zip(
                self, self.model_dump(mode="json").values(), strict=True
            )
            if self.effect(key) in effects
        }


def regular_expression(value: list[str] | str | None) -> list[str] | str | None:
    """A value of a recipe that must be a regular expression if it is text.

    Raises:
        ValueError: If it isn't; pydantic reports it with the key.
    """
    try:
        re.compile(value if isinstance(value, str) else "")
    except re.error as error:
        raise ValueError(f"{value!r} is not a regular expression: {error}") from None
    return value


def unique(names: list[str]) -> list[str]:
    """Names of which none may occur twice.

    Raises:
        ValueError: If one does.
    """
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ValueError(f"the name {', '.join(twice)} is used twice")
    return names
