"""What every stage is given: recipe, run folder, progress, and the inputs, read once.

Stages meet only on disk; this is where the reading of what the user gave (pool, targets, model) is
shared, so that a run of all stages reads each file once.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gradsieve.console import Progress
from gradsieve.data.examples import Example, Row
from gradsieve.data.pool import Pool, SourceSpec
from gradsieve.errors import DataError
from gradsieve.recipe.schema import Recipe
from gradsieve.runs.artifacts import Artifacts
from gradsieve.runs.folder import RunFolder
from gradsieve.tasks import QuestionSet, Target, load_target, load_test_set

if TYPE_CHECKING:
    from gradsieve.data.template import ChatTemplate


@dataclass(frozen=True)
class Given:
    """Rows that are in memory and stand for files, by the name of their source or target.

    Attributes:
        pool: Of sources.
        targets: Of targets: their examples.
        tests: Of targets: their held-out examples.
    """

    pool: Mapping[str, Iterable[Any]] = field(default_factory=dict)
    targets: Mapping[str, Iterable[Any]] = field(default_factory=dict)
    tests: Mapping[str, Iterable[Any]] = field(default_factory=dict)


@dataclass
class Context:
    """One run's recipe, folder and inputs.

    Attributes:
        recipe: What to do.
        run: Where to write.
        progress: Where to tell.
        given: What needn't be read.
    """

    recipe: Recipe
    run: RunFolder
    progress: Progress = field(default_factory=Progress)
    given: Given = field(default_factory=Given)
    _target_rows: dict[str, list[Row]] = field(default_factory=dict)

    @property
    def artifacts(self) -> Artifacts:
        """What the stages leave."""
        return Artifacts(self.run)

    @cached_property
    def student(self) -> Context:
        """The same run with the model to train: the one that selected, or what `train.model` names.

        Its tokenizer is loaded, and its warnings told, once.
        """
        model, name = self.recipe.model, self.recipe.train and self.recipe.train.model
        if name is None:
            return self
        student = model.model_copy(update={"name": name, "revision": None})
        if student == model:
            return self
        recipe = self.recipe.model_copy(update={"model": student})
        return Context(recipe, self.run, self.progress, self.given)

    @property
    def source_specs(self) -> list[SourceSpec]:
        """Where the pool's sources are."""
        return [
            SourceSpec(
                source.name,
                self.given.pool.get(source.name, source.path),
                source.split,
                source.revision,
                source.supervise,
            )
            for source in self.recipe.pool
        ]

    @cached_property
    def pool(self) -> Pool:
        """The candidate pool, memory-mapped; the stage `pool` comes first."""
        return self.artifacts.pool.read()

    @cached_property
    def targets(self) -> list[Target]:
        """The targets' examples."""
        targets = [
            load_target(
                target.name,
                target.task,
                self.given.targets.get(target.name, target.path),
                subtask_field=target.subtask,
                on_bad_row=self.recipe.on_bad_row,
                supervise=target.supervise,
            )
            for target in self.recipe.targets
        ]
        for target in targets:
            if target.bad_rows:
                self.warn_of_bad_rows(target.name, len(target.bad_rows), target.bad_rows[0])
            for note in target.notes:
                self.progress.warn(f"target {target.name}: {note}")
        return targets

    def warn_of_bad_rows(self, name: str, count: int, first: tuple[str, str]) -> None:
        """Warn that rows of a source or target were left out."""
        where, reason = first
        self.progress.warn(f"{name}: {count} bad rows left out, the first at {where}: {reason}")

    @cached_property
    def test_sets(self) -> dict[str, QuestionSet]:
        """The held-out questions to evaluate on, by the target's name; at most `evaluate.limit`."""
        limit = self.recipe.evaluate.limit if self.recipe.evaluate else None
        return {name: test.limited(limit) for name, test in self.whole_test_sets.items()}

    @cached_property
    def whole_test_sets(self) -> dict[str, QuestionSet]:
        """The held-out questions of the targets that have some, by the target's name."""
        found = {
            target.name: load_test_set(
                target.name,
                target.task,
                self.given.targets.get(target.name, target.path),
                self.given.tests.get(target.name, target.test),
                target.subtask,
                target.supervise,
            )
            for target in self.recipe.targets
        }
        tests = {name: test for name, test in found.items() if test is not None}
        for target in self.targets:
            if test := tests.get(target.name):
                self._tell_untested(target, test)
        return tests

    def _tell_untested(self, target: Target, test: QuestionSet) -> None:
        tested = {question.example.subtask for question in test.questions}
        if untested := sorted(set(target.subtasks) - tested):
            self.progress.warn(
                f"target {target.name}: {len(untested)} of {len(target.subtasks)} subtasks have no "
                f"held-out questions, the first {untested[0]}"
            )

    @cached_property
    def positions(self) -> int | None:
        """Tokens that the model can see at once; None if its config doesn't say."""
        from gradsieve.models.load import load_config

        return getattr(load_config(self.recipe.model), "max_position_embeddings", None)

    @cached_property
    def template(self) -> ChatTemplate:
        """The chat template with the model's tokenizer."""
        from gradsieve.data.template import ChatTemplate
        from gradsieve.models.load import load_tokenizer

        model = self.recipe.model
        max_length = min(model.max_length, self.positions or model.max_length)
        if max_length < model.max_length:
            self.progress.warn(
                f"model.max_length {model.max_length} is more than the model's {self.positions} "
                f"positions: examples are cut to {max_length} tokens"
            )
        template = ChatTemplate(load_tokenizer(model), model.chat_template, max_length)
        for warning in template.warnings:
            self.progress.warn(warning)
        return template

    @cached_property
    def rows(self) -> list[Row]:
        """The pool in order of (source, id), whatever order it came in."""
        numbers = self.pool.order
        reasons = self.pool.skip_reasons.take(numbers).to_pylist()
        examples, encoded = self.pool.examples(numbers), self.pool.tokenized(numbers)
        return [Row(*row) for row in zip(examples, encoded, reasons, strict=True)]

    @cached_property
    def examples(self) -> dict[tuple[str, str], Example]:
        """The pool's examples by (source, id)."""
        return {row.key: row.example for row in self.rows}

    def target_rows(self, target: Target) -> list[Row]:
        """A target's examples, tokenized; those without a label token are left out."""
        if target.name in self._target_rows:
            return self._target_rows[target.name]
        rows = self.encode(target.examples)
        usable = [row for row in rows if not row.skip_reason]
        bare = [row for row in rows if row.skip_reason]
        if not usable:
            raise DataError(
                "The target has no example with anything to learn from.",
                f"target {target.name}, e.g. {bare[0].example.id}: {bare[0].skip_reason}",
                "Raise model.max_length, or give shorter examples.",
            )
        if bare:
            lost = set(target.subtasks) - {row.example.subtask for row in usable}
            without = f"; {len(lost)} of {len(target.subtasks)} subtasks have none left"
            self.progress.warn(
                f"target {target.name}: {len(bare)} of {len(rows)} examples left out, "
                f"the first {bare[0].example.id}: {bare[0].skip_reason}{without if lost else ''}"
            )
        self._target_rows[target.name] = usable
        return usable

    def encode(self, examples: Sequence[Example]) -> list[Row]:
        """Tokenize examples, in order.

        Raises:
            DataError: If the chat template refuses some, and `on_bad_row` is "fail".
        """
        from gradsieve.data.template import Refusal, TokenizedExample, refused_error

        encoded = self.template.try_encode_all(examples)
        refused = [one for one in encoded if isinstance(one, Refusal)]
        if refused and self.recipe.on_bad_row == "fail":
            raise refused_error(refused, len(encoded))
        nothing = TokenizedExample(array("i"), array("i"))
        return [
            Row(example, nothing if isinstance(one, Refusal) else one, one.skip_reason)
            for example, one in zip(examples, encoded, strict=True)
        ]

    @cached_property
    def model_inputs(self) -> dict[str, Any]:
        """What the model's side of a gradient depends on, for fingerprints."""
        from gradsieve.models.load import model_fingerprint

        return {
            "weights": model_fingerprint(self.recipe.model),
            "dtype": self.recipe.model.dtype,
            "quantization": self.recipe.model.quantization,
            "template": self.template.fingerprint,
        }

    @property
    def pool_inputs(self) -> dict[str, str]:
        """What the pool's rows are, for fingerprints: whatever path or order they came in."""
        return self.artifacts.pool.fingerprints
