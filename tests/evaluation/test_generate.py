"""Through lm-eval: a model that always answers correctly scores 1, one that never does 0."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lm_eval.api.model import LM
from lm_eval.models import huggingface
from transformers import PreTrainedTokenizerBase

import tiny
from gradsieve.data.examples import Example
from gradsieve.demo.model import make_tokenizer
from gradsieve.errors import ModelError
from gradsieve.evaluation.generate import Answer, model_answers
from gradsieve.evaluation.prompts import Prompts
from gradsieve.tasks import Question, QuestionSet, load_test_set


class Parrot(LM):
    """A stand-in model that gives fixed answers."""

    says: dict[str, str]  # answers by prompt
    seen: Sequence[Any] = ()

    def __init__(self, **given: Any) -> None:
        super().__init__()

    def loglikelihood(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        pairs = [request.args for request in requests]
        type(self).seen = pairs
        return [(-float(said.strip() != self.says[prompt]), True) for prompt, said in pairs]

    def generate_until(self, requests: list[Any], **_: Any) -> list[str]:
        type(self).seen = [request.args for request in requests]
        return [self.says[prompt] for prompt, _ in self.seen]

    def loglikelihood_rolling(self, requests: list[Any], **_: Any) -> list[float]:
        raise NotImplementedError


def answers(
    test: QuestionSet,
    prompts: list[str],
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    ends: Sequence[int] = (),
) -> list[Answer]:
    """Answers with a chat template that is reduced to what generation needs."""
    template: Any = SimpleNamespace(
        tokenizer=tokenizer, adds_special_tokens=False, ends=ends, end_texts=()
    )
    asked = Prompts(prompts, [], max_length=32, max_tokens=2, fewer=0, cut=0)
    return model_answers(template, model, test, asked, batch_size=2)


def ask(monkeypatch: pytest.MonkeyPatch, test: QuestionSet, says: list[str]) -> list[Answer]:
    prompts = [f"prompt {number}" for number in range(len(test.questions))]
    Parrot.says = dict(zip(prompts, says, strict=True))
    monkeypatch.setattr(huggingface, "HFLM", Parrot)
    return answers(test, prompts, None, make_tokenizer())


def scored(*given: Any) -> list[dict[str, float]]:
    return [answer.metrics for answer in ask(*given)]


def questions(gold: list[str], choices: tuple[str, ...] = ()) -> tuple[Question, ...]:
    made = []
    for number, answer in enumerate(gold):
        turns = ({"role": "user", "content": "?"}, {"role": "assistant", "content": answer})
        made.append(Question(Example("t", str(number), turns, {}), (answer,), choices))
    return tuple(made)


def test_a_batch_that_does_not_fit_into_memory_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    room = 1

    class Full(Parrot):
        def __init__(self, **given: Any) -> None:
            super().__init__()
            sizes.append(given["batch_size"])

        def generate_until(self, requests: list[Any], **others: Any) -> list[str]:
            if sizes[-1] > room:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().generate_until(requests, **others)

    test = QuestionSet(questions(["yes"]), ("exact_match",))
    Parrot.says = {"prompt 0": "yes"}
    monkeypatch.setattr(huggingface, "HFLM", Full)
    assert answers(test, ["prompt 0"], None, make_tokenizer())[0].text == "yes"
    assert sizes == [2, 1]
    room = 0
    with pytest.raises(ModelError, match="with a single example"):
        answers(test, ["prompt 0"], None, make_tokenizer())


def test_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    gold = ["A", "D", "B", "C", "A"]
    test = QuestionSet(questions(gold, ("A", "B", "C", "D")), ("accuracy",))
    assert scored(monkeypatch, test, gold) == [{"accuracy": 1.0}] * 5
    wrong = ["B", "C", "A", "D", "D"]
    assert scored(monkeypatch, test, wrong) == [{"accuracy": 0.0}] * 5
    found = scored(monkeypatch, test, [*gold[:2], *wrong[2:]])
    assert [one["accuracy"] for one in found] == [1, 1, 0, 0, 0]


def test_each_choice_is_tried_after_a_space(monkeypatch: pytest.MonkeyPatch) -> None:
    test = QuestionSet(questions(["None"], ("None", "nan")), ("accuracy",))
    assert scored(monkeypatch, test, ["None"]) == [{"accuracy": 1.0}]
    assert Parrot.seen == [("prompt 0", " None"), ("prompt 0", " nan")]


def test_free_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    gold = ["Ann Lee", "1912", "in Seoul"]
    test = QuestionSet(questions(gold), ("f1", "exact_match"), stops=("\n",))
    assert scored(monkeypatch, test, gold) == [{"f1": 1.0, "exact_match": 1.0}] * 3
    assert scored(monkeypatch, test, ["x", "y", "z"]) == [{"f1": 0.0, "exact_match": 0.0}] * 3
    settings = Parrot.seen[0][1]
    assert (settings["until"], settings["max_gen_toks"]) == (["\n"], 2)
    assert not settings["do_sample"]


@pytest.mark.parametrize(("own", "all_ends"), [(5, [3, 5]), ([5, 6], [3, 5, 6]), (None, [3])])
def test_the_end_of_a_turn_ends_an_answer(
    monkeypatch: pytest.MonkeyPatch, own: Any, all_ends: list[int]
) -> None:
    test = QuestionSet(questions(["yes"]), ("exact_match",))
    model: Any = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=own))
    Parrot.says = {"?": "yes"}
    monkeypatch.setattr(huggingface, "HFLM", Parrot)
    answers(test, ["?"], model, make_tokenizer(), ends=[3])
    assert Parrot.seen[0][1]["eos_token_id"] == all_ends


@pytest.mark.parametrize("task", ["mmlu", "bbh", "tydiqa"])
def test_gold_on_real_questions(
    task: str, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = load_test_set(task, task, str(shared_data / "eval" / task), None)
    assert test is not None
    test = test.limited(2)
    right = [
        q.answers[0] if q.choices else q.example.messages[-1]["content"] for q in test.questions
    ]
    if task == "tydiqa":  # the model continues after the language's "Answer:"
        right = [question.answers[0] for question in test.questions]
    for scores in scored(monkeypatch, test, right):
        assert set(scores.values()) == {1.0}
    for never in ("never", "", ". . ."):
        wrong = ["ABCDA"["ABCD".index(said) + 1] if task == "mmlu" else never for said in right]
        for scores in scored(monkeypatch, test, wrong):
            assert set(scores.values()) == {0.0}


def test_with_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    """The likelier choice is the one that the model's own logits prefer; nothing is printed."""
    import torch

    model, tokenizer = tiny.model().eval(), make_tokenizer()
    test = QuestionSet(questions(["a"] * 3, ("a", "b", "c")), ("accuracy",))
    prompts = ["repeat : d e", "backwards : a b c", "head : h i j k"]
    found = answers(test, prompts, model, tokenizer)
    for prompt, scores in zip(prompts, found, strict=True):
        ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            logits = model(ids).logits[0, -1]
        best = max("abc", key=lambda letter: float(logits[tokenizer.convert_tokens_to_ids(letter)]))
        assert scores.metrics == {"accuracy": float(best == "a")}
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("removed", [["pad"], ["pad", "unk"], ["pad", "unk", "eos"]])
@pytest.mark.parametrize("choices", [("a", "b c"), ()])
def test_the_tokenizer_is_left_as_it_was(removed: list[str], choices: tuple[str, ...]) -> None:
    """It may lack a padding token: lm-eval sets one, and the padding side, on what it receives."""
    model, tokenizer = tiny.model().eval(), make_tokenizer()
    for name in removed:
        setattr(tokenizer, f"{name}_token", None)
    tokenizer.padding_side = "right"
    tokenizer("a b c", truncation=True, max_length=2)  # the backend keeps this for the next call
    test = QuestionSet(questions(["a"] * 3, choices), ("accuracy" if choices else "f1",))
    prompts = ["repeat : d e", "backwards : a b c", "head : h i j k"]
    before = tiny.tokenizer_state(tokenizer)
    ends = [tokenizer.convert_tokens_to_ids("</s>")] if "eos" in removed else []
    answers(test, prompts, model, tokenizer, ends)
    assert tiny.tokenizer_state(tokenizer) == before
