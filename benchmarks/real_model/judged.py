"""Scores evaluated by training: LDS of many methods over the same trained subsets.

    python benchmarks/real_model/prepare.py ... --rows 1080 --needles 0.5 --characters 2500
    gradsieve run OUT/recipe.yaml --out OUT/W --until warmup, then gradients.py into OUT/W-4
    python benchmarks/real_model/judged.py prepare --run OUT/W --out OUT/judged
    python benchmarks/real_model/judged.py methods --gradients OUT/W-4 --out OUT/judged
    gradsieve run OUT/judged/recipe.yaml --out OUT/judged/run --until score
    gradsieve validate OUT/judged/recipe.yaml --out OUT/judged/run
    python benchmarks/real_model/judged.py planted --run OUT/judged --out benchmarks/real_model
    python benchmarks/real_model/judged.py table --run OUT/judged/run --out benchmarks/real_model

`prepare` writes a recipe and the run's targets with few held-out questions each, so that computing
a loss takes seconds. `methods` adds scores to the recipe, as methods in a Python file: those of a
gradients.py pass in every reading of Adam, way of combining subtasks and sketch, and the scores of
other programs, read from OUT/judged/TARGET/NAME.npy in the order of keys.json. Names from a pass
start with `exact_`, `torch_` and `sgd_`; its target labels are those of the released code, the text
after an answer's prefix. `less_...`, `own_sgd_...` and `own_gist_...` are the package's own scores
for the targets that `prepare` writes, whose labels are the full answers (`supervise: all`).
`planted` counts rows of the target's kind among the best 5% by each score. `gradsieve validate`
trains on each subset only once, even if methods are added later.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml
from measured import SHARE, Pass, across, top

from gradients import READINGS
from gradsieve.analysis.bootstrap import spearman_interval
from gradsieve.gradients.objectives import example_losses
from gradsieve.models.load import load_trained
from gradsieve.recipe.load import load_recipe
from gradsieve.runs.context import Context
from gradsieve.runs.folder import RunFolder
from gradsieve.stages.validate import parts_of_pool

TARGETS = {"tydiqa": ("english", "swahili", "korean"), "mmlu": None, "gsm8k": None, "code": None}
KINDS = {
    "tydiqa": ("planted_english", "planted_swahili", "planted_korean"),
    "mmlu": ("planted_mmlu",),
    "gsm8k": ("gsm8k",),
    "code": ("gpteacher_code",),
}
"""Sources whose rows are of a target's kind."""
QUESTIONS = 27
OWN = ["random", "bm25", "dsir", "rds", "rds_plus", "perplexity_middle", "perplexity_top"]
WAYS = ("max", "mean", "standardized_max")
SKETCHES = ("torch-plain-8192", "torch-balanced-8192", "torch-balanced-2048", "sgd-plain-8192")

METHODS = '''"""Scores from files, as methods of a recipe; written by judged.py."""

import json
from pathlib import Path

import numpy as np

from gradsieve.methods.base import Scores

FOLDER = Path({folder!r})


class FromFiles:
    source = "a file"
    uses = "data"

    def __init__(self, name):
        self.name = name

    def score(self, task):
        keys = json.loads((FOLDER / "keys.json").read_text())
        rows = {{tuple(key): row for row, key in enumerate(keys)}}
        order = [rows[tuple(key)] for key in task.example_keys()]
        read = lambda target: np.load(FOLDER / target / (self.name + ".npy")).astype(np.float32)
        return {{target: Scores(read(target)[order]) for target in task.targets}}


for name in {names!r}:
    globals()[name] = FromFiles(name)
'''


def of_pass(one: Pass, target: str) -> dict[str, np.ndarray]:
    """Scores [n] computed from a pass, by name."""
    found = {}
    for reading in READINGS:
        by_subtask = one.exact(reading, target)
        found |= {f"exact_{reading}_{way}": across(by_subtask, way) for way in WAYS}
        by_example = one.exact(reading, target, by_example=True)
        found[f"exact_{reading}_examples"] = across(by_example, "standardized_max")
    for key in SKETCHES:
        by_subtask = one.projected(key, target)
        for way in ("max", "standardized_max"):
            found[f"{key.replace('-', '_')}_{way}"] = across(by_subtask, way)
    columns, _ = one.columns(target)
    found["dot_mean"] = one.array("products-sgd")[:, columns].mean(1)
    return found


def methods(gradients: Path, out: Path) -> None:
    """Write the scores of a pass, and list all existing scores in the recipe."""
    one, recipe = Pass(gradients), yaml.safe_load((out / "recipe.yaml").read_text())
    (out / "keys.json").write_text(json.dumps(one.keys))
    for target in TARGETS:
        (out / target).mkdir(exist_ok=True)
        for name, scores in of_pass(one, target).items():
            np.save(out / target / f"{name}.npy", scores.astype(np.float32))
    names = sorted(set.intersection(*({f.stem for f in (out / t).glob("*.npy")} for t in TARGETS)))
    (out / "methods.py").write_text(METHODS.format(folder=str(out.resolve()), names=names))
    recipe["score"]["methods"] = OWN + [f"{out.resolve()}/methods.py:{name}" for name in names]
    (out / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))


def prepare(run: Path, out: Path) -> None:
    """Write targets with few held-out questions, and a recipe."""
    context = Context(load_recipe(run / "recipe.yaml"), RunFolder(run))
    recipe = yaml.safe_load((run.parent / "recipe.yaml").read_text())
    targets = []
    for target in context.targets:
        if target.name not in TARGETS:
            continue
        by_subtask = defaultdict(list)
        for question in context.test_sets[target.name].questions:
            by_subtask[question.example.subtask].append(question.example)
        subtasks = TARGETS[target.name] or sorted(by_subtask)
        rng = random.Random(target.name)
        for examples in by_subtask.values():
            rng.shuffle(examples)
        few = [by_subtask[subtasks[i % len(subtasks)]].pop() for i in range(QUESTIONS)]
        own = {"name": target.name, "subtask": "subtask"}
        for key, name, examples in (
            ("path", target.name, target.examples),
            ("test", f"{target.name}-test", few),
        ):
            file = out / f"{name}.jsonl"
            lines = [{"messages": list(one.messages), "subtask": one.subtask} for one in examples]
            file.write_text("".join(json.dumps(line) + "\n" for line in lines))
            own[key] = str(file)
        targets.append(own)
    recipe |= {
        "targets": targets,
        "score": {"methods": OWN},
        "validate": {"subsets": 48, "share": 0.1, "leave_out": []},
        "train": {"epochs": 1},
    }
    recipe["warmup"] |= {"learning_rate": 2e-4, "batch_size": 8}
    (out / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))


def in_best(of_kind: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Rows of a kind (mask [n]) among the best by their scores [n]."""
    best = of_kind[top(scores)]
    return {
        "times chance": round(float(best.mean() / of_kind.mean()), 1),
        "rows": int(best.sum()),
        "of": int(of_kind.sum()),
    }


def table_of(found: dict[str, dict[str, dict[str, float]]], title: str) -> list[str]:
    """Lines of a table of `in_best` results, by score name and target."""
    lines = [f"| {title} | " + " | ".join(KINDS) + " |", "|" + " --- |" * (len(KINDS) + 1)]
    for name, own in found.items():
        cells = [f"{own[t]['times chance']} ({own[t]['rows']} of {own[t]['of']})" for t in KINDS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def planted(folder: Path, out: Path) -> None:
    """Write, for each score, the share of rows of the target's kind in its best 5%."""
    sources = np.array([source for source, _ in json.loads((folder / "keys.json").read_text())])
    found = defaultdict(dict)
    for target, kinds in KINDS.items():
        of_kind = np.isin(sources, kinds)
        for file in sorted((folder / target).glob("*.npy")):
            found[file.stem][target] = in_best(of_kind, np.load(file))
    lines = [
        f"{len(sources)} rows, best {SHARE:.0%}: rows of the target's kind, in times of chance.",
        "",
        *table_of(found, "scores"),
    ]
    (out / "judged-planted.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / "judged-planted.md").write_text("\n".join(lines) + "\n")


def answer_losses(context: Context, cache: Path) -> dict[str, dict[str, float]]:
    """Mean losses on the text after the prefix of held-out answers, by subset and target."""
    known = json.loads(cache.read_text()) if cache.exists() else {}
    rows = {}
    for target in ("tydiqa", "mmlu"):
        file = context.test_sets[target]
        examples = [
            replace(
                one.example, answer_prefix=one.example.messages[-1]["content"].split(":")[0] + ":"
            )
            for one in file.questions
        ]
        rows[target] = [row.encoded for row in context.encode(examples) if not row.skip_reason]
    artifact, seed = context.artifacts.validation, 0
    for part in parts_of_pool(context).subsets:
        if part.name not in known:
            model = load_trained(context.model, artifact.model(part.name, seed).folder)
            known[part.name] = {t: float(example_losses(model, r).mean()) for t, r in rows.items()}
            cache.write_text(json.dumps(known))
            print(len(known), known[part.name], flush=True)
    return known


def table(run: Path, out: Path) -> None:
    """Write each method's LDS by target, the best mean first."""
    context = Context(load_recipe(run / "recipe.yaml"), RunFolder(run))
    rows = context.artifacts.validation.rows()
    losses = answer_losses(context, run.parent / "answer-losses.json")
    parts = [part.name for part in parts_of_pool(context).subsets]
    lds = defaultdict(dict)
    for row in rows:
        lds[row["method"]][row["target"]] = row["lds"]
        if row["target"] in ("tydiqa", "mmlu") and row["lds"]:
            after = np.array([losses[part][row["target"]] for part in parts])
            lds[row["method"]][f"{row['target']}, answer alone"] = spearman_interval(
                np.array(row["summed"]), -after
            )
    targets = ["tydiqa", "tydiqa, answer alone", "mmlu", "mmlu, answer alone", "gsm8k", "code"]

    def mean(own: dict) -> float:
        return float(np.mean([own[t][0] if own.get(t) else 0.0 for t in targets]))

    order = sorted(lds, key=lambda method: -mean(lds[method]))
    lines = [
        f"LDS over {len(parts)} random subsets of 10% of the pool, with 95% intervals over them;",
        f"losses of {rows[0]['examples']} held-out examples a target: of whole answers, and of",
        "what follows an answer's prefix alone. The mean is over the columns.",
        "",
        "| scores | " + " | ".join(targets) + " | mean |",
        "|" + " --- |" * (len(targets) + 2),
    ]
    for method in order:
        cells = [
            "-" if not (one := lds[method].get(t)) else f"{one[0]:.2f} [{one[1]:.2f}, {one[2]:.2f}]"
            for t in targets
        ]
        lines.append(f"| {method} | " + " | ".join(cells) + f" | {mean(lds[method]):.2f} |")
    (out / "lds.json").write_text(json.dumps({m: lds[m] for m in order}, indent=1) + "\n")
    (out / "lds.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    steps = {"prepare": prepare, "planted": planted, "table": table}
    parser.add_argument("what", choices=(*steps, "methods"))
    parser.add_argument("--run", type=Path, help="the run, or the folder, that a step reads")
    parser.add_argument("--gradients", type=Path, help="what gradients.py has left")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.what == "methods":
        methods(arguments.gradients, arguments.out)
    else:
        steps[arguments.what](arguments.run, arguments.out)


if __name__ == "__main__":
    main()
