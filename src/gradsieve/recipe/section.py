"""The base class of all recipe sections: frozen data, and a mark on each key.

docs/recipe.md is generated from the field descriptions, which include units and sources. Each field
is also marked with its effect on results (`Effect`). Fingerprints, a selection's card, `compare`
and docs/recipe.md all read that mark, through `Section.results` or `Section.effect`.

Rejected: dataclasses with hand-written checks (pydantic provides messages and a JSON schema).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Annotated, Any, Literal, Self, TypeVar, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
"""A name that becomes part of a file name."""

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""A training seed; NumPy's generator accepts nothing larger."""

T = TypeVar("T")

TAGS = ONE, SEVERAL, SHARE, EACH = "(one)", "(several)", "(share)", "(each)"
"""Tags of the discriminated unions; messages omit them from a key's path."""

OneOrSeveral = Annotated[
    Annotated[T, Tag(ONE)] | Annotated[list[T], Tag(SEVERAL), Field(min_length=1)],
    Discriminator(lambda value: SEVERAL if isinstance(value, list) else ONE),
]
"""A value or a list of values; validation errors refer to the form that the recipe uses."""

Effect = Literal["yes", "no", "contents", "adds", "repeats"]
"""A key's effect on results: changes them (yes, no, or only through the contents it names, e.g. a
path), adds results and keeps the others (methods, seeds), or makes another repetition (a seed)."""


def key(default: Any, description: str | None, effect: Effect = "yes", **limits: Any) -> Any:
    """A field of the recipe, marked with its effect; a default of `...` makes it required."""
    return Field(default, description=description, json_schema_extra={"effect": effect}, **limits)


CHANGES: tuple[Effect, ...] = ("yes", "repeats")
"""Effects of the keys that are part of a fingerprint."""


def no_truth(value: Any) -> Any:
    """Reject true and false, which Python and pydantic accept as 1 and 0."""
    given = value if isinstance(value, list) else [value]
    if wrong := [one for one in given if isinstance(one, bool)]:
        word, others = ("true", "yes and on") if wrong[0] else ("false", "no and off")
        raise ValueError(f"{word} is not allowed here; YAML also reads {others} as {word}")
    return value


class Section(BaseModel):
    """A section of the recipe: frozen, and unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        takes_truth = cls.model_fields[str(info.field_name)].annotation is bool
        return value if takes_truth else no_truth(value)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        for problem in self.contradictions():
            raise ValueError(problem)
        return self

    def contradictions(self) -> Iterator[str]:
        """Yield what is wrong with the section if its values exclude each other."""
        yield from ()

    @classmethod
    def effect(cls, key: str) -> Effect:
        """A key's effect on results."""
        extra = cls.model_fields[key].json_schema_extra
        return cast(Effect, extra["effect"]) if isinstance(extra, dict) else "yes"

    def results(self, effects: Collection[Effect] = CHANGES) -> dict[str, Any]:
        """The keys with these effects and their values as JSON data, including nested sections."""
        return {
            key: value.results(effects) if isinstance(value, Section) else dumped
            for (key, value), dumped in zip(
                self, self.model_dump(mode="json").values(), strict=True
            )
            if self.effect(key) in effects
        }


def regular_expression(value: list[str] | str | None) -> list[str] | str | None:
    """Check that a recipe's value, if it is a string, is a valid regular expression."""
    try:
        re.compile(value if isinstance(value, str) else "")
    except re.error as error:
        raise ValueError(f"{value!r} is not a regular expression: {error}") from None
    return value


def unique(names: list[str]) -> list[str]:
    """Check that no name occurs twice, and return the names."""
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ValueError(f"the name {', '.join(twice)} is used twice")
    return names
