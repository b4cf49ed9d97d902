"""An ordinary fine-tuning run serves as the warm-up."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, load_dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

import gradsieve
import tiny
import world
from gradsieve.errors import ModelError, UsageError
from gradsieve.models.checkpoints import load_learning_rates, load_moments
from gradsieve.models.load import load_adapter


def trained(
    folder: Path, moments: gradsieve.KeepMoments, resume: bool = False, **changes: Any
) -> Trainer:
    """Train for two epochs of three steps."""
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    rows = [{k: v[0] for k, v in tiny.batch((12,), seed=seed).items()} for seed in range(6)]
    model = changes.pop("model", None) or tiny.adapted()
    names = ("use_dora", "target_modules", "modules_to_save", "init_lora_weights")
    if lora := {name: changes.pop(name) for name in names if name in changes}:
        config = LoraConfig(**{"r": 2, "target_modules": ["q_proj"], **lora})
        model = get_peft_model(tiny.model("qwen3"), config)  # its embeddings are not tied
    make = changes.pop("optimizer", None)
    optimizer = make(tiny.weights(model).values()) if make else None
    arguments = TrainingArguments(**{**settings, **changes})
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        callbacks=[moments],
        optimizers=(optimizer, None),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_each_epoch_is_kept_as_it_was(tmp_path: Path) -> None:
    moments = gradsieve.KeepMoments(tmp_path / "kept")
    trainer = trained(tmp_path / "out", moments)
    assert moments.checkpoints == [str(tmp_path / "kept" / f"checkpoint-{i}") for i in (1, 2)]
    loaded = load_adapter(tiny.model(), Path(moments.checkpoints[1]))
    exp_avg, exp_avg_sq, step, *_ = load_moments(Path(moments.checkpoints[1]), loaded)
    assert step == 6
    for name, parameter in tiny.weights(trainer.model).items():
        state = trainer.optimizer.state[parameter]
        assert torch.equal(exp_avg[name], state["exp_avg"])
        assert torch.equal(exp_avg_sq[name], state["exp_avg_sq"])
    rates = load_learning_rates(map(Path, moments.checkpoints))
    steps = [1e-3 * (6 - step) / 6 for step in range(6)]  # linear decay without warm-up
    assert rates == [pytest.approx(sum(steps[:3]) / 3), pytest.approx(sum(steps[3:]) / 3)]


def test_the_active_adapter_is_kept_whatever_its_name(tmp_path: Path) -> None:
    model, moments = tiny.adapted(), gradsieve.KeepMoments(tmp_path / "kept")
    model.add_adapter("mine", model.peft_config["default"])
    model.set_adapter("mine")
    trained(tmp_path / "out", moments, model=model, max_steps=1)
    folder = Path(moments.checkpoints[0])
    kept = load_file(folder / "adapter_model.safetensors")
    for name, weight in tiny.weights(model).items():
        assert torch.equal(kept[name.replace(".mine.", ".")], weight), name
    assert load_moments(folder, load_adapter(tiny.model(), folder)).step == 1
    model.base_model.set_adapter(["default", "mine"])
    with pytest.raises(ModelError, match="Several adapters are active"):
        trained(tmp_path / "out", moments, model=model)


def test_the_optimizers_constants_are_kept(tmp_path: Path) -> None:
    moments = gradsieve.KeepMoments(tmp_path / "kept")
    trainer = trained(tmp_path / "out", moments, adam_beta2=0.95, adam_epsilon=1e-5)
    found = load_moments(Path(moments.checkpoints[-1]), trainer.model)
    assert (found.step, found.betas, found.eps) == (6, (0.9, 0.95), 1e-5)


def test_whenever_the_trainer_saves(tmp_path: Path) -> None:
    moments = gradsieve.KeepMoments(tmp_path / "kept", every="save")
    trained(tmp_path / "out", moments, save_strategy="steps", save_steps=2, save_only_model=True)
    assert [Path(path).name for path in moments.checkpoints] == [
        "checkpoint-2",
        "checkpoint-4",
        "checkpoint-6",
    ]
    for path in moments.checkpoints:
        theirs = tmp_path / "out" / Path(path).name / "adapter_model.safetensors"
        saved, kept = load_file(theirs), load_file(Path(path) / "adapter_model.safetensors")
        assert all(torch.equal(saved[name], kept[name]) for name in saved)


def test_an_epoch_that_is_cut_short_counts(tmp_path: Path) -> None:
    moments = gradsieve.KeepMoments(tmp_path / "kept")
    trained(tmp_path / "out", moments, max_steps=4)
    assert [Path(path).name for path in moments.checkpoints] == ["checkpoint-1", "checkpoint-2"]


def test_a_run_that_goes_on_keeps_what_is_there(tmp_path: Path) -> None:
    settings = {"save_strategy": "epoch", "num_train_epochs": 2}
    trained(tmp_path / "out", gradsieve.KeepMoments(tmp_path / "kept"), **settings)
    for later in (tmp_path / "kept" / "checkpoint-2", tmp_path / "out" / "checkpoint-6"):
        later.rename(later.with_name("gone"))  # as if stopped after an epoch
    moments = gradsieve.KeepMoments(tmp_path / "kept")
    trained(tmp_path / "out", moments, resume=True, **settings)
    assert len(moments.checkpoints) == 2
    for name in ("adapter_model", "adam"):
        first = load_file(tmp_path / "kept" / "gone" / f"{name}.safetensors")
        again = load_file(Path(moments.checkpoints[1]) / f"{name}.safetensors")
        assert all(torch.equal(first[key], again[key]) for key in first)


def test_a_new_run_does_not_count_what_an_old_one_left(tmp_path: Path) -> None:
    trained(tmp_path / "out", gradsieve.KeepMoments(tmp_path / "kept"))
    moments = gradsieve.KeepMoments(tmp_path / "kept")
    trained(tmp_path / "out", moments, num_train_epochs=1)
    assert [Path(path).name for path in moments.checkpoints] == ["checkpoint-1"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": tiny.model()}, "has no adapter"),
        ({"optim": "sgd"}, "keeps no moments of Adam's"),
        ({"optim": "adafactor"}, "it is Adafactor"),
        ({"optimizer": torch.optim.NAdam}, "it is NAdam"),
        ({"optimizer": torch.optim.RAdam}, "it is RAdam"),
        ({"init_lora_weights": "pissa_niter_1"}, "PiSSA with a random SVD"),
        ({"use_dora": True}, "cannot be followed: DoRA"),
        ({"target_modules": ["embed_tokens"]}, "embeddings"),
        ({"modules_to_save": ["lm_head"]}, "fully trained modules"),
    ],
)
def test_what_keeps_no_moments_is_refused_at_once(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        trained(tmp_path / "out", gradsieve.KeepMoments(tmp_path / "kept"), **changes)
    assert not (tmp_path / "kept").exists()


def test_what_would_keep_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="keeps nothing"):
        gradsieve.KeepMoments(tmp_path / "kept", every="epochs")
    with pytest.raises(UsageError, match="saves no checkpoint"):
        trained(tmp_path / "out", gradsieve.KeepMoments(tmp_path / "kept", every="save"))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_trl_warms_up_and_trains_on_what_was_selected(tmp_path: Path) -> None:
    """SFTTrainer runs twice: its first run is the warm-up, its second trains on the selection."""
    from trl import SFTConfig, SFTTrainer

    data = world.make(tmp_path / "inputs", rows=40)
    name = data["model"]["name"]
    tokenizer = AutoTokenizer.from_pretrained(name)

    def tune(rows: Dataset, **settings: Any) -> SFTTrainer:
        arguments = SFTConfig(
            output_dir=str(tmp_path / "out"),
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            max_length=64,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            bf16=False,
            **settings,
        )
        lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32),
            processing_class=tokenizer,
            args=arguments,
            train_dataset=rows,
            peft_config=lora,
            callbacks=[moments],
        )
        trainer.train()
        return trainer

    moments = gradsieve.KeepMoments(tmp_path / "warmup")
    pool = load_dataset(
        "json", data_files=data["pool"][0]["path"], split="train", cache_dir=str(tmp_path / "c")
    )
    trainer = tune(pool.select_columns(["messages"]), num_train_epochs=2)
    recipe = world.recipe(data, warmup={"checkpoints": moments.checkpoints}, select={"count": 8})
    run = gradsieve.run(recipe, tmp_path / "run")
    rates = run.require("warmup")["learning_rates"]
    assert rates[0] > rates[1] > 0
    found = gradsieve.select(
        trainer.model.unload(),
        tokenizer,
        {source["name"]: source["path"] for source in data["pool"]},
        {t["name"]: {k: v for k, v in t.items() if k != "name"} for t in data["targets"]},
        max_length=64,
        warmup={"checkpoints": moments.checkpoints},
        features=data["features"],
        score={"across_subtasks": "max"},  # as in world.recipe
        select={"count": 8},
    )
    folder = run.stage("select") / "mine" / "less"
    assert (found.folder / "selected.jsonl").read_bytes() == (
        folder / "selected.jsonl"
    ).read_bytes()

    rows = load_dataset(str(folder), "messages", split="train", cache_dir=str(tmp_path / "c"))
    moments = gradsieve.KeepMoments(tmp_path / "tuned")
    assert tune(rows, max_steps=2).state.global_step == 2
