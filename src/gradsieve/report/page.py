"""JSON, style and script in one HTML file that loads nothing and in which no data can run.

In: the results of `gather` and `provenance`. Out: the page's HTML. Data is in blocks of JSON, which
no browser runs, with every `<` escaped, so that none ends early; the script puts it into the page
as text only. A content security policy allows this one script and this one style, by their hashes,
and nothing else: no image, no request, no HTML made from strings.

Each block is one line. All that differs between two runs of the same inputs is in `provenance`.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from string import Template
from typing import Any

SCRIPTS = ("charts", "text", "report", "verdict", "answers", "list", "address")
"""In order: the last one starts the page."""


def page(data: Any, provenance: Any) -> str:
    """The page's HTML, of JSON data without NaN."""
    style = _asset("report.css")
    script = "".join(_asset(f"{name}.js") for name in SCRIPTS)
    return Template(_asset("report.html")).substitute(
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=embedded(data),
        provenance=embedded(provenance),
    )


def embedded(data: Any) -> str:
    """One line of JSON that can stand inside a script element, encodable as UTF-8."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # Halves of surrogate pairs, which alone can't be encoded, become JSON's escapes.
    return text.replace("<", "\\u003c").encode("utf-8", "backslashreplace").decode()


def _asset(name: str) -> str:
    return (resources.files(__package__) / "assets" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """As a content security policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
