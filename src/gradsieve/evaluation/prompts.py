"""Held-out questions as a model is asked them, and its answers.

In: a test set, and a context whose model is asked. Out: prompts in the model's chat template, each
with as many worked examples as there is room for, and each answer's metrics, by lm-eval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradsieve.console import Progress
from gradsieve.data.content import reasoning_of, text_of
from gradsieve.recipe.schema import EvaluateConfig
from gradsieve.runs.context import Context
from gradsieve.tasks import Question, QuestionSet

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def settings(context: Context) -> EvaluateConfig:
    """The recipe's section, or its defaults."""
    return context.recipe.evaluate or EvaluateConfig()


@dataclass(frozen=True)
class Asked:
    """How a test set is put to a model.

    Attributes:
        prompts: Of each question, in the template of the model.
        lengths: Tokens of each.
        max_length: Tokens of prompt and answer together: the model's positions.
        max_tokens: Tokens of an answer.
        fewer: Questions with fewer worked examples than the benchmark has, for want of room.
        cut: Questions for which there is no room without any, and which lose their start.
    """

    prompts: list[str]
    lengths: list[int]
    max_length: int
    max_tokens: int
    fewer: int
    cut: int


def ask(context: Context, test: QuestionSet) -> Asked:
    """Write a test set's prompts for a context's model, each with as many shots as there is room.

    The room is the model's positions, whatever `model.max_length` training is cut to.
    """
    questions = test.questions
    max_length = context.positions or context.template.max_length
    answers = [answer for q in questions for answer in (q.choices or (*q.answers, _written(q)))]
    # A token more for the end, and some for borders that fall otherwise after a prompt.
    max_tokens = max(_lengths(context, answers)) + 8
    if not questions[0].choices and test.max_tokens is not None:
        max_tokens = test.max_tokens
    max_tokens = min(max_tokens, max_length // 2)
    room = max_length - max_tokens
    shots = [len(q.shots.examples) if q.shots and settings(context).shots else 0 for q in questions]
    fewer: set[int] = set()
    prompts = [_prompt(context, q, count) for q, count in zip(questions, shots, strict=True)]
    lengths = _lengths(context, prompts)
    while long := [i for i, n in enumerate(lengths) if n > room and shots[i]]:
        fewer.update(long)
        for i in long:
            shots[i] -= 1
            prompts[i] = _prompt(context, questions[i], shots[i])
        for i, length in zip(long, _lengths(context, [prompts[i] for i in long]), strict=True):
            lengths[i] = length
    cut = sum(length > room for length in lengths)
    return Asked(prompts, lengths, max_length, max_tokens, len(fewer), cut)


def _lengths(context: Context, texts: Sequence[str]) -> list[int]:
    """Tokens of each text."""
    template = context.template
    special = template.adds_special_tokens
    found = template.tokenizer(list(texts), add_special_tokens=special, verbose=False)
    return [len(ids) for ids in found.input_ids]


def _written(question: Question) -> str:
    """The right answer with its reasoning, for which there must be room."""
    answer = question.example.messages[-1]
    return f"{reasoning_of(answer)}{text_of(answer['content'])}"


def _prompt(context: Context, question: Question, shots: int) -> str:
    *asked, answer = question.example.messages
    if question.shots and shots:
        asked = [{"role": "user", "content": question.shots.text(shots)}]
    return context.template.prompt(asked, question.example.answer_prefix or "", answer)


def tell(progress: Progress, target: str, asked: Asked) -> None:
    """Warn of questions that are not asked as the benchmark does."""
    what = [f"{asked.fewer} with fewer worked examples"] if asked.fewer else []
    what += [f"{asked.cut} without their start"] if asked.cut else []
    if what:
        progress.warn(
            f"target {target}: of {len(asked.prompts)} questions {' and '.join(what)}, since the "
            f"model has {asked.max_length} positions, {asked.max_tokens} of them for the answer"
        )


def answered(
    context: Context, model: PreTrainedModel, test: QuestionSet, asked: Asked
) -> dict[str, list[float]]:
    """Each metric of each question's answer by a context's model."""
    from gradsieve.tasks.harness import answers

    template = context.template
    found = answers(
        test,
        asked.prompts,
        model,
        template.tokenizer,
        max_length=asked.max_length,
        max_tokens=asked.max_tokens,
        batch_size=settings(context).batch_size,
        add_bos_token=template.adds_special_tokens,
        ends=template.ends,
        stops=template.end_texts,
    )
    return {metric: [scores[metric] for scores in found] for metric in test.metrics}
