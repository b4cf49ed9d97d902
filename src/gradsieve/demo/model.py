"""A small Llama, trained from scratch on the demo's pool and saved in the hub's layout.

In: rows and a seed. Out: a folder with a model and a word-level tokenizer, whose chat template
marks assistant turns. Training is short: the model distinguishes the skills but can still improve.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gradsieve.console import Report
from gradsieve.demo.skills import Row, vocabulary
from gradsieve.models.saved import quiet_transformers

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ ' <|' + message.role + '|> ' }}"
    "{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content + ' ' + eos_token }}{% endgeneration %}"
    "{% else %}{{ message.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' <|assistant|> ' }}{% endif %}"
)
HIDDEN, LAYERS, HEADS = 96, 3, 6
STEPS, BATCH, LEARNING_RATE = 550, 64, 2e-3


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word."""
    ids = {word: id for id, word in enumerate([*SPECIAL, *vocabulary()])}
    tokenizer = Tokenizer(models.WordLevel(ids, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=["<|user|>", "<|assistant|>"],
        chat_template=CHAT_TEMPLATE,
    )


def make_model(rows: Sequence[Row], folder: Path, seed: int, report: Report) -> None:
    """Train on the rows' text; save model and tokenizer to a folder."""
    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=HIDDEN,
            intermediate_size=2 * HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            max_position_embeddings=64,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    texts = [f"<s> <|user|> {row.question} <|assistant|> {row.answer} </s>" for row in rows]
    ids = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt").input_ids
    _train(model, ids, tokenizer.convert_tokens_to_ids("<|assistant|>"), seed, report)
    with quiet_transformers():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _train(
    model: LlamaForCausalLM,
    ids: torch.Tensor,
    assistant: int,
    seed: int,
    report: Report,
) -> None:
    """Train on the loss of the answers only: the questions are random lists."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, STEPS)
    answered = (ids == assistant).cumsum(1) > 0
    labels = ids.masked_fill(~answered | (ids == assistant) | (ids == 0), -100)
    model.train()
    for step in range(STEPS):
        batch = torch.randint(len(ids), (BATCH,), generator=generator)
        logits = model(input_ids=ids[batch], use_cache=False).logits[:, :-1]
        loss = functional.cross_entropy(logits.flatten(0, 1), labels[batch, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        report(step + 1)
