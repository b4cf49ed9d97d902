"""Kill runs at random moments; a separate process that loads everything once.

    python killer.py RECIPE FOLDER KILLS

Each run is a fork, killed with SIGKILL after a random time and started again in the same folder. A
run that completes is left in FOLDER/N, and the next one starts in a new folder. Prints the number
of kills and of complete runs.
"""

import gc
import os
import random
import signal
import sys
import time
from pathlib import Path

from gradsieve.console import Progress
from gradsieve.pipeline.run import run
from gradsieve.recipe.load import load_recipe
from gradsieve.recipe.schema import Recipe


def start(recipe: Recipe, folder: Path) -> int:
    """Start a run in a fork; returns its process id."""
    child = os.fork()
    if child:
        return child
    try:
        run(recipe, folder, progress=Progress(quiet=True))
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)


def main() -> None:
    recipe, folder, wanted = load_recipe(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    gc.freeze()  # exempt objects created by imports, so that no child collects garbage among them
    began = time.monotonic()
    assert os.waitpid(start(recipe, folder / "alone"), 0)[1] == 0
    seconds = time.monotonic() - began
    rng = random.Random(0)
    kills = whole = 0
    while kills < wanted or (folder / f"{whole}").exists():
        child = start(recipe, folder / f"{whole}")
        # Each run resumes the killed one; after the last kill it may complete.
        limit = rng.uniform(0, seconds / 2) if kills < wanted else 600.0
        began, status = time.monotonic(), None
        while status is None and time.monotonic() - began < limit:
            done, code = os.waitpid(child, os.WNOHANG)
            status = code if done else None
            time.sleep(0.002)
        if status is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            kills += 1
        else:
            assert status == 0, status
            whole += 1
    print(kills, whole)


if __name__ == "__main__":
    main()
