"""The candidate pool on disk: sources are read once, in a stream, and later memory-mapped.

`build_pool` writes it (chunks.py cuts the sources into chunks and tokenizes one, build.py puts them
on disk), `Pool` maps it (mapped.py).
"""

from gradsieve.data.pool.build import build_pool, check_rows
from gradsieve.data.pool.mapped import Pool
from gradsieve.data.pool.part import link_parts

__all__ = ["Pool", "build_pool", "check_rows", "link_parts"]
