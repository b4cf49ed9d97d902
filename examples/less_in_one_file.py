"""LESS in one file, for readers: gradsieve's method without its stages, batches and datastores.

    python examples/less_in_one_file.py MODEL POOL.jsonl TARGET.jsonl > selected.jsonl

In: a causal language model whose chat template marks answers with `{% generation %}`, a pool and a
target of rows `{"id": ..., "messages": [...]}`; target rows may have a `subtask`. Out: the best 5%
of the pool, best first, with `score` and `subtask`. Step numbers are those of the paper (Xia et
al., ICML 2024, section 4.1) and of docs/method.md.

The file doesn't import gradsieve; tests/examples checks that its warm-up, scores and selection
equal those of `gradsieve run`. It processes one example at a time and keeps all features in memory.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

SEED, MAX_LENGTH = 0, 2048
WARMUP_FRACTION, EPOCHS, BATCH, LEARNING_RATE, RAMP = 0.05, 4, 32, 2e-5, 0.03
LORA = {"r": 128, "lora_alpha": 512, "lora_dropout": 0.1}
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj"]
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # AdamW
DIM, SELECT_FRACTION = 8192, 0.05

Row = dict[str, Any]


def read(file: Path, tokenizer: Any) -> list[Row]:
    """Rows with their token ids and labels (-100: not supervised), in order of their ids."""
    rows = [json.loads(line) for line in file.read_bytes().splitlines()]
    for row in rows:
        found = tokenizer.apply_chat_template(
            row["messages"], return_dict=True, return_assistant_tokens_mask=True
        )
        row["tokens"] = torch.tensor(found["input_ids"][:MAX_LENGTH])
        answers = torch.tensor(found["assistant_masks"][:MAX_LENGTH])
        row["labels"] = row["tokens"].where(answers == 1, -100)[1:]  # token 0 isn't predicted
        row["count"] = int((row["labels"] != -100).sum())
    return sorted((row for row in rows if row["count"]), key=lambda row: row["id"])


def random_share(rows: list[Row], source: str) -> list[Row]:
    """Step 1: the rows with the smallest hashes, so that the order of the file doesn't matter."""
    texts = {row["id"]: f"{SEED}\x1f{source}\x1f{row['id']}".encode() for row in rows}
    ranked = sorted(rows, key=lambda row: hashlib.sha256(texts[row["id"]]).digest())
    return ranked[: max(1, round(WARMUP_FRACTION * len(rows)))]


def loss_of(model: Any, row: Row) -> Tensor:
    """The mean cross-entropy over an example's label tokens."""
    logits = model(input_ids=row["tokens"][None]).logits[0]
    return functional.cross_entropy(logits[:-1], row["labels"])


def warm_up(model: Any, rows: list[Row]) -> Iterator[tuple[Any, float]]:
    """Step 1: train LoRA; yields Adam's state and the mean learning rate after each epoch."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, betas=(BETA1, BETA2), eps=EPS, weight_decay=0.0)
    steps, step = EPOCHS * math.ceil(len(rows) / BATCH), 0
    ramp = math.ceil(RAMP * steps)
    for epoch in range(EPOCHS):
        model.train()
        rates = []
        shuffled = torch.randperm(len(rows), generator=torch.Generator().manual_seed(SEED + epoch))
        for places in shuffled.split(BATCH):
            batch = [rows[place] for place in places]
            labels = sum(row["count"] for row in batch)
            for row in batch:  # the loss is the mean over the batch's label tokens
                drop_by_example(model, row["tokens"], step)
                (loss_of(model, row) * row["count"] / labels).backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            up, down = step / max(1, ramp), (steps - step) / max(1, steps - ramp)
            rates.append(LEARNING_RATE * (up if step < ramp else down))
            optimizer.param_groups[0]["lr"] = rates[-1]
            optimizer.step()
            optimizer.zero_grad()
            step += 1
        model.eval()
        yield optimizer.state, sum(rates) / len(rates)


def drop_by_example(model: Any, tokens: Tensor, step: int) -> None:
    """Make dropout depend on the example and the step, as in the package."""
    seed = xxhash.xxh3_64_intdigest(tokens.numpy().tobytes(), SEED << 32 | step) >> 1

    def drop(layer: nn.Dropout, number: int, x: Tensor) -> Tensor:
        if not layer.training:
            return x
        generator = torch.Generator().manual_seed(seed + number)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64)  # 16 random bits per unit
        bits = words.random_(-(2**63), None, generator=generator).view(torch.int16)[: x.numel()]
        keep = (bits < round((1 - layer.p) * 2**16) - 2**15).view(x.shape)
        return x.masked_fill(~keep, 0.0) / (1 - layer.p)

    layers = [module for module in model.modules() if isinstance(module, nn.Dropout) and module.p]
    for number, layer in enumerate(layers):
        layer.forward = partial(drop, layer, number)


def gradient(model: Any, row: Row) -> dict[str, Tensor]:
    """The gradient g of an example's loss, by parameter name."""
    weights = {name: w for name, w in model.named_parameters() if w.requires_grad}
    found = torch.autograd.grad(loss_of(model, row), list(weights.values()))
    return dict(zip(weights, found, strict=True))


def adam_update(g: Tensor, state: dict[str, Tensor]) -> Tensor:
    """Step 2: Gamma, the update that AdamW would make for this example alone."""
    m = BETA1 * state["exp_avg"] + (1 - BETA1) * g
    v = BETA2 * state["exp_avg_sq"] + (1 - BETA2) * g**2
    t = float(state["step"]) + 1
    return m / (1 - BETA1**t) / ((v / (1 - BETA2**t)).sqrt() + EPS)


def random_bits(key: int, count: int) -> np.ndarray:
    """64 random bits for each of `count` positions: SplitMix64 (Steele et al., 2014)."""
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def project(values: dict[str, Tensor]) -> Tensor:
    """Steps 2 and 3: flip signs at random, cut into blocks of DIM, rotate each, and add them up.

    As in the paper; the package scales both sides first (`features.projection.balanced`).
    """
    total = torch.zeros(DIM)
    for name, value in values.items():
        flat = value.flatten()
        key = int.from_bytes(hashlib.sha256(f"{SEED}/{name}".encode()).digest()[:8], "little")
        words = random_bits(key, math.ceil(len(flat) / 64))
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")[: len(flat)].astype("f4")
        signed = functional.pad(flat * torch.from_numpy(1 - 2 * bits), (0, -len(flat) % DIM))
        blocks = signed.view(-1, DIM)
        rotations = random_bits(2**64 - 1 - key, len(blocks)).view(np.int64) % DIM
        for block, rotation in zip(blocks, rotations.tolist(), strict=True):
            total += block.roll(rotation)
    return total


def less(model_name: str, pool_file: Path, target_file: Path) -> list[Row]:
    """All steps: the pool's rows with `score` and `subtask`, best first."""
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    pool, target = read(pool_file, tokenizer), read(target_file, tokenizer)
    subtasks = sorted({row.get("subtask", "all") for row in target})
    set_seed(SEED)  # for the adapter's initialization
    model = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32)
    lora = LoraConfig(**LORA, target_modules=MODULES, task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)

    influence, rates = torch.zeros(len(pool), len(subtasks)), []
    for state, rate in warm_up(model, random_share(pool, pool_file.stem)):
        adam = {name: state[weight] for name, weight in model.named_parameters() if weight in state}
        updates = []
        for row in pool:
            g = gradient(model, row)
            updates.append(project({name: adam_update(g[name], adam[name]) for name in g}))
        means = []
        for subtask in subtasks:  # Step 3: the mean of plain gradients
            own = [row for row in target if row.get("subtask", "all") == subtask]
            means.append(torch.stack([project(gradient(model, row)) for row in own]).mean(0))
        # Step 4: cosines [rows, subtasks] at this checkpoint, times its learning rate.
        unit = functional.normalize(torch.stack(updates)), functional.normalize(torch.stack(means))
        influence += rate * (unit[0] @ unit[1].T)
        rates.append(rate)

    scores, best = (influence / sum(rates)).max(dim=1)  # Step 5: the subtask that it helps most
    for row, score, number in zip(pool, scores.tolist(), best.tolist(), strict=True):
        row["score"], row["subtask"] = score, subtasks[number]
    return sorted(pool, key=lambda row: (-row["score"], row["id"]))


if __name__ == "__main__":
    ranked = less(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
    for row in ranked[: max(1, round(SELECT_FRACTION * len(ranked)))]:
        print(
            json.dumps({key: row[key] for key in row if key not in ("tokens", "labels", "count")})
        )
