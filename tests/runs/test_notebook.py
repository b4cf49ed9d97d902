"""Tables for notebooks show the data as text."""

import hostile
from gradsieve.runs.notebook import html_table


def test_no_data_becomes_html() -> None:
    made = html_table("<b>x</b>", [["a&b", "n"], [hostile.TEXTS["end"], 1], ["y" * 1000, 2]])
    assert made.startswith("<table><caption>&lt;b&gt;x&lt;/b&gt;</caption><tr><th>a&amp;b</th>")
    assert "<script" not in made
    assert "window.hacked" in made
    assert made.count("y") == 200
    assert "<td>2</td></tr></table>" in made
