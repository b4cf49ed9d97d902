"""One HTML file with data, style and script that loads nothing and never executes data.

In: the results of `gather` and `provenance`. Out: the page's HTML. Data is in JSON blocks, which
browsers don't execute, with every `<` escaped so that no block ends early; the script inserts it
into the page as text only. A content security policy allows this one script and this one style, by
their hashes, and nothing else: no image, no request, no HTML made from strings.

Each block is one line. Everything that differs between runs of the same inputs is in `provenance`.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from string import Template
from typing import Any

SCRIPTS = ("charts", "text", "report", "verdict", "answers", "list", "address")
"""In order; the last one starts the page."""


def page(data: Any, provenance: Any) -> str:
    """The page's HTML, for JSON data without NaN."""
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
    """One line of JSON that is safe inside a script element and encodable as UTF-8."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # Unpaired surrogates can't be encoded, so they become JSON escapes.
    return text.replace("<", "\\u003c").encode("utf-8", "backslashreplace").decode()


def _asset(name: str) -> str:
    return (resources.files(__package__) / "assets" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """The hash in the form of a content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
