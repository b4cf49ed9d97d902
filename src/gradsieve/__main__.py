"""Entry point of `gradsieve` and `python -m gradsieve`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; a user's mistake is one message, never a traceback."""
    from gradsieve.cli import app
    from gradsieve.errors import GradsieveError

    try:
        app()
    except GradsieveError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
