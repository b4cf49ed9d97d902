"""The candidate pool on disk: sources are read once, in a stream; the pool is then memory-mapped.

build.py writes the pool (chunks.py cuts the sources into chunks and tokenizes each chunk); `Pool`
maps it (mapped.py).
"""

from gradsieve.data.pool.mapped import Pool

__all__ = ["Pool"]
