"""The whole recipe as typed, validated, frozen data.

In: a YAML file and `--set section.key=value` overrides. Out: one `Recipe`, every default filled in.
All problems are told at once, each with its line, what was expected and the nearest known key.
Every field's description (its unit and source included) is what docs/recipe.md is made from.

Rejected: dataclasses with hand-written checks (pydantic's messages and JSON schema come free), and
several config files merged by a framework (a recipe is one page that can be read and mailed).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from gradsieve.errors import RecipeError

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
"""A name that becomes part of a file's name."""

TOGETHER = "together"
"""Stands where a target's name stands, for the one selection for all targets."""

RESERVED = (TOGETHER, "target_loss")
"""Names that stand for something else where a target's name stands."""

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""Of training; NumPy's generator takes no larger one."""


class Section(BaseModel):
    """A part of the recipe: frozen, and any key that it doesn't know is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )


class Model(Section):
    """The model whose gradients are taken."""

    name: str = Field(description="A folder, or a name on the Hugging Face hub.")
    revision: str | None = Field(None, description="Branch, tag or commit of a hub model.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "bfloat16",
        description="Precision of the frozen weights and of forward and backward. Gradients and "
        "all that follows are float32. bfloat16 as in the paper.",
    )
    quantization: Literal["8bit", "4bit"] | None = Field(
        None,
        description="The frozen weights in 8 bits (LLM.int8) or 4 (QLoRA's NF4), by bitsandbytes; "
        "the adapter is not quantized. null: as `dtype` says. In 8 bits a row's gradient depends "
        "a little on its batch (0.4% in a test).",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Make each layer's activations anew in the backward pass, in training and "
        "features: much less memory, a third more time, the same result.",
    )
    chat_template: str = Field(
        "tokenizer",
        description="`tokenizer`: the template that came with it; `tulu`: the paper's format; or "
        "the path of a Jinja file.",
    )
    max_length: int = Field(
        2048, ge=8, description="Tokens an example is cut to, on the right. 2048 as in the paper."
    )
    trust_remote_code: bool = Field(
        False, description="Run Python code that comes with the model. Only if you read it."
    )


class Source(Section):
    """One source of the candidate pool."""

    name: Name = Field(description="Shown in the selection; unique in the pool.")
    path: str = Field(
        description="A .jsonl, .json or .parquet file, a saved `datasets` folder, or a hub name."
    )
    split: str = Field("train", description="Split of a hub data set or of a saved one.")
    revision: str | None = Field(None, description="Branch, tag or commit of a hub data set.")


class Target(Section):
    """A skill, given by a few examples in one or more subtasks."""

    name: Name = Field(description="Names the selection's folder.")
    path: str = Field(
        description="A benchmark: a folder in the paper's layout, a name on the hub, such as "
        "cais/mmlu, or a folder in its format (docs/targets.md). `custom`: as a source's `path`."
    )
    task: Literal["mmlu", "bbh", "tydiqa", "custom"] = Field(
        "custom", description="How `path` is read: a benchmark of the paper, or your own examples."
    )
    subtask: str | None = Field(
        None,
        description="`custom` only: the field of a row that names its subtask; null: one subtask.",
    )
    test: str | None = Field(
        None,
        description="Held-out examples to evaluate on: a file as `path`. Benchmarks have theirs in "
        "`path`.",
    )

    @model_validator(mode="after")
    def _subtask_is_for_custom(self) -> Target:
        if self.subtask is not None and self.task != "custom":
            raise ValueError(f"`subtask` is for task: custom; {self.task} has its own subtasks")
        return self


class Lora(Section):
    """The adapter. Settings of the paper's section 4.1."""

    r: int = Field(128, ge=1, description="Rank.")
    alpha: float = Field(512, gt=0, description="Scale: the adapter's output is times alpha / r.")
    dropout: float = Field(
        0.1, ge=0, lt=1, description="Dropout while training; features have none."
    )
    target_modules: list[str] | Literal["all-linear"] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj"],
        description="Names of the layers that get an adapter, as peft matches them.",
    )
    rslora: bool = Field(False, description="Scale by alpha / sqrt(r) instead.")


class Warmup(Section):
    """Step 1: LoRA on a random share of the pool."""

    fraction: float = Field(0.05, gt=0, le=1, description="Share of the pool's rows to train on.")
    epochs: int = Field(4, ge=1, description="Epochs; a checkpoint is kept after each.")
    learning_rate: float = Field(2e-5, gt=0, description="Peak; linear decay to 0.")
    warmup_ratio: float = Field(0.03, ge=0, lt=1, description="Share of steps with a rising rate.")
    batch_size: int = Field(32, ge=1, description="Examples an optimizer step.")
    micro_batch_size: int | None = Field(
        None, ge=1, description="Examples a forward pass, a divisor of batch_size; null: all."
    )
    seed: Seed = Field(0, description="Chooses the rows, the adapter's start and the order.")
    lora: Lora = Field(default_factory=Lora, description="The adapter.")
    checkpoints: list[str] | None = Field(
        None,
        description="Folders of an existing run (peft adapter and optimizer state), in order: "
        "then nothing is trained here.",
    )
    report_to: list[Literal["tensorboard", "trackio", "wandb"]] = Field(
        [],
        description="Where to send the losses of this training and of `train`, by transformers' "
        "own integrations. Changes no result.",
    )

    @model_validator(mode="after")
    def _micro_batches_fill_a_batch(self) -> Warmup:
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} does not divide "
                f"batch_size {self.batch_size}"
            )
        if self.checkpoints is not None and not self.checkpoints:
            raise ValueError("`checkpoints` is an empty list: name a folder, or write null")
        return self


class Projection(Section):
    """The random projection of gradients, the same for pool and targets."""

    kind: Literal["sketch", "rademacher", "none"] = Field(
        "sketch",
        description="`sketch`: sign sketch at O(P) cost (not the paper's matrix, of equal error); "
        "`rademacher`: dense signs, the paper's; `none`: keep the whole update.",
    )
    dim: int = Field(
        8192,
        ge=8,
        multiple_of=8,
        description="Values kept. 8192 as in the paper. 32768 with `bits: 4` takes as many bytes "
        "and chooses better: 76% of the best rows found, not 56% (benchmarks/store).",
    )
    seed: int = Field(0, ge=0, description="Seed of the signs.")


class Features(Section):
    """Step 2 and 3: the gradient datastore and the targets' gradients."""

    adam: Literal["torch", "official"] = Field(
        "torch",
        description="Where Adam's eps stands: `torch` is the update that training applies, "
        "`official` the released code's (docs/method.md).",
    )
    momentum: Literal["keep", "drop"] = Field(
        "keep", description="`drop` leaves beta1 * m, common to all examples, out of the update."
    )
    projection: Projection = Field(default_factory=Projection, description="The projection.")
    bits: Literal[1, 2, 4, 8, 16, 32] = Field(
        16, description="Bits a value in the datastore. 16 as in the paper."
    )
    mode: Literal["store", "exact"] = Field(
        "store",
        description="`store`: keep a datastore, reusable for targets to come; `exact`: take exact "
        "products with these targets' gradients, no projection and no datastore of gradients.",
    )
    tokens_per_batch: int | Literal["auto"] = Field(
        "auto",
        description="Tokens, padding included, in one forward pass. `auto`: grown while "
        "memory lasts and halved when it runs out. It changes the speed, never the result.",
    )

    @model_validator(mode="after")
    def _exact_needs_no_projection(self) -> Features:
        unused = sorted({"projection", "bits"} & self.model_fields_set)
        if self.mode == "exact" and unused:
            raise ValueError(f"mode: exact does not use {' and '.join(unused)}: leave it out")
        return self

    @field_validator("tokens_per_batch")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("expected a positive number of tokens, or auto")
        return value


class Score(Section):
    """Step 4: the influence of each row on each subtask."""

    methods: list[Name] = Field(
        ["less"],
        min_length=1,
        description="How rows are scored; `method: less` is short for a list of one. `random-1` is "
        "`random` with seed 1. docs/methods.md lists them.",
    )
    target_mean: Literal["cosine_of_mean", "mean_of_cosines"] = Field(
        "cosine_of_mean",
        description="Cosine to a subtask's mean gradient (the paper), or mean of the cosines to "
        "each of its examples (the released code).",
    )
    across_subtasks: Literal["max", "mean"] = Field(
        "max", description="A row's score from its subtasks' scores. max as in the paper."
    )
    embedding: str = Field(
        "sentence-transformers/all-MiniLM-L6-v2",
        description="The model of method `embedding`: a folder or a hub name.",
    )

    @model_validator(mode="before")
    @classmethod
    def _one_method_is_a_list(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or "method" not in given:
            return given
        if "methods" in given:
            raise ValueError("expected one of method, methods; got both")
        rest = {key: value for key, value in given.items() if key != "method"}
        return {**rest, "methods": [given["method"]]}

    @field_validator("methods")
    @classmethod
    def _methods_are_unique(cls, names: list[str]) -> list[str]:
        return _unique(names)


class NearDuplicates(Section):
    """Rows whose updates point almost the same way: only the best of them is taken."""

    cosine: float = Field(
        0.95, gt=0, le=1, description="At or above it (at the last checkpoint) two rows are one."
    )


Cap = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)]
"""A whole number of rows, or a share such as 0.4."""


class Select(Section):
    """Step 5: how many of the best rows are taken (one of the first three), and which are not."""

    fraction: float | None = Field(
        None, gt=0, le=1, description="Share of the scored rows. 0.05, the paper's, if none is set."
    )
    count: int | None = Field(None, ge=1, description="Rows.")
    tokens: int | None = Field(None, ge=1, description="Tokens of the selected rows, at most.")
    round_robin: bool = Field(
        False,
        description="Subtasks take turns, each taking its best row that is left, so that each gets "
        "its share.",
    )
    together: bool = Field(
        False, description="One selection for all targets, which take turns; named `together`."
    )
    per_source: Cap | dict[str, Cap] | None = Field(
        None,
        description="The most of a source: rows (500) or a share of the selection (0.4), for every "
        "source or by name ({cot: 0.3}).",
    )
    near_duplicates: NearDuplicates | None = Field(
        None, description="null: kept. Needs the datastore, whatever the method."
    )
    drop_leaks: bool = Field(
        False,
        description="Leave out rows that share 13 words in a row with a target's test questions; "
        "they are reported in any case.",
    )

    @model_validator(mode="before")
    @classmethod
    def _paper_share_by_default(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        set_here = [key for key in ("fraction", "count", "tokens") if given.get(key) is not None]
        if len(set_here) > 1:
            raise ValueError(f"expected one of fraction, count, tokens; got {', '.join(set_here)}")
        return given if set_here else {**given, "fraction": 0.05}


class Train(Section):
    """Step 6 and LESS-T: training on the selection with the warm-up's settings."""

    model: str | None = Field(
        None, description="Another model than the one that selected (LESS-T); null: the same."
    )
    seeds: list[Seed] = Field([0], min_length=1, description="One adapter is trained for each.")
    epochs: int | None = Field(None, ge=1, description="null: the warm-up's.")
    learning_rate: float | None = Field(None, gt=0, description="Peak; null: the warm-up's.")
    full_parameters: bool = Field(
        False, description="Train all weights, in the model's dtype, instead of an adapter."
    )


class Evaluate(Section):
    """Step 7: what each trained model does on the targets' held-out examples."""

    tasks: list[str] | None = Field(
        None,
        description="Names of targets, each measured by its own metric, and `target_loss`, the "
        "loss of all targets' answers; null: all of it that there are held-out examples for.",
    )
    limit: int | None = Field(
        None, ge=1, description="Held-out examples a subtask, the first ones; null: all."
    )
    shots: bool = Field(
        True, description="Put the benchmark's few-shot examples before each question."
    )
    batch_size: int = Field(8, ge=1, description="Questions answered at a time.")


class Report(Section):
    """The page on what was selected and why."""

    rows: int = Field(
        20000,
        ge=0,
        description="Selected rows shown with their text, all selections together: each shows its "
        "best ones, an equal share. A row takes 0.5 to 2 kB of the page.",
    )
    near_misses: int = Field(
        200, ge=0, description="Best rows that were not selected, shown for each selection."
    )
    lowest: int = Field(100, ge=0, description="Rows with the lowest scores, likewise.")


class Recipe(Section):
    """Everything that decides a run."""

    model: Model
    pool: list[Source] = Field(min_length=1, description="The candidate pool's sources.")
    targets: list[Target] = Field(min_length=1, description="The skills to select for.")
    on_bad_row: Literal["fail", "skip"] = Field(
        "fail", description="A row that can't be read: stop and name it, or leave it out and count."
    )
    warmup: Warmup = Field(default_factory=Warmup)
    features: Features = Field(default_factory=Features)
    score: Score = Field(default_factory=Score)
    select: Select = Field(default_factory=lambda: Select(fraction=0.05))
    train: Train | None = Field(None, description="null: stop after the selection.")
    evaluate: Evaluate | None = Field(None, description="null: no evaluation.")
    report: Report = Field(default_factory=Report)

    @field_validator("pool", "targets")
    @classmethod
    def _names_are_unique(cls, parts: list[Any]) -> list[Any]:
        _unique([part.name for part in parts])
        return parts

    @field_validator("targets")
    @classmethod
    def _names_mean_nothing_else(cls, targets: list[Target]) -> list[Target]:
        taken = [target.name for target in targets if target.name in RESERVED]
        if taken:
            raise ValueError(f"{taken[0]} has a meaning of its own: give the target another name")
        return targets

    @model_validator(mode="after")
    def _caps_are_of_sources(self) -> Recipe:
        known = [source.name for source in self.pool]
        caps = self.select.per_source
        wrong = [name for name in caps if name not in known] if isinstance(caps, dict) else []
        if wrong:
            raise ValueError(f"select.per_source: no source is called {wrong[0]}; one of {known}")
        return self

    @model_validator(mode="after")
    def _duplicates_need_a_datastore(self) -> Recipe:
        if self.features.mode == "exact" and self.select.near_duplicates:
            raise ValueError(
                "select.near_duplicates compares rows of the datastore, which features.mode: exact "
                "does not make"
            )
        return self

    @model_validator(mode="after")
    def _all_weights_are_not_quantized(self) -> Recipe:
        if self.model.quantization and self.train and self.train.full_parameters:
            raise ValueError(
                "train.full_parameters trains all weights, which model.quantization freezes: "
                "leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _tasks_are_targets(self) -> Recipe:
        known = ["target_loss", *(target.name for target in self.targets)]
        wrong = [
            task for task in (self.evaluate and self.evaluate.tasks) or [] if task not in known
        ]
        if wrong:
            raise ValueError(f"evaluate.tasks: no target is called {wrong[0]}; one of {known}")
        return self


def _unique(names: list[str]) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"the name {', '.join(twice)} is used twice")
    return names


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path: A YAML file.
        overrides: `section.key=value` items, the value in YAML; they win over the file.

    Raises:
        RecipeError: With every problem that was found.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(
            [f"it cannot be read: {error.strerror}"], str(path), "Check the path."
        ) from None
    except UnicodeDecodeError:
        raise RecipeError(["it is not UTF-8 text"], str(path), "Give a YAML file.") from None
    tree, lines = _parse_yaml(text, str(path))
    for override in overrides:
        _override(tree, override)
    return check_recipe(tree, str(path), lines)


def check_recipe(
    tree: Mapping[str, Any],
    where: str = "recipe",
    lines: Mapping[tuple[str, ...], int] | None = None,
) -> Recipe:
    """Turn plain data into a `Recipe`; `lines` maps a key's path to its line in the file.

    Raises:
        RecipeError: With every problem that was found.
    """
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        problems = [_problem(dict(item), lines or {}) for item in error.errors()]
        raise RecipeError(problems, where) from None


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, defaults included, that `load_recipe` reads back to an equal one."""
    tree = recipe.model_dump(mode="json")
    if recipe.features.mode == "exact":
        del tree["features"]["projection"], tree["features"]["bits"]
    tree["select"] = {key: value for key, value in tree["select"].items() if value is not None}
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


# --- reading YAML -------------------------------------------------------------------------------


def _parse_yaml(text: str, where: str) -> tuple[dict[str, Any], dict[tuple[str, ...], int]]:
    """The file's data, and the line of each key; a key written twice is an error."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        tree = yaml.safe_load(text)
        keys = list(_key_lines(root, ()))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        said = getattr(error, "problem", None) or getattr(error, "reason", "it cannot be parsed")
        raise RecipeError([f"not YAML: {said}"], where + line, "Mend the YAML.") from None
    except (ValueError, RecursionError) as error:  # a 13th month; an anchor within itself
        deep = isinstance(error, RecursionError)
        said = "nested too deeply, or an anchor that holds itself" if deep else error
        raise RecipeError([f"a value cannot be read: {said}"], where, "Mend the YAML.") from None
    if not isinstance(tree, dict):
        found = "nothing" if tree is None else type(tree).__name__
        raise RecipeError([f"expected a mapping of sections at the top, found {found}"], where)
    lines: dict[tuple[str, ...], int] = {}
    twice: list[str] = []
    for key, number in keys:
        if key in lines:
            name = ".".join(key)
            twice.append(f"{name} (line {number}): written twice, first on line {lines[key]}")
        lines.setdefault(key, number)
    if twice:
        raise RecipeError(twice, where)
    return tree, lines


def _key_lines(
    node: yaml.Node | None, above: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], int]]:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            here = (*above, str(key.value))
            yield here, key.start_mark.line + 1
            if here[-1] not in seen:  # what is written twice is told once, not with all it holds
                yield from _key_lines(value, here)
            seen.add(here[-1])
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            yield (*above, str(position)), value.start_mark.line + 1
            yield from _key_lines(value, (*above, str(position)))


def _override(tree: dict[str, Any], override: str) -> None:
    """Set one `section.key=value` in the tree; list items are named by their position."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    todo = "Write --set section.key=value, e.g. --set warmup.epochs=2 or --set pool.0.path=a.jsonl."
    if not equals or not all(keys):
        raise RecipeError([f"--set {override}: expected section.key=value"], "command line", todo)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise RecipeError(
            [f"--set {override}: the value is not YAML"], "command line", todo
        ) from None
    node: Any = tree
    for key in keys[:-1]:
        node = _child(node, key, override)
    if isinstance(node, list):
        node[_position(node, keys[-1], override)] = value
    else:
        node[keys[-1]] = value


def _child(node: Any, key: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_position(node, key, override)]
    child = node.get(key)
    if child is None:
        child = node[key] = {}
    if not isinstance(child, dict | list):
        problem = f"--set {override}: {key} is a value ({child!r}), not a section"
        raise RecipeError([problem], "command line")
    return child


def _position(items: list[Any], key: str, override: str) -> int:
    if key.isdigit() and int(key) < len(items):
        return int(key)
    problem = f"--set {override}: {key} is no position in a list of {len(items)}, counted from 0"
    raise RecipeError([problem], "command line")


# --- telling problems ---------------------------------------------------------------------------


def _problem(error: dict[str, Any], lines: Mapping[tuple[str, ...], int]) -> str:
    """One line: where in the recipe, what is wrong, what was expected or meant."""
    path = tuple(str(part) for part in error["loc"])
    section = section_at(path[:-1])
    is_ours = path and (path[-1].isdigit() or (section and path[-1] in section.model_fields))
    if not is_ours and error["type"] not in ("extra_forbidden", "missing"):
        # pydantic ends the path with the member of a union ("int"), which is no key of ours.
        path = path[:-1]
    line = f" (line {lines[path]})" if path in lines else ""
    return f"{'.'.join(path) or 'recipe'}{line}: {_explain(error, path)}"


def _explain(error: dict[str, Any], path: tuple[str, ...]) -> str:
    kind, given = error["type"], error.get("input")
    if kind == "extra_forbidden":
        return _unknown_key(path)
    if kind == "missing":
        return "missing; this key must be set"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}; got {given!r}"
    said = error["msg"][0].lower() + error["msg"][1:]
    said = said.removeprefix("input should be ").replace("'", "")
    return f"expected {said}; got {given!r}"


_EXPECTED = {
    "model_type": "a section of keys",
    "too_short": "a list of at least one",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "string_pattern_mismatch": "letters, digits, `.`, `_` or `-`, not starting with a mark",
}
"""Of pydantic's messages, those that say it in a programmer's words."""


def _unknown_key(path: tuple[str, ...]) -> str:
    section = section_at(path[:-1])
    keys = list(section.model_fields) if section else []
    near = difflib.get_close_matches(path[-1], keys, n=1, cutoff=0.6)
    if near:
        return f"unknown key; did you mean `{near[0]}`?"
    elsewhere = " or ".join(f"`{place}`" for place in _places_of(path[-1], Recipe))
    if elsewhere:
        return f"unknown key here; `{path[-1]}` belongs in {elsewhere}"
    return f"unknown key; known here: {', '.join(keys)}"


def section_at(path: Iterable[str]) -> type[Section] | None:
    """The class of the section at a path of keys (list positions are passed over)."""
    section: type[Section] = Recipe
    for part in path:
        if part.isdigit():
            continue
        field = section.model_fields.get(part)
        inner = section_of(field.annotation) if field else None
        if inner is None:
            return None
        section = inner
    return section


def section_of(annotation: Any) -> type[Section] | None:
    """The section class within an annotation such as `list[Source]` or `Train | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    found = (section_of(part) for part in get_args(annotation))
    return next((section for section in found if section), None)


def _places_of(key: str, section: type[Section], above: str = "") -> list[str]:
    """Paths of the sections that know a key."""
    places = []
    for name, field in section.model_fields.items():
        inner = section_of(field.annotation)
        if inner is not None:
            places += [above + name] if key in inner.model_fields else []
            places += _places_of(key, inner, f"{above}{name}.")
    return places
