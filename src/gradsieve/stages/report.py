"""The last stage: a page on what was selected and why, for a browser.

In: the finished stages; of training and evaluation what there is and still fits the selection. Out:
`07-report/index.html`, one file that needs nothing else and loads nothing from anywhere. For the
same inputs its bytes are the same, but for the one line that tells the recipe, times and versions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gradsieve.io import file_fingerprint, write_text
from gradsieve.report.gather import gather
from gradsieve.report.page import page
from gradsieve.report.provenance import current_stages, provenance
from gradsieve.runs.context import Context

PAGE = "index.html"


def inputs(context: Context) -> dict[str, Any]:
    """What this stage depends on."""
    return {
        "recipe": context.recipe.model_dump(mode="json"),
        "pool": context.pool_inputs,
        "targets": {target.name: target.fingerprint for target in context.targets},
        "stages": {name: meta["output"] for name, meta in current_stages(context).items()},
    }


def goes_on_with(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """An old page is written over: all it was made of is elsewhere."""
    return True


def lost(folder: Path) -> list[str]:
    """The page, if it is not there any more."""
    return [] if (folder / PAGE).is_file() else [str(folder / PAGE)]


def run(context: Context, folder: Path) -> dict[str, Any]:
    """Write the page."""
    told = gather(context)
    write_text(folder / PAGE, page(told, provenance(context)))
    size = (folder / PAGE).stat().st_size
    context.progress.say(f"  {folder / PAGE}: {len(told['rows'])} rows, {size / 2**20:.1f} MiB")
    return {"rows": len(told["rows"]), "bytes": size, "output": file_fingerprint(folder / PAGE)}
