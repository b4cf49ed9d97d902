"""Do influence estimates predict the effect of one real AdamW step? All readings, on real data.

    python benchmarks/first_order/run.py --data ../shared/data --out runs/miniature

The model, pool, targets and warm-up are those of benchmarks/paper_in_miniature (created if
missing). At each checkpoint, torch.optim.AdamW makes one step on each of 60 rows of the pool,
starting from the checkpoint's weights and moments; the change in the mean loss of each of 15
subtasks is compared with every estimate of it. Correlations are over rows within a subtask, because
a selection ranks rows, and then averaged. Writes result.json and table.md to this folder.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "paper_in_miniature"))

import prepare
import run as miniature

import gradsieve
from gradsieve.console import Progress
from gradsieve.data.batching import collate
from gradsieve.gradients import adam
from gradsieve.gradients.objectives import example_losses
from gradsieve.gradients.per_example import per_example
from gradsieve.models.checkpoints import load_moments
from gradsieve.models.load import load_adapter
from gradsieve.runs.artifacts import Artifacts
from gradsieve.runs.context import Context

HERE = Path(__file__).parent
ROWS, SUBTASKS = 60, {"gsm8k": 5, "bbh": 5, "mmlu": 5}
RATES = (1.0, 0.1)
"""Learning rates of the step, as multiples of the checkpoint's learning rate."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    prepare.main(given.data, given.out / "inputs", planted=True)
    recipe = miniature.recipe(given.data, given.out / "inputs", False, ["less"])
    run = gradsieve.run(recipe, given.out / "pool", last="warmup")
    context = Context(recipe, run, Progress())
    usable = context.pool.usable
    drawn = usable[np.random.default_rng(0).permutation(len(usable))[:ROWS]]
    rows = context.pool.tokenized(drawn)
    subtasks: dict[str, list[Any]] = {}
    for target in context.targets:
        usable_examples = context.target_rows(target)
        names = sorted({row.example.subtask for row in usable_examples})
        for name in names[: SUBTASKS.get(target.name, 0)]:
            own = [row.encoded for row in usable_examples if row.example.subtask == name]
            subtasks[f"{target.name}/{name}"] = own
    meta = run.require("warmup")
    found = [
        _checkpoint(context, folder, rate, rows, subtasks)
        for folder, rate in zip(
            Artifacts(run).warmup.checkpoints, meta["learning_rates"], strict=True
        )
    ]
    result = {
        "command": "python benchmarks/first_order/run.py",
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "pairs": len(rows) * len(subtasks),
        "learning_rates": meta["learning_rates"],
        "checkpoints": found,
    }
    (HERE / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    (HERE / "table.md").write_text(_markdown(result))


def _checkpoint(
    context: Context, folder: Path, rate: float, rows: list[Any], subtasks: dict[str, list[Any]]
) -> dict[str, Any]:
    """The correlation of each estimate with the true change, at each learning rate."""
    model = load_adapter(context.model.load(), folder)
    m, v, step, betas, eps = load_moments(folder, model)
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def flat(parts: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([parts[name][0].flatten() for name in weights])

    gradients = [per_example(model, collate([row])) for row in rows]
    targets = {
        name: torch.stack([flat(per_example(model, collate([e]))) for e in encoded]).mean(0)
        for name, encoded in subtasks.items()
    }
    estimates: dict[str, np.ndarray] = {}
    for name, reading, momentum in (
        ("Adam torch", "torch", "keep"),
        ("Adam official", "official", "keep"),
        ("Adam torch, momentum dropped", "torch", "drop"),
        ("Adam official, momentum dropped", "official", "drop"),
        ("SGD", None, None),
    ):
        updates = torch.stack(
            [
                flat(
                    g
                    if reading is None
                    else {
                        n: adam.update(
                            *(g[n], m[n], v[n], step, reading, momentum),  # type: ignore[arg-type]
                            betas=betas,
                            eps=eps,
                        )
                        for n in weights
                    }
                )
                for g in gradients
            ]
        )
        wanted = torch.stack(list(targets.values()))
        estimates[f"{name}, dot"] = (updates @ wanted.T).numpy()
        unit = torch.nn.functional.normalize
        estimates[f"{name}, cosine"] = (unit(updates, dim=1) @ unit(wanted, dim=1).T).numpy()
    return {
        f"{factor:g} x learning rate": {
            name: _correlations(values, truth) for name, values in estimates.items()
        }
        for factor in RATES
        for truth in [
            _true_changes(model, weights, (m, v, step), gradients, subtasks, rate * factor)
        ]
    }


def _true_changes(
    model: Any,
    weights: dict[str, torch.nn.Parameter],
    moments: Any,
    gradients: list[dict[str, torch.Tensor]],
    subtasks: dict[str, list[Any]],
    rate: float,
) -> np.ndarray:
    """The decrease of each subtask's loss after one real step on each row: [rows, subtasks]."""
    m, v, step = moments
    start = {name: p.detach().clone() for name, p in weights.items()}

    def losses() -> np.ndarray:
        return np.array([example_losses(model, encoded).mean() for encoded in subtasks.values()])

    before, falls = losses(), []
    for gradient in gradients:
        optimizer = torch.optim.AdamW(weights.values(), lr=rate, weight_decay=0.0)
        for name, p in weights.items():
            p.grad = gradient[name][0].clone()
            optimizer.state[p] = {
                "step": torch.tensor(float(step)),
                "exp_avg": m[name].clone(),
                "exp_avg_sq": v[name].clone(),
            }
        optimizer.step()
        falls.append(before - losses())
        with torch.no_grad():
            for name, p in weights.items():
                p.copy_(start[name])
                p.grad = None
    return np.array(falls)


def _correlations(values: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Pearson's and Spearman's correlations over rows, averaged over subtasks."""

    def ranks(table: np.ndarray) -> np.ndarray:
        return np.argsort(np.argsort(table, axis=0), axis=0)

    def mean(one: np.ndarray, other: np.ndarray) -> float:
        pairs = zip(one.T, other.T, strict=True)
        return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs]))

    return {"pearson": mean(values, truth), "spearman": mean(ranks(values), ranks(truth))}


def _markdown(result: dict[str, Any]) -> str:
    checkpoints = result["checkpoints"]
    lines = [
        "# Influence estimates against one real step",
        "",
        f"`{result['command']}`: {result['pairs']} pairs of row and subtask at each of "
        f"{len(checkpoints)} checkpoints, versions {json.dumps(result['versions'])}.",
        "Pearson's correlation over rows (in brackets Spearman's), mean over subtasks.",
    ]
    for factor in checkpoints[0]:
        lines += ["", f"## Step of {factor}", ""]
        head = [f"checkpoint {n}" for n in range(1, len(checkpoints) + 1)]
        lines += [f"| estimate | {' | '.join(head)} |", f"| --- |{' --- |' * len(head)}"]
        for name in checkpoints[0][factor]:
            cells = [checkpoint[factor][name] for checkpoint in checkpoints]
            told = [f"{cell['pearson']:.3f} ({cell['spearman']:.3f})" for cell in cells]
            lines.append(f"| {name} | {' | '.join(told)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
