"""The candidate pool on disk: sources are read once, in a stream, and later memory-mapped.

`build_pool` writes it (sources.py cuts the sources into chunks, chunks.py tokenizes one, build.py
puts them on disk), `open_pool` maps it (mapped.py).
"""

from gradsieve.data.pool.build import build_pool
from gradsieve.data.pool.mapped import Pool, open_pool
from gradsieve.data.pool.part import link_parts
from gradsieve.data.pool.sources import SourceSpec, source_key

__all__ = ["Pool", "SourceSpec", "build_pool", "link_parts", "open_pool", "source_key"]
