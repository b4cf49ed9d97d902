"""Answers to a test set's questions, by lm-eval, in this process.

In: a model, its tokenizer, questions and their prompts. Out: each question's answer with its
metrics. The task files in this folder configure lm-eval; prompts (prompts.py) hold the model's chat
template and the benchmark's few-shot examples. lm-eval's own tasks are not used: they have no
TyDiQA, and ask without chat template and from the hub.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gradsieve.data.template import ChatTemplate
from gradsieve.evaluation.metrics import final_answer, judge
from gradsieve.evaluation.prompts import Prompts
from gradsieve.io import needed
from gradsieve.tasks.questions import Question, QuestionSet

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Answer:
    """A model's answer to a question.

    Attributes:
        text: As it was generated; of choices, the most likely one.
        final: What was compared with the references.
        metrics: Of this answer.
    """

    text: str
    final: str
    metrics: dict[str, float]


def model_answers(
    template: ChatTemplate,
    model: PreTrainedModel,
    test: QuestionSet,
    prompts: Prompts,
    batch_size: int,
) -> list[Answer]:
    """A model's answer to each question.

    Args:
        template: The model's chat template.
        model: In eval mode.
        test: The questions.
        prompts: As `write_prompts` made them for this model.
        batch_size: Questions at a time.

    Raises:
        UsageError: If lm-eval is not installed.
    """
    return answers(
        test,
        prompts.texts,
        model,
        template.tokenizer,
        max_length=prompts.max_length,
        max_tokens=prompts.max_tokens,
        batch_size=batch_size,
        add_bos_token=template.adds_special_tokens,
        ends=template.ends,
        stops=template.end_texts,
    )


def answers(
    test: QuestionSet,
    prompts: Sequence[str],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    max_tokens: int,
    batch_size: int,
    add_bos_token: bool,
    ends: Sequence[int] = (),
    stops: Sequence[str] = (),
) -> list[Answer]:
    """Ask all questions; a prompt too long for the model loses its start.

    Args:
        test: The questions.
        prompts: The text of each, up to where the answer starts.
        model: In eval mode; without an adapter (merge it first).
        tokenizer: The model's; never changed.
        max_length: Tokens of prompt and answer together.
        max_tokens: Tokens of an answer, fewer than `max_length`.
        batch_size: Questions at a time.
        add_bos_token: Whether the tokenizer, not the prompt, adds the first token.
        ends: Tokens that end an answer, in addition to those that the model names itself.
        stops: Texts that end an answer, in addition to the test set's.

    Returns:
        The answer to each question, in order.

    Raises:
        UsageError: If lm-eval is not installed.
    """
    docs = [
        {
            "prompt": prompt,
            "gold": question.choices.index(question.answers[0]) if question.choices else 0,
            "choices": list(question.choices),
        }
        for question, prompt in zip(test.questions, prompts, strict=True)
    ]
    with _silent():
        lm = needed("lm_eval.models.huggingface", "evaluate").HFLM(
            pretrained=model,
            tokenizer=_copied(tokenizer, ends),
            batch_size=batch_size,
            max_length=max_length,
            add_bos_token=add_bos_token,
        )
        own = model.generation_config.eos_token_id if ends else None
        ends = [*ends, *(own if isinstance(own, list) else [own] if own is not None else [])]
        task = _task(test, docs, max_tokens, ends, stops)
        samples = needed("lm_eval.evaluator", "evaluate").evaluate(
            lm=lm, task_dict={"task": task}, log_samples=True, bootstrap_iters=0
        )["samples"]["task"]
    by_number = {sample["doc_id"]: sample for sample in samples}
    ordered = [by_number[number] for number in range(len(docs))]
    return [
        _answer(test, question, sample)
        for sample, question in zip(ordered, test.questions, strict=True)
    ]


def _answer(test: QuestionSet, question: Question, sample: Mapping[str, Any]) -> Answer:
    """From what lm-eval logs of a question."""
    found = sample["filtered_resps"]
    if question.choices:
        likelihoods = [likelihood for likelihood, _ in found]
        choice = question.choices[likelihoods.index(max(likelihoods))]
        return Answer(choice, choice, {"accuracy": float(sample["acc"])})
    return Answer(found[0], final_answer(test, found[0]), judge(test, found[0], question.answers))


def _copied(tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> PreTrainedTokenizerBase:
    """A tokenizer for lm-eval to change: it sets a padding token and the padding side.

    Without an end-of-sequence token it cannot generate, and would pad with a new token, for which
    the model has no embedding.
    """
    copied = copy.deepcopy(tokenizer)
    if copied.eos_token is None and ends:
        copied.eos_token = copied.convert_ids_to_tokens(ends[0])
    return copied


def _task(
    test: QuestionSet,
    docs: list[dict[str, Any]],
    max_tokens: int,
    ends: Sequence[int],
    stops: Sequence[str],
) -> Any:
    kind = "choice" if test.questions[0].choices else "answer"
    config = yaml.safe_load((HERE / f"{kind}.yaml").read_text(encoding="utf-8"))
    if kind == "answer":
        own = {"until": [*test.stops, *stops], "max_gen_toks": max_tokens}
        if ends:
            own["eos_token_id"] = sorted(set(ends))
        config["generation_kwargs"].update(own)
        config["process_results"] = lambda *_: {"exact_match": 0.0}  # judged by metrics.py
    config["custom_dataset"] = lambda **_: {"test": Dataset.from_list(docs)}
    return needed("lm_eval.api.task", "evaluate").ConfigurableTask(config=config)


@contextlib.contextmanager
def _silent() -> Any:
    """Without lm-eval's progress bars and hints; errors are still raised."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
