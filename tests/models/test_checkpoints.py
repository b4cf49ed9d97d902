"""Adam's moments by name: our files, and every optimizer file that transformers' Trainer writes."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import Trainer, TrainingArguments

import tiny
from gradsieve.errors import ModelError
from gradsieve.models.checkpoints import (
    checkpoint_fingerprint,
    load_learning_rates,
    load_moments,
    save_checkpoint,
    saved_name,
)
from gradsieve.models.load import load_adapter


def trained(steps: int = 3) -> tuple[PeftModel, torch.optim.Optimizer]:
    model = tiny.adapted()
    optimizer = torch.optim.AdamW(tiny.weights(model).values(), lr=1e-3)
    tiny.stepped(model, optimizer, steps)
    return model, optimizer


def named_state(model: PeftModel, optimizer: torch.optim.Optimizer) -> dict[str, dict]:
    return {name: optimizer.state[p] for name, p in tiny.weights(model).items()}


def assert_same(model: PeftModel, folder: Path, state: dict[str, dict]) -> None:
    exp_avg, exp_avg_sq, step, *_ = load_moments(folder, model)
    assert step == 3
    assert list(exp_avg) == list(exp_avg_sq) == list(state)
    for name, values in state.items():
        assert torch.equal(exp_avg[name], values["exp_avg"])
        assert torch.equal(exp_avg_sq[name], values["exp_avg_sq"])


def test_round_trip(tmp_path: Path) -> None:
    model, optimizer = trained()
    save_checkpoint(model, optimizer, tmp_path, learning_rate=2e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adam.safetensors",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    loaded = load_adapter(tiny.model(), tmp_path)
    assert_same(loaded, tmp_path, named_state(model, optimizer))
    assert load_learning_rates([tmp_path]) == [2e-5]
    weights = tiny.weights(loaded)
    assert all(torch.equal(weights[name], p) for name, p in tiny.weights(model).items())


def test_optimizer_pt_with_integer_keys(tmp_path: Path) -> None:
    """The format that Trainer writes: a real Trainer and a real file."""
    model = tiny.adapted()
    rows = [{k: v[0] for k, v in tiny.batch((12,), seed=seed).items()} for seed in range(6)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=2,
        num_train_epochs=1,
        logging_steps=1,
        save_strategy="epoch",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    folder = tmp_path / "checkpoint-3"
    assert (folder / "optimizer.pt").is_file()
    state = named_state(model, trainer.optimizer.optimizer)
    assert_same(load_adapter(tiny.model(), folder), folder, state)
    logged = [log["learning_rate"] for log in trainer.state.log_history if "learning_rate" in log]
    assert load_learning_rates([folder]) == [pytest.approx(sum(logged) / 3)]


@pytest.mark.parametrize("wrapper", ["", "module.", "_fsdp_wrapped_module."])
def test_optimizer_bin_with_names(tmp_path: Path, wrapper: str) -> None:
    """The format that FSDP writes, which LESS's released code requires."""
    model, optimizer = trained()
    model.save_pretrained(str(tmp_path))
    state = named_state(model, optimizer)
    named = {wrapper + name: values for name, values in state.items()}
    torch.save({"state": named, "param_groups": []}, tmp_path / "optimizer.bin")
    assert_same(model, tmp_path, state)


def trainer_state(folder: Path, step: int, logs: list[dict]) -> Path:
    folder.mkdir(parents=True)
    state = {"global_step": step, "log_history": logs}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    return folder


def test_learning_rates_are_means_since_the_checkpoint_before(tmp_path: Path) -> None:
    logs = [{"step": step, "learning_rate": float(step)} for step in range(1, 7)]
    folders = [trainer_state(tmp_path / f"checkpoint-{s}", s, logs[:s]) for s in (2, 6)]
    assert load_learning_rates(folders) == [1.5, 4.5]
    assert load_learning_rates([tmp_path]) is None


def test_learning_rates_of_two_trainings_do_not_mix(tmp_path: Path) -> None:
    folders = [
        trainer_state(tmp_path / run / "checkpoint-2", 2, [{"step": 1, "learning_rate": rate}])
        for run, rate in (("a", 1.0), ("b", 3.0))
    ]
    assert load_learning_rates(folders) == [1.0, 3.0]


def test_checkpoints_in_another_order_are_refused(tmp_path: Path) -> None:
    logs = [{"step": step, "learning_rate": 1.0} for step in range(1, 7)]
    folders = [trainer_state(tmp_path / f"checkpoint-{s}", s, logs[:s]) for s in (2, 6)]
    for wrong in (folders[::-1], [folders[0], folders[0]]):
        with pytest.raises(ModelError, match="not in the order") as caught:
            load_learning_rates(wrong)
        assert "after step" in caught.value.where


def test_learning_rates_are_unknown_where_nothing_was_logged(tmp_path: Path) -> None:
    logs = [{"step": 1, "learning_rate": 1.0}]
    folders = [trainer_state(tmp_path / f"checkpoint-{s}", s, logs) for s in (2, 6)]
    assert load_learning_rates(folders) is None


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), -1e-4])
def test_learning_rates_that_are_none_are_refused(tmp_path: Path, rate: float) -> None:
    theirs = trainer_state(tmp_path / "theirs", 2, [{"step": 1, "learning_rate": rate}])
    save_checkpoint(*trained(), tmp_path / "ours", learning_rate=rate)
    for folder in (theirs, tmp_path / "ours"):
        with pytest.raises(ModelError, match="learning rate") as caught:
            load_learning_rates([folder])
        assert str(folder) in caught.value.where


def test_a_mismatch_names_the_parameter_and_both_shapes(tmp_path: Path) -> None:
    model, optimizer = trained()
    save_checkpoint(model, optimizer, tmp_path, 1e-5)
    with pytest.raises(ModelError) as caught:
        load_moments(tmp_path, tiny.adapted(r=2))
    assert "layers.0.self_attn.q_proj.lora_A" in caught.value.where
    assert "expected (2, 32), found (4, 32)" in caught.value.where


def test_another_number_of_weights_is_refused(tmp_path: Path) -> None:
    _, optimizer = trained()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    with pytest.raises(ModelError) as caught:
        load_moments(tmp_path, tiny.adapted("gpt-neox"))
    assert "16 weights in the optimizer state, 8 in the adapter" in caught.value.where


class _Evil:
    def __reduce__(self) -> tuple:
        return (print, ("this must not run",))


def test_a_pickle_that_would_run_code_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    torch.save({"state": {0: _Evil()}}, tmp_path / "optimizer.pt")
    with pytest.raises(ModelError, match="cannot be read"):
        load_moments(tmp_path, tiny.adapted())
    assert "must not run" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"no safetensors at all"])
@pytest.mark.parametrize("name", ["adam.safetensors", "optimizer.pt"])
def test_damaged_files_are_reported(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match="cannot be read") as caught:
        load_moments(tmp_path, tiny.adapted())
    if content and name == "optimizer.pt":
        assert "no pickle" in caught.value.where


def test_no_optimizer_state(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no optimizer state"):
        load_moments(tmp_path, tiny.adapted())


def test_fingerprint_sees_the_moments(tmp_path: Path) -> None:
    save_checkpoint(*trained(), tmp_path, 1e-5)
    first = checkpoint_fingerprint(tmp_path)
    assert checkpoint_fingerprint(tmp_path) == first
    save_checkpoint(*trained(steps=4), tmp_path, 1e-5)
    assert checkpoint_fingerprint(tmp_path) != first


def test_names_are_the_adapter_files(tmp_path: Path) -> None:
    from safetensors import safe_open

    model, optimizer = trained()
    save_checkpoint(model, optimizer, tmp_path, 1e-5)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        names = set(file.keys())
    assert {saved_name(name) for name in tiny.weights(model)} == names
