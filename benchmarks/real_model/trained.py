"""Training on a selection, compared with training on random rows: losses, F1, accuracy.

    python benchmarks/real_model/trained.py recipe --judged OUT/judged --out OUT/trained
    gradsieve run OUT/trained/recipe.yaml --out OUT/trained/run --until evaluate
    python benchmarks/real_model/trained.py answers --judged OUT/judged --out OUT/trained \
        --recipe OUT/recipe.yaml
    python benchmarks/real_model/trained.py quantiles --judged OUT/judged --out OUT/trained
    gradsieve run OUT/trained/quantiles.yaml --out OUT/trained/quantiles --until evaluate
    python benchmarks/real_model/trained.py seeds --judged OUT/judged --out OUT/trained \
        --recipe OUT/recipe.yaml
    gradsieve run OUT/trained/seeds.yaml --out OUT/trained/seeds
    python benchmarks/real_model/trained.py table --judged OUT/judged --out OUT/trained

Run this after judged.py, in its folders. `recipe` writes a recipe that selects 10% of the pool for
each target by each of METHODS and trains on them as `gradsieve validate` trains on its random
subsets of 10%, which are the random baseline of all comparisons. `answers` lets some of the models
answer held-out questions of TyDiQA and MMLU (all models trained for the target, and those of the
first RANDOM random subsets); existing answers are kept. `quantiles` divides the pool into ten parts
of equal size by the scores of LESS, best first; each part is trained on alone. `seeds` uses the
paper's amounts (5% of the pool and four epochs) with SEEDS, and measures F1 on SEEDS_ASKED of
TyDiQA's English questions; `gradsieve compare` reads it. `table` writes trained.json and trained.md
to this folder from the existing results: `z` is the distance of the loss from the mean of the
random subsets, in their standard deviations; negative is better.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from judged import METHODS as FROM_FILES
from judged import TARGETS

from gradsieve.recipe.load import load_recipe
from gradsieve.runs.artifacts import ResultsArtifact
from gradsieve.runs.context import Context
from gradsieve.runs.folder import RunFolder
from gradsieve.stages.evaluate import EvaluationTask, evaluation_job
from gradsieve.stages.validate import parts_of_pool

HERE = Path(__file__).parent
METHODS = {
    "less_standardized_max": "LESS, defaults, whole answers",
    "less_examples": "LESS, `target_mean: none`, whole answers",
    "torch_balanced_8192_standardized_max": "LESS, defaults, the benchmarks' labels",
    "torch_plain_8192_max": "LESS as in the paper",
    "fusion_less_bm25_rds_plus": "fusion of less, bm25, rds_plus",
    "bm25": "BM25",
    "file_rds_plus": "RDS+",
    "file_embedding": "embeddings",
    "bergson_cosine": "bergson 2.5.1, cosine",
}
NAMES = {"base": "untrained", "random": "random"} | METHODS
SHARE, RANDOM = 0.1, 6
ANSWERED = {"tydiqa": "f1", "mmlu": "accuracy"}
LANGUAGES, EACH_LANGUAGE = ("english", "swahili", "korean"), 80
LIMIT = {"tydiqa": None, "mmlu": 4}
"""Maximum number of questions per subtask."""
QUANTILES, QUANTILES_BY = ("tydiqa", "gsm8k"), "less_standardized_max"
SEEDS, SEEDS_ASKED = [0, 1], 200
SEEDS_METHODS = ("less_standardized_max", "random", "bm25", "file_rds_plus")
TENTHS = [f"quantile_{number}" for number in range(1, 11)]


def write_recipe(judged: Path, out: Path, methods: list[str]) -> None:
    """Write the judged recipe with a selection and a training for each target and method."""
    write_yaml(out / "recipe.yaml", training_recipe(judged, methods, TARGETS))


def training_recipe(judged: Path, methods: list[str], targets: Iterable[str]) -> dict[str, Any]:
    """The judged recipe with trainings; methods come from the package or judged/methods.py."""
    file, own = judged / "methods.py", ("random", "bm25", "dsir")
    methods = [m if m in own or ":" in m else f"{file}:{m}" for m in methods]
    recipe: dict[str, Any] = yaml.safe_load((judged / "recipe.yaml").read_text())
    del recipe["validate"]
    recipe |= {
        "targets": [target for target in recipe["targets"] if target["name"] in targets],
        "score": {"methods": methods},
        "select": {"fraction": SHARE},
        "train": {"epochs": 1},
        "evaluate": {"metrics": ["held_out_loss"]},
    }
    return recipe


def write_yaml(file: Path, tree: dict[str, Any]) -> None:
    file.write_text(yaml.safe_dump(tree, sort_keys=False))


def write_quantiles(judged: Path, out: Path) -> None:
    """Write a recipe that trains on the rows between two quantiles of a target's scores."""
    folder = out.resolve() / "quantile-scores"
    for target in QUANTILES:
        scores = np.load(judged / target / f"{QUANTILES_BY}.npy")
        ranks = np.empty(len(scores))
        ranks[np.argsort(-scores, kind="stable")] = np.arange(len(scores))
        (folder / target).mkdir(parents=True, exist_ok=True)
        for number, name in enumerate(TENTHS):
            center = (number + 0.5) * len(scores) / len(TENTHS)
            np.save(folder / target / f"{name}.npy", -np.abs(ranks - center).astype(np.float32))
    shutil.copy(judged / "keys.json", folder)
    (folder / "methods.py").write_text(FROM_FILES.format(folder=str(folder), names=TENTHS))
    methods = [f"{folder}/methods.py:{name}" for name in TENTHS]
    write_yaml(out / "quantiles.yaml", training_recipe(judged, methods, QUANTILES))


def write_seeds(judged: Path, out: Path, recipe: Path) -> None:
    """Write a recipe with the paper's settings for TyDiQA's English questions."""
    tree = training_recipe(judged, list(SEEDS_METHODS), ())
    own = {target["name"]: target for target in yaml.safe_load(recipe.read_text())["targets"]}
    folder = few_questions(Path(own["tydiqa"]["path"]), out, ("english",), SEEDS_ASKED)
    tree |= {
        "targets": [own["tydiqa"] | {"path": str(folder)}],
        "select": {"fraction": 0.05},
        "train": {"epochs": 4, "seeds": SEEDS},
        "evaluate": {"metrics": ["f1"], "limit": None},
    }
    write_yaml(out / "seeds.yaml", tree)


def random_models(judged: Context, target: str) -> list[tuple[Path, float]]:
    """The folder and mean loss of each model that was trained on a random subset."""
    artifact, found = judged.artifacts.validation, []
    for part in parts_of_pool(judged).subsets:
        losses = artifact.losses(part.name, 0, target)
        found.append((artifact.model(part.name, 0).folder, float(np.mean(losses))))
    return found


def models(judged: Path, out: Path) -> dict[str, dict[str, Path | None]]:
    """The folder of each model that answers questions, by target and name; None: untrained."""
    base: dict[str, Path | None] = {"base": None}
    of = Context(load_recipe(judged / "run" / "recipe.yaml"), RunFolder(judged / "run"))
    for number, (folder, _) in enumerate(random_models(of, "mmlu")[:RANDOM], start=1):
        base[f"random_{number}"] = folder
    trained = Context(load_recipe(out / "recipe.yaml"), RunFolder(out / "run")).artifacts.models
    found = {}
    for target in ANSWERED:
        own = {m: trained.model(f"{target}/{m}/seed-0") for m in METHODS}
        found[target] = base | {m: one.folder for m, one in own.items() if one.exists()}
    return found


def few_questions(data: Path, out: Path, languages: Sequence[str], each: int) -> Path:
    """Write a TyDiQA folder with the first questions of some languages; returns the folder."""
    folder, asked = out / "-".join(["tydiqa", *languages]), Counter[str]()
    folder.mkdir(exist_ok=True)
    shutil.copy(data / "tydiqa-one-shot.json", folder)
    kept = []
    tree = json.loads((data / "tydiqa-goldp-v1.1-dev.json").read_text())
    for article in tree["data"]:
        language = article["paragraphs"][0]["qas"][0]["id"].partition("-")[0]
        short = all(len(part["context"]) <= 1500 for part in article["paragraphs"])
        if language in languages and short and asked[language] < each:
            asked[language] += sum(len(part["qas"]) for part in article["paragraphs"])
            kept.append(article)
    (folder / "tydiqa-goldp-v1.1-dev.json").write_text(json.dumps({**tree, "data": kept}))
    return folder


def answers(judged: Path, out: Path, recipe: Path) -> None:
    """Let the models answer held-out questions, and store the results."""
    tree = yaml.safe_load(recipe.read_text())
    by_name = {target["name"]: target for target in tree["targets"]}
    by_name["tydiqa"]["path"] = str(
        few_questions(Path(by_name["tydiqa"]["path"]), out, LANGUAGES, EACH_LANGUAGE)
    )
    for target, own in models(judged, out).items():
        tree |= {
            "targets": [by_name[target]],
            "evaluate": {"limit": LIMIT[target], "metrics": [ANSWERED[target]]},
        }
        file = out / f"answers-{target}.yaml"
        write_yaml(file, tree)
        context = Context(load_recipe(file), RunFolder(out / "answers"))
        results = context.artifacts.results
        tasks = [
            EvaluationTask(f"{target}/{name}/seed-0", folder, str(folder))
            for name, folder in own.items()
        ]
        missing = [task for task in tasks if not results.is_complete(task.name, task.of)]
        run = evaluation_job(context, missing).setup(context.progress)
        for task in missing:
            run(task)
            result = results.result(task.name)
            print(task.name, len(result["ids"]), mean_of(result, target), flush=True)


def mean_of(result: dict, target: str) -> float:
    """The weighted mean of the target's metric."""
    return float(np.average(result["metrics"][ANSWERED[target]], weights=result["weights"]))


def mean_loss(results: ResultsArtifact, name: str) -> float | None:
    """The mean of the held-out losses; None if there is no result."""
    if not results.result_file(name).is_file():
        return None
    return float(np.mean(results.result(name)["metrics"]["held_out_loss"]))


def losses(judged: Path, run: Path, methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """By name and target: the loss, and its distance from random in standard deviations."""
    of = Context(load_recipe(judged / "run" / "recipe.yaml"), RunFolder(judged / "run"))
    results = ResultsArtifact(RunFolder(run))
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for target in TARGETS:
        random = np.array([loss for _, loss in random_models(of, target)])
        mean, deviation = float(random.mean()), float(random.std(ddof=1))
        found["random"][target] = {"loss": mean, "deviation": deviation, "subsets": len(random)}
        for name in ("base", *methods):
            if (loss := mean_loss(results, f"{target}/{name}/seed-0")) is not None:
                z, below = (loss - mean) / deviation, float((random < loss).mean())
                found[name][target] = {"loss": loss, "z": z, "random ones below": below}
    return found


def answered(out: Path) -> dict[str, dict[str, Any]]:
    """By name and target: the metric, its difference to random models, and standard errors.

    The difference is paired: per question, from the mean of the random models.
    """
    results = ResultsArtifact(RunFolder(out / "answers"))
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for target in ANSWERED:
        names = [file.parent.name for file in results.folder.glob(f"{target}/*/seed-0.json")]
        own = {name: results.result(f"{target}/{name}/seed-0") for name in sorted(names)}
        values = {name: np.array(one["metrics"][ANSWERED[target]]) for name, one in own.items()}
        random = [name for name in own if name.startswith("random_")]
        for name, one in own.items():
            found[name][target] = {"mean": mean_of(one, target), "questions": len(values[name])}
            if random and name not in random:
                over = values[name] - np.mean([values[other] for other in random], axis=0)
                found[name][target] |= paired(over, one["weights"])
        if random:
            means = [found[name][target]["mean"] for name in random]
            spread = float(np.std(means, ddof=1)) if random[1:] else None
            all_random = {"mean": float(np.mean(means)), "error": spread, "models": len(random)}
            found["random"][target] = all_random
    return found


def paired(over: np.ndarray, weights: Sequence[float] | None = None) -> dict[str, float]:
    """The mean over questions of the differences to random, and its standard error."""
    return {
        "over_random": float(np.average(over, weights=weights)),
        "error": float(over.std(ddof=1) / np.sqrt(len(over))),
    }


def by_seed(run: Path) -> dict[str, dict[str, Any]]:
    """By selection: F1 after each seed's training, and the paired difference to random.

    The differences are between each question's means over seeds.
    """
    results = ResultsArtifact(RunFolder(run))
    values: dict[str, list[np.ndarray]] = defaultdict(list)
    for file in sorted(results.folder.glob("tydiqa/*/seed-*.json")):
        result = results.result(f"tydiqa/{file.parent.name}/{file.stem}")
        values[file.parent.name].append(np.array(result["metrics"]["f1"]))
    found: dict[str, dict[str, Any]] = {}
    for name, of_seeds in values.items():
        over = np.mean(of_seeds, axis=0) - np.mean(values["random"], axis=0)
        f1 = [float(one.mean()) for one in of_seeds]
        found[name] = {"f1": f1, **paired(over), "questions": len(over)}
    return found


def table(judged: Path, out: Path) -> None:
    """Write trained.json and trained.md."""
    by_loss, by_answer = losses(judged, out / "run", METHODS), answered(out)
    run = out / "quantiles"
    by_quantile = losses(judged, run, TENTHS) if run.is_dir() else {}
    subsets = by_loss["random"]["mmlu"]["subsets"]
    asked = [target for target in ANSWERED if any(target in own for own in by_answer.values())]
    lines = [
        f"Trained on 10% of the pool for one epoch, against {subsets} random subsets of 10%: loss",
        "on held-out answers and z, its distance from the random subsets' mean in their standard",
        "deviations (negative is better); for `random` mean and deviation. F1 and accuracy in per",
        "cent, and the difference to the mean of the random models with its standard error over",
        "questions, paired; for `random` the mean and the deviation of its models.",
        "",
        "| selection | " + " | ".join([*TARGETS, *(f"{t}, {ANSWERED[t]}" for t in asked)]) + " |",
        "|" + " --- |" * (len(TARGETS) + len(asked) + 1),
    ]
    for name in [name for name in NAMES if name in by_loss]:
        cells = []
        for target in TARGETS:
            one = by_loss[name].get(target, {})
            beside = one.get("z", one.get("deviation"))
            text = f"{beside:.3f}" if name == "random" else f"z {beside:+.1f}" if one else ""
            cells.append(f"{one['loss']:.3f} ({text})" if one else "-")
        for target in asked:
            own = by_answer.get(name, {}).get(target)
            text = f"{100 * own['mean']:.1f}" if own else "-"
            if own and "over_random" in own:
                text += f" ({100 * own['over_random']:+.1f} ± {100 * own['error']:.1f})"
            elif own and own["error"]:
                text += f" ± {100 * own['error']:.1f}"
            cells.append(text)
        lines.append(f"| {NAMES[name]} | " + " | ".join(cells) + " |")
    if by_quantile:
        lines += quantile_lines([by_quantile.get(name, {}) for name in TENTHS])
    seeds = by_seed(out / "seeds") if (out / "seeds").is_dir() else {}
    if seeds:
        lines += seeds_lines(seeds)
    found = {"losses": by_loss, "answers": by_answer, "quantiles": by_quantile, "seeds": seeds}
    (HERE / "trained.json").write_text(json.dumps(found, indent=1) + "\n")
    (HERE / "trained.md").write_text("\n".join(lines) + "\n")


def seeds_lines(found: dict[str, dict[str, Any]]) -> list[str]:
    questions = next(iter(found.values()))["questions"]
    lines = [
        "",
        f"Trained on 5% of the pool for four epochs: F1 of {questions} English questions of TyDiQA",
        "after each seed's training, and the difference to random with its standard error over",
        "questions, paired.",
        "",
        "| selection | F1 by seed | over random |",
        "| --- | --- | --- |",
    ]
    for name in [name for name in NAMES if name in found]:
        own = found[name]
        over = f"{100 * own['over_random']:+.1f} ± {100 * own['error']:.1f}"
        f1 = ", ".join(f"{100 * one:.1f}" for one in own["f1"])
        lines.append(f"| {NAMES[name]} | {f1} | {'' if name == 'random' else over} |")
    return lines


def quantile_lines(found: list[dict[str, Any]]) -> list[str]:
    lines = ["", f"Each tenth of the pool alone, best first by `{QUANTILES_BY}`: loss and z.", ""]
    lines += ["| tenth | " + " | ".join(QUANTILES) + " |", "|" + " --- |" * (len(QUANTILES) + 1)]
    for number, own in enumerate(found, start=1):
        of = [own.get(target) for target in QUANTILES]
        cells = [f"{one['loss']:.3f} (z {one['z']:+.1f})" if one else "-" for one in of]
        lines.append(f"| {number} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("recipe", "answers", "quantiles", "seeds", "table"))
    parser.add_argument("--judged", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", type=Path)
    parser.add_argument("--methods", nargs="+", default=[*METHODS])
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.what == "recipe":
        write_recipe(arguments.judged, arguments.out, arguments.methods)
    elif arguments.what == "answers":
        answers(arguments.judged, arguments.out, arguments.recipe)
    elif arguments.what == "quantiles":
        write_quantiles(arguments.judged, arguments.out)
    elif arguments.what == "seeds":
        write_seeds(arguments.judged, arguments.out, arguments.recipe)
    else:
        table(arguments.judged, arguments.out)


if __name__ == "__main__":
    main()
