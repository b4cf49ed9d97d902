"""Stage 6: LoRA on the selection, with the warm-up's settings (method.md, steps 6 and 7).

In: selections, and the model that selected or another one (LESS-T). Out: one peft adapter (or, with
`full_parameters`, a model) for each target, method and seed in `05-train/TARGET/METHOD/seed-S/`,
with its `loss.jsonl`.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradsieve.data.examples import Example
from gradsieve.data.formats import conversation_of
from gradsieve.io import agree, fingerprint, read_lines
from gradsieve.models import distributed
from gradsieve.recipe.schema import Recipe, TrainConfig
from gradsieve.runs.artifacts import StageArtifact, TrainedModel
from gradsieve.runs.context import Context
from gradsieve.stages.base import Inputs, Stage

if TYPE_CHECKING:
    from gradsieve.data.template import ChatTemplate, TokenizedExample


class Train(Stage):
    """A model for every target, method and seed."""

    name = "train"
    distributed = True

    def artifact(self, context: Context) -> StageArtifact:
        """What it leaves."""
        return context.artifacts.models

    def fingerprint_inputs(self, context: Context) -> dict[str, Any]:
        """What this stage depends on."""
        return {
            "train": _settings(context).results(),
            "seeds": _settings(context).seeds,
            "model": context.student.model_inputs,
            "training": context.recipe.training.results(),
            "selections": context.artifacts.selections.fingerprints,
        }

    def can_extend(self, old: Inputs, new: Inputs) -> bool:
        """Whether adapters are kept: other seeds, methods and targets may come, and some may go."""
        varies = {"seeds": None, "selections": None}
        same = {**old, **varies} == {**new, **varies}
        return same and agree(old["selections"], new["selections"])

    def run(self, context: Context, folder: Path) -> dict[str, Any]:
        """Train a model for each target, method and seed; finished ones are kept."""
        template = context.student.template
        prints: dict[str, str] = {}
        seconds: dict[str, float] = {}
        trained: dict[tuple[str, int], TrainedModel] = {}
        for name, selection in context.artifacts.selections.fingerprints.items():
            for seed in _settings(context).seeds:
                model = context.artifacts.models.model(f"{name}/seed-{seed}")
                twin = trained.setdefault((selection, seed), model)
                if distributed.is_first():
                    _make_room(context, model, selection)
                    if not model.exists() and twin != model:
                        model.copy_from(twin)  # the same rows for another target
                if distributed.agreed(not model.exists()):
                    target, method = name.split("/")
                    files = context.artifacts.selections.selection(target, method)
                    rows = _tokenized(files.messages, template)
                    _train(context, rows, seed, model, selection)
                prints[f"{name}/seed-{seed}"] = model.fingerprint
                seconds[f"{name}/seed-{seed}"] = model.training()["seconds"]
        return {"models": prints, "seconds_by_model": seconds, "output": fingerprint(prints)}

    def needed(self, recipe: Recipe) -> bool:
        """If models are to be trained, or evaluated."""
        return bool(recipe.train or recipe.evaluate)


def _make_room(context: Context, model: TrainedModel, selection: str) -> None:
    """Remove what is left of a lost model; archive one of another selection."""
    if not model.exists():
        shutil.rmtree(model.folder, ignore_errors=True)
    elif model.training().get("selection") not in (None, selection):
        context.run.archive_part(model.folder)  # of a method that was removed, and is back


def _settings(context: Context) -> TrainConfig:
    return context.recipe.train or TrainConfig()


def _train(
    context: Context, rows: list[TokenizedExample], seed: int, out: TrainedModel, selection: str
) -> None:
    """Train one model; its folder appears whole, or not at all."""
    from gradsieve.data.batching import collate
    from gradsieve.models.training import clear_work, train_model

    settings = context.recipe.training
    partial = out.partial
    target, method = out.folder.parts[-3:-1]
    what = f"training {target}, {method}, seed {seed}"
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
        clear_work(partial)
        out.publish({"seconds": seconds, "rows": len(rows), "selection": selection})
    distributed.wait()


def _save(context: Context, model: Any, partial: Path) -> None:
    from gradsieve.models.checkpoints import save_adapter

    if _settings(context).full_parameters:
        model.save_pretrained(str(partial))
        context.student.template.tokenizer.save_pretrained(str(partial))
    else:
        save_adapter(model, partial)


def _untrained(context: Context, seed: int) -> Any:
    from gradsieve.models.load import add_adapter, load_model

    whole = _settings(context).full_parameters
    model = load_model(context.student.recipe.model, will_change=whole)
    if whole:
        return model.requires_grad_(True)
    return add_adapter(model, context.recipe.training.lora, seed)


def _tokenized(selection: Path, template: ChatTemplate) -> list[TokenizedExample]:
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


STAGE = Train()
