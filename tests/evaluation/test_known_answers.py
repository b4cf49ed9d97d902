"""A model that knows every answer scores 1, whatever the template writes before an answer."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trl
from transformers import LlamaConfig, LlamaForCausalLM

from conversations import byte_tokenizer, said, user
from gradsieve.data.batching import collate
from gradsieve.data.examples import Example
from gradsieve.data.template import ChatTemplate
from gradsieve.evaluation.generate import model_answers
from gradsieve.evaluation.prompts import write_prompts
from gradsieve.recipe.schema import EvaluateConfig
from gradsieve.tasks import Question, QuestionSet

FOLDER = Path(trl.__file__).parent / "chat_templates"
ORDINARY = """{% for message in messages %}[{{ message.role }}] {{ message.content }} [end]
{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"""
ANSWERS = {"France?": "Paris", "snow?": "white", "one and one?": "k", "which?": "A"}
STEPS = 150


def template_of(name: str) -> ChatTemplate:
    text = ORDINARY
    if name != "ordinary":
        text = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
        # With one token per byte, a shorter system turn makes a faster test.
        text = text.replace("You are ChatGPT, a large language model trained by OpenAI.", "")
    made = byte_tokenizer([text], text)
    made.pad_token = "</s>"
    return ChatTemplate(made)


def trained(template: ChatTemplate, examples: list[Example]) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(template.tokenizer),
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=512,
        )
    )
    batch = collate(template.try_encode_all(examples))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(STEPS):
        loss = model(**batch).loss
        if loss < 0.005:
            break
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.05
    return model.eval()


@pytest.mark.parametrize(("name", "kind"), [("qwen3", "free"), ("gptoss", "free")])
def test_known_answers_after_a_header_score_one(name: str, kind: str) -> None:
    check(name, kind)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3", "gptoss", "qwen3_5_think", "qwen2_5", "ordinary"])
@pytest.mark.parametrize("kind", ["free", "prefix", "choice"])
def test_known_answers_score_one(name: str, kind: str) -> None:
    check(name, kind)


def check(name: str, kind: str) -> None:
    template = template_of(name)
    prefix = None if kind == "free" else "The answer is:"
    start = f"{prefix} " if prefix else ""
    rows: list[tuple[Any, Any]] = [
        (user(asked), said(f"{start}{answer}")) for asked, answer in ANSWERS.items()
    ]
    examples = [Example("s", str(i), turns) for i, turns in enumerate(rows)]
    choices = tuple(ANSWERS.values()) if kind == "choice" else ()
    questions = [
        Question(Example("s", str(i), turns, answer_prefix=prefix), (answer,), choices)
        for i, (turns, answer) in enumerate(zip(rows, ANSWERS.values(), strict=True))
    ]
    metric = "accuracy" if choices else "exact_match"
    test = QuestionSet(tuple(questions), (metric,), max_tokens=None)
    context: Any = SimpleNamespace(
        template=template, positions=512, recipe=SimpleNamespace(evaluate=EvaluateConfig())
    )
    model = trained(template, examples)
    found = model_answers(template, model, test, write_prompts(context, test), 8)
    assert [answer.metrics for answer in found] == [{metric: 1.0}] * len(ANSWERS)
    if not choices:
        assert [answer.final for answer in found] == list(ANSWERS.values())
