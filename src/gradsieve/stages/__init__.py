"""The stages, one file each: `inputs(context)` says what a stage depends on, `run(context, folder)`
does it and returns what `meta.json` tells of it. `output` in there is the fingerprint of what was
made. Stages never import each other: they meet only on disk, through `gradsieve.runs.folder`.
"""
