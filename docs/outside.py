"""Adds files from outside docs/ to the site, so that links work there as they do in the repository.

In: pages whose links start with `../` (benchmarks, recipes, LOG.md). Out: those files as pages or
plain files of the site, and links that point to them. Rejected: copies in docs/, which go stale,
and links to a host, which break in a clone.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parent.parent
BROUGHT = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LOG.md",
    "benchmarks/*/*.md",
    "examples/*.py",
    "src/gradsieve/recipe/ready/*.yaml",
)

_LINK = re.compile(r"\]\(([^)#\s:]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the outside files to the site."""
    for pattern in BROUGHT:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            text = path.read_text(encoding="utf-8")
            brought = File.generated(config, name, content=text)
            brought.inclusion = InclusionLevel.NOT_IN_NAV
            files.append(brought)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Rewrite links to the locations of their files in the site."""
    site = page.file.src_uri
    here = site if page.file.generated_by else f"docs/{site}"

    def moved(link: re.Match[str]) -> str:
        there = posixpath.normpath(posixpath.join(posixpath.dirname(here), link[1]))
        return "](" + posixpath.relpath(there.removeprefix("docs/"), posixpath.dirname(site) or ".")

    return _LINK.sub(moved, markdown)
