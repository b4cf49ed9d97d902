"""Test run folders against kills, power cuts and damaged files (docs/reliability.md).

    python -m trust --out FOLDER [--jobs 2] [--kills 100] [--cuts 50] [--damages N] [--seeds 2]
        [--page ../docs/reliability.md]

Each trial is a run from pool to report, with two targets, three methods, two seeds and a tiny
model, in a fork of this process, which loads the libraries once. A trial's records are added to
FOLDER/trials.jsonl when it ends, so that the program can be stopped and resumed; it starts over if
the code of gradsieve or of this program has changed.
"""
