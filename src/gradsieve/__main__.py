"""Entry point of `gradsieve` and `python -m gradsieve`."""

from __future__ import annotations

import io
import sys


def main() -> None:
    """Run the command line; a user's mistake is one message, never a traceback."""
    from gradsieve.cli import app
    from gradsieve.console.sanitize import clean_lines
    from gradsieve.errors import GradsieveError

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what its encoding lacks is told as an escape
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except GradsieveError as error:
        print(clean_lines(f"error: {error}"), file=sys.stderr)
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
