"""An explanation as text: it is complete, and the terminal can't be controlled by the data."""

from dataclasses import replace

import pytest

from gradsieve.analysis.explanation import Contribution, Explanation, Neighbor, TargetScore, cut

EVIL = "ring\x07 \x1b[31mred\x1b[0m \u202eback [bold]b[/bold]\r\nnext"

FOUND = Explanation(
    source="one",
    id="7\x1b[2J",
    target="mine",
    method="less",
    selected=3,
    reason=None,
    tokens=12,
    targets={"mine": TargetScore(0.25, 3, 90, {"a": 0.125, "b": 0.25})},
    checkpoints={"a": [0.1, 0.025], "b": [0.2, 0.05]},
    positive=[Contribution("x", "b", 0.5, EVIL, "t.jsonl:3")],
    negative=[Contribution("y", "b", -0.25, None)],
    neighbors=[Neighbor("two", "8", 0.99, 0.2, 11, "long " * 100)],
    messages=[{"role": "user", "content": EVIL}, {"role": "assistant", "content": "z" * 3000}],
    notes=["something is missing"],
)


def printed(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "160")
    FOUND.print()
    return capsys.readouterr().out


def test_both_forms_hold_everything(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text in (str(FOUND), printed(capsys, monkeypatch)):
        for piece in (
            "selected for target mine, method less, rank 3",
            "12 tokens",
            "checkpoint 2",
            "+0.0500",
            "Positive contributions",
            "Negative contributions",
            "t.jsonl:3",
            " y ",
            "-0.2500",
            "+0.9900",
            "[bold]b[/bold]",
            "note: something is missing",
            "assistant:",
            "zzz",
        ):
            assert piece in text, piece
        for control in ("\x07", "\x1b", "\u202e", "\r"):
            assert control not in text


def test_a_notebook_gets_tables() -> None:
    made = FOUND._repr_html_()
    assert "selected for target mine, method less, rank 3" in made
    assert "<td>t.jsonl:3</td>" in made
    assert made.count("<p>") == len(FOUND.notes) > 0
    assert "\x1b" not in made


def test_subtasks_are_in_order_of_score() -> None:
    lines = str(FOUND).split("\n")
    assert lines.index(" b        +0.2500       +0.2000       +0.0500") < lines.index(
        " a        +0.1250       +0.1000       +0.0250"
    )


def test_long_texts_are_cut() -> None:
    assert len(cut("word " * 1000)) == 160
    assert cut("short") == "short"
    assert cut(None) == "-"
    assert "(1000 more)" in str(FOUND)


def test_a_row_that_was_not_selected_says_why() -> None:
    found = Explanation("s", "i", "t", "m", None, "too long", 5)
    assert str(found).startswith("s i, 5 tokens: not selected for target t, method m: too long")


def test_checkpoints_are_named_only_where_there_are_some() -> None:
    assert "what each checkpoint adds" in str(FOUND)
    without = str(replace(FOUND, checkpoints={}))
    assert "checkpoint" not in without.partition("Most similar")[0]


def test_content_in_parts_is_shown() -> None:
    parts = [{"type": "text", "text": "in "}, {"type": "text", "text": "parts"}]
    assert "user: in parts" in str(replace(FOUND, messages=[{"role": "user", "content": parts}]))
