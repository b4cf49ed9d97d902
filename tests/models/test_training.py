"""A killed and resumed training ends with the same bytes as an uninterrupted one."""

import math
import random
import shutil
import sys
import types
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler
from peft import PeftModel
from transformers import TrainerCallback, set_seed
from transformers.integrations import integration_utils

import tiny
from gradsieve.data.examples import TokenizedExample
from gradsieve.errors import ModelError, UsageError
from gradsieve.gradients.objectives import SFT, Sft
from gradsieve.io import file_fingerprint, read_lines
from gradsieve.models.checkpoints import save_adapter
from gradsieve.models.load import add_adapter
from gradsieve.models.training import (
    MARK,
    StepsByLength,
    check_trackers,
    clear_work,
    train_model,
)
from gradsieve.recipe import schema as recipe
from world import Killed

SETTINGS = recipe.WarmupConfig(
    epochs=3, learning_rate=1e-3, batch_size=4, lora=recipe.LoraConfig(r=2, alpha=8, dropout=0.2)
)


def fresh() -> PeftModel:
    return add_adapter(tiny.model(), SETTINGS.lora, seed=0)


def rows() -> list[TokenizedExample]:
    batches = (tiny.batch((8 + seed,), seed=seed) for seed in range(10))
    keys = ("input_ids", "labels")
    return [
        TokenizedExample(*(array("i", batch[key][0].tolist()) for key in keys)) for batch in batches
    ]


def train(
    folder: Path, kill_at: int | None = None, settings: recipe.WarmupConfig = SETTINGS
) -> None:
    def on_step(done: int, total: int) -> None:
        assert total == 9
        if done == kill_at:
            raise Killed

    train_model(fresh(), rows(), settings, 0, folder, SFT, on_step, keep_checkpoints=True)
    clear_work(folder)


def prints(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): file_fingerprint(path) for path in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted training; tests must not change it."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder)
    return folder


@pytest.fixture(scope="module")
def killed_at_8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training, killed in the last epoch; tests must not change it."""
    folder = tmp_path_factory.mktemp("killed")
    with pytest.raises(Killed):
        train(folder, 8)
    return folder


def test_a_checkpoint_each_epoch_and_the_loss_curve(whole: Path) -> None:
    assert sorted(path.name for path in whole.iterdir()) == [
        "checkpoint-1",
        "checkpoint-2",
        "checkpoint-3",
        "loss.jsonl",
    ]
    assert len((whole / "loss.jsonl").read_text().splitlines()) == 9


def test_a_training_that_diverges_is_stopped(tmp_path: Path) -> None:
    model = fresh()
    with torch.no_grad():
        next(iter(tiny.weights(model).values())).fill_(math.nan)
    with pytest.raises(ModelError, match="its loss is nan") as caught:
        train_model(model, rows(), SETTINGS, 0, tmp_path, SFT, lambda *_: None)
    assert "step 1 of 9" in caught.value.where
    assert "learning rate" in caught.value.todo


def test_the_callers_random_states_are_restored(tmp_path: Path) -> None:
    def states() -> list[Any]:
        return [
            random.getstate(),
            np.random.get_state()[1].tolist(),
            torch.get_rng_state().tolist(),
        ]

    base, examples = tiny.model(), rows()  # both set torch's seed
    set_seed(7)
    before = states()
    model = add_adapter(base, SETTINGS.lora, seed=0)
    assert states() == before
    train_model(model, examples, SETTINGS, 0, tmp_path, SFT, lambda *_: None)
    assert states() == before


@pytest.mark.parametrize("kill_at", [2, 5, 9])
def test_killed_and_resumed_is_byte_for_byte_the_same(
    tmp_path: Path, whole: Path, kill_at: int
) -> None:
    with pytest.raises(Killed):
        train(tmp_path, kill_at)
    train(tmp_path)
    assert prints(tmp_path) == prints(whole)


@pytest.mark.parametrize(
    "damaged",
    ["trainer/checkpoint-6/optimizer.pt", "trainer/checkpoint-6/gradsieve-whole",
     "checkpoint-1/adam.safetensors"],
)  # fmt: skip
@pytest.mark.parametrize("how", ["flipped", "cut off", "removed"])
def test_a_damaged_checkpoint_is_not_resumed(
    tmp_path: Path, whole: Path, killed_at_8: Path, damaged: str, how: str
) -> None:
    shutil.copytree(killed_at_8, tmp_path / "killed")
    file = tmp_path / "killed" / damaged
    content = file.read_bytes()
    middle = len(content) // 2
    file.write_bytes(content[:middle])
    if how == "flipped":
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :])
    elif how == "removed":
        file.unlink()
    train(tmp_path / "killed")
    assert prints(tmp_path / "killed") == prints(whole)


def test_a_training_of_other_rows_is_not_resumed(tmp_path: Path) -> None:
    def trained(folder: Path, of: str, some: list[TokenizedExample], kill_at: int = 0) -> Any:
        def on_step(done: int, _: int) -> None:
            if done == kill_at:
                raise Killed

        model = fresh()
        _, earlier = train_model(model, some, SETTINGS, 0, folder, SFT, on_step, of=of)
        assert earlier == 0
        return {name: p.clone() for name, p in tiny.weights(model).items()}

    whole = trained(tmp_path / "whole", "b", rows()[::-1])
    with pytest.raises(Killed):
        trained(tmp_path / "killed", "a", rows(), kill_at=5)
    found = trained(tmp_path / "killed", "b", rows()[::-1])
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_what_is_trained_but_not_saved_is_not_trained_again(tmp_path: Path) -> None:
    steps: list[int] = []
    adapters, seconds = [], []

    def on_step(done: int, _: int) -> None:
        steps.append(done)

    for _ in range(2):  # the second finds what the first left when it was killed while saving
        model = fresh()
        _, earlier = train_model(model, rows(), SETTINGS, 0, tmp_path, SFT, on_step)
        seconds.append(earlier)
        adapters.append({name: p.clone() for name, p in model.named_parameters()})
    assert steps == list(range(1, 10))
    assert seconds[0] == 0 < seconds[1]
    assert all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])
    clear_work(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["loss.jsonl"]


@pytest.mark.parametrize("steps", [2, 7])  # less than one epoch, and into the third
def test_max_steps_are_made_whatever_the_epochs(tmp_path: Path, steps: int) -> None:
    def trained(folder: Path, kill_at: int | None = None) -> int:
        def on_step(done: int, total: int) -> None:
            assert total == steps
            if done == kill_at:
                raise Killed

        model, settings = fresh(), SETTINGS.model_copy(update={"epochs": 1})
        made, _ = train_model(model, rows(), settings, 0, folder, SFT, on_step, max_steps=steps)
        clear_work(folder)
        save_adapter(model, folder)
        return made

    assert trained(tmp_path / "whole") == steps
    with pytest.raises(Killed):
        trained(tmp_path / "killed", kill_at=steps - 1)
    assert trained(tmp_path / "killed") == steps
    assert prints(tmp_path / "killed") == prints(tmp_path / "whole")
    losses = (tmp_path / "whole" / "loss.jsonl").read_text().splitlines()
    assert len(losses) == steps


def test_a_torn_checkpoint_is_not_resumed_from(
    tmp_path: Path, whole: Path, killed_at_8: Path
) -> None:
    shutil.copytree(killed_at_8, tmp_path / "killed")
    torn = tmp_path / "killed" / "trainer" / "checkpoint-6"
    (torn / MARK).unlink()
    (torn / "optimizer.pt").write_bytes(b"half")
    train(tmp_path / "killed")
    assert prints(tmp_path / "killed") == prints(whole)


def test_learning_rates_fall_from_epoch_to_epoch(whole: Path) -> None:
    from gradsieve.models.checkpoints import load_learning_rates

    rates = load_learning_rates([whole / f"checkpoint-{i}" for i in (1, 2, 3)])
    assert rates is not None
    assert rates[1] > rates[2] > 0
    assert rates[2] < 1e-3 / 3


@pytest.mark.parametrize("counts_tokens", [True, False])
@pytest.mark.parametrize("name", ["llama-gqa-tied", "gemma2-soft-caps", "gpt2"])
def test_losses_are_those_of_full_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, counts_tokens: bool
) -> None:
    """This includes accumulated micro-batches, whether or not the model counts a step's tokens."""
    settings = SETTINGS.model_copy(update={"micro_batch_size": 2, "epochs": 1})

    def losses(folder: Path) -> list[float]:
        model = tiny.adapted(name, dropout=0.0)
        model.get_base_model().accepts_loss_kwargs = counts_tokens
        train_model(model, rows(), settings, 0, folder, SFT, lambda *_: None)
        return [row["loss"] for row in read_lines(folder / "loss.jsonl")]

    found = losses(tmp_path / "labels")
    monkeypatch.setattr(Sft, "fits", lambda *_: False)
    wanted = losses(tmp_path / "full")
    assert found == pytest.approx(wanted, rel=1e-5)
    assert len(set(wanted)) == 3


def test_a_models_own_loss_is_trained_where_it_is_another(tmp_path: Path) -> None:
    """The loss can't be computed from the output layer alone."""
    model = fresh()
    base = model.get_base_model()
    own = base.loss_function
    base.loss_function = lambda *given, **named: 2 * own(*given, **named)
    once = {"max_steps": 1}
    train_model(model, rows(), SETTINGS, 0, tmp_path, SFT, lambda *_: None, **once)
    train_model(fresh(), rows(), SETTINGS, 0, tmp_path / "plain", SFT, lambda *_: None, **once)
    first, plain = (
        next(iter(read_lines(folder / "loss.jsonl")))["loss"]
        for folder in (tmp_path, tmp_path / "plain")
    )
    assert first == pytest.approx(2 * plain, rel=1e-5)


def test_micro_batches_change_nothing_but_rounding(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    """The dropout is 0.2."""
    settings = SETTINGS
    cut = settings.model_copy(update={"micro_batch_size": 2})
    for name, chosen in (("whole", settings), ("cut", cut)):
        model = add_adapter(tiny.model(), chosen.lora, seed=0)
        train_model(model, rows(), chosen, 0, tmp_path / name, SFT, lambda *_: None, True)
    whole, halves = (
        load_file(tmp_path / name / "checkpoint-3" / "adapter_model.safetensors")
        for name in ("whole", "cut")
    )
    for name, weight in whole.items():
        assert float((weight - halves[name]).abs().max()) < 2e-4, name


class Full(Sft):
    """An objective for which memory has room for `room` rows, from the micro-batch `after` on."""

    def __init__(self, room: int, after: int) -> None:
        self.room, self.left = room, after

    def batch_loss(self, model: Any, batch: Any, count: Any = None) -> torch.Tensor:
        if model.training:
            self.left -= 1
            if self.left < 0 and len(batch["labels"]) > self.room:
                raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().batch_loss(model, batch, count)


def test_a_training_without_enough_memory_goes_on_with_fewer_rows_at_once(tmp_path: Path) -> None:
    halves = SETTINGS.model_copy(update={"micro_batch_size": 2})
    train(tmp_path / "halves", settings=halves)
    said: list[str] = []
    for name, after in (("first", 1), ("later", 4)):  # in the first epoch, in the second
        given = (fresh(), rows(), SETTINGS, 0, tmp_path / name, Full(2, after), lambda *_: None)
        assert train_model(*given, keep_checkpoints=True, warn=said.append) == (9, 0.0)
        clear_work(tmp_path / name)
    assert prints(tmp_path / "first") == prints(tmp_path / "halves")
    assert len(list(read_lines(tmp_path / "later" / "loss.jsonl"))) == 9
    assert "micro_batch_size: 2" in said[0]
    assert len(said) == 2
    with pytest.raises(ModelError, match="with a single example"):
        train_model(fresh(), rows(), SETTINGS, 0, tmp_path, Full(0, 0), lambda *_: None)


@pytest.mark.parametrize(
    ("batch_size", "message"), [(4, "Memory runs out."), (2, "with a single example")]
)
def test_of_several_processes_none_starts_again(
    batch_size: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OfTwo(Full):
        def batch_loss(self, model: Any, *given: Any) -> torch.Tensor:
            if model.training:
                monkeypatch.setattr("gradsieve.models.distributed.count", lambda: 2)
            return super().batch_loss(model, *given)

    settings = SETTINGS.model_copy(update={"batch_size": batch_size})
    with pytest.raises(ModelError, match=message):
        train_model(fresh(), rows(), settings, 0, tmp_path, OfTwo(0, 0), lambda *_: None)


def test_rows_of_a_step_are_those_of_a_random_order_longest_first() -> None:
    lengths = np.random.default_rng(0).integers(1, 99, 22).astype(np.int32)
    sampler = StepsByLength(lengths, 8, seed=3)
    for epoch in range(2):
        plain = SeedableRandomSampler(lengths, data_seed=3)
        plain.set_epoch(epoch)
        sampler.set_epoch(epoch)
        wanted, found = list(plain), list(sampler)
        for start in range(0, 22, 8):
            step = found[start : start + 8]
            assert sorted(step) == sorted(wanted[start : start + 8])
            assert np.all(np.diff(lengths[step]) <= 0)


def test_each_epoch_has_its_own_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    epochs = []

    def order(sampler: StepsByLength) -> Iterator[int]:
        epochs.append(sampler.epoch)
        yield from range(len(sampler))

    monkeypatch.setattr(StepsByLength, "__iter__", order)
    train(tmp_path)
    assert epochs == [0, 1, 2]


class Tracker(TrainerCallback):
    """A stand-in for TensorBoard's callback that writes to the same default folder."""

    losses: list[float] = []  # noqa: RUF012 - Trainer creates the object

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.losses += [logs["loss"]] if "loss" in logs else []
        file = Path(args.output_dir) / "runs" / "events"
        file.parent.mkdir(exist_ok=True)
        file.write_text(args.run_name)


def test_trackers_get_the_losses_by_trainers_own_integrations(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Tracker)
    train(tmp_path / "a", settings=SETTINGS.model_copy(update={"report_to": ["tensorboard"]}))
    assert len(Tracker.losses) == 9
    events = tmp_path / "a" / "tensorboard" / "events"
    assert events.read_text() == str(tmp_path / "a")
    events.unlink()
    assert prints(tmp_path / "a") == prints(whole)


def test_every_training_is_a_run_of_its_own_in_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []
    module = types.ModuleType("wandb")
    monkeypatch.setattr(module, "finish", lambda: ended.append("run"), raising=False)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", Tracker)
    settings = SETTINGS.model_copy(update={"report_to": ["wandb"]})
    for number in (1, 2):
        train(tmp_path / f"{number}.tmp", settings=settings)
        events = tmp_path / f"{number}.tmp" / "tensorboard" / "events"
        assert events.read_text() == str(tmp_path / str(number))
        assert len(ended) == number


def test_a_tracker_that_is_not_installed() -> None:
    check_trackers([])
    with pytest.raises(UsageError, match="trackio is not installed") as caught:
        check_trackers(["trackio"])
    assert "pip install trackio" in caught.value.todo
