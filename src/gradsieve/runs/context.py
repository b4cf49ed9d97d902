"""What every stage reads: recipe, run folder, progress, and the inputs, each loaded once.

Stages exchange data only on disk. External inputs (targets, model, chat template) are read here, so
that a run of all stages reads each file once. Reading prints nothing: warnings about the inputs are
collected in `warnings`, which the pipeline reports.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gradsieve.console import Progress
from gradsieve.data.examples import Example, Row, TokenizedExample
from gradsieve.data.pool import Pool
from gradsieve.data.sources import SourceKey, SourceSpec, source_key, state_of
from gradsieve.data.template import ChatTemplate, Refusal
from gradsieve.engine import Engine
from gradsieve.engine.choose import choose_engine
from gradsieve.errors import DataError
from gradsieve.models.source import ModelSource, model_source
from gradsieve.recipe.load import dump_recipe
from gradsieve.recipe.schema import Recipe, TargetConfig
from gradsieve.runs.artifacts import Artifacts
from gradsieve.runs.folder import RunFolder
from gradsieve.tasks import QuestionSet, Target, load_target, load_test_set

T = TypeVar("T")


@dataclass(frozen=True)
class InMemoryInputs:
    """User-supplied objects that replace files; rows are keyed by source or target name."""

    pool: Mapping[str, Iterable[Any]] = field(default_factory=dict)
    targets: Mapping[str, Iterable[Any]] = field(default_factory=dict)
    tests: Mapping[str, Iterable[Any]] = field(default_factory=dict)
    model: PreTrainedModel | None = None
    tokenizer: PreTrainedTokenizerBase | None = None


@dataclass
class Context:
    """One run's recipe, folder and inputs.

    Attributes:
        cache: Results that are expensive to compute again, such as checks that stages share.
        warnings: Warnings about the inputs that have not been reported yet, in order.
        share: (number, count): which of `count` equal parts of the features this process computes,
            counted from 1; None means all.
    """

    recipe: Recipe
    run: RunFolder
    progress: Progress = field(default_factory=Progress)
    in_memory: InMemoryInputs = field(default_factory=InMemoryInputs)
    warnings: list[str] = field(default_factory=list)
    cache: dict[Any, Any] = field(default_factory=dict)
    share: tuple[int, int] | None = None

    def once(self, key: tuple[Any, ...], find: Callable[[], T]) -> T:
        """The result of `find`, cached under `key`."""
        if key not in self.cache:
            self.cache[key] = find()
        found: T = self.cache[key]
        return found

    @cached_property
    def recipe_text(self) -> str:
        """The recipe as each stage writes it to the run folder."""
        return dump_recipe(self.recipe)

    def takes(self, place: int) -> bool:
        """Whether this process's share includes the shard or target with this index."""
        share, count = self.share or (1, 1)
        return place % count == share - 1

    def report_warnings(self) -> None:
        """Report the collected warnings and clear them."""
        for warning in self.warnings:
            self.progress.warn(warning)
        self.warnings.clear()

    @cached_property
    def engine(self) -> Engine:
        """The engine that runs the tasks of the stages."""
        return choose_engine(self.recipe.engine, self.progress)

    def take_work(self) -> list[dict[str, Any]]:
        """The work that each worker has done since the last call."""
        return self.engine.take_work() if "engine" in vars(self) else []

    def close(self) -> None:
        """Shut down the engine's workers, if the engine was used; it can be used again."""
        if "engine" in vars(self):
            self.engine.close()

    @property
    def artifacts(self) -> Artifacts:
        """The outputs of the stages."""
        return Artifacts(self.run)

    @property
    def student(self) -> Context:
        """The same run with the model to train: the selection model, or `train.model`."""
        return self._other_student or self

    @cached_property
    def _other_student(self) -> Context | None:
        model, train = self.recipe.model, self.recipe.train
        if train is None or train.model is None:
            return None
        template = train.chat_template or model.chat_template
        own = {"name": train.model, "revision": None, "chat_template": template}
        student = model.model_copy(update=own)
        if student == model:
            return None
        fresh = self.recipe.warmup.model_copy(update={"checkpoints": None})  # not this model's
        recipe = self.recipe.model_copy(update={"model": student, "warmup": fresh})
        in_memory = replace(self.in_memory, model=None, tokenizer=None)
        return Context(recipe, self.run, self.progress, in_memory, self.warnings)

    @cached_property
    def model(self) -> ModelSource:
        """The recipe's model: the selection model or, in `student`, the model to train."""
        given = (self.in_memory.model, self.in_memory.tokenizer)
        return model_source(self.recipe.model, *given, self.recipe.engine.gpus_of_model)

    @property
    def source_specs(self) -> list[SourceSpec]:
        """The location and reading options of each source in the pool."""
        rows, limits = self.in_memory.pool, self.recipe.limits
        return [  # each key of the section is a field
            SourceSpec(**{**dict(one), "path": rows.get(one.name, one.path)}, limits=limits)
            for one in self.recipe.pool
        ]

    def source_key(self, spec: SourceSpec) -> SourceKey:
        """A source's key, cached because computing it reads the full source."""
        return self.once(("source", spec.name), partial(source_key, spec))

    def changed_sources(self) -> list[str]:
        """Sources that have changed since this run first read them."""
        keys = ((spec, self.cache.get(("source", spec.name))) for spec in self.source_specs)
        return [str(spec.path) for spec, key in keys if key and key.state != state_of(spec)]

    @cached_property
    def pool(self) -> Pool:
        """The candidate pool, memory-mapped; the stage `pool` must be finished."""
        return self.artifacts.pool.read()

    @cached_property
    def targets(self) -> list[Target]:
        """The targets with their examples."""
        targets = [load_target(**self._reading(target)) for target in self.recipe.targets]
        for target in targets:
            if target.bad_rows:
                self.warn_of_bad_rows(target.name, len(target.bad_rows), target.bad_rows[0])
            self.warnings += [f"target {target.name}: {warning}" for warning in target.warnings]
        return targets

    def _reading(self, target: TargetConfig) -> dict[str, Any]:
        """Where a target's examples and its questions are, and how they are read."""
        return {
            "name": target.name,
            "task": target.task,
            "path": self.in_memory.targets.get(target.name, target.path),
            "subtask_field": target.subtask,
            "on_bad_row": self.recipe.on_bad_row,
            "supervise": target.supervise,
            "columns": target.columns,
            "limits": self.recipe.limits,
        }

    def warn_of_bad_rows(self, name: str, count: int, first: tuple[str, str]) -> None:
        """Warn that rows of a source or target are skipped."""
        where, reason = first
        self.warnings.append(f"{name}: {count} bad rows left out, the first at {where}: {reason}")

    @cached_property
    def test_sets(self) -> dict[str, QuestionSet]:
        """Held-out questions to evaluate on, by target; at most `evaluate.limit` per subtask."""
        limit = self.recipe.evaluate.limit if self.recipe.evaluate else None
        return {name: test.limited(limit) for name, test in self.full_test_sets.items()}

    @cached_property
    def full_test_sets(self) -> dict[str, QuestionSet]:
        """All held-out questions, by target name; targets without any are omitted."""
        found = {
            target.name: load_test_set(
                **self._reading(target),
                test=self.in_memory.tests.get(target.name, target.test),
                answer=target.answer,
            )
            for target in self.recipe.targets
        }
        tests = {name: test for name, test in found.items() if test is not None}
        for target in self.targets:
            if test := tests.get(target.name):
                if test.bad_rows:
                    name = f"{target.name}, test"
                    self.warn_of_bad_rows(name, len(test.bad_rows), test.bad_rows[0])
                self._warn_of_untested(target, test)
        return tests

    def _warn_of_untested(self, target: Target, test: QuestionSet) -> None:
        tested = {question.example.subtask for question in test.questions}
        if untested := sorted(set(target.subtasks) - tested):
            self.warnings.append(
                f"target {target.name}: {len(untested)} of {len(target.subtasks)} subtasks have no "
                f"held-out questions, the first {untested[0]}"
            )
        bare = {one.example.subtask for one in test.questions if one.shots is None}
        if bare and target.task != "custom":
            self.warnings.append(
                f"target {target.name}: the held-out questions of {len(bare)} of {len(tested)} "
                f"subtasks are asked without a few-shot example, since the target has none of "
                f"them, the first {min(bare)}"
            )

    @cached_property
    def positions(self) -> int | None:
        """The model's context length in tokens; None if its configuration has none."""
        return getattr(self.model.config(), "max_position_embeddings", None)

    @cached_property
    def template(self) -> ChatTemplate:
        """The chat template with the model's tokenizer."""
        model = self.recipe.model
        max_length = min(model.max_length, self.positions or model.max_length)
        if max_length < model.max_length:
            self.warnings.append(
                f"model.max_length {model.max_length} is more than the {self.positions} positions "
                f"of {model.name}: examples are cut to {max_length} tokens"
            )
        tokenizer, limits = self.model.tokenizer(), self.recipe.limits
        template = ChatTemplate(tokenizer, model.chat_template, max_length, limits)
        self.warnings += template.warnings
        return template

    def target_rows(self, target: Target) -> list[Row]:
        """A target's tokenized examples; those without a label token are omitted."""
        return self.once(("target rows", target.name), lambda: self._encoded(target))

    def _encoded(self, target: Target) -> list[Row]:
        rows = self.encode(target.examples)
        usable = [row for row in rows if not row.skip_reason]
        bare = [row for row in rows if row.skip_reason]
        if not usable:
            raise DataError(
                "The target has no example with label tokens.",
                f"target {target.name}, e.g. {bare[0].example.id}: {bare[0].skip_reason}",
                "Raise model.max_length, or give shorter examples.",
            )
        if bare:
            lost = set(target.subtasks) - {row.example.subtask for row in usable}
            without = f"; {len(lost)} of {len(target.subtasks)} subtasks have none left"
            self.warnings.append(
                f"target {target.name}: {len(bare)} of {len(rows)} examples left out, "
                f"the first {bare[0].example.id}: {bare[0].skip_reason}{without if lost else ''}"
            )
        return usable

    def encode(self, examples: Sequence[Example]) -> list[Row]:
        """Tokenize examples, in order.

        Raises:
            DataError: If the chat template rejects an example and `on_bad_row` is "fail".
        """
        encoded = self.template.try_encode_all(examples, self.recipe.on_bad_row)
        nothing = TokenizedExample(array("i"), array("i"))
        return [
            Row(example, nothing if isinstance(one, Refusal) else one, one.skip_reason)
            for example, one in zip(examples, encoded, strict=True)
        ]

    @cached_property
    def model_inputs(self) -> dict[str, Any]:
        """The properties of the model that a gradient depends on, for fingerprints."""
        return {
            "weights": self.model.fingerprint,
            "dtype": self.recipe.model.dtype,
            "quantization": self.recipe.model.quantization,
            "template": self.template.fingerprint,
        }

    @property
    def pool_inputs(self) -> dict[str, str]:
        """Fingerprints of the pool's rows, independent of file paths and row order."""
        return dict(self.artifacts.pool.metadata["output"])

    @property
    def target_inputs(self) -> dict[str, str]:
        """Fingerprints of the targets."""
        return {target.name: target.fingerprint for target in self.targets}
