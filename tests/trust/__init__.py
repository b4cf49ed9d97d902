"""Whether a run folder can be trusted: runs are killed, cut off, damaged (docs/reliability.md).

    python -m trust --out FOLDER [--jobs 2] [--kills 100] [--cuts 50] [--damages N] [--seeds 2]
        [--page ../docs/reliability.md]

Each trial is a run, pool to report, for two targets, by three methods, with two seeds, of a model
that is small enough; in a fork of this process, which loads the libraries once. A trial's records
are added to FOLDER/trials.jsonl when it ends, so that the program may be stopped and started again;
it starts from nothing if the code of gradsieve or of this program has changed.
"""
