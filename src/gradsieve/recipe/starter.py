"""A recipe to start from: one that ships with the package, or a commented one for the user's data.

In: a name, or paths of the user's data. Out: new files; existing ones are never overwritten.
Rejected: a file with every key (docs/recipe.md lists them), and explicit defaults (they go stale).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from gradsieve.errors import UsageError, did_you_mean
from gradsieve.io import write_text

_TEXT = """\
# Which rows of the pool teach the model the target's skill?
#   gradsieve plan {file}
#   gradsieve run {file} --out runs/first
# Paths are relative to where gradsieve is started. Every key is in docs/recipe.md.
model:
  name: {model}  # a folder, or a model id on the Hugging Face hub
  # chat_template: tulu  # for a base model without a template of its own
  # max_length: 2048     # tokens to which an example is truncated
pool:                    # .jsonl, .json, .parquet or a data set on the hub, in any chat format
{pool}
targets:                 # 5 to 50 examples of the skill: questions with the answers that you want
  - name: {target_name}
    path: {target}
    # subtask: topic     # a field that names subtasks
    {test_mark}test: {test}  # held-out examples, to evaluate on
    # answer: '#### (\\S+)'  # the final answer within an answer, to compare that alone
warmup:                  # LoRA on a random share of the pool: 50 to 100 steps or more
  fraction: 0.05
  epochs: 4
  batch_size: 32
  # micro_batch_size: 4  # if memory runs out
  # learning_rate: 2.0e-4  # for models below about 2 billion parameters,
  # lora: {{r: 32, alpha: 64}}  # and their rank; the defaults are the paper's, for 7 billion
score:
  methods: [less, random]  # docs/methods.md; `random` is what the others have to beat
select:
  fraction: 0.05         # or `count: 1000`, or `tokens: 500000`
{train_mark}train: {{seeds: [0, 1, 2]}}  # train on each selection,
{train_mark}evaluate: {{}}           # and compare the models on the held-out examples
"""


def starter(model: str, pool: Sequence[str], target: str, test: str | None, file: str) -> str:
    """A commented recipe for the user's own data; each source is named after its file.

    Without `test`, the target's held-out examples, the evaluation keys are commented out. `file` is
    the path of the recipe itself, for the commands in its comments.
    """
    return _TEXT.format(
        file=file,
        model=json.dumps(model, ensure_ascii=False),
        pool="\n".join(
            f"  - {{name: {name}, path: {json.dumps(path, ensure_ascii=False)}}}"
            for name, path in zip(_names(pool), pool, strict=True)
        ),
        target_name=_names([target])[0],
        target=json.dumps(target, ensure_ascii=False),
        test_mark="" if test else "# ",
        test=json.dumps(test or "test.jsonl", ensure_ascii=False),
        train_mark="" if test else "# ",
    )


def _names(paths: Sequence[str]) -> list[str]:
    """A unique name for each path, valid in a recipe and quoted for YAML."""
    names: list[str] = []
    for path in paths:
        name = re.sub(r"\.(jsonl?|parquet|gz|zst)\b|[^A-Za-z0-9._-]", "", Path(path).name)[:50]
        name = start = name.strip("._-") or "data"
        number = len(names) + 1
        while name in names:
            name, number = f"{start}-{number}", number + 1
        names.append(name)
    return [json.dumps(name) for name in names]  # quoted: YAML would read some as numbers


def _ready() -> dict[str, Traversable]:
    folder = resources.files("gradsieve.recipe") / "ready"
    return dict(sorted((file.name.removesuffix(".yaml"), file) for file in folder.iterdir()))


def ready_recipes() -> dict[str, str]:
    """A description of each recipe that ships with the package, by name."""
    found = {}
    for name, file in _ready().items():
        comment = re.match(r"(?:#(?!   ).*\n)+", file.read_text(encoding="utf-8"))
        words = re.sub(r"\n?# ?", " ", comment[0]).strip() if comment else ""
        found[name] = words.partition(". ")[0].rstrip(":.")
    return found


def copy_ready(name: str, out: Path) -> tuple[list[Path], list[Path]]:
    """Copy a recipe that ships with the package, and the recipe that it extends, to one folder.

    Returns:
        The files that were written, the recipe first, and existing files that it extends.

    Raises:
        UsageError: If there is no such recipe, or the file already exists.
    """
    known = _ready()
    if name not in known:
        raise UsageError(f"There is no recipe {name}.", "--from", did_you_mean(name, known))
    text = known[name].read_text(encoding="utf-8")
    written, kept = [write_recipe(text, out)], []
    if base := re.search(r"^base: (\S+)\.yaml$", text, re.MULTILINE):
        other = out.with_name(f"{base[1]}.yaml")
        if other.exists():
            kept = [other]
        else:
            more, kept = copy_ready(base[1], other)
            written += more
    return written, kept


def write_recipe(text: str, out: Path) -> Path:
    """Write a new file; an existing one is refused."""
    if out.exists():
        raise UsageError("The file is there already.", str(out), "Name another one with --out.")
    write_text(out, text)
    return out
