"""One pass over the pool at a checkpoint that takes all measurements of scores at once.

    python benchmarks/real_model/gradients.py --run runs/real_model/W --checkpoint 4 --out FOLDER

For each row of the pool and each reading of Adam it stores the exact inner products with every
target example's gradient, the norm of the update, and plain and balanced sketches of several
dimensions. Each shard of rows becomes a file, so a stopped pass resumes. finding.py and fidelity.py
make their tables from these files.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gradsieve.data.batching import batches_of
from gradsieve.gradients import adam
from gradsieve.gradients.per_example import lora_layers, per_example_pass, without_mask
from gradsieve.gradients.projection import Accumulator, Projection
from gradsieve.models.checkpoints import load_moments
from gradsieve.models.load import load_adapter
from gradsieve.recipe.load import load_recipe
from gradsieve.runs.context import Context
from gradsieve.runs.folder import RunFolder

READINGS = {
    "sgd": None,
    "torch": ("torch", "keep"),
    "torch_drop": ("torch", "drop"),
    "official": ("official", "keep"),
    "official_drop": ("official", "drop"),
}
PROJECTIONS = [
    *(("torch", balanced, dim) for balanced in (False, True) for dim in (2048, 8192, 32768, 65536)),
    *(("official", False, dim) for dim in (8192, 32768)),
    *(("official", True, dim) for dim in (2048, 8192, 32768)),
    *(("torch_drop", balanced, 8192) for balanced in (False, True)),
    *(("sgd", balanced, 8192) for balanced in (False, True)),
]
SHARD, TOKENS = 64, 1536

Parts = dict[str, Accumulator]


def name_of(reading: str, balanced: bool, dim: int) -> str:
    """The key of a projection in the stored files."""
    return f"{reading}-{'balanced' if balanced else 'plain'}-{dim}"


class Checkpoint:
    """A model at a checkpoint, with Adam's moments and the scales of the balanced projections."""

    def __init__(self, context: Context, folder: Path) -> None:
        self.model = load_adapter(context.model.load(), folder, like_base=True)
        self.m, self.v, self.step, self.betas, self.eps = load_moments(folder, self.model)
        # The square root of the update's denominator, including eps, so that no scale is zero.
        self.scales = {
            "torch": {n: (v.sqrt() + self.eps).sqrt() for n, v in self.v.items()},
            "official": {n: (v + self.eps).sqrt().sqrt() for n, v in self.v.items()},
        }
        self.projections = {dim: Projection("sketch", dim) for dim in {p[2] for p in PROJECTIONS}}
        self.sizes = {n: layer.weight.numel() for n, layer in lora_layers(self.model).items()}

    def accumulators(self, batch: int) -> Parts:
        """An accumulator of a batch's sketches for each projection."""
        cpu = torch.device("cpu")
        return {name_of(*p): Accumulator(self.projections[p[2]], batch, cpu) for p in PROJECTIONS}

    def scale(self, reading: str, name: str) -> Tensor:
        return self.scales["official" if "official" in reading else "torch"][name]

    def update(self, reading: str, name: str, g: Tensor) -> Tensor:
        if READINGS[reading] is None:
            return g
        kind, momentum = READINGS[reading]
        return adam.update(
            g, self.m[name], self.v[name], self.step, kind, momentum, betas=self.betas, eps=self.eps
        )


def target_pass(at: Checkpoint, encoded) -> dict[str, np.ndarray]:
    """Full gradients [k, P] of target examples, and their projections."""
    gradients = torch.zeros(len(encoded), sum(at.sizes.values()))
    names = sorted(at.sizes)
    starts = dict(zip(names, np.cumsum([0, *(at.sizes[n] for n in names[:-1])]), strict=True))
    rows = {name_of(*p): torch.zeros(len(encoded), p[2]) for p in PROJECTIONS}
    for batch, tensors in batches_of(encoded, TOKENS):
        part = at.accumulators(len(batch))

        def take(name: str, g: Tensor, batch: np.ndarray = batch, part: Parts = part) -> None:
            start = starts[name]
            gradients[batch, start : start + at.sizes[name]] = g.flatten(1)
            for reading, balanced, dim in PROJECTIONS:
                piece = g / at.scale(reading, name) if balanced else g
                part[name_of(reading, balanced, dim)].add(name, piece)

        with per_example_pass(at.model, take) as losses:
            losses(without_mask(tensors)).sum().backward()
        for key, sums in part.items():
            rows[key][batch] = sums.result()
    return {"gradients": gradients, **rows}


def pool_pass(at: Checkpoint, encoded, directions: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Products of a pool shard's rows with each target example, their norms and projections."""
    n, k = len(encoded), len(next(iter(directions.values())))
    out = {f"products-{r}": torch.zeros(n, k) for r in READINGS}
    squares = {r: torch.zeros(n, dtype=torch.float64) for r in READINGS}
    rows = {name_of(*p): torch.zeros(n, p[2]) for p in PROJECTIONS}
    found = torch.zeros(n)
    for batch, tensors in batches_of(encoded, TOKENS):
        part = at.accumulators(len(batch))

        def take(name: str, g: Tensor, batch: np.ndarray = batch, part: Parts = part) -> None:
            for reading in READINGS:
                update = at.update(reading, name, g).flatten(1)
                out[f"products-{reading}"][batch] += update @ directions[name].T
                squares[reading][batch] += update.double().square().sum(1)
                for own, balanced, dim in PROJECTIONS:
                    if own == reading:
                        scale = at.scale(reading, name).flatten() if balanced else 1.0
                        part[name_of(own, balanced, dim)].add(name, update * scale)

        with per_example_pass(at.model, take) as losses:
            loss = losses(without_mask(tensors))
            loss.sum().backward()
        found[batch] = loss.detach().float()
        for key, sums in part.items():
            rows[key][batch] = sums.result()
    for key, value in rows.items():
        lengths = value.norm(dim=1)
        out[f"length-{key}"] = lengths
        out[f"row-{key}"] = (value / lengths.clamp_min(1e-30).unsqueeze(1)).half()
    out |= {f"norm-{r}": value.sqrt().float() for r, value in squares.items()}
    return {key: value.numpy() for key, value in out.items()} | {"loss": found.numpy()}


def save(file: Path, arrays: dict[str, np.ndarray]) -> None:
    temporary = file.with_suffix(".tmp.npz")
    np.savez(temporary, **arrays)
    temporary.replace(file)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path, required=True, help="a run with its warm-up")
    parser.add_argument("--checkpoint", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    recipe = load_recipe(arguments.run / "recipe.yaml")
    context = Context(recipe, RunFolder(arguments.run))
    at = Checkpoint(context, context.artifacts.warmup.checkpoints[arguments.checkpoint - 1])
    examples = [
        (target.name, row.example.subtask, row.example.id, row.encoded)
        for target in context.targets
        for row in context.target_rows(target)
    ]
    if not (out / "targets.pt").exists():
        made = target_pass(at, [encoded for *_, encoded in examples])
        torch.save(made, out / "targets.tmp")
        (out / "targets.tmp").replace(out / "targets.pt")
    gradients = torch.load(out / "targets.pt", weights_only=True)["gradients"]
    names = sorted(at.sizes)
    split = gradients.split([at.sizes[n] for n in names], dim=1)
    directions = dict(zip(names, split, strict=True))
    pool = context.pool
    numbers = pool.usable
    keys = [tuple(key) for key in pool.keys(numbers)]
    facts = {
        "examples": [one[:3] for one in examples],
        "keys": keys,
        "numbers": numbers.tolist(),
        "step": at.step,
        "parameters": sum(at.sizes.values()),
        "tokens": int(pool.lengths[numbers].sum()),
        "lengths": pool.lengths[numbers].tolist(),
        "labels": pool.n_label_tokens[numbers].tolist(),
        "below_eps": float(np.mean([float((v < at.eps).float().mean()) for v in at.v.values()])),
    }
    (out / "facts.json").write_text(json.dumps(facts))
    order = numbers[np.argsort(pool.lengths[numbers], kind="stable")]
    # A fixed shuffle of shards, so that a stopped pass has covered all lengths.
    shards = np.random.default_rng(0).permutation(range(0, len(order), SHARD))
    for done, start in enumerate(shards):
        file = out / f"shard-{start:05}.npz"
        if not file.exists():
            part = order[start : start + SHARD]
            arrays = pool_pass(at, pool.tokenized(part), directions)
            save(file, arrays | {"numbers": part})
        print(f"{done + 1} of {len(shards)} shards", flush=True)


if __name__ == "__main__":
    main()
