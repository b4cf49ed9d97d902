"""The paper's ablations in miniature: the effect of each choice in LESS, on real data, on a CPU.

    python benchmarks/paper_in_miniature/ablations.py NAME --data DATA --out runs/miniature

NAME is `warmup` (share of the pool 0, 1, 5, 25%), `checkpoints` (1 to 4), `dims` (1,024 to all),
`rank` (4, 16, 64 of the selecting adapter), `transfer` (LESS-T: a model with a third of the
parameters selects) or `reading` (of Adam's update). The model and the targets are those of run.py;
the pool is 4,000 rows of its pool. Each variant selects 5% for each target; the model is trained on
them with three seeds, and the mean loss of held-out answers is measured. Completed work is kept, so
the same command resumes. Writes the ablation's part of ablations.json, and ablations.md.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import prepare
import pyarrow.parquet as pq
import run as miniature
import torch
from safetensors import safe_open

import gradsieve
from gradsieve.console import Progress
from gradsieve.gradients.objectives import SFT, example_losses
from gradsieve.gradients.projection import Projection
from gradsieve.gradients.similarity import subtask_directions
from gradsieve.io import fingerprint, write_json
from gradsieve.models.checkpoints import save_checkpoint
from gradsieve.models.load import add_adapter
from gradsieve.models.source import ModelSource
from gradsieve.models.training import train_model
from gradsieve.recipe.load import check_recipe
from gradsieve.recipe.schema import Recipe
from gradsieve.runs.artifacts import Artifacts
from gradsieve.runs.context import Context
from gradsieve.runs.folder import RunFolder
from gradsieve.store import open_store
from gradsieve.store.targets import read_target_gradients

HERE = Path(__file__).parent
ROWS, SHARE, SEEDS = 4_000, 0.05, (0, 1, 2)
DIMS = (1024, 2048, 4096, 8192, 16384, 32768, None)
SMALLER = {
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}

Key = tuple[str, str]
Ranking = dict[str, list[Key]]
"""The pool's rows, best first, by target."""


class Trial:
    """The small pool, and the losses after training on a part of it."""

    def __init__(self, data: Path, out: Path) -> None:
        self.data, self.inputs, self.out = data, out / "inputs", out / "ablations"
        prepare.main(data, self.inputs, planted=True)
        self._draw(self.inputs / "pool", self.out / "pool")

    def _draw(self, whole: Path, part: Path) -> None:
        names = [f.stem for f in sorted(whole.glob("*.jsonl")) if f.stem not in prepare.PLANTED]
        lines = [
            (name, line)
            for name in names
            for line in (whole / f"{name}.jsonl").read_bytes().split(b"\n")
            if line
        ]
        part.mkdir(parents=True, exist_ok=True)
        drawn = random.Random(1).sample(lines, ROWS)
        for name in {name for name, _ in drawn}:
            own = [line for of, line in drawn if of == name]
            (part / f"{name}.jsonl").write_bytes(b"\n".join(own) + b"\n")

    def recipe(self, **changes: Any) -> Recipe:
        """The miniature's recipe on the small pool; `warmup={...}` updates a section."""
        tree = miniature.recipe(self.data, self.inputs, False, ["less"]).model_dump(mode="json")
        tree["pool"] = [
            {"name": file.stem, "path": str(file)}
            for file in sorted((self.out / "pool").glob("*.jsonl"))
        ]
        tree["select"] = {"fraction": SHARE}
        # As in the paper; `ranked` combines subtasks and `cosines` projects in the same way.
        tree["score"]["across_subtasks"] = "max"
        tree["features"]["projection"]["balanced"] = False
        for section, keys in changes.items():
            tree[section] = {**tree[section], **keys}
        return check_recipe(tree)

    def run(self, name: str, recipe: Recipe, last: str = "score") -> RunFolder:
        return gradsieve.run(recipe, self.out / name, last=last)

    @cached_property
    def context(self) -> Context:
        return Context(self.recipe(), RunFolder(self.out / "training"), Progress())

    @cached_property
    def usable(self) -> dict[Key, Any]:
        pool = self.context.pool
        return dict(zip(pool.keys(pool.usable), pool.tokenized(pool.usable), strict=True))

    @cached_property
    def questions(self) -> dict[str, list[Any]]:
        return {
            name: [
                row.encoded
                for row in self.context.encode([q.example for q in test.questions])
                if not row.skip_reason
            ]
            for name, test in self.context.test_sets.items()
        }

    def random(self, seed: int) -> Ranking:
        keys = sorted(self.usable)
        random.Random(seed).shuffle(keys)
        return dict.fromkeys(self.questions, keys)

    def losses(self, ranking: Ranking, seeds: tuple[int, ...] = SEEDS) -> dict[str, list[float]]:
        """Mean losses of held-out answers after training on the best rows: by target, per seed."""
        count = round(SHARE * len(self.usable))
        return {
            target: [self._trained(target, tuple(keys[:count]), seed) for seed in seeds]
            for target, keys in ranking.items()
        }

    def _trained(self, target: str, keys: tuple[Key, ...], seed: int) -> float:
        file = self.out / "losses" / f"{fingerprint([target, keys, seed])[:20]}.json"
        if not file.is_file():
            recipe = self.context.recipe
            model = add_adapter(ModelSource(recipe.model).load(), recipe.warmup.lora, seed)
            settings = recipe.warmup.model_copy(update={"epochs": 1})
            rows = [self.usable[key] for key in keys]
            with tempfile.TemporaryDirectory() as folder:
                train_model(model, rows, settings, seed, Path(folder), SFT, lambda *_: None)
            loss = float(np.mean(example_losses(model.eval(), self.questions[target])))
            write_json(file, {"loss": loss, "target": target, "seed": seed})
        return float(json.loads(file.read_text())["loss"])


# --- the selection of each variant ----------------------------------------------------------------


def ranking_of(run: RunFolder, method: str = "less") -> Ranking:
    """The rows ordered by a run's scores."""
    ranking = {}
    for folder in sorted(p for p in run.stage("score").iterdir() if p.is_dir()):
        table = pq.read_table(folder / f"{method}.parquet").to_pylist()
        table.sort(key=lambda row: (-row["score"], row["source"], row["id"]))
        ranking[folder.name] = [(row["source"], row["id"]) for row in table]
    return ranking


def whole_run(trial: Trial) -> RunFolder:
    """A run with the warm-up and unprojected updates, from which any projection can be computed."""
    features = {"projection": {"kind": "none"}, "bits": 16}
    return trial.run("whole", trial.recipe(features=features), last="features")


def cosines(run: RunFolder, number: int, dim: int | None) -> dict[str, Any]:
    """Cosines [n, S] of all rows at one checkpoint after projection to `dim` dimensions.

    None uses the rows as stored in the run's datastore.
    """
    where = run.stage("features") / f"checkpoint-{number}"
    kept = where.parents[1] / f"cosines-{number}-{dim}.npz"
    if not kept.is_file():
        checkpoint = Artifacts(run).warmup.checkpoints[number - 1]
        with safe_open(checkpoint / "adam.safetensors", "pt") as file:
            sizes = {
                key.partition("/")[2].replace(".weight", ".default.weight"): file.get_slice(key)
                for key in file.keys()  # noqa: SIM118 - safe_open isn't a mapping
                if key.startswith("exp_avg/")
            }
        lengths = {name: int(np.prod(sizes[name].get_shape())) for name in sorted(sizes)}

        def projected(rows: torch.Tensor) -> torch.Tensor:
            if dim is None:
                return rows
            pieces = dict(zip(lengths, rows.split(list(lengths.values()), dim=1), strict=True))
            return Projection("sketch", dim).project(pieces)

        columns, directions = [], []
        for file in sorted((where / "targets").glob("*.safetensors")):
            told = read_target_gradients(file)
            norms = told.norms if dim is None else None
            names, found = subtask_directions(projected(told.rows), told.subtasks, norms=norms)
            columns += [[file.stem, name] for name in names]
            directions.append(found)
        wanted = torch.cat(directions)
        keys, parts = [], []
        store = open_store(where / "pool")
        for block in store.shards():
            rows = projected(torch.from_numpy(block.directions))
            found = (torch.nn.functional.normalize(rows, dim=1) @ wanted.T).numpy()
            if store.balanced:  # cosines use the norms of the unscaled rows
                found *= (block.feature_norms / block.gradient_norms)[:, None]
            parts.append(found)
            names = store.keys().select(["source", "id"]).take(block.positions)
            keys += [list(name.values()) for name in names.to_pylist()]
        np.savez(kept, keys=keys, columns=columns, cosines=np.concatenate(parts))
    return _in_order(dict(np.load(kept)))


def _in_order(found: dict[str, Any]) -> dict[str, Any]:
    """Rows sorted by (source, id): the order of shards differs between checkpoints."""
    order = sorted(range(len(found["keys"])), key=found["keys"].tolist().__getitem__)
    return {**found, "keys": found["keys"][order], "cosines": found["cosines"][order]}


def ranked(run: RunFolder, checkpoints: tuple[int, ...], dim: int | None) -> Ranking:
    """The rows ordered by the LESS score computed from the given checkpoints."""
    rates = run.require("warmup")["learning_rates"]
    found = [cosines(run, number, dim) for number in checkpoints]
    total = sum(
        rates[number - 1] * part["cosines"] for number, part in zip(checkpoints, found, strict=True)
    )
    ranking: Ranking = {}
    for target in sorted({target for target, _ in found[0]["columns"].tolist()}):
        own = found[0]["columns"][:, 0] == target
        scores = total[:, own].max(axis=1)
        rows = [(*key, score) for key, score in zip(found[0]["keys"].tolist(), scores, strict=True)]
        rows.sort(key=lambda row: (-row[2], row[0], row[1]))
        ranking[target] = [(source, id) for source, id, _ in rows]
    return ranking


def untrained(trial: Trial) -> Path:
    """A checkpoint of an untrained adapter: m and v are zero."""
    folder = trial.out / "untrained"
    if not folder.is_dir():
        recipe = trial.recipe()
        model = add_adapter(ModelSource(recipe.model).load(), recipe.warmup.lora, 0)
        weights = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights)
        for weight in weights:
            zeros = {kind: torch.zeros_like(weight) for kind in ("exp_avg", "exp_avg_sq")}
            optimizer.state[weight] = {"step": torch.tensor(0.0), **zeros}
        save_checkpoint(model, optimizer, folder, 1.0)
    return folder


def warmup(trial: Trial) -> dict[str, Ranking]:
    """Shares of the pool to warm up on; without any, Adam's update is the gradient's sign."""
    bare = trial.recipe(warmup={"checkpoints": [str(untrained(trial))]})
    variants = {"0%": ranking_of(trial.run("warmup-0", bare))}
    for share in (0.01, 0.25):
        run = trial.run(f"warmup-{share}", trial.recipe(warmup={"fraction": share}))
        variants[f"{share:.0%}"] = ranking_of(run)
    variants["5%"] = ranked(whole_run(trial), (1, 2, 3, 4), 8192)
    return {name: variants[name] for name in ("0%", "1%", "5%", "25%")}


def checkpoints(trial: Trial) -> dict[str, Ranking]:
    """The first one to four epochs of the warm-up, and the last alone."""
    chosen = {"1": (1,), "1, 2": (1, 2), "1 to 3": (1, 2, 3), "1 to 4": (1, 2, 3, 4), "4": (4,)}
    return {name: ranked(whole_run(trial), numbers, 8192) for name, numbers in chosen.items()}


def dims(trial: Trial) -> dict[str, Ranking]:
    """Values that a row is projected to; the last is all of them."""
    run = whole_run(trial)
    return {str(dim or "all 65536"): ranked(run, (1, 2, 3, 4), dim) for dim in DIMS}


def rank(trial: Trial) -> dict[str, Ranking]:
    """Ranks of the adapter that selects; what is trained has rank 16."""
    variants = {"16": ranked(whole_run(trial), (1, 2, 3, 4), 8192)}
    for r in (4, 64):
        lora = {"r": r, "alpha": 2 * r}
        variants[str(r)] = ranking_of(trial.run(f"rank-{r}", trial.recipe(warmup={"lora": lora})))
    return {name: variants[name] for name in ("4", "16", "64")}


def transfer(trial: Trial) -> dict[str, Ranking]:
    """LESS-T: a model with a third of the parameters selects for the one that is trained."""
    smaller = trial.inputs / "smaller"
    if not (smaller / "config.json").is_file():
        prepare.pretrain(list(prepare.texts(trial.inputs / "pool")), smaller, SMALLER)
    run = trial.run("transfer", trial.recipe(model={"name": str(smaller)}))
    itself = ranked(whole_run(trial), (1, 2, 3, 4), 8192)
    return {"the model itself": itself, "one of a third of its size": ranking_of(run)}


def reading(trial: Trial) -> dict[str, Ranking]:
    """Readings of Adam's update, from all four checkpoints or the first one; SGD; no cosine."""
    every, first = (1, 2, 3, 4), (1,)
    runs = {
        "torch": {},
        "torch, no momentum": {"momentum": "drop"},
        "official": {"adam": "official"},
        "official, no momentum": {"adam": "official", "momentum": "drop"},
    }
    variants = {}
    for name, features in runs.items():
        run = trial.run(f"reading-{name}", trial.recipe(features=features), last="features")
        variants[name] = ranked(run, every, None)
        variants[f"{name}, first checkpoint"] = ranked(run, first, None)
    others = trial.run("reading-others", trial.recipe(score={"methods": ["sgd", "dot"]}))
    return variants | {name: ranking_of(others, name) for name in ("sgd", "dot")}


NAMES: dict[str, Callable[[Trial], dict[str, Ranking]]] = {
    "warmup": warmup,
    "checkpoints": checkpoints,
    "dims": dims,
    "rank": rank,
    "transfer": transfer,
    "reading": reading,
}


def measure(trial: Trial, name: str) -> dict[str, Any]:
    """Select by each variant, train, and compare the losses with those of random rows."""
    variants = NAMES[name](trial)
    best = ranked(whole_run(trial), (1, 2, 3, 4), None)
    count = round(SHARE * len(trial.usable))
    by_seed = [trial.losses(trial.random(seed), (seed,)) for seed in SEEDS]
    chance = {target: [part[target][0] for part in by_seed] for target in by_seed[0]}
    told: dict[str, Any] = {"random": {"losses": chance}}
    for variant, ranking in variants.items():
        shared = {
            target: len(set(keys[:count]) & set(best[target][:count])) / count
            for target, keys in ranking.items()
        }
        told[variant] = {"losses": trial.losses(ranking), "shared_with_unprojected": shared}
        print(name, variant, told[variant], flush=True)
    doc = " ".join((NAMES[name].__doc__ or "").split())
    return {"what": doc, "rows": len(trial.usable), "selected": count, "variants": told}


def markdown(result: dict[str, Any]) -> str:
    """One table per ablation."""
    parts = [
        "# Ablations in miniature",
        "`python benchmarks/paper_in_miniature/ablations.py NAME --data ../shared/data --out "
        "runs/miniature`. Mean loss of held-out answers after one epoch on 5% of the pool, mean ± "
        "standard deviation over three seeds, lower is better; in brackets the share of rows that "
        "LESS selects too with all values unprojected (warm-up 5%, rank 16, four checkpoints).",
    ]
    for name, found in result.items():
        targets = list(found["variants"]["random"]["losses"])
        lines = [
            f"## {name}",
            "",
            f"{found['what']} {found['selected']} of {found['rows']} rows are selected.",
            "",
            f"| {name} | {' | '.join(targets)} |",
            f"| --- |{' --- |' * len(targets)}",
        ]
        for variant, values in found["variants"].items():
            cells = []
            for target in targets:
                losses = values["losses"][target]
                shared = values.get("shared_with_unprojected", {}).get(target)
                cells.append(
                    f"{np.mean(losses):.3f} ± {np.std(losses, ddof=1):.3f}"
                    + ("" if shared is None else f" ({shared:.0%})")
                )
            lines.append(f"| {variant} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", choices=list(NAMES))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    trial = Trial(given.data, given.out)
    file = HERE / "ablations.json"
    for name in given.names:
        found = measure(trial, name)
        result = json.loads(file.read_text()) if file.is_file() else {}
        result[name] = found
        write_json(file, {key: result[key] for key in NAMES if key in result})
        (HERE / "ablations.md").write_text(markdown(result))


if __name__ == "__main__":
    main()
