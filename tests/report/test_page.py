"""The page's file: data is unchanged when read back, and cannot be anything but data."""

import base64
import hashlib
import json
import re

import hostile
from gradsieve.report.page import embedded, page


def elements(text: str, tag: str) -> list[str]:
    """The content of each element, cut as browsers cut scripts and styles: at the first end tag."""
    return re.findall(f"<{tag}[^>]*>(.*?)</{tag}", text, flags=re.DOTALL | re.IGNORECASE)


def test_data_comes_out_as_it_went_in() -> None:
    data = {"texts": hostile.TEXTS, "number": 0.1, "none": None}
    made = page(data, {"recipe": hostile.TEXTS["end"]})
    first, second, _ = elements(made.encode("utf-8").decode("utf-8"), "script")
    assert json.loads(first) == data
    assert json.loads(second) == {"recipe": hostile.TEXTS["end"]}


def test_data_is_one_line_without_markup() -> None:
    text = embedded(list(hostile.TEXTS.values()))
    assert "<" not in text
    assert "\n" not in text
    assert "\r" not in text


def test_only_this_script_and_style_may_run() -> None:
    made = page({}, {})
    found = re.search(r'Content-Security-Policy" content="([^"]*)"', made)
    assert found is not None
    assert found[1].startswith("default-src 'none'; ")
    assert "unsafe" not in found[1]
    for tag in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(elements(made, tag)[-1].encode()).digest())
        assert f"{tag}-src 'sha256-{digest.decode()}'" in found[1]


WAYS = (
    *("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser", "srcdoc"),
    *("eval", "Function", "fetch", "XMLHttpRequest", "import(", ".href", ".src"),
)


def test_the_script_makes_no_html_of_strings_and_asks_for_nothing() -> None:
    script = elements(page({}, {}), "script")[-1]
    assert [way for way in WAYS if way in script] == []
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", script)
