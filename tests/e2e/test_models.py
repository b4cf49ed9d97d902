"""Other ways to store the model: the stages end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, LlamaForCausalLM

import gradsieve
import world


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return world.make(tmp_path_factory.mktemp("world"), rows=40)


def test_activation_checkpointing_changes_no_byte(inputs: dict[str, Any], tmp_path: Path) -> None:
    made = []
    for on in (False, True):
        recipe = world.recipe(inputs, model__gradient_checkpointing=on)
        made.append(world.results(gradsieve.run(recipe, tmp_path / str(on))))
    assert made[0] == made[1]


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_a_quantized_base_end_to_end(tmp_path: Path, quantization: str) -> None:
    pytest.importorskip("bitsandbytes")
    data = world.make(tmp_path / "world", rows=40)
    config = AutoConfig.from_pretrained(data["model"]["name"])
    config.update({"hidden_size": 64, "intermediate_size": 64, "head_dim": 32})  # in blocks of 32
    LlamaForCausalLM(config).save_pretrained(data["model"]["name"])
    recipe = world.recipe(data, model__quantization=quantization, train={"seeds": [0]})
    run = gradsieve.run(recipe, tmp_path / "run")
    assert (run.stage("train") / "mine" / "less" / "seed-0" / "adapter_config.json").is_file()
    told = run.require("features")
    assert told["checkpoints"][0]["not_finite"] == 0
    assert told["inputs"]["model"]["quantization"] == quantization
