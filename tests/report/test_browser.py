"""The page in a real browser: it works, it is fast with many rows, and no data is executed.

Each test ends with a check that there were no console messages, requests or errors (conftest.py).
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gradsieve
import hostile
import world
from gradsieve.report.page import page

Visit = Callable[..., Any]
ROWS = 20_000


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run with hostile rows."""
    data = hostile.world_of(tmp_path_factory.mktemp("inputs"))
    recipe = world.recipe(
        data,
        score={"methods": ["less", "bm25"]},
        # Enough rows that some are excluded by rules and some are near misses.
        select={"fraction": 0.4, "per_source": {"one": 4}, "near_duplicates": {"cosine": 0.99}},
    )
    run = gradsieve.run(recipe, tmp_path_factory.mktemp("run"))
    return run.stage("report") / "index.html"


def count(tab: Any, group: str = "All") -> int:
    """The number of matching rows on a group's button."""
    text = tab.locator("#groups label", has_text=re.compile(f"^{group} ")).inner_text()
    return int(text.rpartition(" ")[2].replace(",", ""))


def scores(tab: Any) -> list[float]:
    told = tab.locator("#rows .score").all_inner_texts()
    return [float(text.replace("\u2212", "-")) for text in told]


def test_search(visit: Visit, report: Path) -> None:
    tab = visit(report)
    tab.get_by_text(re.compile("^All ")).click()
    everything = count(tab)
    tab.keyboard.press("Escape")
    tab.locator("h1").click()
    tab.keyboard.press("/")
    tab.keyboard.type("hostile WINDOW.hacked script")
    assert 0 < count(tab) < everything
    assert tab.locator("#rows > li").count() == count(tab)
    assert "<script>" in tab.locator("#rows").inner_text()
    assert tab.locator("#rows mark").count() > 0
    tab.locator("#query").fill("no such words anywhere")
    assert count(tab) == 0
    assert "No row matches" in tab.locator("#count").inner_text()
    tab.locator("#query").fill("$(?[a")
    assert count(tab) == 0


def test_sort_and_filter(visit: Visit, report: Path) -> None:
    tab = visit(report)
    assert scores(tab) == sorted(scores(tab), reverse=True)
    tab.get_by_text(re.compile("^All ")).click()
    tab.select_option("#sort", label="lowest score")
    assert scores(tab) == sorted(scores(tab))
    tab.select_option("#sort", label="longest")
    lengths = [
        int(re.findall(r"([\d,]+) tokens", text)[0].replace(",", ""))
        for text in tab.locator("#rows .about").all_inner_texts()
    ]
    assert lengths == sorted(lengths, reverse=True)
    everything = count(tab)
    tab.select_option("#source", label="two")
    assert 0 < count(tab) < everything
    assert all("two" in text for text in tab.locator("#rows .about").all_inner_texts())
    tab.select_option("#subtask", label="numbers")
    of_both = count(tab)
    assert all("numbers" in text for text in tab.locator("#rows .about").all_inner_texts())
    tab.select_option("#source", label="all")
    assert count(tab) > of_both
    parts = sum(count(tab, group) for group in ("Selected", "Passed over", "Near misses"))
    assert parts == count(tab)


def test_pages(visit: Visit, report: Path) -> None:
    tab = visit(report)
    tab.get_by_text(re.compile("^All ")).click()
    first = tab.locator("#rows .rank").all_inner_texts()
    assert len(first) == 25
    assert tab.locator("#previous").is_disabled()
    tab.locator("#next").click()
    assert not set(first) & set(tab.locator("#rows .rank").all_inner_texts())
    tab.locator("#previous").click()
    assert tab.locator("#rows .rank").all_inner_texts() == first


def test_open_an_example_with_the_keyboard(visit: Visit, report: Path) -> None:
    tab = visit(report)
    heads = tab.locator("#rows .head")
    heads.first.focus()
    tab.keyboard.press("ArrowDown")
    assert heads.nth(1).evaluate("head => head === document.activeElement")
    tab.keyboard.press("Enter")
    assert heads.nth(1).get_attribute("aria-expanded") == "true"
    detail = tab.locator("#rows .detail").nth(1)
    for part in (
        "user",
        "assistant",
        "Target examples with positive contributions",
        "By checkpoint",
    ):
        assert part in detail.inner_text()
    detail.locator("summary").first.click()
    detail.locator("details .turn").first.wait_for()
    assert "id " in detail.locator("details").first.inner_text()
    tab.keyboard.press("Shift+Tab")
    heads.nth(1).press("Enter")
    assert detail.is_hidden()


def test_switch_target_and_method(visit: Visit, report: Path) -> None:
    tab = visit(report)
    for target in ("plain", "length", "mine"):
        tab.select_option("#target", target)
        assert tab.locator("h1").inner_text().endswith(target)
    tab.select_option("#method", "bm25")
    assert "bm25" in tab.locator("#lead").inner_text()
    tab.locator("#rows .head").first.click()
    assert "can\u2019t be decomposed" in tab.locator("#rows .detail").first.inner_text()


def test_ends_of_intervals_have_a_sign(visit: Visit, tmp_path: Path) -> None:
    """As in the table of `gradsieve compare`."""
    data = few_rows()
    one = {"method": "base", "values": [0.5], "mean": 0.5, "deviation": None,
           "over": {"random": [0.4, 0.3, 0.5]}}  # fmt: skip
    data["results"] = {"t": [{"metric": "f1", "higher_is_better": True, "methods": [one]}]}
    gap = visit(written(data, tmp_path)).locator("td.gap").inner_text()
    assert gap == "+0.400 [+0.300, +0.500]"


@pytest.mark.parametrize("target", ["mine", "length"])
def test_nothing_in_the_data_runs(visit: Visit, report: Path, target: str) -> None:
    tab = visit(report)
    tab.select_option("#target", target)
    tab.get_by_text(re.compile("^All ")).click()
    tab.select_option("#source", label="hostile")
    assert tab.locator("#rows > li").count() == len(hostile.TEXTS) - 1
    for head in tab.locator("#rows .head").all():
        head.click()
    for opener in tab.locator("#rows summary").all()[:20]:
        opener.click()
    assert tab.evaluate("window.hacked") is None
    allowed = {"BUTTON", "SPAN", "I", "BDI", "DIV", "B", "P", "H3", "UL", "LI", "DETAILS",
               "SUMMARY"}  # fmt: skip
    used = tab.evaluate(
        "[...new Set([...document.querySelectorAll('#rows *')].map(e => e.tagName))]"
    )
    assert set(used) <= allowed
    text = tab.locator("#rows").inner_text()
    for name in ("script", "end", "link", "broken", "comment"):
        assert hostile.TEXTS[name] in text, name
    assert "Cut here: 96,020 more characters" in text  # of 6 and 100,014, after the first 4,000
    assert tab.evaluate("document.querySelectorAll('main a, main script, main img').length") == 0


def test_text_of_any_script_stays_in_its_place(visit: Visit, report: Path) -> None:
    tab = visit(report)
    tab.locator("#query").fill("gnp.exe")
    tab.get_by_text(re.compile("^All ")).click()
    head = tab.locator("#rows .head")
    for part in ("snippet", "about bdi"):
        style = head.locator(f".{part}").first.evaluate("e => getComputedStyle(e).unicodeBidi")
        assert style in ("isolate", "plaintext")
    left = [
        head.locator(f".{part}").first.bounding_box()["x"]
        for part in ("rank", "score", "snippet", "about")
    ]
    assert left == sorted(left)


@pytest.mark.parametrize("width", [320, 390, 768])
def test_a_phone_needs_no_scrolling_sideways(visit: Visit, report: Path, width: int) -> None:
    tab = visit(report, width=width, height=800)
    for target in ("mine", "length"):
        tab.select_option("#target", target)
        tab.get_by_text(re.compile("^All ")).click()
        tab.select_option("#source", label="hostile")
        for head in tab.locator("#rows .head").all():
            head.click()
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
    box = tab.locator("#theme").bounding_box()
    assert box["x"] + box["width"] <= width


def until(tab: Any, condition: str) -> None:
    """Playwright's own waits evaluate text in the page, which the page's policy forbids."""
    for _ in range(200):
        if tab.evaluate(condition):
            return
        tab.wait_for_timeout(50)
    raise AssertionError(condition)


def key_of_open_row(tab: Any) -> str:
    return str(tab.locator("#rows .detail:visible p.small").last.inner_text())


def test_the_address_holds_what_is_shown(visit: Visit, report: Path) -> None:
    tab = visit(report)
    assert tab.evaluate("location.hash") == ""
    tab.select_option("#target", "length")
    tab.select_option("#method", "bm25")
    tab.get_by_text(re.compile("^All ")).click()
    tab.select_option("#source", label="hostile")
    tab.select_option("#sort", label="longest")
    tab.locator("#query").fill("a b")
    tab.locator("#rows .head").nth(2).click()
    opened, rows = key_of_open_row(tab), count(tab)
    until(tab, "location.hash.includes('row=')")
    other = visit(report, hash=tab.evaluate("location.hash"))
    assert other.locator("h1").inner_text().endswith("length")
    assert "bm25" in other.locator("#lead").inner_text()
    assert other.locator("#source").evaluate("one => one.selectedOptions[0].text") == "hostile"
    assert (other.locator("#query").input_value(), count(other)) == ("a b", rows)
    assert other.locator("#sort").input_value() == "long"
    assert key_of_open_row(other) == opened
    for wrong in (
        "#results",
        "#target=none&method=%00&group=x&page=-7&row=1",
        "#target=mine&page=9e9",
    ):
        assert visit(report, hash=wrong).locator("#rows > li").count() > 0


def test_the_page_of_the_open_row_is_shown(visit: Visit, report: Path) -> None:
    tab = visit(report)
    tab.get_by_text(re.compile("^All ")).click()
    tab.locator("#next").click()
    tab.locator("#rows .head").nth(3).click()
    opened = key_of_open_row(tab)
    until(tab, "location.hash.includes('row=')")
    hash = re.sub("&page=[0-9]+", "", tab.evaluate("location.hash"))
    assert key_of_open_row(visit(report, hash=hash)) == opened
    # Rows against methods have no place for an open row.
    hash = hash.replace("layout=list", "layout=methods")
    tab.evaluate("hash => { history.replaceState(null, '', hash); restore(); }", hash)
    assert tab.locator("#layout").input_value() == "methods"


def test_filtered_rows_are_exported(visit: Visit, report: Path) -> None:
    tab = visit(report)
    tab.get_by_text(re.compile("^All ")).click()
    tab.select_option("#source", label="hostile")
    with tab.expect_download() as download:
        tab.locator("#export").click()
    assert download.value.suggested_filename == "mine-less.jsonl"
    lines = Path(download.value.path()).read_bytes().split(b"\n")[:-1]
    rows = [json.loads(line) for line in lines]
    assert len(rows) == count(tab)
    assert {row["source"] for row in rows} == {"hostile"}
    texts = {row["messages"][0]["content"] for row in rows}
    assert {hostile.TEXTS[name] for name in ("script", "lines", "rtl")} <= texts
    assert [f"{row['rank']:,}" for row in rows] == tab.locator("#rows .rank").all_inner_texts()


def test_rows_against_methods(visit: Visit, report: Path) -> None:
    tab = visit(report)
    tab.select_option("#layout", "methods")
    heads = tab.locator("#by-method th[scope=col]").all_inner_texts()
    assert heads == ["row", "less", "bm25"]
    own = tab.locator("#by-method td:nth-child(2)").all_inner_texts()
    assert all(text.endswith("\u2713") for text in own)
    tab.select_option("#layout", "list")
    assert tab.locator("#rows .rank").all_inner_texts() == [text.split()[0] for text in own]
    tab.select_option("#method", "bm25")
    ranks = tab.locator("#rows .rank").all_inner_texts()
    tab.select_option("#layout", "methods")
    cells = tab.locator("#by-method td:nth-child(3)").all_inner_texts()
    assert [text.split()[0] for text in cells] == ranks
    tab.locator("#by-method .row").nth(1).click()
    assert "Rank by each method" in tab.locator("#rows .detail:visible").inner_text()


def test_the_targets_examples_are_listed(visit: Visit, report: Path) -> None:
    tab = visit(report)
    subtasks = tab.locator("#subtask-list summary")
    assert subtasks.all_inner_texts() == ["letters 3 examples", "numbers 3 examples"]
    subtasks.first.click()
    until(tab, "document.querySelectorAll('#subtask-list .turn').length === 6")
    tab.select_option("#target", "length")
    for subtask in tab.locator("#subtask-list summary").all():
        subtask.click()
    tab.locator("#subtask-list .turn").nth(3).wait_for()
    assert hostile.TEXTS["script"] in tab.locator("#subtask-list").inner_text()
    assert tab.evaluate("window.hacked") is None


def test_the_map_shows_the_selected_rows(visit: Visit, report: Path) -> None:
    tab = visit(report)
    selected = count(tab, "Selected")
    assert tab.locator("#map circle.is").count() == selected
    assert tab.locator("#map circle").count() > selected
    assert set(tab.locator("#legend li").all_inner_texts()) == {"one", "two", "hostile"}


MARKDOWN = """Intro **bold** `x = 1`
# not lost
```python
def f():
    return "<b>"  # **kept**
```
- one
  - two
1. three
| a | b |
|---|---|
> said
last **open"""


def test_markdown_is_laid_out_and_inert(visit: Visit, tmp_path: Path) -> None:
    data = few_rows()
    data["rows"][0][6] = [["user", MARKDOWN], ["assistant", "".join(hostile.TEXTS.values())[:4000]]]
    tab = visit(written(data, tmp_path))
    tab.locator("#rows .head").first.click()
    text = tab.locator("#rows .detail .text").first
    kinds = text.evaluate("e => [...e.children].map(one => one.className)")
    assert kinds == ["plain", "heading", "block code", "item depth-0", "item depth-1",
                     "item depth-0", "block code", "quote", "plain"]  # fmt: skip
    code = text.locator(".block.code").first
    assert code.inner_text() == 'def f():\n    return "<b>"  # **kept**'
    assert text.locator("b").all_inner_texts() == ["bold"]
    assert "# not lost" in text.inner_text()
    assert "last **open" in text.inner_text()
    tab.locator("#plain").check()
    assert tab.locator("#rows .detail:visible .text").first.inner_text() == MARKDOWN


def test_answers_side_by_side(visit: Visit, tmp_path: Path) -> None:
    data = few_rows()
    evil = hostile.TEXTS["broken"]
    question = ["q", "all", 0, [["user", evil]], ["right"]]
    data["answers"] = {"t": {"models": ["base", "less"], "metric": "f1", "of": 2, "questions": [
        [*question, [[0.0, 0, evil, None], [1.0, 7, "#### right", "right"]]],
        [*question, [[0.0, 0, "", None], [0.0, 0, "no", None]]],
    ]}}  # fmt: skip
    data["results"] = {"t": [{"metric": "f1", "higher_is_better": True,
                              "methods": []}]}  # fmt: skip
    tab = visit(written(data, tmp_path))
    (right,) = tab.locator("#asked .answer.right").all_inner_texts()
    for part in ("less \u2713 1.00", "#### right", "\u2026 7 more characters", "compared: right"):
        assert part in right
    assert tab.locator("#asked > li").count() == 2
    tab.locator("#differ").check()
    assert tab.locator("#asked > li").count() == 1
    assert evil in tab.locator("#asked").inner_text()
    assert tab.evaluate("window.hacked") is None


def luminance(color: str) -> float:
    channels = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_both_schemes(visit: Visit, report: Path, scheme: str) -> None:
    """WCAG 2.2, 1.4.3: a contrast of 4.5 to 1, for the system's color scheme and the button's."""
    tab = visit(report, scheme=scheme)
    tab.locator("#rows .head").first.click()
    script = "([s, p]) => getComputedStyle(document.querySelector(s))[p]"
    for _ in range(2):
        for chosen, ground in (("body", "body"), (".about", ".card"), (".hint", "body"),
                               (".times.up, .amount", ".card"), (".lead", "body")):  # fmt: skip
            one = luminance(tab.evaluate(script, [chosen, "color"]))
            other = luminance(tab.evaluate(script, [ground, "backgroundColor"]))
            assert (max(one, other) + 0.05) / (min(one, other) + 0.05) >= 4.5, chosen
        dark = luminance(tab.evaluate(script, ["body", "backgroundColor"])) < 0.5
        assert dark == (scheme == "dark")
        tab.locator("#theme").click()
        scheme = "light" if scheme == "dark" else "dark"


def many_rows() -> dict[str, Any]:
    """A report's data with 20,000 rows of about 600 characters."""
    words = [f"word{n}" for n in range(1000)]
    rows = [
        [n % 3, f"id-{n}", 50 + n % 400, 0, None, 0,
         [["user", " ".join(words[(n * k) % 1000] for k in range(1, 60))],
          ["assistant", f"answer {n} " + " ".join(words[(n + k) % 1000] for k in range(30))]]]
        for n in range(ROWS)
    ]  # fmt: skip
    rows[0][6] = [["user", hostile.TEXTS["half"]]]
    bins = {"edges": [0, 1, 2], "all": [1, ROWS], "selected": [0, ROWS]}
    view = {
        "target": "t", "method": "less", "about": "LESS", "selected": ROWS, "scored": ROWS + 1,
        "tokens": ROWS, "pool_tokens": ROWS, "sources": [[9, 9]] * 3, "subtasks": [["all", 9, 9]],
        "scores": bins, "lengths": {**bins, "edges": [1, 2, 3]}, "lowest_selected": 1,
        "median_tokens": [1, 1], "truncated": [0, 0], "passed_over": [], "not_scored": [],
        "agreement": None,
        "shown": {
            "row": list(range(ROWS)), "group": [0] * ROWS, "rank": list(range(1, ROWS + 1)),
            "score": [2 - n / ROWS for n in range(ROWS)], "subtask": [0] * ROWS, "reason": {},
            "by_subtask": [[[0, 1]]] * ROWS, "contributions": [[[0, 0.5]]] * ROWS,
            "by_checkpoint": [[0.5, 0.5]] * ROWS,
        },
    }  # fmt: skip
    return {
        "model": "m", "cut": 4000, "groups": ["selected", "passed over", "near miss", "lowest"],
        "together": False, "sources": ["a", "b", "c"],
        "targets": [{"name": "t", "examples": [["x", "all", 0, [["user", "q"]]]]}],
        "views": [view], "rows": rows, "overlaps": {"t": {"methods": ["less"], "shares": [[1]]}},
        "leaks": {"rows": 0, "shown": []}, "questions": {}, "loss": [], "checkpoints": [],
        "results": {}, "findings": {}, "answers": {}, "map": None, "turns": False,
        "ranks": {"t": [[n, -n - 1] for n in range(ROWS)]},
    }  # fmt: skip


def few_rows() -> dict[str, Any]:
    data = many_rows()
    data["rows"] = data["rows"][:3]
    (view,) = data["views"]
    view["shown"] = {name: values and values[:3] for name, values in view["shown"].items()}
    data["ranks"] = {"t": data["ranks"]["t"][:3]}
    return data


def written(data: dict[str, Any], folder: Path) -> Path:
    file = folder / "index.html"
    made = {"recipe": "", "seconds": {}, "scoring_seconds": {}, "versions": {}, "workers": {}}
    file.write_text(page(data, made), encoding="utf-8")
    return file


def test_scores_that_do_not_differ(visit: Visit, tmp_path: Path) -> None:
    """Equal histogram edges, as in older pages, do not lead to NaN."""
    data = few_rows()
    data["views"][0]["scores"] = {"edges": [1, 1, 1], "all": [0, 3], "selected": [0, 2]}
    tab = visit(written(data, tmp_path))
    markup = tab.locator("body").inner_html()
    assert tab.locator("#rows > li").count() == 3
    assert not re.search(r'="[^"]*(NaN|Infinity)', markup)
    assert re.search(r"width: *0%", markup)


def test_20_000_rows_stay_fluent(visit: Visit, tmp_path: Path) -> None:
    file = written(many_rows(), tmp_path)
    assert file.stat().st_size > 15_000_000
    tab = visit(file)
    assert count(tab) == ROWS
    assert "of a pair" in tab.locator("#rows .snippet").first.inner_text()
    # The texts are prepared while the user is idle; then each letter is answered.
    while tab.evaluate("texts.length") < ROWS:
        tab.wait_for_timeout(20)
    timed = (
        "() => { const start = performance.now(); refresh(); return performance.now() - start; }"
    )
    milliseconds = []
    for text in ("w", "word9", "word99", "word99 word12", "answer 1999", "none such", ""):
        tab.locator("#query").fill(text)
        milliseconds.append(tab.evaluate(timed))
    assert count(tab) == ROWS
    tab.select_option("#sort", label="shortest")
    milliseconds.append(tab.evaluate(timed))
    # Filtering, counting, sorting and drawing; 10 to 40 ms here, so that a busy machine passes too.
    assert sorted(milliseconds)[len(milliseconds) // 2] < 100, milliseconds
    assert tab.locator("#rows > li").count() == 25
