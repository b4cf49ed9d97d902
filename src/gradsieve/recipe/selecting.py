"""Recipe sections for gradients, scores and selections."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from gradsieve.recipe.section import (
    CHANGES,
    EACH,
    ONE,
    SHARE,
    Effect,
    Name,
    OneOrSeveral,
    Section,
    key,
    no_truth,
    unique,
)

SIZES = ("fraction", "count", "tokens")
"""Keys for the size of a selection; a recipe sets one of them."""

AcrossSubtasks = Literal["max", "standardized_max", "mean"]

ACROSS_SUBTASKS: AcrossSubtasks = "standardized_max"
"""The default of `score.across_subtasks`. The paper's is `max`, which found 15 to 27% fewer
planted rows with a real model (benchmarks/real_model)."""


class ProjectionConfig(Section):
    """The random projection of gradients, the same for the pool and the targets."""

    kind: Literal["sketch", "rademacher", "none"] = key(
        "sketch",
        "`sketch`: a sign sketch of O(P) cost, with the error of the paper's matrix; `rademacher`: "
        "dense random signs, as in the paper; `none`: the unprojected update.",
    )
    dim: int = key(
        8192,
        "Dimensions. 8192 as in the paper. 32768 with `bits: 4` takes as many bytes and finds 76% "
        "of the best rows instead of 56% (benchmarks/store).",
        ge=8,
        multiple_of=8,
    )
    seed: int = key(0, "Seed of the signs.", ge=0)
    balanced: bool = key(
        True,
        "Multiply updates by v^(1/4) and divide target gradients by it before the projection (v: "
        "Adam's second moment): the same inner products with a smaller error (docs/method.md). "
        "`false`: as in the paper; default of `none`.",
    )

    @model_validator(mode="before")
    @classmethod
    def _without_projection_unscaled(cls, values: Any) -> Any:
        unprojected = isinstance(values, dict) and values.get("kind") == "none"
        return {"balanced": False, **values} if unprojected else values


class FeaturesConfig(Section):
    """Steps 2 and 3: the gradient datastore and the target gradients."""

    adam: Literal["torch", "official"] = key(
        "torch",
        "Where Adam's eps is added: `torch` gives the update that training applies, `official` "
        "that of the released code (docs/method.md).",
    )
    momentum: Literal["keep", "drop"] = key(
        "keep", "`drop` omits beta1 * m, which all examples share, from the update."
    )
    projection: ProjectionConfig = key(ProjectionConfig(), "The projection.")
    bits: Literal[1, 2, 4, 8, 16, 32] = key(
        16, "Bits per value in the datastore. 16 as in the paper."
    )
    mode: Literal["store", "exact", "both"] = key(
        "store",
        "`store`: write a datastore, reusable for other targets; `exact`: compute exact products "
        "with these targets' gradients, without projection or datastore; `both`: in one pass, "
        "exact products for these targets and a datastore for targets added later.",
    )
    tokens_per_batch: int | Literal["auto"] = key(
        "auto",
        "Tokens per forward pass, including padding. `auto`: on a GPU, increased while memory "
        "suffices and halved when it runs out; on a CPU, 1,024. Changes the speed, not the "
        "results.",
        "no",
    )

    def contradictions(self) -> Iterator[str]:
        """Keys that the mode does not use."""
        if unused := sorted(self.unused & self.model_fields_set):
            yield (
                f"mode: exact does not use {' and '.join(unused)}: remove it, or write null if a "
                "base has it"
            )

    @property
    def unused(self) -> set[str]:
        """Keys that the mode does not use."""
        return {"projection", "bits"} if self.mode == "exact" else set()

    def results(self, effects: Collection[Effect] = CHANGES) -> dict[str, Any]:
        """As in `Section`, without the keys that the mode does not use."""
        found = super().results(effects)
        return {key: value for key, value in found.items() if key not in self.unused}

    @field_validator("tokens_per_batch", mode="before")
    @classmethod
    def _positive(cls, value: Any) -> Any:
        if value != "auto" and not (isinstance(value, int) and value >= 1):
            raise ValueError(f"expected a positive number of tokens, or auto; got {value!r}")
        return value


class ScoreConfig(Section):
    """Step 4: the influence of each example on each subtask."""

    methods: list[Name] = key(
        ["less"],
        "Selection methods (docs/methods.md); `method: less` is short for a list of one. "
        "`random-1` is `random` with seed 1.",
        "adds",
        min_length=1,
    )
    target_mean: Literal["cosine_of_mean", "mean_of_cosines", "none"] = key(
        "cosine_of_mean",
        "`cosine_of_mean`: cosine similarity to a subtask's mean gradient (the paper); "
        "`mean_of_cosines`: the mean of the similarities to each of its examples (the released "
        "code); `none`: no mean: each target example is treated as a separate subtask, and a "
        "subtask's score is that of its best example.",
    )
    across_subtasks: AcrossSubtasks = key(
        ACROSS_SUBTASKS,
        "How a row's scores on subtasks are combined. `max`: the maximum, as in the paper; "
        "`standardized_max`: the maximum after each subtask's scores are standardized over the "
        "pool (mean 0, standard deviation 1), so that no subtask dominates by its level; `mean`.",
    )
    fusion: list[Name] = key(
        ["less", "bm25", "rds_plus"],
        "The methods whose ranks the method `fusion` combines.",
        "adds",
        min_length=2,
    )
    files: dict[Name, str] = key(
        {},
        "Your own methods in Python files, by name: `{Longest: my.py:Longest}`. `methods: "
        "[my.py:Longest]` sets both. The file is executed: read it first.",
        "adds",
    )
    embedding: str = key(
        "sentence-transformers/all-MiniLM-L6-v2",
        "The model of the method `embedding`: a folder, or a model id on the hub.",
        "contents",
    )

    @model_validator(mode="before")
    @classmethod
    def _methods_are_names(cls, given: Any) -> Any:
        """Expand `method` to a list, and `my.py:Longest` to the method `Longest` and its file."""
        if not isinstance(given, Mapping):
            return given
        given = {**given}
        if "method" in given:
            if "methods" in given:
                raise ValueError("expected one of method, methods; got both")
            given["methods"] = [given.pop("method")]
        methods, files = given.get("methods"), given.get("files", {})
        if isinstance(methods, list) and isinstance(files, Mapping):
            places = [name for name in methods if isinstance(name, str) and ".py:" in name]
            given["methods"] = [n.rpartition(":")[2] if n in places else n for n in methods]
            given["files"] = {**files, **{place.rpartition(":")[2]: place for place in places}}
        return given

    def contradictions(self) -> Iterator[str]:
        """A mean over subtasks, although only the best example counts."""
        if self.target_mean == "none" and self.across_subtasks == "mean":
            yield (
                "target_mean: none takes the best example, across_subtasks: mean does not; use "
                "target_mean: mean_of_cosines, or another across_subtasks"
            )

    @field_validator("fusion")
    @classmethod
    def _fusion_is_of_others(cls, names: list[str]) -> list[str]:
        if "fusion" in names:
            raise ValueError("fusion cannot be a part of itself")
        return unique(names)

    _methods_are_unique = field_validator("methods")(unique)


class NearDuplicatesConfig(Section):
    """Near-duplicate removal: of rows with almost the same update, only the best is selected."""

    cosine: float = key(
        0.95, "Minimum cosine similarity of duplicates, at the last checkpoint.", gt=0, le=1
    )


Fraction = Annotated[float, Field(gt=0, le=1)]

Count = Annotated[int, Field(ge=1)]

Cap = Annotated[
    Annotated[Count, Tag(ONE)] | Annotated[Fraction, Tag(SHARE)],
    Discriminator(lambda value: ONE if isinstance(value, int) else SHARE),
    BeforeValidator(no_truth),
]
"""A number of rows, or a share such as 0.4."""

Caps = Annotated[
    Annotated[Cap, Tag(ONE)] | Annotated[dict[str, Cap], Tag(EACH)],
    Discriminator(lambda value: EACH if isinstance(value, Mapping) else ONE),
]
"""One cap for every source, or caps by source name."""


@dataclass(frozen=True)
class Budget:
    """The size of a selection; exactly one field is set."""

    fraction: float | None = None
    count: int | None = None
    tokens: int | None = None

    def __str__(self) -> str:
        """The size as written in the name of a selection."""
        if self.tokens is not None:
            return f"{self.tokens}-tokens"
        return str(self.count if self.fraction is None else self.fraction)

    def rows(self, scored: int) -> int | None:
        """The number of rows to select from `scored` rows; None if the budget is in tokens."""
        return self.count if self.fraction is None else max(1, round(self.fraction * scored))


class SelectConfig(Section):
    """Step 5: the size of the selection (one of the first three keys) and its constraints."""

    fraction: OneOrSeveral[Fraction] | None = key(
        None,
        "Share of the scored rows. Default: 0.05, as in the paper. This key and the next two also "
        "take a list, for a selection, training and evaluation of each size.",
    )
    count: OneOrSeveral[Count] | None = key(None, "Number of rows.")
    tokens: OneOrSeveral[Count] | None = key(None, "Maximum total tokens of the selected rows.")
    turns: Literal["none", "subtasks", "examples"] = key(
        "none",
        "`subtasks`: a target's subtasks take turns choosing their best remaining row, so that "
        "each gets an equal share; `examples`: the target's examples take turns.",
    )
    together: bool = key(
        False, "One selection for all targets, which take turns; its name is `together`."
    )
    per_source: Caps | None = key(
        None,
        "Maximum rows per source: a number (500) or a share of the selection (0.4), for every "
        "source or by name ({cot: 0.3}).",
    )
    near_duplicates: NearDuplicatesConfig | None = key(
        None, "Remove near duplicates; null keeps them. Requires the datastore."
    )
    drop_leaks: bool = key(
        False,
        "Skip rows that share 13 consecutive words with a target's test questions. Such rows are "
        "reported in either case.",
    )

    @model_validator(mode="before")
    @classmethod
    def _paper_share_by_default(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        set_here = [key for key in SIZES if given.get(key) is not None]
        if len(set_here) > 1:
            raise ValueError(f"expected one of {', '.join(SIZES)}; got {', '.join(set_here)}")
        return given if set_here else {**given, "fraction": 0.05}

    @field_validator(*SIZES)
    @classmethod
    def _sizes_are_unique(cls, sizes: Any) -> Any:
        unique([str(size) for size in sizes] if isinstance(sizes, list) else [])
        return sizes

    @property
    def budgets(self) -> list[Budget]:
        """The sizes to select, in order."""
        (key,) = (key for key in SIZES if getattr(self, key) is not None)
        sizes = getattr(self, key)
        return [Budget(**{key: size}) for size in (sizes if isinstance(sizes, list) else [sizes])]

    def of(self, budget: Budget) -> SelectConfig:
        """The same settings with a single size."""
        return self.model_copy(update=asdict(budget))
