"""Entry point of `gradsieve` and `python -m gradsieve`."""

from __future__ import annotations

from gradsieve.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
