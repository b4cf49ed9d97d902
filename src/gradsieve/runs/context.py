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
from gradsieve.data.readers import Source, read_source
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

    @cached_property
    def sources(self) -> list[Source]:
        """The pool's sources."""
        sources = [
            read_source(
                source.name,
                self.given.pool.get(source.name, source.path),
                on_bad_row=self.recipe.on_bad_row,
                split=source.split,
                revision=source.revision,
                supervise=source.supervise,
            )
            for source in self.recipe.pool
        ]
        for source in sources:
            self._tell_bad_rows(source.name, source.bad_rows)
            for warning in source.warnings:
                self.progress.warn(f"{source.name}: {warning}")
        return sources

    @cached_property
    def examples(self) -> dict[tuple[str, str], Example]:
        """The pool's examples by (source, id)."""
        return {(e.source, e.id): e for source in self.sources for e in source.examples}

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
            self._tell_bad_rows(target.name, target.bad_rows)
            for note in target.notes:
                self.progress.warn(f"target {target.name}: {note}")
        return targets

    def _tell_bad_rows(self, name: str, bad: Sequence[tuple[str, str]]) -> None:
        if bad:
            where, reason = bad[0]
            self.progress.warn(
                f"{name}: {len(bad)} bad rows left out, the first at {where}: {reason}"
            )

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
        examples = [example for source in self.sources for example in source.examples]
        self.progress.say(f"  tokenizing {len(examples)} rows of the pool")
        rows = self.encode(examples)
        self._warn_of_refused(rows)
        rows.sort(key=lambda row: row.key)
        if all(row.set_aside for row in rows):
            raise DataError(
                "No row of the pool has anything to learn from.",
                f"{len(rows)} rows, the first: {rows[0].set_aside if rows else 'none'}",
                "Raise model.max_length, or check model.chat_template.",
            )
        return rows

    def target_rows(self, target: Target) -> list[Row]:
        """A target's examples, tokenized; those without a label token are left out."""
        if target.name in self._target_rows:
            return self._target_rows[target.name]
        rows = self.encode(target.examples)
        usable = [row for row in rows if not row.set_aside]
        bare = [row for row in rows if row.set_aside]
        if not usable:
            raise DataError(
                "The target has no example with anything to learn from.",
                f"target {target.name}, e.g. {bare[0].example.id}: {bare[0].set_aside}",
                "Raise model.max_length, or give shorter examples.",
            )
        if bare:
            lost = set(target.subtasks) - {row.example.subtask for row in usable}
            without = f"; {len(lost)} of {len(target.subtasks)} subtasks have none left"
            self.progress.warn(
                f"target {target.name}: {len(bare)} of {len(rows)} examples left out, "
                f"the first {bare[0].example.id}: {bare[0].set_aside}{without if lost else ''}"
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

    def _warn_of_refused(self, rows: Sequence[Row]) -> None:
        """One warning for each source with rows that the chat template refuses."""
        refused: dict[str, list[Row]] = {}
        for row in rows:
            if not row.encoded.input_ids and row.set_aside:
                refused.setdefault(row.example.source, []).append(row)
        for name, some in refused.items():
            bad = [(row.example.where or row.example.id, row.set_aside or "") for row in some]
            self._tell_bad_rows(name, bad)

    @cached_property
    def model_inputs(self) -> dict[str, Any]:
        """What the model's side of a gradient depends on, for fingerprints."""
        from gradsieve.models.load import model_fingerprint

        return {
            "name": self.recipe.model.name,
            "weights": model_fingerprint(self.recipe.model),
            "dtype": self.recipe.model.dtype,
            "quantization": self.recipe.model.quantization,
            "template": self.template.fingerprint,
        }

    @cached_property
    def pool_inputs(self) -> dict[str, str]:
        """What the pool's rows are, for fingerprints: whatever path or order they came in."""
        return {source.name: source.fingerprint for source in self.sources}
