"""What a run says of its pool."""

from pathlib import Path

import gradsieve
import world


def test_many_truncated_or_skipped_rows_are_reported_once(tmp_path: Path) -> None:
    data = world.make(tmp_path / "inputs", rows=40)
    data["pool"] = data["pool"][:1]
    for limit, parts in ((64, []), (12, ["are truncated to 12 tokens"])):
        said = world.Listening()
        run = gradsieve.run(
            world.recipe(data, model__max_length=limit),
            tmp_path / "run",
            last="pool",
            progress=said,
        )
        found = [line for line in said.lines if line.startswith("warning: pool: ")]
        assert len(found) >= len(parts)
        for part in parts:
            assert any(part in line and "model.max_length" in line for line in found)
        if not parts:
            assert found == []
        facts = run.require("pool")
        for line in found:
            count = facts["truncated"] if "truncated" in line else facts["rows"] - facts["usable"]
            assert f"pool: {count} of {facts['rows']} rows ({count / facts['rows']:.0%})" in line
            assert count > 0.1 * facts["rows"]
    said = world.Listening()
    again = world.recipe(data, model__max_length=12)
    gradsieve.run(again, tmp_path / "run", last="pool", progress=said)
    assert not [line for line in said.lines if line.startswith("warning: pool: ")]
