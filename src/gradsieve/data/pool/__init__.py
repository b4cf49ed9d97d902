"""The candidate pool on disk: sources are read once, in a stream, and later memory-mapped.

build.py writes it (chunks.py cuts the sources into chunks and tokenizes one), `Pool` maps it
(mapped.py).
"""

from gradsieve.data.pool.mapped import Pool

__all__ = ["Pool"]
