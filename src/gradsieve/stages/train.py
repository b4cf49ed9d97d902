"""Stage 6: LoRA on the selection, with the warm-up's settings (method.md, steps 6 and 7).

In: selections, and the model that selected or another one (LESS-T). Out: one peft adapter for each
target and seed in `05-train/TARGET/METHOD/seed-S/`, with its `loss.jsonl`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradsieve.context import Context
from gradsieve.data.examples import Example
from gradsieve.data.formats import messages_of
from gradsieve.recipe import Model, Train
from gradsieve.rundir import fingerprint, folder_fingerprint

if TYPE_CHECKING:
    from gradsieve.data.template import ChatTemplate


_UNUSED = {"checkpoints", "fraction", "micro_batch_size", "seed"}
"""Keys of `warmup` that a training on the selection doesn't depend on."""


def inputs(context: Context) -> dict[str, Any]:
    """What this stage depends on."""
    student = context.with_model(_student(context))
    return {
        "train": _settings(context).model_dump(mode="json"),
        "model": student.model_inputs,
        "warmup": context.recipe.warmup.model_dump(mode="json", exclude=_UNUSED),
        "selection": context.run.done("select")["output"],
    }


def run(context: Context, folder: Path) -> dict[str, Any]:
    """Train an adapter for each target and seed; finished ones are kept."""
    method = context.recipe.score.method
    template = context.with_model(_student(context)).template
    prints = {}
    for target in context.recipe.targets:
        selection = context.run.stage("select") / target.name / method / "selected.jsonl"
        rows = _tokenized(selection, template)
        for seed in _settings(context).seeds:
            out = folder / target.name / method / f"seed-{seed}"
            if not out.is_dir():
                _train(context, rows, seed, out)
            prints[f"{target.name}/{method}/seed-{seed}"] = folder_fingerprint(out)
    return {"adapters": prints, "output": fingerprint(prints)}


def _settings(context: Context) -> Train:
    return context.recipe.train or Train()


def _student(context: Context) -> Model:
    """The model to train: the one that selected, or the one that `train.model` names."""
    model = context.recipe.model
    name = _settings(context).model
    return model if name is None else model.model_copy(update={"name": name, "revision": None})


def _train(context: Context, rows: list[dict[str, list[int]]], seed: int, out: Path) -> None:
    from gradsieve.model.checkpoints import save_adapter
    from gradsieve.model.load import add_adapter, load_model
    from gradsieve.model.training import train_lora

    settings = context.recipe.warmup
    partial = out.with_name(f"{out.name}.tmp")  # the adapter's folder appears whole, or not at all
    what = f"training {out.parent.parent.name}, seed {seed}"
    adapted = add_adapter(load_model(_student(context)), settings.lora, seed)
    with context.progress.counting(what, settings.epochs, "epochs") as report:
        train_lora(
            adapted,
            rows,
            settings,
            seed,
            partial,
            pad_token_id=0,
            on_step=lambda done, total: report(round(settings.epochs * done / total, 2)),
        )
    save_adapter(adapted, partial)
    partial.rename(out)


def _tokenized(selection: Path, template: ChatTemplate) -> list[dict[str, list[int]]]:
    examples = []
    for rank, line in enumerate(selection.read_bytes().splitlines(), start=1):
        row = json.loads(line)
        examples.append(Example("selected", str(rank), messages_of(row), row))
    return [tokens.as_lists() for tokens in template.encode_all(examples) if tokens.n_labels]
