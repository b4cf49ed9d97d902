"""The cost of a stage, computed from the recipe, the pool and the models' shapes.

In: a run's context. Out: an `Estimate`, and the counts that several stages' estimates share. It
has no seconds: `plan` times each stage on a sample and scales by `units`. What only the run can
show is assumed: a selection's examples are as long as the pool's.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradsieve.data.examples import Row, TokenizedExample
from gradsieve.evaluation.prompts import LOSSES, has_answers, metrics_of, write_prompts
from gradsieve.gradients.objectives import TOKENS_PER_BATCH
from gradsieve.methods import needs_gradients, split_seed
from gradsieve.models.load import add_adapter, saved_meta_model
from gradsieve.models.shape import Shape, shape_of
from gradsieve.recipe.schema import Budget, TrainingConfig
from gradsieve.runs.context import Context

ROW_BYTES = 100
"""Bytes of a table's row apart from its numbers, i.e. names and hashes: an assumption."""

FEW_STEPS = 50
"""With fewer optimizer steps, a warm-up's Adam moments are mostly noise: an assumption."""

SAME_FOR_ALL = {"random", "random_balanced", "full", "perplexity_middle", "perplexity_top"}
"""Methods that ignore the target: one model is trained on their selection for all targets."""


@dataclass(frozen=True)
class Estimate:
    """The estimated cost of a stage.

    Attributes:
        units: Work that its seconds grow with, comparable between runs of the same stage only.
        hidden: Width of the residual stream of the model that it runs; 0 without a model.
        loads: Number of times it loads a model: one per checkpoint or trained model.
        disk_bytes: Size of its outputs on disk.
        working_bytes: Disk space needed only while it runs: Trainer's last two checkpoints.
        read_bytes: Size of the datastores that it reads from disk.
        memory_bytes: Peak device memory; None if it uses none, or adapts to what is available.
        generated_bytes: GPU memory traffic of generating answers token by token.
        like: The stage whose sample gives its time; None means its own.
        tasks: Number of tasks that it is split into for workers.
    """

    units: float = 0.0
    flops: float = 0.0
    hidden: int = 0
    loads: int = 0
    steps: int = 0
    disk_bytes: int = 0
    working_bytes: int = 0
    read_bytes: int = 0
    memory_bytes: int | None = None
    weight_bytes: int = 0
    generated_bytes: float = 0.0
    like: str | None = None
    tasks: int = 1

    @classmethod
    def of_trainings(cls, each: Sequence[Estimate], **more: Any) -> Estimate:
        """The sum of several trainings, one task each; `more` overrides other fields."""
        sums = {key: sum(getattr(one, key) for one in each) for key in ("units", "flops", "steps")}
        return replace(each[0], **{**sums, "loads": len(each), "tasks": len(each), **more})

    def share(self, workers: int) -> float:
        """The share of its time that the busiest of several workers takes."""
        return math.ceil(self.tasks / workers) / self.tasks


# --- models -------------------------------------------------------------------------------------


def selecting_shape(context: Context) -> Shape:
    """Shape of the selection model, with its adapter if gradients are taken."""
    folder = next(iter(context.recipe.warmup.checkpoints or ()), None)
    return _shape(context, needs_gradients(context.recipe), folder=folder)


def student_shape(context: Context) -> Shape:
    """Shape of the model that is trained on the selections."""
    full = context.recipe.train_or_default.full_parameters
    return _shape(context.student, adapted=not full, full=full)


def _shape(
    context: Context, adapted: bool, *, folder: str | None = None, full: bool = False
) -> Shape:
    """The shape of a context's model, cached in the context: building it takes a second."""

    def find() -> Shape:
        if adapted and folder is not None:
            model: Any = saved_meta_model(context.model, Path(folder))
        else:
            model = context.model.meta_model()
            if adapted:
                model = add_adapter(model, context.recipe.warmup.lora, 0)
        return shape_of(model, context.recipe.model, full)

    return context.once(("shape", adapted, folder, full), find)


# --- counts -------------------------------------------------------------------------------------


def lengths(context: Context) -> NDArray[np.float64]:
    """The number of tokens of each of the pool's usable examples."""
    return context.pool.lengths[context.pool.usable].astype(np.float64)


def by_length(context: Context) -> NDArray[np.int64]:
    """The pool's usable examples, shortest first; equal lengths stay in order of (source, id)."""
    usable = context.pool.usable
    return usable[np.argsort(context.pool.lengths[usable], kind="stable")]


def target_rows(context: Context) -> list[Row]:
    """The usable examples of all targets."""
    return [row for target in context.targets for row in context.target_rows(target)]


def subtasks(context: Context) -> int:
    """The number of subtasks of all targets together."""
    return sum(len(target.subtasks) for target in context.targets)


def checkpoints(context: Context) -> int:
    """The number of checkpoints at which features are taken."""
    return len(context.recipe.warmup.checkpoints or ()) or context.recipe.warmup.epochs


def width(context: Context) -> int:
    """The number of values in a row of the datastore."""
    settings = context.recipe.features
    if settings.mode == "exact":
        return exact_columns(context)
    unprojected = settings.projection.kind == "none"
    return selecting_shape(context).adapter if unprojected else settings.projection.dim


def store_bytes(context: Context) -> int:
    """Bytes of a datastore of gradients or, in exact mode, of cosines."""
    settings = context.recipe.features
    if settings.mode == "exact":
        return exact_bytes(context)
    a_row = math.ceil(width(context) * settings.bits / 8) + ROW_BYTES
    return len(context.pool.usable) * a_row


def exact_bytes(context: Context) -> int:
    """Bytes of a datastore of exact cosines."""
    return len(context.pool.usable) * (4 * exact_columns(context) + ROW_BYTES)


def exact_columns(context: Context) -> int:
    """The number of exact cosines in a row: with subtasks' means, with examples, or with both."""
    recipe = context.recipe
    means = subtasks(context) if recipe.score.target_mean != "none" else 0
    return means + (len(target_rows(context)) if recipe.exact_by_example else 0)


def selected(context: Context, budget: Budget) -> int:
    """The number of examples in a selection with this budget."""
    usable = len(context.pool.usable)
    if budget.tokens is not None:
        return max(1, min(usable, round(budget.tokens / float(lengths(context).mean()))))
    return min(usable, budget.rows(usable) or usable)


def trainings(context: Context) -> Iterator[int]:
    """The number of examples of each model that is trained on a selection."""
    recipe = context.recipe
    seeds = recipe.train_or_default.seeds
    targets = len({name.target for name in recipe.selections})
    for name in recipe.selections_for("any"):
        models = 1 if split_seed(name.method)[0] in SAME_FOR_ALL else targets
        yield from [selected(context, name.budget)] * models * len(seeds)


def student_training(context: Context, rows: int) -> Estimate:
    """The cost of one training on a selection of this many examples."""
    recipe, shape = context.recipe, student_shape(context)
    one = training(shape, context, rows, recipe.training, recipe.train_or_default.max_steps)
    # If the warm-up trains the same model, a unit costs the same there, so its sample is enough.
    warmed_up = needs_gradients(recipe) and not recipe.warmup.checkpoints
    same = context.student is context and not shape.full and warmed_up
    return replace(one, like="warmup" if same else "train")


def training(
    shape: Shape,
    context: Context,
    rows: int,
    settings: TrainingConfig,
    max_steps: int | None = None,
) -> Estimate:
    """The cost of one training on this many of the pool's examples."""
    tokens = padded_tokens(lengths(context), rows, settings.batch_size, settings.rows_at_once())
    labels = rows * float(context.pool.n_label_tokens[context.pool.usable].mean())
    passes = shape.forward_and_backward(rows, tokens / rows, labels)
    together = lengths(context).max() * settings.rows_at_once()
    activations = shape.activation_bytes(round(together), round(together))
    steps = settings.optimizer_steps(rows)
    flops = settings.epochs * passes * (max_steps or steps) / steps
    return Estimate(
        units=flops,
        flops=flops,
        hidden=shape.hidden,
        loads=1,
        steps=max_steps or steps,
        working_bytes=2 * 12 * shape.adapter,
        memory_bytes=shape.weight_bytes + shape.trained_bytes + activations,
        weight_bytes=shape.weight_bytes,
    )


def padded_tokens(
    lengths: NDArray[np.float64], rows: int, batch_size: int, rows_at_once: int
) -> float:
    """Tokens per epoch, including padding, of random batches of rows with these lengths.

    A batch's rows are sorted by length, and the rows of a forward pass are padded to its longest.
    """
    rng = np.random.default_rng(0)
    full, rest = divmod(rows, batch_size)

    def padded(size: int) -> float:
        longest_first = -np.sort(-rng.choice(lengths, (64, size)))
        of_its_pass = np.arange(size) // rows_at_once * rows_at_once
        return size * float(longest_first[:, of_its_pass].mean())

    return full * padded(batch_size) + (padded(rest) if rest else 0.0)


def few_steps(steps: int) -> str | None:
    """A warning if a warm-up has few optimizer steps."""
    if steps >= FEW_STEPS:
        return None
    return (
        f"the warm-up takes {steps} optimizer steps; with fewer than {FEW_STEPS} its checkpoints "
        "and Adam's moments are noisy: raise warmup.fraction or warmup.epochs, or lower "
        "warmup.batch_size"
    )


class Questions(NamedTuple):
    """Counts and lengths of a target's held-out questions."""

    number: int
    prompt: float  # mean tokens
    longest: int  # tokens of a prompt
    choices: bool
    answer: int  # maximum tokens; 0: only the loss of the reference answer is measured
    token_bytes: float  # bytes of text per token, in its prompts

    @property
    def sample_bytes(self) -> float:
        """Bytes of the record of a question: its prompt and the model's answer."""
        return ROW_BYTES + (self.prompt + self.answer) * self.token_bytes if self.answer else 0.0


def questions(context: Context) -> dict[str, Questions]:
    """The questions that each model reads, by target; prompt lengths are measured on 64."""
    found = {}
    for name, test in context.test_sets.items():
        metrics = metrics_of(context, name)
        if {*metrics} - {LOSSES[0]}:  # a target's own examples are not questions
            some = replace(test, questions=tuple(spread(test.questions, 64)))
            asked = write_prompts(context.student, some)
            choices = bool(test.questions[0].choices)
            most = 1 if choices else asked.max_tokens
            answer = most if has_answers(metrics) else 0
            token_bytes = sum(len(text.encode()) for text in asked.texts) / sum(asked.lengths)
            prompt, longest = float(np.mean(asked.lengths)), max(asked.lengths)
            number = len(test.questions)
            found[name] = Questions(number, prompt, longest, choices, answer, token_bytes)
    return found


def evaluation_bytes(
    shape: Shape, encoded: Sequence[TokenizedExample], asked: Collection[Questions], batch_size: int
) -> int:
    """Bytes of memory that an evaluation needs besides the weights.

    These are the logits of a batch for losses (`encoded` are the target's examples) or for
    choices, whose logits and softmax lm-eval computes for whole prompts; or the answers' KV cache.
    """
    tokens = sum(len(one.input_ids) for one in encoded)
    most = max(tokens, *(round(one.number * one.prompt) for one in asked), 0)
    together = max(min(most, TOKENS_PER_BATCH), *(len(one.input_ids) for one in encoded))
    held = [together * sum(one.n_labels for one in encoded) / tokens * shape.vocabulary]
    for one in asked:
        each = 2 * shape.vocabulary if one.choices else shape.layers * shape.kept
        if one.answer:
            held.append(min(batch_size, one.number) * (one.longest + one.answer) * each)
    return round(max(held) * shape.bytes_a_value)


def folder_bytes(folder: Path) -> int:
    """The total size of a folder's files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def spread(items: Any, count: int) -> list[Any]:
    """At most `count` items of a sequence, evenly spaced."""
    places = (np.arange(min(count, len(items))) + 0.5) * len(items) / min(count, len(items))
    return [items[int(place)] for place in places]
