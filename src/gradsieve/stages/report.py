"""The last stage: an HTML page about the selections.

In: the finished stages that belong to the selections. Out: `08-report/index.html`, one
self-contained file. For the same inputs its bytes are the same, except for the line with the
recipe, times and versions.
"""

from __future__ import annotations

from typing import Any

from gradsieve.io import file_fingerprint, write_text
from gradsieve.report.gather import gather
from gradsieve.report.made import current_stages, provenance
from gradsieve.report.page import page
from gradsieve.runs.context import Context
from gradsieve.stages.base import Inputs, Stage


class Report(Stage):
    """One HTML page."""

    name = "report"
    optional_before = ("train", "evaluate")

    def fingerprint_inputs(self, context: Context) -> dict[str, Any]:
        return {
            "recipe": context.recipe.model_dump(mode="json"),
            "pool": context.pool_inputs,
            "targets": context.target_inputs,
            "stages": {name: meta["output"] for name, meta in current_stages(context).items()},
            **({"bad_rows": bad_rows} if (bad_rows := context.artifacts.pool.bad_rows) else {}),
        }

    def can_extend(self, old: Inputs, new: Inputs) -> bool:
        """An old page is overwritten: its whole content is in the other stages."""
        return True

    def run(self, context: Context) -> dict[str, Any]:
        content = gather(context)
        file = context.artifacts.report.page
        write_text(file, page(content, provenance(context)))
        size, rows = file.stat().st_size, len(content["rows"])
        context.progress.say(f"  {file}: {rows} rows, {size / 2**20:.1f} MiB")
        return {"rows": rows, "bytes": size, "output": file_fingerprint(file)}


STAGE = Report()
