"""Scores of bergson 2.5.1 for the rows that judged.py evaluates, with the seconds per step.

    python benchmarks/real_model/bergson_scores.py --run OUT/W --recipe OUT/judged/recipe.yaml \
        --out OUT/bergson [--adapter OUT/W/01-warmup/checkpoint-4] [--ekfac-rows 400]

Run it in the environment of `make .venv-peers/installed`, with OMP_NUM_THREADS=1. It writes
OUT/bergson/TARGET/NAME.npy (float32, one score per row of keys.json) and seconds.json (CPU and
wall seconds of each step). Each step is skipped if its files exist, so a stopped program resumes.

Rows, chat template and labels come from gradsieve: OUT/W has the pool, the recipe has the targets.
Gradients, projections, normalization, Hessians and scores come from bergson's own functions, with
its defaults: losses summed over an example's label tokens, Rademacher projections, every linear
layer except the output, 1,000 downweighted components, relative damping of 0.1. Two settings differ
from its defaults: the model's own precision (bfloat16, not float32), and batches of 1,024 tokens.

- bergson_cosine: unit-normalized gradients, projected to 16 x 16 dims per module, as in bergson's
  quick start (`bergson build --projection_dim 16`, `bergson query --unit_norm`).
- bergson_trackstar: `bergson trackstar` with `unit_normalize`, as in its examples. 16 x 16 dims
  per module, and H^-1/2 of the mixed autocorrelation of pool and target on both sides.
- bergson_ekfac: `bergson ekfac` (kfac with `ev_correction`) on a target's mean gradient.

Cosine and TrackStar give one score per query: NAME is their mean over the target's examples,
NAME_nearest their maximum (bergson's `score: nearest`). With --adapter, names end in _lora and
gradients are the adapter's: unprojected for cosine and EK-FAC; for TrackStar, divided by the square
root of Adam's second moment (`optimizer_state`) and projected. EK-FAC is fitted on a random sample
of the pool (--ekfac-rows), and only for the adapter: for the 106 million weights of SmolLM2-135M's
linear layers it takes about 100 minutes on one core for 1,195 rows of 170 tokens.

The pool's gradients are computed once and stored, and every method scores the stored gradients,
which gives the same scores as bergson's commands. `bergson trackstar` itself passes over the pool
twice for each target, `bergson ekfac` three times.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from bergson.build import build
from bergson.cli.commands import Hessian
from bergson.collector.collector import create_module_projection_matrix
from bergson.config import DataConfig, HessianConfig, IndexConfig, InversionConfig, PreprocessConfig
from bergson.config.config_io import save_run_config
from bergson.data import column_offsets, load_gradients
from bergson.gradients import AdamNormalizer
from bergson.hessians.hessian_approximations import approximate_hessians
from bergson.hessians.preconditioner import Preconditioner, load_preconditioner
from bergson.process_autocorrelation import process_autocorrelation_matrices
from bergson.process_grads import mix_autocorrelation_matrices, normalize_and_aggregate_grads
from bergson.score.scorer import Scorer
from bergson.utils.utils import numpy_to_tensor
from bergson.utils.worker_utils import processor_for
from datasets import Dataset
from safetensors.torch import load_file
from torch import Tensor

from gradsieve.data.examples import TokenizedExample
from gradsieve.recipe.load import load_recipe
from gradsieve.runs.context import Context
from gradsieve.runs.folder import RunFolder

PARTS, DIM, TOKENS = 16, 16, 1024
PACKAGES = ("bergson", "torch", "transformers", "peft")

Gradients = dict[str, Tensor]
"""Gradients [n, d] by module."""
Side = Literal["left", "right"]


class Seconds:
    """Records CPU and wall seconds of each step, and package versions, in seconds.json."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.steps = json.loads(file.read_text()) if file.exists() else {}
        self.steps["versions"] = {name: version(name) for name in PACKAGES}

    @contextmanager
    def of(self, step: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        found = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        self.steps[step] = {key: round(value, 1) for key, value in found.items()}
        self.file.write_text(json.dumps(self.steps, indent=1) + "\n")
        print(step, self.steps[step], flush=True)


def write_data(context: Context, out: Path, fit_rows: int) -> None:
    """Write pool and targets as tokenized datasets, the pool in parts of similar lengths."""
    pool = context.pool
    numbers = pool.usable
    order = np.argsort(pool.lengths[numbers], kind="stable")
    parts = np.array_split(order, PARTS)
    fit = np.random.default_rng(0).permutation(len(numbers))[:fit_rows]
    sets = {f"pool-{i:02}": list(pool.tokenized(numbers[part])) for i, part in enumerate(parts)}
    sets["fit"] = list(pool.tokenized(numbers[np.sort(fit)]))
    for target in context.targets:
        sets[target.name] = [row.encoded for row in context.target_rows(target)]
    for name, rows in sets.items():
        as_dataset(rows).save_to_disk(str(out / "data" / name))
    np.save(out / "order.npy", order)
    (out / "keys.json").write_text(json.dumps([tuple(key) for key in pool.keys(numbers)]))


def as_dataset(rows: list[TokenizedExample]) -> Dataset:
    columns = {
        "input_ids": [list(row.input_ids) for row in rows],
        "labels": [list(row.labels) for row in rows],
        "length": [len(row.input_ids) for row in rows],
    }
    return Dataset.from_dict(columns)


def config_of(data: Path, run: Path, model: Path, dim: int) -> IndexConfig:
    """bergson's config for a pass; an adapter uses the tokenizer of its base model."""
    adapter = model / "adapter_config.json"
    base = json.loads(adapter.read_text())["base_model_name_or_path"] if adapter.exists() else model
    return IndexConfig(
        run_path=str(run),
        model=str(model),
        tokenizer=str(base),
        precision="auto",
        overwrite=True,
        projection_dim=dim,
        token_batch_size=TOKENS,
        data=DataConfig(dataset=str(data)),
    )


def read(run: Path) -> Gradients:
    sizes = json.loads((run / "info.json").read_text())["grad_sizes"]
    stored = load_gradients(run)
    return {
        name: numpy_to_tensor(np.ascontiguousarray(stored[:, low:high])).float()
        for name, (low, high) in column_offsets(sizes).items()
    }


def scores(
    parts: Iterable[Gradients],
    queries: Gradients,
    unit: bool = True,
    prepare: Preconditioner | None = None,
) -> Tensor:
    """bergson's scores of the pool's rows [n, queries]."""
    names, cpu = list(queries), torch.device("cpu")
    if prepare:
        queries = prepare.apply(queries)
    queries = normalize_and_aggregate_grads(queries, names, unit, cpu)
    scorer = Scorer(
        queries,
        names,
        None,
        cpu,
        torch.float32,
        unit_normalize=unit,
        index_transform=prepare.apply if prepare else None,
    )
    return torch.cat([scorer.score(part) for part in parts])


class Model:
    """A model's stored gradients and the scores computed from them."""

    def __init__(self, out: Path, model: Path, dim: int, suffix: str, seconds: Seconds) -> None:
        self.out, self.model, self.dim, self.suffix = out, model, dim, suffix
        self.folder, self.seconds = out / f"gradients{suffix}", seconds
        names = sorted(folder.name for folder in (out / "data").iterdir() if folder.name != "fit")
        self.parts = [name for name in names if name.startswith("pool-")]
        self.targets = [name for name in names if name not in self.parts]
        self.order = np.load(out / "order.npy")

    def collect(self) -> None:
        for name in [*self.targets, *self.parts]:
            run = self.folder / name
            if not run.exists():
                with self.seconds.of(f"gradients{self.suffix} {name}"):
                    build(
                        config_of(self.out / "data" / name, run, self.model, self.dim),
                        PreprocessConfig(),
                    )

    def pool(self) -> Iterator[Gradients]:
        return (read(self.folder / part) for part in self.parts)

    def missing(self, name: str) -> list[str]:
        """Targets without scores."""
        file = f"{name}{self.suffix}.npy"
        return [target for target in self.targets if not (self.out / target / file).exists()]

    def save(self, target: str, name: str, of_queries: Tensor) -> None:
        """Write the maximum over queries (if there are several), then the mean."""
        (self.out / target).mkdir(exist_ok=True)
        ways = {"_nearest": of_queries.amax(1)} if of_queries.shape[1] > 1 else {}
        for ending, found in (ways | {"": of_queries.mean(1)}).items():
            in_order = np.empty(len(self.order), np.float32)
            in_order[self.order] = found.numpy()
            np.save(self.out / target / f"{name}{self.suffix}{ending}.npy", in_order)

    def cosine(self) -> None:
        for target in self.missing("bergson_cosine"):
            with self.seconds.of(f"cosine{self.suffix} {target}"):
                found = scores(self.pool(), read(self.folder / target))
            self.save(target, "bergson_cosine", found)

    def trackstar(self, change: Callable[[Gradients], Gradients] = lambda g: g) -> None:
        """Score with the mixed Hessian of each target."""
        if not self.missing("bergson_trackstar"):
            return
        folder = self.out / f"hessians{self.suffix}"
        with self.seconds.of(f"trackstar{self.suffix} pool"):
            pool = [change(part) for part in self.pool()]
            self.autocorrelation(pool, folder / "pool")
        for target in self.missing("bergson_trackstar"):
            queries, mixed = change(read(self.folder / target)), folder / f"{target}-mixed"
            with self.seconds.of(f"trackstar{self.suffix} {target}"):
                self.autocorrelation([queries], folder / target)
                mix_autocorrelation_matrices(folder / target, folder / "pool", mixed)
                prepare = load_preconditioner(mixed, inversion_cfg=InversionConfig(), power=-0.5)
                found = scores(pool, queries, prepare=prepare)
            self.save(target, "bergson_trackstar", found)

    def autocorrelation(self, parts: Iterable[Gradients], run: Path) -> None:
        """Save the result of `bergson hessian --method autocorrelation`, from stored gradients."""
        sums: dict[str, Tensor] = {}
        rows = 0
        for part in parts:
            rows += len(next(iter(part.values())))
            for name, g in part.items():
                sums[name] = sums[name] + g.mT @ g if name in sums else g.mT @ g
        config = config_of(self.out / "data" / "fit", run, self.model, DIM)
        processor = processor_for(config)
        process_autocorrelation_matrices(processor, sums, rows, {}, 0)
        run.mkdir(parents=True, exist_ok=True)
        processor.save(run)
        save_run_config(Hessian(HessianConfig(method="autocorrelation"), config), run)

    def ekfac(self) -> None:
        """Score with EK-FAC on unprojected gradients."""
        run, kfac = self.out / f"ekfac{self.suffix}", HessianConfig("kfac", ev_correction=True)
        if not run.exists():
            with self.seconds.of(f"ekfac{self.suffix} fit"):
                torch.manual_seed(0)  # labels are sampled from the model
                config = config_of(self.out / "data" / "fit", run, self.model, 0)
                approximate_hessians(config, kfac)
        prepare = load_preconditioner(
            run, inversion_cfg=InversionConfig(), power=-1.0, ev_correction=True
        )
        for target in self.missing("bergson_ekfac"):
            with self.seconds.of(f"ekfac{self.suffix} {target}"):
                queries = {n: g.mean(0, True) for n, g in read(self.folder / target).items()}
                found = scores(self.pool(), prepare.apply(queries), unit=False)
            self.save(target, "bergson_ekfac", found)


def adam_projected(checkpoint: Path) -> Callable[[Gradients], Gradients]:
    """Applies `optimizer_state` and `projection_dim` to an adapter's unprojected gradients."""
    moments = load_file(checkpoint / "adam.safetensors")
    first, last = "exp_avg_sq/base_model.", ".weight"
    scales = {
        name.removeprefix(first).removesuffix(last) + ".default": AdamNormalizer(v.float())
        for name, v in moments.items()
        if name.startswith(first)
    }

    def projection(name: str, side: Side, n: int) -> Tensor:
        return create_module_projection_matrix(
            name, side, DIM, n, torch.float32, torch.device("cpu"), "rademacher", "jl", None
        )

    def change(g: Gradients) -> Gradients:
        found = {}
        for name, rows in g.items():
            scale = scales[name].weight_denominator()
            out_size, in_size = scale.shape
            left, right = projection(name, "left", out_size), projection(name, "right", in_size)
            scaled = rows.view(-1, out_size, in_size) / scale
            found[name] = (left @ scaled @ right.mT).flatten(1)
        return found

    return change


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path, required=True, help="a run with its pool")
    parser.add_argument("--recipe", type=Path, required=True, help="the recipe with the targets")
    parser.add_argument("--adapter", type=Path, help="a checkpoint of the run's warm-up")
    parser.add_argument("--ekfac-rows", type=int, default=400, help="rows that fit EK-FAC; 0: none")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    recipe = load_recipe(arguments.recipe)
    if not (out / "keys.json").exists():
        write_data(Context(recipe, RunFolder(arguments.run)), out, arguments.ekfac_rows)
    seconds = Seconds(out / "seconds.json")
    if arguments.adapter:
        model = Model(out, arguments.adapter, 0, "_lora", seconds)
        model.collect()
        model.cosine()
        model.trackstar(adam_projected(arguments.adapter))
        if arguments.ekfac_rows:
            model.ekfac()
    else:
        model = Model(out, Path(recipe.model.name), DIM, "", seconds)
        model.collect()
        model.cosine()
        model.trackstar()


if __name__ == "__main__":
    main()
