"""Seconds of each stage, from a few of its batches timed on the machine at hand.

In: a run's work. Out: what each stage will take here. What is timed is the run's own code on the
run's own rows: batches at quantiles of length, a training of a few steps, a method on a part of the
pool. Between what was timed it interpolates, and beyond it it multiplies. Rejected: operations over
a peak rate (small models on a CPU are far from any peak); that is kept for machines that are not at
hand (`gpus.py`).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from gradsieve.console import Progress
from gradsieve.data.examples import Row
from gradsieve.errors import ModelError
from gradsieve.methods import find_method, split_seed, uses_gradients
from gradsieve.methods.base import ScoringTask, whole_text
from gradsieve.models.source import ModelSource
from gradsieve.pipeline.planning.timing import (
    Linear,
    TrainingTimes,
    linear,
    padded_tokens,
    spread,
    timed,
)
from gradsieve.pipeline.planning.work import Batch, Training, Work
from gradsieve.recipe.schema import EvaluateConfig

if TYPE_CHECKING:
    from gradsieve.gradients.features import FeatureExtractor

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of the batches in order of length: which are timed."""

ROWS_TRIED = (32, 160)
"""Rows that a method, or questions that an evaluation, is tried with: few, then more."""


@dataclass
class Calibration:
    """Times parts of a run's work, as they are asked for.

    Attributes:
        work: What there is to do.
        width: Values of a row of the datastore.
    """

    work: Work
    width: int
    _trainings: dict[tuple[str, bool], TrainingTimes] = field(default_factory=dict)

    def seconds(self, stage: str) -> float | None:
        """What a stage will take here; None for a stage that is not foreseen.

        Raises:
            ModelError: If memory runs out.
        """
        predict: dict[str, Callable[[], float]] = {
            "warmup": self._warmup,
            "features": self._features,
            "score": self._score,
            "select": self._select,
            "train": self._train,
            "evaluate": self._evaluate,
        }
        import torch

        if stage not in predict:
            return None
        try:
            return predict[stage]()
        except torch.OutOfMemoryError:
            raise ModelError(
                f"Memory runs out while parts of {stage} are timed.",
                f"batches of the recipe's size, up to {self.work.lengths[-1]} tokens an example",
                "Set warmup.micro_batch_size, lower features.tokens_per_batch, evaluate.batch_size "
                "or model.max_length; or plan for another machine with --gpu.",
            ) from None
        finally:
            gc.collect()  # Trainer and its model hold each other
            torch.cuda.empty_cache()

    # --- training -------------------------------------------------------------------------------

    def _warmup(self) -> float:
        training = self.work.warmup
        if training is None:
            return 0.0
        rows = self.work.warmup_rows
        return self._training_times(self.work.context.model, False).seconds(
            training, padded_tokens(_lengths(rows), training)
        )

    def _train(self) -> float:
        settings = self.work.context.recipe.train
        full = bool(settings and settings.full_parameters)
        times = self._training_times(self.work.context.student.model, full)
        return sum(
            times.seconds(one, padded_tokens(self.work.lengths, one)) for one in self.work.trainings
        )

    def _training_times(self, model: ModelSource, full: bool) -> TrainingTimes:
        key = (model.settings.name, full)
        if key not in self._trainings:
            self._trainings[key] = self._time_training(model, full)
        return self._trainings[key]

    def _time_training(self, model: ModelSource, full: bool) -> TrainingTimes:
        """A training of a few steps of the recipe's size, and one with a row a step."""
        size = self.work.context.recipe.warmup.batch_size
        trainings = self.work.trainings if "train" in self.work.stages else []
        most = max(t.rows for t in (self.work.warmup, *trainings) if t is not None)
        rows = spread(self.work.rows, min(4 * size, most, len(self.work.rows)))
        self._try(model, full, rows[:2], 1)  # libraries are loaded
        load, start, step, epoch = self._try(model, full, rows, size)
        single = self._try(model, full, spread(rows, min(4, len(rows))), 1)[2]
        tokens = padded_tokens(_lengths(rows), Training(len(rows), 1, size)) / max(
            1, -(-len(rows) // size)
        )
        one = float(np.mean(_lengths(rows)))
        token = max(0.0, (step - single) / (tokens - one)) if tokens > 1.5 * one else step / tokens
        token = min(token, step / tokens)
        return TrainingTimes(load + start, max(0.0, step - token * tokens), token, epoch)

    def _try(
        self, model: ModelSource, full: bool, rows: Sequence[Row], batch_size: int
    ) -> tuple[float, float, float, float]:
        """Seconds of loading, of starting, of a step and of an epoch's end."""
        from gradsieve.data.batching import collate
        from gradsieve.models.load import add_adapter
        from gradsieve.models.training import train_model

        recipe = self.work.context.recipe
        settings = recipe.warmup.model_copy(
            update={"batch_size": batch_size, "epochs": 2, "report_to": [],
                    "micro_batch_size": min(recipe.warmup.micro_batch_size or batch_size,
                                            batch_size)}
        )  # fmt: skip
        begun = time.perf_counter()
        loaded = model.load()
        made = loaded.requires_grad_(True) if full else add_adapter(loaded, settings.lora, 0)
        load = time.perf_counter() - begun
        ends: list[float] = []
        with TemporaryDirectory() as folder:
            start = time.perf_counter()
            train_model(
                made,
                [row.encoded for row in rows],
                settings,
                0,
                Path(folder),
                collate=collate,
                on_step=lambda *_: ends.append(time.perf_counter()),
                keep_checkpoints=not full,
            )
            whole = time.perf_counter() - start
        steps = len(ends) // 2
        gaps = np.diff([start, *ends])
        within = [*gaps[1:steps], *gaps[steps + 1 :]]
        step = float(np.median(within)) if within else float(gaps[-1])
        epoch = max(0.0, float(gaps[steps]) - step) if within else 0.0
        return load, max(0.0, whole - 2 * (steps * step + epoch)), step, epoch

    # --- features -------------------------------------------------------------------------------

    def _features(self) -> float:
        """A checkpoint's work, times checkpoints."""
        from gradsieve.gradients.extract import TokenBudget, extract

        work = self.work
        start = time.perf_counter()
        extractor = self._extractor()
        loading = time.perf_counter() - start
        few = [row.encoded for row in work.rows[:8]]
        extract(extractor, few, TokenBudget(1))  # libraries are loaded
        eps = timed(lambda: extract(extractor, few, TokenBudget(1), measure_eps=True))
        tokens = TokenBudget(work.context.recipe.features.tokens_per_batch).tokens
        batches = work.feature_batches(tokens, self.width)
        rates = self._rates(extractor, batches)
        passes = sum(_at(rates, batch.longest) * batch.tokens for batch in batches)
        lengths = _lengths(work.target_rows)
        of_targets = sum(_at(rates, length) * length for length in lengths)
        writing = len(work.rows) * self._storing[0]
        return work.checkpoints * (loading + eps + of_targets + work.stores * (passes + writing))

    def _extractor(self) -> FeatureExtractor:
        """As the features stage makes it, with moments and directions of zeros."""
        import torch

        from gradsieve.gradients.exact import ExactProducts
        from gradsieve.gradients.features import FeatureExtractor, Moments
        from gradsieve.gradients.per_example import lora_layers
        from gradsieve.gradients.projection import Projection
        from gradsieve.models.load import add_adapter, load_adapter

        recipe = self.work.context.recipe
        given, loaded = recipe.warmup.checkpoints, self.work.context.model.load()
        model = (
            load_adapter(loaded, Path(given[0]))
            if given
            else add_adapter(loaded, recipe.warmup.lora, 0)
        )
        weights = {name: layer.weight for name, layer in lora_layers(model).items()}
        zeros = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in weights.items()}
        settings = recipe.features
        projection: Any = Projection(**settings.projection.model_dump())
        if settings.mode == "exact":
            sizes = {name: weight.numel() for name, weight in weights.items()}
            some = next(iter(weights.values()))
            directions = torch.zeros(self.width, sum(sizes.values()), device=some.device)
            projection = ExactProducts(directions, sizes)
        moments = Moments(zeros, zeros, 1)
        return FeatureExtractor(model, projection, moments, settings.adam, settings.momentum)

    def _rates(
        self, extractor: FeatureExtractor, batches: Sequence[Batch]
    ) -> tuple[list[int], list[float]]:
        """Lengths, and the seconds that a token then takes, padding included."""
        from gradsieve.gradients.extract import TokenBudget, extract

        order = sorted(range(len(batches)), key=lambda i: batches[i].longest)
        starts = np.cumsum([0, *(batch.examples for batch in batches)])
        lengths, seconds = [], []
        for number in dict.fromkeys(order[round(q * (len(order) - 1))] for q in QUANTILES):
            rows = self.work.rows[starts[number] : starts[number + 1]]
            encoded = [row.encoded for row in rows]
            budget = TokenBudget(batches[number].tokens)
            took = timed(partial(extract, extractor, encoded, budget))
            lengths.append(batches[number].longest)
            seconds.append(took / batches[number].tokens)
        return lengths, seconds

    @cached_property
    def _storing(self) -> tuple[float, float]:
        """Seconds a row of writing a shard, and of taking its similarities."""
        import torch

        from gradsieve.stages.features import rows_a_shard
        from gradsieve.store import RowKey, create_store, open_store

        settings, width = self.work.context.recipe.features, self.width
        count = min(rows_a_shard(len(self.work.rows), width), len(self.work.rows))
        features = torch.randn(count, width)
        keys = [RowKey("calibration", str(number), "0" * 16) for number in range(count)]
        with TemporaryDirectory() as folder:
            if settings.mode == "exact":
                store = create_store(Path(folder) / "a", {"bits": 32, "exact": {}})
            else:
                store = create_store(Path(folder) / "a", {"bits": settings.bits})
            store.write_shard(keys[:8], features[:8], torch.ones(8))  # libraries are loaded
            writing = timed(lambda: store.write_shard(keys, features, torch.ones(count)))
            store.finish()
            if settings.mode == "exact":
                return writing / count, 0.0
            directions = torch.randn(self.work.subtasks, width).numpy()

            def read() -> object:
                there = open_store(Path(folder) / "a")
                return list(there.similarities(directions, there.find(keys)))

            read()
            return writing / count, timed(read) / count

    # --- scores and selections ------------------------------------------------------------------

    def _score(self) -> float:
        names = self.work.context.recipe.score.methods
        return sum(self._method(name) for name in dict.fromkeys(names))

    def _method(self, name: str) -> float:
        method, rows = find_method(name), self.work.rows
        if uses_gradients(name):
            return self.work.checkpoints * len(rows) * self._storing[1]
        few, more = (min(count, len(rows)) for count in ROWS_TRIED)
        context = self.work.context

        def score(count: int) -> object:
            pool = context.pool
            task = ScoringTask(
                pool=pool,
                numbers=np.array(spread(pool.usable.tolist(), count)),
                targets={t.name: context.target_rows(t) for t in context.targets},
                recipe=context.recipe,
                model=self.work.context.model,
                seed=split_seed(name)[1],
                progress=Progress(quiet=True),
            )
            return method.score(task)

        return linear(score, few, more).seconds(len(rows))

    def _select(self) -> float:
        """Looking for test questions in the pool; the rest is writing a few files."""
        from gradsieve.selection.rules import LeakIndex

        questions = {
            name: [(q.example.id, text) for q in test.questions for text in q.texts]
            for name, test in self.work.context.whole_test_sets.items()
        }

        def look(count: int) -> object:
            rows = spread(self.work.rows, count)
            return LeakIndex(questions).find([whole_text(row.example) for row in rows])

        few, more = (min(count, len(self.work.rows)) for count in ROWS_TRIED)
        return linear(look, few, more).seconds(len(self.work.rows))

    # --- evaluation -----------------------------------------------------------------------------

    def _evaluate(self) -> float:
        """A model's losses and answers, times models; answers as long as those before training."""
        context, models = self.work.context, self.work.evaluated
        start = time.perf_counter()
        model = context.student.model.load().eval()
        loading = time.perf_counter() - start
        total = 0.0
        for target in context.targets:
            total += models * (loading + self._losses(model, target.name))
            total += self._answers(model, target.name).seconds(
                models * self._asked(target.name), models if self._asked(target.name) else 0
            )
        return total

    def _asked(self, target: str) -> int:
        recipe, test = self.work.context.recipe, self.work.context.test_sets.get(target)
        tasks = recipe.evaluate.tasks if recipe.evaluate else None
        return len(test.questions) if test and (tasks is None or target in tasks) else 0

    def _losses(self, model: Any, target: str) -> float:
        from gradsieve.gradients.objectives import example_losses

        context = self.work.context
        tasks = context.recipe.evaluate.tasks if context.recipe.evaluate else None
        if tasks is not None and "target_loss" not in tasks:
            return 0.0
        own = next(t for t in context.targets if t.name == target)
        test = context.test_sets.get(target)
        examples = [*own.examples, *(q.example for q in (test.questions if test else ()))]
        encoded = [r.encoded for r in context.encode(spread(examples, 64)) if not r.skip_reason]
        if not encoded:
            return 0.0
        example_losses(model, encoded[:1])
        return timed(lambda: example_losses(model, encoded)) / len(encoded) * len(examples)

    def _answers(self, model: Any, target: str) -> Linear:
        from gradsieve.evaluation.generate import answer_metrics
        from gradsieve.evaluation.prompts import write_prompts

        asked = self._asked(target)
        if not asked:
            return Linear(0, 0, 0)
        test = self.work.context.test_sets[target]
        of = self.work.context.student
        size = (self.work.context.recipe.evaluate or EvaluateConfig()).batch_size
        few, more = min(size, asked), min(2 * size, asked)

        def answer(count: int) -> object:
            some = replace(test, questions=tuple(spread(test.questions, count)))
            return answer_metrics(of.template, model, some, write_prompts(of, some), size)

        return linear(answer, few, more)


def _lengths(rows: Sequence[Row]) -> list[int]:
    return [len(row.encoded.input_ids) for row in rows]


def _at(rates: tuple[list[int], list[float]], length: int) -> float:
    return float(np.interp(length, *rates))
