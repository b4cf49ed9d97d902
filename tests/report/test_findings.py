"""Verdict, curve and validation in the report: as data, and in a browser."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from test_browser import few_rows, written

from gradsieve.analysis.tables import Comparison
from gradsieve.analysis.validation import Validation
from gradsieve.analysis.verdict import Curve, Verdict
from gradsieve.report.gather import findings

VERDICT = Verdict("f1", "less@0.1", "use 04-select/t/less@0.1: f1 +0.050.", ["one trained model"])
CURVE = Curve(
    "f1", True, ["0.1", "0.5"], {"less": [(3, 0.4), (15, 0.5)], "random": [(3, 0.3), None]},
    {"full": 0.45, "base": 0.1},
)  # fmt: skip
VALIDATED = Validation(
    "t",
    "less",
    "held_out_loss",
    4,
    1,
    (0.3, 0.1, 0.5),
    {},
    2 * [0.5, -0.5, 0.0],
    2 * [1.0, 1.25, 1.125],
)


def found() -> dict[str, Any]:
    comparison = Comparison(
        cells={"t": {}}, verdicts={"t": VERDICT}, curves={"t": CURVE}, steps={"t": {"less": 1234}}
    )
    return findings(comparison, [VALIDATED])


def test_by_target() -> None:
    (target,) = found().values()
    assert target["verdict"]["cautions"] == ["one trained model"]
    assert target["curve"]["lines"]["random"] == [(3, 0.3), None]
    (validation,) = target["validation"]
    assert validation["points"] == 2 * [[0.5, 1.0], [-0.5, 1.25], [0.0, 1.125]]
    assert validation["text"].startswith("LDS 0.30 [0.10, 0.50]: the scores predict")
    assert findings(Comparison(), []) == {}
    assert findings(Comparison(), [VALIDATED])["t"]["verdict"] is None


def test_on_the_page(visit: Callable[..., Any], tmp_path: Path) -> None:
    data = few_rows() | {"findings": found()}
    cell = {"values": [0.4], "mean": 0.4, "deviation": None, "over": {}}
    metric = {"metric": "f1", "higher_is_better": True, "methods": [{"method": "less", **cell}]}
    data["results"] = {"t": [metric]}
    tab = visit(written(data, tmp_path))
    # The stored text: on the page, a style sheet capitalizes sentences.
    assert VERDICT.text in (tab.locator("#verdict").text_content() or "")
    assert "one trained model" in (tab.locator("#verdict li").text_content() or "")
    assert tab.locator("#metrics td.number").all_inner_texts()[-2:] == ["0.400", "1,234"]
    curve, validation = tab.locator("#findings .card").all()
    assert curve.locator("circle").count() == 3
    assert curve.locator("path.here").count() == 1
    assert "full" in curve.inner_text()
    assert validation.locator("circle").count() == 6
    assert "Validation: less" in validation.inner_text()
    heights = [float(c.get_attribute("cy")) for c in validation.locator("circle").all()]
    assert heights[0] > heights[2] > heights[1]  # the lowest loss is at the bottom
    assert "NaN" not in tab.locator("#findings").inner_html()
