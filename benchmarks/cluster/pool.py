"""How fast one process could write a pool if others tokenized it: would distributing that help?

    python benchmarks/cluster/pool.py --data ../shared/data/train --model FOLDER [--times 5]

The driver of a run reads the sources, assigns ids to the rows and writes the pool; processes on the
same machine or on a cluster parse and tokenize. First the chunks are made in advance and only the
driver's part is timed, without the cost of sending chunks: the upper bound for any number of cores.
Then the pool is built by processes here, and by a Ray cluster of one node. Prints the rows per
second of one core of processor time: of tokenizing, and of the driver's process in each case.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from ray.cluster_utils import Cluster  # noqa: TID251

from gradsieve.console import Progress
from gradsieve.data.pool import build
from gradsieve.data.pool.build import build_pool
from gradsieve.data.pool.chunks import Chunk, RawChunk, make_chunk, raw_chunks
from gradsieve.data.pool.workers import Workers
from gradsieve.data.sources import SourceSpec
from gradsieve.data.template import ChatTemplate
from gradsieve.engine import Engine
from gradsieve.engine.ray import RayEngine
from gradsieve.models.source import ModelSource
from gradsieve.recipe.schema import EngineConfig, ModelConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of JSON lines")
    parser.add_argument("--model", required=True)
    parser.add_argument("--times", type=int, default=5, help="copies of the data, each a source")
    arguments = parser.parse_args()
    template = ChatTemplate(
        ModelSource(ModelConfig(name=arguments.model)).tokenizer(), "tulu", 2048
    )
    files = sorted(arguments.data.glob("*.jsonl"))
    specs = [
        SourceSpec(f"{file.stem}_{copy}", str(file))
        for file in files
        for copy in range(arguments.times)
    ]
    start = time.process_time()
    made = [[make_chunk(raw, template) for raw in raw_chunks(spec)] for spec in specs]
    making = time.process_time() - start
    ready = iter(made)

    def make(_: Workers, raws: Iterator[RawChunk], only: Callable[[], bool]) -> Iterator[Chunk]:
        for _raw, chunk in zip(raws, next(ready), strict=True):
            yield chunk

    def driver(what: str, engine: Engine | None = None) -> None:
        """Build the pool, and print the driver's rate."""
        with tempfile.TemporaryDirectory() as folder:
            start = time.process_time()
            pool = build_pool(
                Path(folder) / "pool", specs, template, on_bad_row="skip", engine=engine
            )
            own = time.process_time() - start
        print(
            f"{len(pool):,} rows, {what}: tokenizing {len(pool) / making:,.0f} rows/s a core, the "
            f"driver {len(pool) / own:,.0f} rows/s: {making / own:.1f} cores keep it busy"
        )

    with mock.patch.object(build.Workers, "make", make):
        driver("nothing is sent")
    driver("processes here")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    ray = RayEngine(EngineConfig(kind="ray", address=cluster.address), Progress(quiet=True))
    with mock.patch("gradsieve.data.pool.workers.default_workers", return_value=1):
        driver("a Ray cluster", ray)
    ray.close()
    cluster.shutdown()


if __name__ == "__main__":
    main()
