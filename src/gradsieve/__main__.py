"""Entry point of `gradsieve` and `python -m gradsieve`."""

from __future__ import annotations

import os

# Read when OpenMP starts. Threads that spin while they wait for each other make a small model 20
# times slower on a machine that is busy with something else.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from gradsieve.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
