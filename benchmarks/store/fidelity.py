"""Loss of score accuracy by projection and bits, compared with unprojected and float32 scores.

    python benchmarks/store/fidelity.py --data ../shared/data --inputs runs/miniature/inputs

The model and the pool are those of benchmarks/paper_in_miniature (created if missing). A LoRA of
rank 128 on all linear layers (1.26 million parameters) is warmed up; then the exact Adam updates of
10,000 rows are computed once, and each is scored unprojected and with every number of dims and
bits, for MMLU's subjects, TyDiQA's languages and BBH's files. Writes fidelity.json and .md.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "paper_in_miniature"))

import prepare

import gradsieve
from gradsieve.console import Progress
from gradsieve.data.batching import collate, length_sorted_batches
from gradsieve.gradients.features import FeatureExtractor
from gradsieve.gradients.per_example import lora_layers
from gradsieve.gradients.projection import ExactProducts, Projection
from gradsieve.gradients.similarity import subtask_directions
from gradsieve.models.checkpoints import load_moments
from gradsieve.models.load import load_adapter
from gradsieve.models.source import ModelSource
from gradsieve.recipe.load import check_recipe
from gradsieve.runs.artifacts import Artifacts
from gradsieve.runs.context import Context
from gradsieve.store import quantize
from gradsieve.store.scoring import Cosines

HERE = Path(__file__).parent
DIMS = (2048, 4096, 8192, 16384, 32768, 65536)
BITS = (32, 16, 8, 4, 2, 1)
TARGETS = ("mmlu", "tydiqa", "bbh")
SHARE = 0.05


def recipe(data: Path, inputs: Path) -> Any:
    pool = sorted(file.stem for file in (inputs / "pool").glob("*.jsonl"))
    return check_recipe(
        {
            "model": {
                "name": str(inputs / "model"),
                "dtype": "float32",
                "chat_template": "tulu",
                "max_length": prepare.POSITIONS,
            },
            "pool": [
                {"name": name, "path": str(inputs / "pool" / f"{name}.jsonl")}
                for name in pool
                if name not in prepare.PLANTED
            ],
            "targets": [
                {"name": name, "task": name, "path": str(data / "eval" / name)} for name in TARGETS
            ],
            "warmup": {
                "fraction": 0.02,
                "epochs": 2,
                "learning_rate": 1e-3,
                "batch_size": 16,
                "micro_batch_size": 2,
                "lora": {"r": 128, "alpha": 256, "target_modules": "all-linear"},
            },
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=HERE / "fidelity.json")
    given = parser.parse_args()
    prepare.main(given.data, given.inputs, planted=True)
    settings = recipe(given.data, given.inputs)
    run = gradsieve.run(settings, given.inputs.parent / "fidelity", last="warmup")
    context = Context(settings, run, Progress())
    checkpoint = Artifacts(run).warmup.checkpoints[-1]
    model = load_adapter(ModelSource(settings.model).load(), checkpoint)
    moments = load_moments(checkpoint, model)
    sizes = {name: layer.weight.numel() for name, layer in lora_layers(model).items()}
    projections = [Projection("sketch", dim) for dim in DIMS]
    columns, exact, directions = _targets(context, model, sizes, projections)
    usable = context.pool.usable
    drawn = usable[np.random.default_rng(0).permutation(len(usable))[: given.rows]]
    rows = context.pool.tokenized(drawn)
    extractor = FeatureExtractor(model, [exact, *projections], moments)
    scorers = {(dim, bits): Cosines(directions[dim], bits) for dim in DIMS for bits in BITS}
    scores = {key: np.empty((len(rows), len(columns)), "f4") for key in ["exact", *scorers]}
    batches = length_sorted_batches(context.pool.lengths[drawn], 4096)
    start, done = time.monotonic(), 0
    with context.progress.counting("rows", len(rows), "rows") as report:
        for batch in batches:
            made = extractor(collate([rows[i] for i in batch]))
            products, *projected = made.rows.split(extractor.widths, dim=1)
            scores["exact"][batch] = (products / made.gradient_norms[:, None]).numpy()
            for dim, values in zip(DIMS, projected, strict=True):
                for bits in BITS:
                    codes, norms, _ = quantize.encode(values.numpy(), bits)
                    scores[dim, bits][batch] = scorers[dim, bits](codes, norms)
            done += len(batch)
            report(done)
    result = {
        "rows": len(rows),
        "values": sum(sizes.values()),
        "seconds": round(time.monotonic() - start, 1),
        "command": "python benchmarks/store/fidelity.py",
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("torch", "numpy", "transformers", "peft")},
        "against_float32": [],
        "against_unprojected": [],
    }
    for dim in DIMS:
        for bits in BITS:
            for name, other in (("float32", (dim, 32)), ("unprojected", "exact")):
                found = {
                    target: _agreement(scores[dim, bits], scores[other], columns, target)
                    for target in TARGETS
                }
                record = {"dim": dim, "bits": bits, "bytes": dim * bits // 8, "targets": found}
                result[f"against_{name}"].append(record)
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    given.out.with_suffix(".md").write_text(_markdown(result))


def _targets(
    context: Context, model: Any, sizes: dict[str, int], projections: list[Projection]
) -> tuple[list[tuple[str, str]], ExactProducts, dict[int, np.ndarray]]:
    """Columns, exact products with the subtasks' mean gradients, and projections of the means."""
    columns: list[tuple[str, str]] = []
    whole: list[torch.Tensor] = []
    projected: dict[int, list[torch.Tensor]] = {p.dim: [] for p in projections}
    extractor = FeatureExtractor(model, Projection("none"))
    order = sorted(sizes)
    for target in context.targets:
        groups: dict[str, list[Any]] = {}
        for row in context.target_rows(target):
            groups.setdefault(row.example.subtask, []).append(row.encoded)
        for subtask, encoded in sorted(groups.items()):
            rows = torch.cat([extractor(collate([one])).rows for one in encoded])
            _, mean = subtask_directions(rows, ["all"] * len(rows))
            columns.append((target.name, subtask))
            whole.append(mean)
            parts = dict(zip(order, mean.split([sizes[name] for name in order], 1), strict=True))
            for projection in projections:
                projected[projection.dim].append(projection.project(parts))
    directions = {
        dim: torch.nn.functional.normalize(torch.cat(rows), dim=1).numpy()
        for dim, rows in projected.items()
    }
    return columns, ExactProducts(torch.cat(whole), sizes), directions


def _agreement(
    found: np.ndarray, truth: np.ndarray, columns: list[tuple[str, str]], target: str
) -> dict[str, float]:
    """Recall of the top 5% and Spearman's correlation, by the score of the best subtask."""
    own = [index for index, (owner, _) in enumerate(columns) if owner == target]
    one, other = found[:, own].max(1), truth[:, own].max(1)
    count = round(SHARE * len(one))
    tops = [set(np.argsort(-values, kind="stable")[:count].tolist()) for values in (one, other)]
    ranks = [np.argsort(np.argsort(values)) for values in (one, other)]
    return {
        "recall": len(tops[0] & tops[1]) / count,
        "spearman": float(np.corrcoef(ranks[0], ranks[1])[0, 1]),
    }


def _markdown(result: dict[str, Any]) -> str:
    lines = [
        "# What projection and bits lose",
        "",
        f"`{result['command']}`: {result['rows']} rows, {result['values']} trainable values, one "
        f"checkpoint, versions {json.dumps(result['versions'])}.",
        "Recall of the top 5%, mean of MMLU, TyDiQA and BBH; in brackets Spearman's correlation.",
    ]
    for name in ("unprojected", "float32"):
        lines += [
            "",
            f"## Against {name} scores",
            "",
            f"| dims | {' | '.join(f'{b} bits' for b in BITS)} |",
        ]
        lines.append(f"| --- |{' --- |' * len(BITS)}")
        for dim in DIMS:
            cells = []
            for bits in BITS:
                (record,) = (
                    r for r in result[f"against_{name}"] if (r["dim"], r["bits"]) == (dim, bits)
                )
                mean = {
                    kind: np.mean([t[kind] for t in record["targets"].values()])
                    for kind in ("recall", "spearman")
                }
                cells.append(f"{mean['recall']:.3f} ({mean['spearman']:.3f})")
            lines.append(f"| {dim} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
