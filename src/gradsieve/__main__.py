"""Entry point of `gradsieve` and `python -m gradsieve`."""

from __future__ import annotations

import os

# Read when OpenMP starts. Threads that spin while they wait for each other make a small model 20
# times slower on a machine that is busy with something else.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Read when oneDNN, which multiplies bfloat16 on a CPU, starts. By default it keeps a kernel for
# each of the last 1,024 shapes, several 100 MB, although batches rarely have the same shape.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

from gradsieve.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
