"""Verdicts, on cells for which the right verdict is obvious."""

import pytest

from gradsieve.analysis.verdict import Cell, Interval, curve, headline, verdict

Over = dict[str, Interval]

BETTER, WORSE, UNCLEAR = (0.05, 0.02, 0.08), (-0.05, -0.08, -0.02), (0.01, -0.02, 0.04)


def cell(
    mean: float, models: int = 3, higher: bool = True, asked: int = 50, **over: Interval
) -> Cell:
    return Cell([mean] * models, mean, 0.0 if models > 1 else None, asked, higher, over)


def f1(**cells: Cell) -> dict[str, dict[str, Cell]]:
    return {"f1": cells}


FOLDERS = {"less": "04-select/tydiqa/less", "bm25": "04-select/tydiqa/bm25"}


@pytest.mark.parametrize(
    ("less", "full", "starts"),
    [
        ({"random": BETTER, "full": UNCLEAR, "base": BETTER}, {"base": BETTER},
         "use 04-select/tydiqa/less: f1 +0.050 over random [+0.020, +0.080]; +0.010 over all rows "
         "[-0.020, +0.040], not clear; +0.050 over the untrained model [+0.020, +0.080]."),
        ({"random": UNCLEAR, "full": UNCLEAR}, {"random": UNCLEAR},
         "no method beats random here: use all rows. The best, less, has f1 +0.010 over random"),
        ({"random": WORSE}, {"random": WORSE}, "no method beats random here: use random rows."),
        ({"random": BETTER, "full": WORSE}, {"base": BETTER},
         "use all rows: less, the best selection, has f1 -0.050 over all rows [-0.080, -0.020]; "
         "+0.050 over random"),
        ({"random": BETTER, "full": BETTER, "base": WORSE}, {"base": WORSE},
         "keep the untrained model: less, the best selection, has f1 -0.050 over the untrained"),
        ({"random": BETTER, "full": WORSE, "base": WORSE}, {"base": WORSE},
         "keep the untrained model"),
        ({"random": UNCLEAR, "full": UNCLEAR, "base": UNCLEAR}, {"base": WORSE},
         "no method beats random here: keep the untrained model. The best, less, has f1 +0.010"),
        ({"base": BETTER}, {}, "add random to score.methods to know whether selecting pays"),
    ],
)  # fmt: skip
def test_what_to_do(less: Over, full: Over, starts: str) -> None:
    cells = {"less": cell(0.5, **less), "bm25": cell(0.4), "full": cell(0.5, **full)}
    if "random" in less:
        cells["random"] = cell(0.45)
    found = verdict(f1(**cells), FOLDERS, {}, {})
    assert found is not None
    assert (found.metric, found.best) == ("f1", "less")
    assert found.text.startswith(starts)


@pytest.mark.parametrize(("random", "todo"), [(BETTER, "random rows"), (UNCLEAR, "all rows")])
def test_all_rows_are_compared_with_random_ones_of_the_best_size(
    random: Interval, todo: str
) -> None:
    cells = {
        "less@0.1": cell(0.5, random=UNCLEAR, full=UNCLEAR),
        "random@0.1": cell(0.5, full=random),
        "random@0.2": cell(0.5, full=UNCLEAR if random is BETTER else BETTER),
        "full": cell(0.45),
    }
    found = verdict(f1(**cells), {}, {}, {})
    assert found is not None
    assert found.text.startswith(f"no method beats random here: use {todo}. The best, less@0.1,")


def test_all_rows_that_nobody_trained_on_are_not_said_to_be_better() -> None:
    found = verdict(f1(less=cell(0.5, random=UNCLEAR), random=cell(0.5)), FOLDERS, {}, {})
    assert found is not None
    assert found.text.startswith(
        "no method beats random here: use all rows (not trained on here: add full to "
        "score.methods to compare them). The best, less, has f1"
    )


def test_random_rows_that_are_worse_than_no_training_are_not_advised() -> None:
    less = cell(0.5, random=UNCLEAR, base=UNCLEAR)
    for cells in ({}, {"full": cell(0.4, random=WORSE, base=WORSE)}):
        found = verdict(f1(less=less, random=cell(0.5, base=WORSE), **cells), FOLDERS, {}, {})
        assert found is not None
        assert found.text.startswith("no method beats random here: keep the untrained model.")


def test_of_a_loss_the_lowest_is_best() -> None:
    cells = {
        "bm25": cell(0.4, higher=False, random=WORSE),
        "less": cell(0.5, higher=False, random=BETTER),
    }
    found = verdict({"held_out_loss": cells}, FOLDERS, {}, {})
    assert found is not None
    assert found.text == (
        "use 04-select/tydiqa/bm25: held_out_loss (lower is better) -0.050 over random "
        "[-0.080, -0.020]."
    )


def test_the_headline_is_the_metric_that_tells_models_apart() -> None:
    flat = {"random": cell(0.0), "less": cell(0.0, random=(0.0, 0.0, 0.0))}
    loss = {"random": cell(2.0, higher=False), "less": cell(1.9, higher=False, random=WORSE)}
    noisy = {"random": cell(0.1), "less": cell(0.2, random=UNCLEAR)}
    clear = {"random": cell(0.1), "less": cell(0.2, random=BETTER)}
    assert headline({"target_loss": loss, "held_out_loss": loss, "exact_match": flat}) == (
        "held_out_loss"
    )
    assert headline({"held_out_loss": loss, "exact_match": flat, "f1": clear}) == "f1"
    assert headline({"held_out_loss": flat, "exact_match": flat, "f1": noisy}) == "f1"
    assert headline({"held_out_loss": loss, "f1": noisy}) == "held_out_loss"
    assert headline({"target_loss": loss}) is None
    assert verdict({"target_loss": loss}, {}, {}, {}) is None
    assert verdict(f1(random=cell(0.1), base=cell(0.2)), {}, {}, {}) is None


def test_cautions() -> None:
    cells = {name: cell(0.5, models=1) for name in ("less", "bm25", "rds", "dsir")}
    cells["random"] = cell(0.4)
    found = verdict(
        f1(**cells, base=cell(0.1, models=1)),
        {},
        {"less": 12, "bm25": 30, "random": 12},
        {"less": 3, "full": 5},
    )
    assert found is not None
    one, steps, leaks, many = found.cautions
    assert one.startswith("one trained model of less, bm25, rds, dsir: ")
    assert "over questions only" in one
    assert "train.seeds" in one
    assert steps.startswith("optimizer steps differ, from 12 (less) to 30 (bm25)")
    assert "train.max_steps" in steps
    assert leaks.startswith("selected rows share 13 words with test questions (less 3): ")
    assert many.startswith("the best of 4 selections")
    settled = verdict(f1(less=cell(0.5), random=cell(0.4)), {}, {"less": 12, "random": 12}, {})
    assert settled is not None
    assert settled.cautions == []


@pytest.mark.parametrize("asked", [1, 5, 10])
def test_few_questions_are_a_caution_and_one_is_never_clear(asked: int) -> None:
    less = cell(0.5, asked=asked, random=(0.05, 0.05, 0.05) if asked == 1 else BETTER)
    found = verdict(f1(less=less, random=cell(0.4, asked=asked)), FOLDERS, {}, {})
    assert found is not None
    assert found.text.startswith("no method beats random" if asked == 1 else "use 04-select")
    assert [text.partition(",")[0] for text in found.cautions] == {
        1: ["the intervals are over 1 question"],
        5: ["the intervals are over 5 questions"],
        10: [],
    }[asked]


def test_selections_of_several_sizes() -> None:
    cells = {
        "random@0.1": cell(0.30),
        "random@0.5": cell(0.40),
        "less@0.5": cell(0.42, random=UNCLEAR),
        "less@0.1": cell(0.41, random=BETTER),
        "bm25@0.1": cell(0.35),
        "base": cell(0.1),
        "full": cell(0.39),
    }
    rows = {"random@0.1": 5, "random@0.5": 25, "less@0.1": 5, "less@0.5": 25, "bm25@0.1": 5}
    found = curve(f1(**cells), rows)
    assert found is not None
    assert (found.metric, found.sizes) == ("f1", ["0.1", "0.5"])
    assert found.lines == {
        "random": [(5, 0.30), (25, 0.40)],
        "less": [(5, 0.41), (25, 0.42)],
        "bm25": [(5, 0.35), None],
    }
    assert found.levels == {"full": 0.39, "base": 0.1}
    assert curve(f1(less=cell(0.3), random=cell(0.2)), {"less": 5, "random": 5}) is None
    decided = verdict(f1(**cells), {}, {}, {})
    assert decided is not None
    assert decided.best == "less@0.1"  # `less@0.5` is not clearly better than random
