"""Prompts of held-out questions.

In: a test set, and the context of the evaluated model. Out: prompts in the model's chat template,
each with as many few-shot examples as fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gradsieve.data.content import reasoning_of, text_of
from gradsieve.recipe.schema import EvaluateConfig
from gradsieve.runs.context import Context
from gradsieve.tasks import Question, QuestionSet

LOSSES = ("target_loss", "held_out_loss")
"""Mean loss on the answers of the target's examples and held-out examples; lower is better."""


def settings(context: Context) -> EvaluateConfig:
    """The recipe's `evaluate` section, or its defaults."""
    return context.recipe.evaluate or EvaluateConfig()


def metrics_of(context: Context, target: str) -> list[str]:
    """The metrics of a target that the recipe wants."""
    wanted = settings(context).metrics
    return [one for one in metrics_there(context, target) if wanted is None or one in wanted]


def metrics_there(context: Context, target: str) -> list[str]:
    """All metrics of a target: its losses, and those of the answers to its questions."""
    tasks, test, found = settings(context).tasks, context.test_sets.get(target), list[str]()
    if tasks is None or "target_loss" in tasks:
        found += LOSSES if test else LOSSES[:1]
    if test and (tasks is None or target in tasks):
        found += test.metrics
    return found


def has_answers(metrics: Sequence[str]) -> bool:
    """Whether any of these metrics requires answers to questions."""
    return bool({*metrics} - {*LOSSES})


@dataclass(frozen=True)
class Prompts:
    """A test set's questions in a model's chat template, and the tokens of each.

    Attributes:
        max_length: Maximum tokens of prompt and answer together: the model's context length.
        max_tokens: Maximum tokens of an answer.
        fewer: Number of questions with fewer few-shot examples than in the benchmark, to fit.
        cut: Number of questions that don't fit even without examples, and lose their start.
    """

    texts: list[str]
    lengths: list[int]
    max_length: int
    max_tokens: int
    fewer: int
    cut: int

    @property
    def warning(self) -> str | None:
        """How many questions differ from the benchmark's; None if none of them do."""
        if not self.fewer and not self.cut:
            return None
        return (
            f"prompts shortened to fit, of {len(self.texts)}: {self.fewer} with fewer few-shot "
            f"examples, {self.cut} without their start; the model's context length is "
            f"{self.max_length} tokens, {self.max_tokens} of them for the answer"
        )


def write_prompts(context: Context, test: QuestionSet) -> Prompts:
    """Write a test set's prompts for a context's model, each with as many shots as fit.

    The limit is the model's context length, not `model.max_length`, which is for training.
    """
    questions = test.questions
    max_length = context.positions or context.template.max_length
    max_tokens = test.max_tokens
    if max_tokens is None or questions[0].choices:
        answers = [answer for q in questions for answer in (q.choices or (*q.answers, _written(q)))]
        # One more for the end token; some more, as answers may be tokenized differently in context.
        max_tokens = max(_lengths(context, answers)) + 8
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
    return Prompts(prompts, lengths, max_length, max_tokens, len(fewer), cut)


def _lengths(context: Context, texts: Sequence[str]) -> list[int]:
    """The number of tokens in each text."""
    template = context.template
    special = template.adds_special_tokens
    found = template.tokenizer(list(texts), add_special_tokens=special, verbose=False)
    return [len(ids) for ids in found.input_ids]


def _written(question: Question) -> str:
    """The reference answer with its reasoning, which must fit as well."""
    answer = question.example.messages[-1]
    return f"{reasoning_of(answer)}{text_of(answer['content'])}"


def _prompt(context: Context, question: Question, shots: int) -> str:
    *asked, answer = question.example.messages
    if question.shots and shots:
        asked = [{"role": "user", "content": question.shots.text(shots)}]
    return context.template.prompt(asked, question.example.answer_prefix or "", answer)
