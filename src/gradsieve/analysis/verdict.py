"""Which selection is best on a target, by how much, with what certainty, and what to do.

In: a comparison's cells. Out: a `Verdict`: one metric, one recommendation, and cautions about how
to read it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from gradsieve.analysis.bootstrap import Interval, interval_text

HELD_OUT, TARGET = "held_out_loss", "target_loss"

UNTRAINED = ("base", "warmed_up")
"""Models before training on a selection."""

REFERENCES = {"random": "random", "full": "all rows", "base": "the untrained model"}
"""The methods that selections are compared with, and their names in text."""

FEW = 10
"""Fewer questions get a caution: a 95% interval over 10 questions contained the true mean in 90% of
2,000 simulations with normal values, over 5 in 85%, over 2 in 51%; over one it has no width."""

MANY = 4
"""With this many methods or more, the best one's interval is called optimistic (an assumption)."""


@dataclass(frozen=True)
class Cell:
    """The result of one method on one target by one metric.

    Attributes:
        values: One value per model (seeds of selection and of training).
        deviation: Standard deviation of the values; None if there is only one.
        questions: Number of questions that all of the method's models answered.
        over: Mean difference to each of `REFERENCES` that was evaluated, and its 95% interval over
            questions and over models.
    """

    values: list[float]
    mean: float
    deviation: float | None
    questions: int
    higher_is_better: bool
    over: Mapping[str, Interval] = field(default_factory=dict)

    @property
    def over_random(self) -> Interval | None:
        """The difference to `random`."""
        return self.over.get("random")

    def compared(self, reference: str) -> int | None:
        """1 if clearly better, -1 if clearly worse, 0 if not clear, None if unknown."""
        if reference not in self.over:
            return None
        if self.questions < 2:
            return 0
        _, low, high = self.over[reference]
        sign = 1 if self.higher_is_better else -1
        return sign if low > 0 else -sign if high < 0 else 0


Metrics = Mapping[str, Mapping[str, Cell]]
"""Cells by metric and method."""


@dataclass(frozen=True)
class Verdict:
    """The conclusion for a target: a recommendation, and cautions of one sentence each.

    Attributes:
        metric: The metric that decided: the first one that distinguishes the models.
        best: The best selection by this metric, among those that clearly beat random if any do.
    """

    metric: str
    best: str
    text: str
    cautions: list[str]


def headline(metrics: Metrics) -> str | None:
    """The metric that distinguishes models: the task's own, or else the loss on held-out examples.

    A metric with the same value for all models, such as the exact match of models that never
    answer, can't decide.
    """
    names = [name for name in metrics if not name.endswith("_loss")]
    names += [HELD_OUT] if HELD_OUT in metrics else []
    telling = [name for name in names if _tells_apart(metrics[name])]
    varying = [name for name in names if len({cell.mean for cell in metrics[name].values()}) > 1]
    return next(iter([*telling, *varying, *names]), None)


def _tells_apart(cells: Mapping[str, Cell]) -> bool:
    known = [one for one in REFERENCES if any(one in cell.over for cell in cells.values())]
    return bool(known) and any(cell.compared(known[0]) for cell in cells.values())


def verdict(
    metrics: Metrics,
    selections: Mapping[str, str],
    steps: Mapping[str, int],
    leaks: Mapping[str, int],
) -> Verdict | None:
    """The verdict on a target; None if no method was evaluated on held-out questions.

    Args:
        metrics: The target's cells.
        selections: The folder of each method's selection.
        steps: Optimizer steps of each method's training.
        leaks: Number of selected rows with text of this target's test questions, by method.
    """
    metric = headline(metrics)
    cells = metrics[metric] if metric else {}
    aside = (*UNTRAINED, "random", "full")
    methods = [name for name in cells if name.partition("@")[0] not in aside]
    if metric is None or not methods:
        return None
    sign = 1 if cells[methods[0]].higher_is_better else -1
    beats = {name: cells[name].compared("random") == 1 for name in methods}
    best = max(methods, key=lambda name: (beats[name], sign * cells[name].mean))
    text = _decision(best, cells, metric, selections.get(best, best))
    cautions = list(_cautions(cells, len(methods), steps, leaks))
    return Verdict(metric, best, text, cautions)


def _decision(best: str, cells: Mapping[str, Cell], metric: str, folder: str) -> str:
    cell, full, against_random = cells[best], cells.get("full"), cells[best].compared("random")
    others = [reference for reference in ("full", "base") if reference in cell.over]
    rest = "".join(f"; {_gap(cell, other)}" for other in others)
    name = metric if cell.higher_is_better else f"{metric} (lower is better)"
    if full and cell.compared("full") == -1 and full.compared("base") != -1:
        random = f"; {_gap(cell, 'random')}" if "random" in cell.over else ""
        return f"use all rows: {best}, the best selection, has {name} {_gap(cell, 'full')}{random}."
    if cell.compared("base") == -1:
        has = f"{best}, the best selection, has {name} {_gap(cell, 'base')}"
        return f"keep the untrained model: {has}."
    if against_random == 1:
        return f"use {folder}: {name} {_gap(cell, 'random')}{rest}."
    if against_random is None:
        return (
            f"add random to score.methods to know whether selecting pays; the best, {best}, has "
            f"{name} {cell.mean:.3f}{rest}."
        )
    # With several sizes, each size of random rows was compared with all rows, not vice versa.
    _, mark, size = best.partition("@")
    random_rows = cells.get(f"random{mark}{size}")
    beaten = random_rows is not None and random_rows.compared("full") == 1
    other, todo = full or random_rows, "use all rows"
    if full and (beaten or full.compared("random") == -1):
        other, todo = random_rows, "use random rows"
    if other and other.compared("base") == -1:
        todo = "keep the untrained model"
    elif full is None:
        todo += " (not trained on here: add full to score.methods to compare them)"
    has = f"The best, {best}, has {name} {_gap(cell, 'random')}{rest}"
    return f"no method beats random here: {todo}. {has}."


@dataclass(frozen=True)
class Curve:
    """The headline metric against the size of selections.

    Attributes:
        sizes: Sizes of the selections as in their names, smallest first.
        lines: By method, the selected rows and mean metric at each size; None for missing sizes.
        levels: The mean metric of `full` and of `base`, if they were evaluated.
    """

    metric: str
    higher_is_better: bool
    sizes: list[str]
    lines: dict[str, list[tuple[int, float] | None]]
    levels: dict[str, float]


def curve(metrics: Metrics, rows: Mapping[str, int]) -> Curve | None:
    """The headline metric against each method's selected rows; None if there is only one size."""
    metric = headline(metrics)
    cells = metrics[metric] if metric else {}
    points: dict[str, dict[str, tuple[int, float]]] = {}
    most: dict[str, int] = {}
    for method, cell in cells.items():
        base, _, size = method.partition("@")
        if size and method in rows:
            points.setdefault(base, {})[size] = rows[method], cell.mean
            most[size] = max(most.get(size, 0), rows[method])
    if metric is None or len(most) < 2:
        return None
    sizes = sorted(most, key=most.__getitem__)
    return Curve(
        metric,
        next(iter(cells.values())).higher_is_better,
        sizes,
        {base: [found.get(size) for size in sizes] for base, found in points.items()},
        {name: cells[name].mean for name in ("full", "base") if name in cells},
    )


def _gap(cell: Cell, reference: str) -> str:
    mean, interval = interval_text(cell.over[reference]).split(" ", 1)
    doubt = "" if cell.compared(reference) else ", not clear"
    return f"{mean} over {REFERENCES[reference]} {interval}{doubt}"


def _cautions(
    cells: Mapping[str, Cell], methods: int, steps: Mapping[str, int], leaks: Mapping[str, int]
) -> Iterator[str]:
    trained = {name: cell for name, cell in cells.items() if name not in UNTRAINED}
    single = [name for name, cell in trained.items() if len(cell.values) == 1]
    if single:
        yield (
            f"one trained model of {', '.join(single)}: the intervals are over questions only, and "
            "another seed may change more than they show. Train several: train.seeds: [0, 1, 2], "
            "and random-1, random-2 in score.methods"
        )
    asked = min(cell.questions for cell in cells.values())
    if asked < FEW:
        yield (
            f"the intervals are over {asked} question{'s' * (asked > 1)}, and too narrow for so "
            "few. Give more held-out examples"
        )
    made = {name: steps[name] for name in trained if name in steps}
    if made and max(made.values()) > min(made.values()):
        low, high = min(made, key=made.__getitem__), max(made, key=made.__getitem__)
        yield (
            f"optimizer steps differ, from {made[low]} ({low}) to {made[high]} ({high}): some of a "
            "difference may be due to them. train.max_steps gives every training as many"
        )
    if leaked := ", ".join(f"{name} {leaks[name]}" for name in trained if name in leaks):
        yield (
            f"selected rows share 13 words with test questions ({leaked}): their models may know "
            "the answers. Set select.drop_leaks: true"
        )
    if methods >= MANY:
        yield (
            f"the best of {methods} selections was picked by these numbers, so its interval is "
            "somewhat optimistic"
        )
