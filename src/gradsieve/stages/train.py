"""Stage 6: LoRA on the selection, with the warm-up's settings (method.md, steps 6 and 7).

In: selections, and the model that selected or another one (LESS-T). Out: one peft adapter (or, with
`full_parameters`, a model) for each target, method and seed in `05-train/TARGET/METHOD/seed-S/`,
with its `loss.jsonl`.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradsieve.data.examples import Example
from gradsieve.data.formats import conversation_of
from gradsieve.io import agree, fingerprint, folder_fingerprint, read_lines, write_json
from gradsieve.models import distributed
from gradsieve.recipe.schema import TrainConfig, WarmupConfig
from gradsieve.runs.context import Context
from gradsieve.selection.card import MESSAGES

if TYPE_CHECKING:
    from gradsieve.data.template import ChatTemplate, Encoded


COST = "training.json"
"""Of a trained model's folder: what it took, and what it was trained on."""

_UNUSED = {"checkpoints", "fraction", "micro_batch_size", "report_to", "seed"}
"""Keys of `warmup` that a training on the selection doesn't depend on."""


def inputs(context: Context) -> dict[str, Any]:
    """What this stage depends on."""
    return {
        "train": _settings(context).model_dump(mode="json", exclude={"seeds"}),
        "seeds": _settings(context).seeds,
        "model": context.student.model_inputs,
        "warmup": context.recipe.warmup.model_dump(mode="json", exclude=_UNUSED),
        "selections": context.run.done("select")["selections"],
    }


def goes_on_with(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether adapters are kept: other seeds, methods and targets may come, and some may go."""
    varies = {"seeds": None, "selections": None}
    same = {**old, **varies} == {**new, **varies}
    return same and agree(old["selections"], new["selections"])


def lost(folder: Path) -> list[str]:
    """Models that were there when the stage was finished, and are not."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    return [str(folder / name) for name in meta["models"] if not _has_weights(folder / name)]


def run(context: Context, folder: Path) -> dict[str, Any]:
    """TrainConfig a model for each target, method and seed; finished ones are kept."""
    template = context.student.template
    prints: dict[str, str] = {}
    seconds: dict[str, float] = {}
    trained: dict[tuple[str, int], Path] = {}
    for name, selection in context.run.done("select")["selections"].items():
        for seed in _settings(context).seeds:
            out = folder / name / f"seed-{seed}"
            twin = trained.setdefault((selection, seed), out)
            if distributed.is_first() and not _has_weights(out):
                shutil.rmtree(out, ignore_errors=True)  # what is left of one that was lost
            if distributed.is_first() and out.is_dir() and _selection(out) not in (None, selection):
                context.run.keep_old(out)  # of a method that had gone, and has come back
            if distributed.is_first() and not out.is_dir() and twin != out:
                _copy(twin, out)  # the same rows for another target
            if distributed.agreed(not out.is_dir()):
                rows = _tokenized(context.run.stage("select") / name / MESSAGES, template)
                _train(context, rows, seed, out, selection)
            prints[f"{name}/seed-{seed}"] = folder_fingerprint(out, ("*.safetensors",))
            seconds[f"{name}/seed-{seed}"] = json.loads((out / COST).read_text())["seconds"]
    return {"models": prints, "seconds_by_model": seconds, "output": fingerprint(prints)}


def _has_weights(model: Path) -> bool:
    return any(model.glob("*.safetensors"))


def _settings(context: Context) -> TrainConfig:
    return context.recipe.train or TrainConfig()


def _copy(twin: Path, out: Path) -> None:
    partial = out.with_name(f"{out.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(twin, partial)
    partial.rename(out)


def _selection(model: Path) -> str | None:
    """The fingerprint of the selection that it was trained on; None if none was noted."""
    told: dict[str, Any] = json.loads((model / COST).read_text(encoding="utf-8"))
    return told.get("selection")


def _train(context: Context, rows: list[Encoded], seed: int, out: Path, selection: str) -> None:
    """TrainConfig one model; its folder appears whole, or not at all."""
    from gradsieve.data.batching import collate
    from gradsieve.models.training import clear_work, train_model

    settings = _schedule(context)
    partial = out.with_name(f"{out.name}.tmp")
    what = f"training {out.parent.parent.name}, {out.parent.name}, seed {seed}"
    start = time.monotonic()
    model = _untrained(context, seed)
    with context.progress.counting(what, settings.epochs, "epochs") as report:
        train_model(
            model,
            rows,
            settings,
            seed,
            partial,
            collate=collate,
            on_step=lambda done, total: report(round(settings.epochs * done / total, 2)),
        )
    if distributed.is_first():
        _save(context, model, partial)
        seconds = round(time.monotonic() - start, 3)
        told = {"seconds": seconds, "rows": len(rows), "selection": selection}
        write_json(partial / COST, told)
        clear_work(partial)
        partial.rename(out)
    distributed.wait()


def _save(context: Context, model: Any, partial: Path) -> None:
    from gradsieve.models.checkpoints import save_adapter

    if _settings(context).full_parameters:
        model.save_pretrained(str(partial))
        context.student.template.tokenizer.save_pretrained(str(partial))
    else:
        save_adapter(model, partial)


def _schedule(context: Context) -> WarmupConfig:
    """The warm-up's settings, with what `train` has of its own."""
    own = _settings(context).model_dump(include={"epochs", "learning_rate"}, exclude_none=True)
    return context.recipe.warmup.model_copy(update=own)


def _untrained(context: Context, seed: int) -> Any:
    from gradsieve.models.load import add_adapter, load_model

    whole = _settings(context).full_parameters
    model = load_model(context.student.recipe.model, will_change=whole)
    if whole:
        return model.requires_grad_(True)
    return add_adapter(model, context.recipe.warmup.lora, seed)


def _tokenized(selection: Path, template: ChatTemplate) -> list[Encoded]:
    """The rows of `messages.jsonl`, which says of each turn whether it is supervised."""
    examples = []
    for rank, row in enumerate(read_lines(selection), start=1):
        told = conversation_of(row)
        examples.append(
            Example(
                "selected", str(rank), told.messages, tools=told.tools, supervised=told.supervised
            )
        )
    return [tokens for tokens in template.encode_all(examples) if tokens.n_labels]
