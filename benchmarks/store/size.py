"""Bytes per row in a datastore, by number of bits and kind of id.

    python benchmarks/store/size.py

Uses one shard of 4,096 rows with 8,192 random values each. Ids are `flan_v2_N`, with N below a
million in random order, and UUIDs. Writes size.md next to this file.
"""

from __future__ import annotations

import tempfile
import uuid
from importlib.metadata import version
from pathlib import Path

import numpy as np

from gradsieve.store import RowKey, create_store

ROWS, DIM = 4096, 8192


def named(ids: list[str]) -> list[RowKey]:
    rng = np.random.default_rng(0)
    return [
        RowKey("flan_v2" if rng.random() < 0.5 else "cot", id, rng.bytes(8).hex()) for id in ids
    ]


def bytes_a_row(keys: list[RowKey], values: np.ndarray, bits: int) -> tuple[float, float]:
    """Bytes per row of the shard and of its keys."""
    with tempfile.TemporaryDirectory() as folder:
        create_store(folder, {"bits": bits}).write_shard(keys, values, np.ones(len(keys)))
        shard, names = (next(Path(folder).glob(kind)) for kind in ("shard-*", "keys-*"))
        return shard.stat().st_size / len(keys), names.stat().st_size / len(keys)


def main() -> None:
    rng = np.random.default_rng(1)
    values = rng.standard_normal((ROWS, DIM), dtype=np.float32)
    kinds = {
        "flan_v2_N": named([f"flan_v2_{number}" for number in rng.permutation(10**6)[:ROWS]]),
        "UUID": named([str(uuid.UUID(bytes=rng.bytes(16), version=4)) for _ in range(ROWS)]),
    }
    versions = ", ".join(f"{name} {version(name)}" for name in ("pyarrow", "safetensors"))
    lines = [
        "# Bytes a row",
        "",
        f"`python benchmarks/store/size.py`: {ROWS} rows x {DIM} dims, {versions}.",
        "",
        "| bits | ids | values | shard | keys | total | over the values |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for bits in (16, 8, 4, 2, 1):
        for kind, keys in kinds.items():
            shard, names = bytes_a_row(keys, values, bits)
            own, total = DIM * bits / 8, shard + names
            lines.append(
                f"| {bits} | {kind} | {own:,.0f} | {shard:,.1f} | {names:.1f} | {total:,.1f} | "
                f"{total / own - 1:.2%} |"
            )
    (Path(__file__).parent / "size.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
