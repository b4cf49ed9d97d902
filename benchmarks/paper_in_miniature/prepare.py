"""The miniature's inputs: a pool, four targets with held-out questions, and a small Llama.

In: the folder of public data. Out, in `OUT/inputs`: `pool/SOURCE.jsonl` (31,000 rows of eleven
sources, in the sources' proportions), `gsm8k/` (examples of its training set that are not in the
pool, questions of its test set, by number of steps), and `model/`: a Llama with 1.3 million
parameters and a BPE vocabulary of 4,096, trained from scratch on the text of the pool.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

ROWS = 31_000
VOCABULARY, POSITIONS = 4096, 512
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
STEPS, BATCH, LEARNING_RATE = 700, 16, 2e-3
PLANTED = ("planted_tydiqa_train", "planted_mmlu_val")


def main(data: Path, out: Path, planted: bool) -> None:
    """Write all inputs; existing ones are kept."""
    pool = draw_pool(data, out / "pool", planted)
    draw_gsm8k(data, out / "gsm8k", pool)
    if not (out / "model" / "config.json").is_file():
        pretrain(list(texts(out / "pool")), out / "model")


def draw_pool(data: Path, folder: Path, planted: bool) -> set[str]:
    """Draw the pool's rows; returns their ids."""
    rng = random.Random(0)
    lines = [
        (file.stem, line)
        for file in sorted((data / "train").glob("*.jsonl"))
        for line in file.read_bytes().split(b"\n")
        if line
    ]
    drawn = rng.sample(lines, ROWS)
    for name in PLANTED if planted else ():
        needles = (data / "planted" / f"{name}.jsonl").read_bytes().split(b"\n")
        drawn += [(name, line) for line in needles if line]
    folder.mkdir(parents=True, exist_ok=True)
    for name in {name for name, _ in drawn}:
        own = [line for owner, line in drawn if owner == name]
        (folder / f"{name}.jsonl").write_bytes(b"\n".join(own) + b"\n")
    return {json.loads(line)["id"] for name, line in drawn if name == "gsm8k"}


def draw_gsm8k(data: Path, folder: Path, pool: set[str]) -> None:
    """Four training examples for each number of steps (2 to 6), and the test set's questions."""
    rng = random.Random(0)
    lines = (data / "train" / "gsm8k.jsonl").read_bytes().split(b"\n")
    rows = [row for row in map(json.loads, filter(None, lines)) if row["id"] not in pool]
    rng.shuffle(rows)
    few = [
        row | {"steps": steps}
        for steps in range(2, 7)
        for row in [row for row in rows if _steps(row["messages"][-1]["content"]) == steps][:4]
    ]
    questions = []
    for number, line in enumerate((data / "eval/gsm8k/test.jsonl").read_bytes().splitlines()):
        row = json.loads(line)
        messages = [
            {"role": "user", "content": row["question"]},
            {"role": "assistant", "content": row["answer"]},
        ]
        if 2 <= _steps(row["answer"]) <= 6:
            questions.append(
                {"id": str(number), "steps": _steps(row["answer"]), "messages": messages}
            )
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in (("examples", few), ("test", questions)):
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def _steps(answer: str) -> int:
    return len(re.findall(r"<<", answer))


def texts(pool: Path) -> Iterator[str]:
    """Each row of the pool as plain text, except the planted ones."""
    for file in sorted(pool.glob("*.jsonl")):
        if file.stem not in PLANTED:
            for line in file.read_text(encoding="utf-8").split("\n"):
                if line:
                    yield "\n\n".join(turn["content"] for turn in json.loads(line)["messages"])


def pretrain(rows: list[str], folder: Path, shape: dict[str, int] = SHAPE) -> None:
    """Train tokenizer and model; an interrupted training resumes."""
    random.Random(0).shuffle(rows)
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(rows, VOCABULARY, special_tokens=["<s>", "</s>", "<pad>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    ids = [[0, *encoding, 1] for encoding in tokenizer(rows, add_special_tokens=False)["input_ids"]]
    stream = torch.tensor([token for row in ids for token in row])
    blocks = stream[: len(stream) // POSITIONS * POSITIONS].view(-1, POSITIONS)
    print(f"{len(stream)} tokens, {len(blocks)} blocks", flush=True)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            max_position_embeddings=POSITIONS,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
            **shape,
        )
    )
    print(f"{model.num_parameters()} parameters", flush=True)
    work = folder.with_name(f"pretraining-{folder.name}")
    trainer = Trainer(
        model,
        TrainingArguments(
            str(work),
            per_device_train_batch_size=BATCH,
            max_steps=STEPS,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="cosine",
            warmup_steps=100,
            weight_decay=0.1,
            adam_beta2=0.95,
            save_steps=100,
            save_total_limit=1,
            logging_steps=50,
            report_to="none",
            disable_tqdm=True,
            seed=0,
        ),
        train_dataset=[{"input_ids": block, "labels": block} for block in blocks],
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(work) if work.is_dir() else None)
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    (work / "loss.json").write_text(json.dumps(log))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
