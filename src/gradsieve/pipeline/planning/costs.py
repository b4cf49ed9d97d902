"""Operations, bytes on disk and memory of each stage, from counts and shapes alone.

In: a run's work, its models as skeletons. Out: numbers by stage. Memory is an estimate, for a
machine that isn't at hand; on the one at hand it is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from gradsieve.evaluation.prompts import write_prompts
from gradsieve.methods import find_method, uses_gradients
from gradsieve.models.load import add_adapter, saved_meta_model
from gradsieve.pipeline.planning.gpus import DISK_BYTES_A_SECOND, STARTUP_SECONDS, UTILISATION, Gpu
from gradsieve.pipeline.planning.shape import Shape, shape_of
from gradsieve.pipeline.planning.timing import padded_tokens, spread
from gradsieve.pipeline.planning.work import Training, Work

ROW_BYTES = 100
"""A row's share of tables beside its numbers: names and hashes; an assumption."""


@dataclass(frozen=True)
class Costs:
    """What a run's stages cost.

    Attributes:
        work: What there is to do.
    """

    work: Work

    @cached_property
    def shape(self) -> Shape:
        """Of the model that selects, with its adapter where gradients are taken."""
        recipe, source = self.work.context.recipe, self.work.context.model
        given = recipe.warmup.checkpoints
        if "features" not in self.work.stages:
            return shape_of(source.meta_model(), recipe.model)
        if given:
            return shape_of(saved_meta_model(source, Path(given[0])), recipe.model)
        adapted = add_adapter(source.meta_model(), recipe.warmup.lora, 0)
        return shape_of(adapted, recipe.model)

    @cached_property
    def student(self) -> Shape:
        """Of the model that is trained on the selections."""
        recipe, source = self.work.context.recipe, self.work.context.student.model
        if recipe.train is not None and recipe.train.full_parameters:
            return shape_of(source.meta_model(), source.settings, full=True)
        adapted = add_adapter(source.meta_model(), recipe.warmup.lora, 0)
        return shape_of(adapted, source.settings)

    @cached_property
    def width(self) -> int:
        """Values of a row of the datastore."""
        settings = self.work.context.recipe.features
        if settings.mode == "exact":
            return self.work.subtasks
        if settings.projection.kind == "none":
            return self.shape.adapter
        return settings.projection.dim

    # --- operations -----------------------------------------------------------------------------

    def flops(self, stage: str) -> float:
        """Floating-point operations of a stage, those of the models and projections."""
        of: dict[str, Callable[[], float]] = {
            "warmup": lambda: self._training(self.shape, self.work.warmup),
            "features": self._features,
            "score": self._score,
            "train": lambda: sum(self._training(self.student, t) for t in self.work.trainings),
            "evaluate": self._evaluate,
        }
        return of[stage]() if stage in of else 0.0

    def _training(self, shape: Shape, training: Training | None) -> float:
        if training is None:
            return 0.0
        rows = self.work.lengths
        tokens = padded_tokens(rows, training)
        longest = max(1, round(tokens / training.rows))
        return training.epochs * shape.forward_and_backward(training.rows, longest, round(tokens))

    def _features(self) -> float:
        work, settings = self.work, self.work.context.recipe.features
        each = {"sketch": 4, "none": 2, "rademacher": 2 * self.width}[settings.projection.kind]
        each = 2 * self.width if settings.mode == "exact" else each
        passes = sum(
            self.shape.forward_and_backward(1, len(row.encoded.input_ids), row.encoded.n_labels)
            for row in (*work.rows * work.stores, *work.target_rows)
        )
        updates = (10 + each) * self.shape.adapter * len(work.rows) * work.stores
        return work.checkpoints * (passes + updates)

    def _score(self) -> float:
        total = 0.0
        for name in self.work.context.recipe.score.methods:
            if uses_gradients(name):
                products = 2.0 * self.width * self.work.subtasks * len(self.work.rows)
                total += self.work.checkpoints * products
            elif find_method(name).uses == "model":
                total += sum(self.shape.forward(1, n, n) for n in self.work.lengths)
        return total

    def _evaluate(self) -> float:
        total = 0.0
        for name, (count, tokens, written) in self.questions.items():
            own = sum(len(r.encoded.input_ids) for r in self.work.target_rows
                      if r.example.source == name)  # fmt: skip
            asked = self.student.forward(count, max(1, round(tokens)), count)
            total += asked + (own + count * written) * self.student.forward(1, 1, 1)
        return self.work.evaluated * total

    @cached_property
    def questions(self) -> dict[str, tuple[int, float, int]]:
        """By target: questions, mean tokens of a prompt, tokens of an answer at most."""
        context = self.work.context
        of = context.student
        found = {}
        for name, test in context.test_sets.items():
            some = tuple(spread(test.questions, min(64, len(test.questions))))
            asked = write_prompts(of, replace(test, questions=some))
            written = 1 if test.questions[0].choices else asked.max_tokens
            found[name] = (len(test.questions), sum(asked.lengths) / len(some), written)
        return found

    # --- disk -----------------------------------------------------------------------------------

    def disk_bytes(self, stage: str) -> int:
        """Bytes that a stage leaves behind."""
        work, n, p = self.work, len(self.work.rows), self.shape.adapter
        recipe = work.context.recipe
        if stage == "warmup":
            return 0 if work.warmup is None else work.checkpoints * 12 * p
        if stage == "features":
            bits = 32 if recipe.features.mode == "exact" else recipe.features.bits
            store = n * (math.ceil(self.width * bits / 8) + ROW_BYTES)
            targets = 4 * self.width * len(work.target_rows)
            return work.checkpoints * (work.stores * store + targets)
        if stage == "score":
            methods = len(recipe.score.methods)
            return n * methods * (4 * work.subtasks + ROW_BYTES * len(recipe.targets))
        if stage == "select":
            share = sum(min(n, work.selected(m)) for m in recipe.score.methods) / n
            return round(share * self._pool_bytes * work.selections / len(recipe.score.methods))
        if stage == "train":
            copies = sum(1 + training.copies for training in work.trainings)
            return copies * self.student.adapter * (self.student.bytes_a_value
                                                    if self.student.full else 4)  # fmt: skip
        if stage == "evaluate":
            questions = sum(len(test.questions) for test in work.context.test_sets.values())
            return work.evaluated * (questions + len(work.target_rows)) * ROW_BYTES
        return 0

    @cached_property
    def _pool_bytes(self) -> int:
        rows = self.work.rows
        return sum(len(t["content"].encode("utf-8", "surrogatepass")) + 40
                   for row in rows for t in row.example.messages)  # fmt: skip

    def working_bytes(self, stage: str) -> int:
        """Bytes on disk that a stage needs meanwhile: Trainer's checkpoints, the last two."""
        if stage not in ("warmup", "train"):
            return 0
        shape = self.shape if stage == "warmup" else self.student
        return 2 * 12 * shape.adapter

    # --- memory and time of a GPU that isn't at hand --------------------------------------------

    def memory_bytes(self, stage: str) -> int | None:
        """Memory of a GPU at a stage's peak; None where none is used, or as much as there is."""
        recipe, longest = self.work.context.recipe, max(self.work.lengths)
        if stage in ("warmup", "train"):
            if stage == "warmup" and self.work.warmup is None:
                return None
            shape = self.shape if stage == "warmup" else self.student
            tokens = longest * (recipe.warmup.micro_batch_size or recipe.warmup.batch_size)
            return shape.weight_bytes + shape.trained_bytes + shape.activation_bytes(tokens, tokens)
        if stage == "features":
            wanted = recipe.features.tokens_per_batch
            tokens = max(longest, wanted if isinstance(wanted, int) else 8192)
            held = self.shape.weight_bytes + (4 + 8 + 1) * self.shape.adapter
            if recipe.features.mode == "exact":
                held += 4 * self.width * self.shape.adapter
            return held + self.shape.activation_bytes(tokens, tokens)
        if stage == "evaluate":
            return self.student.weight_bytes
        return None

    def gpu_seconds(self, stage: str, gpu: Gpu) -> float:
        """What a stage takes on a named GPU."""
        work = self.work
        seconds = self.flops(stage) / (gpu.teraflops * 1e12 * UTILISATION)
        loads = {
            "warmup": int(work.warmup is not None),
            "features": work.checkpoints,
            "train": len(work.trainings),
            "evaluate": work.evaluated * len(work.context.recipe.targets),
        }.get(stage, 0)
        model = self.student if stage in ("train", "evaluate") else self.shape
        seconds += loads * model.weight_bytes / DISK_BYTES_A_SECOND + bool(loads) * STARTUP_SECONDS
        seconds += self.disk_bytes(stage) / DISK_BYTES_A_SECOND
        if stage == "score":
            seconds += self.disk_bytes("features") / DISK_BYTES_A_SECOND
        if stage == "evaluate" and work.context.recipe.evaluate is not None:
            batch = work.context.recipe.evaluate.batch_size
            reads = sum(math.ceil(count / batch) * written
                        for count, _, written in self.questions.values())  # fmt: skip
            rate = gpu.gigabytes_a_second * 1e9
            seconds += work.evaluated * reads * model.weight_bytes / rate
        return seconds
