"""Stage 0: streams the sources once and stores them, tokenized, on disk (docs/run-folder.md).

In: the sources that the recipe names, and the chat template. Out: `00-pool/dataset/`, a
memory-mapped Arrow data set with each original row, its messages, token ids and labels, and
`00-pool/skipped.jsonl`, the rows that can't be used. If a source changes, only its part is redone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from gradsieve.data.pool import Pool as MappedPool
from gradsieve.data.pool.build import build_pool
from gradsieve.data.pool.part import link_parts
from gradsieve.errors import GradsieveError
from gradsieve.runs.context import Context
from gradsieve.stages import checks
from gradsieve.stages.base import Stage
from gradsieve.stages.estimate import Estimate, folder_bytes

NOTABLE = 0.1
"""Share of truncated or skipped rows above which a run warns."""


class Pool(Stage):
    """The candidate pool as a memory-mapped, tokenized data set."""

    name = "pool"
    undo_failed = True

    def fingerprint_inputs(self, context: Context) -> dict[str, Any]:
        return {
            "sources": {
                spec.name: [context.source_key(spec).digest, *spec.reading]
                for spec in context.source_specs
            },
            "template": context.template.fingerprint,
            "on_bad_row": context.recipe.on_bad_row,
        }

    def reuse(self, archived: Path, folder: Path) -> None:
        """Keep the parts of unchanged sources: the files are linked, not copied."""
        link_parts(archived, folder)

    def check(self, context: Context) -> Iterator[GradsieveError]:
        """Check that every source can be read; rows are checked while they are read."""
        for spec in context.source_specs:
            yield from checks.problem_of(partial(context.source_key, spec))
        yield from checks.models(context)

    def after_run(self, context: Context) -> Iterator[str]:
        """Warn about sources that changed while later stages ran."""
        for path in context.changed_sources():
            yield f"{path} has changed since this run read it: run again to use what it holds now"

    def estimate(self, context: Context) -> Estimate:
        """Its bytes; `plan` builds the pool, and so measures its seconds."""
        return Estimate(disk_bytes=folder_bytes(context.pool.folder))

    def run(self, context: Context) -> dict[str, Any]:
        with context.progress.counting("pool", 0, "rows") as report:
            pool = build_pool(
                context.artifacts.pool.folder,
                context.source_specs,
                context.template,
                on_bad_row=context.recipe.on_bad_row,
                report=report,
                key_of=context.source_key,
                engine=context.engine,
            )
        for name, source in pool.sources.items():
            if source.skipped:
                context.warn_of_bad_rows(name, source.skipped, pool.first_skipped[name])
            for warning in source.warnings:
                context.progress.warn(f"{name}: {warning}")
        truncated = int(pool.column("truncated")[pool.usable].sum())  # skipped rows count as such
        _warn_of_shares(context, pool, truncated)
        return {
            "rows": len(pool),
            "usable": len(pool.usable),
            "truncated": truncated,
            "tokens": int(pool.lengths.sum()),
            "sources": {
                name: {"rows": source.rows, "bad_rows": source.skipped}
                for name, source in pool.sources.items()
            },
            "output": pool.fingerprints,
        }


def _warn_of_shares(context: Context, pool: MappedPool, truncated: int) -> None:
    """Warn if many rows are truncated or skipped."""
    reasons = Counter(pool.skip_reasons.drop_null().to_pylist()).most_common(1)
    for what, count in (
        (f"are truncated to {context.template.max_length:,} tokens", truncated),
        (f"are skipped: {reasons[0][0] if reasons else ''}", len(pool) - len(pool.usable)),
    ):
        if count > NOTABLE * len(pool):
            share = f"{count:,} of {len(pool):,} rows ({count / len(pool):.0%})"
            context.warnings.append(f"pool: {share} {what}; model.max_length is the limit")


STAGE = Pool()
