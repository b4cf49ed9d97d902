"""A model in a GGUF file: dequantized to an ordinary one, fingerprinted, or refused by name."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gradsieve.errors import ModelError, UsageError
from gradsieve.models.source import ModelSource
from gradsieve.recipe.schema import ModelConfig

gguf = pytest.importorskip("gguf")

HIDDEN, INNER, HEADS, KV = 32, 64, 4, 2
WORDS = [*(f"<{number}>" for number in range(8)), *(chr(ord("a") + n) for n in range(24))]


def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    kv = HIDDEN // HEADS * KV
    shapes = {
        "token_embd": (len(WORDS), HIDDEN),
        "blk.0.attn_q": (HIDDEN, HIDDEN),
        "blk.0.attn_k": (kv, HIDDEN),
        "blk.0.attn_v": (kv, HIDDEN),
        "blk.0.attn_output": (HIDDEN, HIDDEN),
        "blk.0.ffn_gate": (INNER, HIDDEN),
        "blk.0.ffn_up": (INNER, HIDDEN),
        "blk.0.ffn_down": (HIDDEN, INNER),
        "blk.0.attn_norm": (HIDDEN,),
        "blk.0.ffn_norm": (HIDDEN,),
        "output_norm": (HIDDEN,),
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write(file: Path, architecture: str = "llama") -> Path:
    """A Llama with one block in 8 bits, except for the norms."""
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_name("tiny")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, values in tensors().items():
        if values.ndim == 2:
            packed = gguf.quantize(values, gguf.GGMLQuantizationType.Q8_0)
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(f"{name}.weight", packed, raw_dtype=kind)
        else:
            writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def source(name: Path) -> ModelSource:
    return ModelSource(ModelConfig(name=str(name), dtype="float32"))


def test_it_is_an_ordinary_model(tmp_path: Path) -> None:
    file = write(tmp_path / "tiny.gguf")
    for name in (file, tmp_path):
        made = source(name)
        made.check_weights()
        model = made.load()
        assert not getattr(model, "is_quantized", False)
        assert getattr(model.config, "quantization_config", None) is None
        assert type(model.model.layers[0].mlp.up_proj) is torch.nn.Linear
        wanted = tensors()
        for ours, theirs in (
            (model.model.embed_tokens, "token_embd"),
            (model.model.layers[0].mlp.up_proj, "blk.0.ffn_up"),
            (model.model.layers[0].self_attn.v_proj, "blk.0.attn_v"),
            (model.model.norm, "output_norm"),
        ):
            found = ours.weight.numpy()
            assert np.abs(found - wanted[theirs]).max() < 0.02, theirs
        assert [p.shape for p in made.meta_model().parameters()] == [
            p.shape for p in model.parameters()
        ]
    model.save_pretrained(tmp_path / "saved")


def test_fingerprints_are_of_the_bytes_not_the_place(tmp_path: Path) -> None:
    file = write(tmp_path / "tiny.gguf")
    one = source(file).fingerprint
    (tmp_path / "other").mkdir()
    moved = Path(shutil.copy(file, tmp_path / "other" / "renamed.gguf"))
    assert source(moved).fingerprint == source(moved.parent).fingerprint == one
    content = bytearray(moved.read_bytes())
    content[-5] ^= 1
    moved.write_bytes(content)
    assert source(moved).fingerprint != one


def test_what_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "tiny.gguf")
    content = file.read_bytes()
    file.write_bytes(b"GGML" + content[4:])
    with pytest.raises(ModelError, match="damaged"):
        source(file).check_weights()
    file.write_bytes(content[: len(content) // 3])
    with pytest.raises(ModelError, match="cannot be loaded"):
        source(file).load()
    other = write(tmp_path / "unknown.gguf", "nonesuch")
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        source(other).config()
    assert "nonesuch" in caught.value.where
    with pytest.raises(ModelError, match="several GGUF files") as caught:
        source(tmp_path).config()
    assert "tiny.gguf, unknown.gguf" in caught.value.where
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UsageError, match="gguf is not installed") as missing:
        source(other).config()
    assert "gradsieve[gguf]" in missing.value.todo
