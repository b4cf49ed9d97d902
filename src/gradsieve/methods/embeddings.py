"""Baselines by cosine between representations: RDS, RDS+ and sentence embeddings.

RDS and RDS+ use the last layer's hidden states of the recipe's model, without an adapter: RDS those
of the last token (the LESS paper's baseline), RDS+ a position-weighted mean over tokens, with each
target example taking its nearest row in turn (Ivison et al., "Large-Scale Data Selection for
Instruction Tuning", 2025, arXiv 2503.01807). They share a forward pass. Embeddings come from a
sentence-transformers model.

Letters: n examples of the pool, k of the target, h hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import model_info, try_to_load_from_cache
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from gradsieve.data.batching import batches_of
from gradsieve.data.examples import TokenizedExample
from gradsieve.errors import ModelError, first_line
from gradsieve.io import needed
from gradsieve.methods.base import (
    Scores,
    ScoringTask,
    Uses,
    by_rank,
    full_text,
    over_examples,
)
from gradsieve.methods.forward import Part, forward
from gradsieve.models.device import device, halved_to_fit
from gradsieve.recipe.schema import Recipe
from gradsieve.selection.ranking import round_robin

TOKENS_PER_BATCH = 8192

SECONDS = 5
"""Seconds to wait for the hub before an embedding model counts as unavailable."""

Vectors = NDArray[np.float32]
"""Unit vectors [n, h]."""

OfAll = tuple[dict[str, Vectors], Iterator[Part]]
"""The vectors of each target, and those of the pool in parts."""


@dataclass(frozen=True)
class Representations:
    """Scores by cosines between the pool's examples and the target's.

    Attributes:
        in_turn: If true, target examples take their nearest examples in turn; otherwise examples
            are ranked by their mean cosine to a subtask's examples.
    """

    source: str
    vectors: Callable[[ScoringTask], OfAll]
    uses: Uses
    in_turn: bool = False
    library: str | None = None
    check: Callable[[Recipe], None] | None = None

    def score(self, task: ScoringTask) -> dict[str, Scores]:
        """Embed each part of the pool once, and compare it with every target."""
        found = {
            name: np.empty((len(task), len(examples)), dtype=np.float32)
            for name, examples in task.targets.items()
        }
        targets, parts = self.vectors(task)
        for places, part in parts:
            for name, cosines in found.items():
                cosines[places] = part @ targets[name].T
        scores = {}
        for name, cosines in found.items():
            scores[name] = over_examples(task, task.targets[name], cosines)
            if self.in_turn:
                scores[name] = by_rank(scores[name], round_robin(cosines))
        return scores


def _from_model(task: ScoringTask, which: int) -> OfAll:
    """Vectors from the last layer of the recipe's model, without an adapter.

    `which` is the index of one of the two vectors that `hidden_states` computes for both methods.
    """
    targets = {name: [row.encoded for row in rows] for name, rows in task.targets.items()}
    made, parts = forward(task, "hidden states", hidden_states, TOKENS_PER_BATCH, targets)
    own = {name: rows[:, which] for name, rows in made.items()}
    return own, ((places, rows[:, which]) for places, rows in parts)


def hidden_states(model: Any, encoded: Sequence[TokenizedExample]) -> Vectors:
    """Two unit vectors per example [n, 2, h]: the last token's, and a position-weighted mean."""

    def vectors(batch: dict[str, Tensor]) -> Tensor:
        hidden = model.base_model(**batch, use_cache=False).last_hidden_state.float()
        mask = batch["attention_mask"]
        # A model split over several GPUs returns its hidden states on the last one.
        weights = (each.to(hidden).unsqueeze(2) for each in (_last_token(mask), _by_position(mask)))
        return torch.stack([functional.normalize((hidden * w).sum(1)) for w in weights], 1)

    made: Vectors = np.empty((len(encoded), 2, 0), dtype=np.float32)
    with torch.inference_mode():
        for batch, tensors in batches_of(encoded, TOKENS_PER_BATCH):
            del tensors["labels"]
            found = halved_to_fit(vectors, tensors).numpy()
            if not made.size:
                made = np.empty((len(made), *found.shape[1:]), dtype=np.float32)
            made[batch] = found
    return made


def _last_token(mask: Tensor) -> Tensor:
    last = mask.sum(1, keepdim=True) - 1
    return mask.new_zeros(mask.shape).scatter(1, last, 1)


def _by_position(mask: Tensor) -> Tensor:
    """Weight i for token i, so that later tokens, which have seen more context, count more."""
    return mask.cumsum(1) * mask


def check_embedding(recipe: Recipe) -> None:
    """Check that the embedding model's configuration exists, without loading the model.

    Raises:
        ModelError: If it is neither local nor on the hub.
    """
    name, files = recipe.score.embedding, ("modules.json", "config.json")
    try:
        if Path(name).is_dir():
            if not any(Path(name, file).is_file() for file in files):
                raise FileNotFoundError(f"the folder has neither {' nor '.join(files)}")
        elif not any(isinstance(try_to_load_from_cache(name, file), str) for file in files):
            model_info(name, timeout=SECONDS)
    except Exception as error:  # the hub's client also raises its HTTP library's errors
        raise _not_loaded(name, error) from None


def _not_loaded(name: str, error: Exception) -> ModelError:
    return ModelError(
        "The embedding model cannot be loaded.",
        f"score.embedding {name}: {first_line(error)}",
        "Give a folder, or a hub name that this machine can reach or has in its cache.",
    )


def _embeddings(task: ScoringTask) -> OfAll:
    """Vectors of a sentence-transformers model, `AT_ONCE` texts at a time."""
    library = needed("sentence_transformers", "baselines")
    name = task.recipe.score.embedding
    try:
        model = library.SentenceTransformer(name, device=str(device()))
    except (OSError, ValueError) as error:
        raise _not_loaded(name, error) from None

    def encode(texts: Sequence[str]) -> Vectors:
        made: Vectors = model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
        return made

    targets = {
        name: encode([full_text(row.example) for row in rows])
        for name, rows in task.targets.items()
    }
    return targets, ((some, encode(task.pool.texts(task.numbers[some]))) for some in task.places())


RDS = Representations(
    "RDS (the LESS paper's baseline: last hidden state of the last token)",
    partial(_from_model, which=0),
    "model",
)
RDS_PLUS = Representations(
    "RDS+ (Ivison et al., 2025, arXiv 2503.01807: mean weighted by position, round robin)",
    partial(_from_model, which=1),
    "model",
    in_turn=True,
)
EMBEDDING = Representations(
    "cosine of sentence-transformers embeddings (Reimers and Gurevych, 2019)",
    _embeddings,
    "data",
    library="sentence_transformers",
    check=check_embedding,
)
