"""Gamma is the step of the optimizer that saved the state; other optimizers are refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import save
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from transformers import Trainer
from transformers.optimization import Adafactor

import tiny
from gradsieve.errors import ModelError
from gradsieve.gradients import adam
from gradsieve.models.checkpoints import adam_states, load_moments, save_checkpoint
from tiny import stepped, weights

Parameters = list[torch.nn.Parameter]
Make = Callable[[Parameters], torch.optim.Optimizer]


def trained(make: Make) -> tuple[PeftModel, torch.optim.Optimizer]:
    model = tiny.adapted(dropout=0.0)
    optimizer = make(list(weights(model).values()))
    stepped(model, optimizer)
    return model, optimizer


def cosine_to_the_next_step(
    model: PeftModel, optimizer: torch.optim.Optimizer, folder: Path
) -> float:
    """The cosine of Gamma from the saved state and the optimizer's next step on one example."""
    m, v, step, betas, eps = load_moments(folder, model)
    optimizer.zero_grad()
    model(**tiny.batch((15,), seed=9)).loss.backward()
    before = {name: p.detach().clone() for name, p in weights(model).items()}
    gradients = {name: p.grad.clone() for name, p in weights(model).items()}
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = 1.0, 0.0  # large steps avoid rounding
    optimizer.step()
    gamma = torch.cat(
        [
            adam.update(g, m[n], v[n], step, betas=betas, eps=eps).flatten()
            for n, g in gradients.items()
        ]
    )
    moved = torch.cat([(before[n] - p.detach()).flatten() for n, p in weights(model).items()])
    return float(torch.nn.functional.cosine_similarity(gamma.double(), moved.double(), dim=0))


def adamw(**settings: Any) -> Make:
    return lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, **settings)


@pytest.mark.parametrize(
    "make",
    [
        adamw(),
        adamw(betas=(0.9, 0.95)),
        adamw(betas=(0.8, 0.99), eps=1e-5, weight_decay=0.1),
        adamw(eps=1e-4),
        lambda parameters: torch.optim.Adam(parameters, lr=1e-3, betas=(0.9, 0.95)),
    ],
)
@pytest.mark.parametrize("saved_by", ["trainer", "gradsieve"])
def test_gamma_is_the_optimizers_next_step(tmp_path: Path, make: Make, saved_by: str) -> None:
    model, optimizer = trained(make)
    if saved_by == "trainer":
        torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    else:
        save_checkpoint(model, optimizer, tmp_path, 1e-3)
    group = optimizer.param_groups[0]
    assert load_moments(tmp_path, model)[3:] == (group["betas"], group["eps"])
    assert cosine_to_the_next_step(model, optimizer, tmp_path) > 0.99999


@pytest.mark.parametrize("name", ["Adam8bit", "AdamW8bit", "AdamW"])
def test_moments_in_8_bits_are_dequantized(tmp_path: Path, name: str) -> None:
    optimizers = pytest.importorskip("bitsandbytes").optim

    def make(parameters: Parameters) -> Any:
        small = {} if name == "AdamW" else {"min_8bit_size": 16}
        return getattr(optimizers, name)(parameters, lr=1e-3, betas=(0.9, 0.95), eps=1e-6, **small)

    model, optimizer = trained(make)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    state = next(iter(optimizer.state.values()))
    assert state["state1"].dtype == (torch.float32 if name == "AdamW" else torch.uint8)
    assert cosine_to_the_next_step(model, optimizer, tmp_path) > 0.9999


def bitsandbytes(name: str) -> Make:
    optimizers = pytest.importorskip("bitsandbytes").optim
    return lambda parameters: getattr(optimizers, name)(parameters, lr=1e-3)


OTHERS: dict[str, Callable[[], Make]] = {
    "AMSGrad": lambda: adamw(amsgrad=True),
    "NAdam": lambda: torch.optim.NAdam,
    "RAdam": lambda: torch.optim.RAdam,
    "L2 regularization (weight_decay=0.1)": lambda: (
        lambda parameters: torch.optim.Adam(parameters, weight_decay=0.1)
    ),
    "maximizes": lambda: adamw(maximize=True),
    "Adamax": lambda: torch.optim.Adamax,
    "Adagrad": lambda: torch.optim.Adagrad,
    "Adadelta": lambda: torch.optim.Adadelta,
    "RMSprop": lambda: torch.optim.RMSprop,
    "is SGD, or": lambda: torch.optim.SGD,
    "SGD with momentum": lambda: (
        lambda parameters: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)
    ),
    "Adafactor": lambda: torch.optim.Adafactor,
    "is Adafactor": lambda: Adafactor,
    "Lion": lambda: bitsandbytes("Lion8bit"),
    "AdEMAMix": lambda: bitsandbytes("AdEMAMix"),
    "LAMB": lambda: bitsandbytes("LAMB"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_optimizers_are_refused_by_name(tmp_path: Path, name: str) -> None:
    model, optimizer = trained(OTHERS[name]())
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    for read in (lambda: load_moments(tmp_path, model), lambda: adam_states(model, optimizer)):
        with pytest.raises(ModelError, match="keeps no moments of Adam's") as caught:
            read()
        assert name in caught.value.what
        assert "adamw_torch" in caught.value.todo


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        ("correct_bias", True, "transformers before 5.0"),
        ("bias_correction", True, "FusedAdam"),
        ("rank", 8, "GaLore"),
        ("a_setting_of_next_year", 1, "a_setting_of_next_year"),
    ],
)
def test_relatives_are_known_by_their_groups(
    tmp_path: Path, key: str, value: Any, name: str
) -> None:
    model, optimizer = trained(adamw())
    saved = optimizer.state_dict()
    saved["param_groups"][0][key] = value
    torch.save(saved, tmp_path / "optimizer.pt")
    with pytest.raises(ModelError) as caught:
        load_moments(tmp_path, model)
    assert name in caught.value.what


# --- several param groups -----------------------------------------------------------------------


def in_groups(model: PeftModel, *parts: str, rates: tuple[float, ...] = ()) -> list[dict[str, Any]]:
    """One group for each part of a name, in that order."""
    rates = rates or (1e-3,) * len(parts)
    named = weights(model).items()
    return [
        {"params": [p for name, p in named if part in name], "lr": rate}
        for part, rate in zip(parts, rates, strict=True)
    ]


def assert_moments_are_their_own(
    model: PeftModel, optimizer: torch.optim.Optimizer, folder: Path
) -> None:
    found = load_moments(folder, model)
    for name, parameter in weights(model).items():
        assert torch.equal(found.exp_avg[name], optimizer.state[parameter]["exp_avg"])


@pytest.mark.parametrize("parts", [("layers.1.", "layers.0."), ("lora_A", "lora_B")])
def test_groups_in_an_unknown_order_are_refused(tmp_path: Path, parts: tuple[str, ...]) -> None:
    model = tiny.adapted()
    optimizer = torch.optim.AdamW(in_groups(model, *parts))
    stepped(model, optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    with pytest.raises(ModelError, match="order is unknown") as caught:
        load_moments(tmp_path, model)
    assert "groups of 8, 8 weights" in caught.value.where
    assert "KeepMoments" in caught.value.todo


def test_groups_that_name_their_weights_are_matched(tmp_path: Path) -> None:
    model = tiny.adapted()
    named = list(weights(model).items())
    groups = [{"params": named[8:]}, {"params": named[:8]}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    stepped(model, optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    assert_moments_are_their_own(model, optimizer, tmp_path)


def test_trainers_groups_are_matched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups with and without weight decay, where names with v_proj stand in for norms."""
    model = tiny.adapted()
    decayed = [name for name in weights(model) if "v_proj" not in name]
    monkeypatch.setattr(Trainer, "get_decay_parameter_names", lambda *_: decayed)
    groups = [
        {"params": [p for n, p in weights(model).items() if n in decayed], "weight_decay": 0.1},
        {"params": [p for n, p in weights(model).items() if n not in decayed], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    stepped(model, optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    assert_moments_are_their_own(model, optimizer, tmp_path)


def test_several_learning_rates_are_refused(tmp_path: Path) -> None:
    """LoRA+ and layer-wise learning rates are found even after a schedule has reached 0."""
    model = tiny.adapted()
    optimizer = torch.optim.AdamW(in_groups(model, "lora_A", "lora_B", rates=(1e-3, 16e-3)))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step < 3))
    stepped(model, optimizer)
    for _ in range(3):
        schedule.step()
    assert {group["lr"] for group in optimizer.param_groups} == {0.0}
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    for read in (lambda: load_moments(tmp_path, model), lambda: adam_states(model, optimizer)):
        with pytest.raises(ModelError, match=r"LoRA\+") as caught:
            read()
        assert "0.001, 0.016" in caught.value.where


def test_groups_with_different_constants_are_refused(tmp_path: Path) -> None:
    model = tiny.adapted()
    groups = in_groups(model, "lora_A", "lora_B")
    groups[1]["betas"] = (0.9, 0.95)
    optimizer = torch.optim.AdamW(groups)
    stepped(model, optimizer)
    with pytest.raises(ModelError, match="different betas or eps"):
        adam_states(model, optimizer)


# --- files --------------------------------------------------------------------------------------


def test_fsdp_names_weights_and_its_constants_count(tmp_path: Path) -> None:
    model, optimizer = trained(adamw(betas=(0.9, 0.95), eps=1e-6))
    named = {name: optimizer.state[p] for name, p in weights(model).items()}
    group = {**optimizer.state_dict()["param_groups"][0], "params": list(named)}
    torch.save({"state": named, "param_groups": [group]}, tmp_path / "optimizer.bin")
    assert load_moments(tmp_path, model)[3:] == ((0.9, 0.95), 1e-6)
    assert_moments_are_their_own(model, optimizer, tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_shards_of_fsdp_are_merged_as_the_message_says(tmp_path: Path) -> None:
    model, optimizer = trained(adamw(betas=(0.9, 0.95)))
    named = {name: optimizer.state[p] for name, p in weights(model).items()}
    group = {**optimizer.state_dict()["param_groups"][0], "params": list(named)}
    shards = tmp_path / "optimizer_0"
    save({"optimizer": {"state": named, "param_groups": [group]}}, checkpoint_id=str(shards))
    with pytest.raises(ModelError, match="sharded by FSDP") as caught:
        load_moments(tmp_path, model)
    assert "dcp_to_torch CHECKPOINT/optimizer_0" in caught.value.todo
    dcp_to_torch_save(str(shards), str(tmp_path / "optimizer.bin"))
    assert load_moments(tmp_path, model)[3:] == ((0.9, 0.95), 1e-8)
    assert_moments_are_their_own(model, optimizer, tmp_path)


def test_shards_of_deepspeed_are_named(tmp_path: Path) -> None:
    (tmp_path / "global_step12").mkdir()
    shard = tmp_path / "global_step12" / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    shard.write_bytes(b"")
    with pytest.raises(ModelError, match="DeepSpeed ZeRO"):
        load_moments(tmp_path, tiny.adapted())


def test_a_class_that_a_state_would_need_is_named(tmp_path: Path) -> None:
    torch.save({"state": {0: Iterator}, "param_groups": []}, tmp_path / "optimizer.pt")
    with pytest.raises(ModelError, match="cannot be read") as caught:
        load_moments(tmp_path, tiny.adapted())
    assert "collections.abc.Iterator" in caught.value.where


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        ("exp_avg", float("nan"), "exp_avg has numbers that are not finite"),
        ("exp_avg_sq", float("inf"), "exp_avg_sq has numbers that are not finite"),
        ("exp_avg_sq", -1e-9, "below 0"),
        ("step", -3, "steps that the optimizer made is not positive"),
        ("step", 0, "steps that the optimizer made is not positive"),
        ("step", float("nan"), "steps that the optimizer made is not positive"),
        ("betas", [0.9, 1.5], "constants are not Adam's"),
        ("eps", float("nan"), "constants are not Adam's"),
    ],
)
def test_numbers_that_are_none_are_refused_by_name(
    tmp_path: Path, kind: str, value: Any, said: str
) -> None:
    model, optimizer = trained(adamw())
    save_checkpoint(model, optimizer, tmp_path, 1e-3)
    file = tmp_path / "adam.safetensors"
    with safe_open(file, "pt") as opened:
        facts = json.loads(opened.metadata()["gradsieve"])
    tensors = load_file(file)
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
    if kind in facts:
        facts[kind] = value
    else:
        tensors[f"{kind}/{name}"][0, 0] = value
    save_file(tensors, file, {"gradsieve": json.dumps(facts)})
    with pytest.raises(ModelError, match=said) as caught:
        load_moments(tmp_path, model)
    assert str(file) in caught.value.where
    if kind not in facts:
        assert "layers.1.self_attn.q_proj.lora_A" in caught.value.where


def test_a_state_without_its_step_is_refused(tmp_path: Path) -> None:
    model, optimizer = trained(adamw())
    saved = optimizer.state_dict()
    for state in saved["state"].values():
        del state["step"]
    torch.save(saved, tmp_path / "optimizer.pt")
    with pytest.raises(ModelError, match="not positive"):
        load_moments(tmp_path, model)
