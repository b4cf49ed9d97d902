"""Generate answers to a test set's questions with lm-eval, in this process.

In: a model, its tokenizer, questions and their prompts. Out: each question's answer with its
metrics. lm-eval only generates answers or compares choices: prompts (prompts.py) use the model's
chat template and the benchmark's few-shot examples, and metrics.py scores answers. lm-eval's own
tasks are not used: they lack TyDiQA, use no chat template, and load questions from the hub.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gradsieve.data.template import ChatTemplate
from gradsieve.evaluation.metrics import final_answer, judge
from gradsieve.evaluation.prompts import Prompts
from gradsieve.io import needed
from gradsieve.models.device import out_of_memory
from gradsieve.tasks.questions import Question, QuestionSet


@dataclass(frozen=True)
class Answer:
    """A model's answer to a question, and its metrics.

    Attributes:
        text: The generated text; for multiple choice, the most likely choice.
        final: The part that was compared with the references.
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
    """A model's answer to each question, in order; prompts that are too long lose their start.

    Args:
        template: The model's chat template with its tokenizer, which is not modified.
        model: In eval mode; without an adapter (merge it first).
        test: The questions.
        prompts: The result of `write_prompts` for this model.
        batch_size: Number of questions per batch; halved when memory runs out.

    Raises:
        ModelError: If memory runs out with a single question.
        UsageError: If lm-eval is not installed.
    """
    docs = [
        {
            "prompt": prompt,
            "gold": question.choices.index(question.answers[0]) if question.choices else 0,
            "choices": list(question.choices),
        }
        for question, prompt in zip(test.questions, prompts.texts, strict=True)
    ]
    ends = list(template.ends)
    if ends:  # in addition to those in the model's generation config
        own = model.generation_config.eos_token_id
        ends += own if isinstance(own, list) else [own] if own is not None else []
    with _silent():
        lm = needed("lm_eval.models.huggingface", "evaluate").HFLM(
            pretrained=model,
            tokenizer=_copied(template.tokenizer, ends),
            batch_size=batch_size,
            max_length=prompts.max_length,
            add_bos_token=template.adds_special_tokens,
        )
        stops = [*test.stops, *template.end_texts]
        task = _task(bool(test.questions[0].choices), docs, prompts.max_tokens, ends, stops)
        try:
            samples = needed("lm_eval.evaluator", "evaluate").evaluate(
                lm=lm, task_dict={"task": task}, log_samples=True, bootstrap_iters=0
            )["samples"]["task"]
        except torch.OutOfMemoryError:
            samples = None  # within this block, the exception would keep memory from being freed
    if samples is None:
        if batch_size == 1:
            raise out_of_memory(f"at most {prompts.max_length} tokens")
        torch.cuda.empty_cache()
        return model_answers(template, model, test, prompts, batch_size // 2)
    samples = sorted(samples, key=lambda sample: sample["doc_id"])
    return [_answer(test, *pair) for pair in zip(test.questions, samples, strict=True)]


def _answer(test: QuestionSet, question: Question, sample: Mapping[str, Any]) -> Answer:
    """The answer in lm-eval's logged sample of a question."""
    found = sample["filtered_resps"]
    if question.choices:
        likelihoods = [likelihood for likelihood, _ in found]
        choice = question.choices[likelihoods.index(max(likelihoods))]
        return Answer(choice, choice, {"accuracy": float(choice == question.answers[0])})
    final = final_answer(test, found[0])
    return Answer(found[0], final, judge(test, final, question.answers))


def _copied(tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> PreTrainedTokenizerBase:
    """A copy of the tokenizer for lm-eval, which sets a padding token and the padding side.

    Without an end-of-sequence token lm-eval cannot generate, and would pad with a new token, for
    which the model has no embedding.
    """
    copied = copy.deepcopy(tokenizer)
    if copied.eos_token is None and ends:
        copied.eos_token = copied.convert_ids_to_tokens(ends[0])
    return copied


def _task(
    has_choices: bool,
    docs: list[dict[str, Any]],
    max_tokens: int,
    ends: Sequence[int],
    stops: list[str],
) -> Any:
    """The questions as a task of lm-eval, whose own metric is not used."""
    config: dict[str, Any] = {
        "task": "task",
        "custom_dataset": lambda **_: {"test": Dataset.from_list(docs)},
        "test_split": "test",
        "num_fewshot": 0,
        "doc_to_text": "prompt",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "process_results": lambda *_: {"acc": 0.0},
    }
    if has_choices:
        config |= {"output_type": "multiple_choice", "doc_to_choice": "choices"}
        config["target_delimiter"] = " "
    else:
        generation = {"do_sample": False, "until": stops, "max_gen_toks": max_tokens}
        if ends:
            generation["eos_token_id"] = sorted(set(ends))
        config |= {"output_type": "generate_until", "generation_kwargs": generation}
    return needed("lm_eval.api.task", "evaluate").ConfigurableTask(config=config)


@contextlib.contextmanager
def _silent() -> Any:
    """Suppress lm-eval's progress bars and hints; errors are still raised."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
