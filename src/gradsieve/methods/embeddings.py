"""Baselines by cosine between representations: RDS, RDS+ and sentence embeddings.

RDS and RDS+ take the last layer's hidden states of the model that selects, without an adapter:
RDS of the last token (the LESS paper's baseline), RDS+ a mean over tokens weighted by position,
each target example taking its nearest row in turn (Ivison et al., "Large-Scale Data Selection for
Instruction Tuning", 2025, arXiv 2503.01807). Embeddings come from a sentence-transformers model.

Letters: n rows, k examples, h hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gradsieve.data.batching import collate, length_sorted_batches
from gradsieve.data.examples import Row
from gradsieve.errors import ModelError
from gradsieve.io import needed
from gradsieve.methods.base import (
    Problem,
    Scores,
    Uses,
    mean_by_subtask,
    over_subtasks,
    whole_text,
)
from gradsieve.selection.order import round_robin

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

TOKENS_PER_BATCH = 8192

Encoder = Callable[[Sequence[Row]], "NDArray[np.float32]"]
"""Rows to unit vectors [n, h]."""


@dataclass(frozen=True)
class Representations:
    """Cosines between rows and target examples.

    Attributes:
        source: Who proposed it.
        encoder: Loads what makes the representations.
        in_turn: Each target example takes its nearest row in turn; otherwise rows are ranked by
            their mean cosine to a subtask's examples.
        library: An optional one that it needs.
    """

    source: str
    encoder: Callable[[Problem], Encoder]
    uses: Uses
    in_turn: bool = False
    library: str | None = None

    def score(self, problem: Problem) -> dict[str, Scores]:
        """The pool is represented once, then compared with each target."""
        encode = self.encoder(problem)
        pool = encode(problem.rows)
        scores = {}
        for name, examples in problem.targets.items():
            cosines = pool @ encode(examples).T
            subtasks, by_subtask = mean_by_subtask(examples, cosines)
            scores[name] = over_subtasks(problem, subtasks, by_subtask)
            if self.in_turn:
                place = np.empty(len(pool), dtype=np.float32)
                place[[row for row, _ in round_robin(cosines)]] = np.arange(len(pool))
                ranks = 1 - place / np.float32(len(pool))
                scores[name] = Scores(scores[name].keys, ranks, subtasks, by_subtask)
        return scores


def _hidden_states(weigh: Callable[[Tensor], Tensor]) -> Callable[[Problem], Encoder]:
    """Vectors from the model's last layer; `weigh` turns a mask [B, T] into weights of tokens."""

    def load(problem: Problem) -> Encoder:
        from gradsieve.models.load import load_model

        model = load_model(problem.recipe.model).eval()

        def encode(rows: Sequence[Row]) -> NDArray[np.float32]:
            with problem.progress.counting("representations", len(rows), "rows") as report:
                return _encode(model, rows, weigh, report)

        return encode

    return load


def _encode(
    model: Any,
    rows: Sequence[Row],
    weigh: Callable[[Tensor], Tensor],
    report: Callable[[float], None],
) -> NDArray[np.float32]:
    import torch
    from torch.nn import functional

    from gradsieve.models.load import device

    made: NDArray[np.float32] = np.empty((len(rows), 0), dtype=np.float32)
    done = 0
    with torch.inference_mode():
        lengths = [len(row.encoded.input_ids) for row in rows]
        for batch in length_sorted_batches(lengths, TOKENS_PER_BATCH):
            tensors = collate([rows[i].encoded for i in batch])
            on = {key: value.to(device()) for key, value in tensors.items() if key != "labels"}
            hidden = model.base_model(**on, use_cache=False).last_hidden_state.float()
            mean = (hidden * weigh(on["attention_mask"]).float().unsqueeze(2)).sum(1)
            unit = functional.normalize(mean, dim=1).cpu().numpy()
            made = made if made.size else np.empty((len(rows), unit.shape[1]), dtype=np.float32)
            made[batch] = unit
            done += len(batch)
            report(done)
    return made


def _last_token(mask: Tensor) -> Tensor:
    last = mask.sum(1, keepdim=True) - 1
    return mask.new_zeros(mask.shape).scatter(1, last, 1)


def _by_position(mask: Tensor) -> Tensor:
    """Token i of n weighs i, so that later tokens, which have seen more, count more."""
    return mask.cumsum(1) * mask


def _embeddings(problem: Problem) -> Encoder:
    from gradsieve.models.load import device

    library = needed("sentence_transformers", "baselines")
    name = problem.recipe.score.embedding
    try:
        model = library.SentenceTransformer(name, device=str(device()))
    except (OSError, ValueError) as error:
        raise ModelError(
            "The embedding model cannot be loaded.",
            f"score.embedding {name}: {str(error).splitlines()[0]}",
            "Give a folder, or a hub name that this machine can reach or has in its cache.",
        ) from None

    def encode(rows: Sequence[Row]) -> NDArray[np.float32]:
        texts = [whole_text(row.example) for row in rows]
        made: NDArray[np.float32] = model.encode(
            texts, normalize_embeddings=True, show_progress_bar=False
        )
        return made

    return encode


RDS = Representations(
    "RDS (the LESS paper's baseline: last hidden state of the last token)",
    _hidden_states(_last_token),
    "model",
)
RDS_PLUS = Representations(
    "RDS+ (Ivison et al., 2025, arXiv 2503.01807: mean weighted by position, round robin)",
    _hidden_states(_by_position),
    "model",
    in_turn=True,
)
EMBEDDING = Representations(
    "cosine of sentence-transformers embeddings (Reimers and Gurevych, 2019)",
    _embeddings,
    "data",
    library="sentence_transformers",
)
