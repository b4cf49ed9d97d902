"""What a run reports about its pool."""

from pathlib import Path
from typing import Any

import gradsieve
import world


def test_many_truncated_or_skipped_rows_are_reported_once(tmp_path: Path) -> None:
    data = world.make(tmp_path / "inputs", rows=40)
    data["pool"] = data["pool"][:1]

    def warned(max_length: int) -> tuple[list[str], dict[str, Any]]:
        said = world.Listening()
        recipe = world.recipe(data, model__max_length=max_length)
        run = gradsieve.run(recipe, tmp_path / "run", last="pool", progress=said)
        found = [line for line in said.lines if line.startswith("warning: pool: ")]
        return found, run.require("pool")

    assert warned(64)[0] == []
    found, facts = warned(14)
    assert (facts["truncated"], facts["usable"]) == (3, 7)  # a skipped row is not truncated, too
    assert any("are truncated to 14 tokens" in line for line in found)
    for line in found:
        count = facts["truncated"] if "truncated" in line else facts["rows"] - facts["usable"]
        assert f"pool: {count} of {facts['rows']} rows ({count / facts['rows']:.0%})" in line
        assert "model.max_length" in line
        assert count > 0.1 * facts["rows"]
    assert warned(14)[0] == []
