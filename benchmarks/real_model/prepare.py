"""Writes the pool, targets and recipe for the measurements on a real pretrained model.

    python benchmarks/real_model/prepare.py --data ../shared/data --model SMOLLM2 --out OUT

The pool is 3,000 rows drawn at random from eleven public sources, and 240 needles: TyDiQA's
training rows in English, Swahili and Korean (40 each) and MMLU's validation questions (120).
`--rows`, `--needles` (a share of these 240) and `--characters` make a smaller pool, with rows short
enough to train on a hundred times (judged.py).
Targets: TyDiQA, MMLU and BBH in the paper's layout, and eight examples each from GSM8K and
GPTeacher's code, whose other held-out rows are used for evaluation. Writes `pool/`, `targets/` and
`recipe.yaml`. With `--questions N` it also writes copies of the benchmarks with fewer held-out
questions: `tydiqa-english`, `tydiqa-one` (whose only target example is the English one) and `mmlu`
(the first N of each subject). For the warm-ups:
`gradsieve run OUT/recipe.yaml --out OUT/W20 --until warmup`.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import shutil
from pathlib import Path

import yaml
from trained import few_questions

LANGUAGES = ("english", "swahili", "korean")
EACH_LANGUAGE, MMLU_ROWS, REAL_ROWS = 40, 120, 3000


def lines_of(file: Path) -> list[bytes]:
    """The lines of a JSONL file, unparsed."""
    return [line for line in file.read_bytes().split(b"\n") if line]


def write(file: Path, lines: list[bytes]) -> None:
    """Write lines as a JSONL file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"\n".join(lines) + b"\n")


def write_pool(
    data: Path, out: Path, rows: int, needle_share: float, characters: int | None
) -> list[dict[str, str]]:
    """Draw and write the pool; returns the recipe's `pool` section."""
    rng = random.Random(0)
    sources = {file.stem: lines_of(file) for file in sorted((data / "train").glob("*.jsonl"))}
    code = sources["gpteacher_code"]
    rng.shuffle(code)
    # The last 400 rows of code are used for the target and its evaluation.
    sources["gpteacher_code"], held_out = code[:-400], code[-400:]
    everything = [(name, line) for name, lines in sources.items() for line in lines]
    short = [one for one in everything if characters is None or len(one[1]) <= characters]
    drawn = rng.sample(short, rows)
    needles = lines_of(data / "planted" / "planted_tydiqa_train.jsonl")
    for language in LANGUAGES:
        own = [line for line in needles if json.loads(line)["id"].startswith(language)]
        drawn += [
            (f"planted_{language}", line)
            for line in rng.sample(own, round(needle_share * EACH_LANGUAGE))
        ]
    questions = lines_of(data / "planted" / "planted_mmlu_val.jsonl")
    some = rng.sample(questions, round(needle_share * MMLU_ROWS))
    drawn += [("planted_mmlu", line) for line in some]
    names = sorted({name for name, _ in drawn})
    for name in names:
        write(out / "pool" / f"{name}.jsonl", [line for own, line in drawn if own == name])
    write(out / "targets" / "code.jsonl", held_out[:8])
    write(out / "targets" / "code-test.jsonl", held_out[8:])
    return [{"name": name, "path": str(out / "pool" / f"{name}.jsonl")} for name in names]


def write_gsm8k(data: Path, out: Path) -> None:
    """Write eight examples of GSM8K as a target, and the others for evaluation."""
    rows = [json.loads(line) for line in lines_of(data / "eval" / "gsm8k" / "test.jsonl")]
    turns = [
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": row["question"]},
                    {"role": "assistant", "content": row["answer"]},
                ]
            }
        ).encode()
        for row in rows
    ]
    write(out / "targets" / "gsm8k.jsonl", turns[:8])
    write(out / "targets" / "gsm8k-test.jsonl", turns[8:])


def write_few_questions(data: Path, out: Path, each: int) -> None:
    """Write TyDiQA's questions in English, and the first questions of each subject of MMLU."""
    english = few_questions(data / "tydiqa", out, ("english",), 1000)
    one = out / "tydiqa-one"
    shutil.copytree(english, one, dirs_exist_ok=True)
    example = json.loads((data / "tydiqa" / "tydiqa-one-shot.json").read_text())["english"]
    (one / "tydiqa-one-shot.json").write_text(json.dumps({"english": example}))
    shutil.copytree(data / "mmlu" / "dev", out / "mmlu" / "dev", dirs_exist_ok=True)
    for file in sorted((data / "mmlu" / "test").glob("*.csv")):
        copy = out / "mmlu" / "test" / file.name
        copy.parent.mkdir(exist_ok=True)
        with file.open(newline="") as questions, copy.open("w", newline="") as few:
            csv.writer(few).writerows(list(csv.reader(questions))[:each])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=REAL_ROWS)
    parser.add_argument("--needles", type=float, default=1.0, help="share of the 240 needles")
    parser.add_argument("--characters", type=int, help="the most of a real row's JSON")
    parser.add_argument("--questions", type=int, help="MMLU's held-out questions of a subject")
    parser.add_argument("--max-length", type=int, default=1024)
    arguments = parser.parse_args()
    data, out = arguments.data.resolve(), arguments.out.resolve()
    pool = write_pool(data, out, arguments.rows, arguments.needles, arguments.characters)
    write_gsm8k(data, out)
    if arguments.questions:
        write_few_questions(data / "eval", out, arguments.questions)
    benchmarks = [
        {"name": name, "task": name, "path": str(data / "eval" / name)}
        for name in ("tydiqa", "mmlu", "bbh")
    ]
    own = [
        {
            "name": name,
            "path": str(out / "targets" / f"{name}.jsonl"),
            "test": str(out / "targets" / f"{name}-test.jsonl"),
        }
        for name in ("gsm8k", "code")
    ]
    recipe = {
        "model": {"name": str(arguments.model.resolve()), "max_length": arguments.max_length},
        "pool": pool,
        "targets": benchmarks + own,
        "warmup": {
            "learning_rate": 1e-4,
            "micro_batch_size": 2,
            "lora": {"r": 8, "alpha": 32},
        },
    }
    (out / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))


if __name__ == "__main__":
    main()
