"""A run on the cluster that this script is submitted to: `ray submit CLUSTER.yaml run.py`.

If a run requests more workers than the nodes can hold, the autoscaler starts nodes.
"""

import sys

import gradsieve
from gradsieve.recipe.load import load_recipe

recipe, out = sys.argv[1:3]
gradsieve.run(load_recipe(recipe, ["engine.address=auto", "engine.workers=64"]), out)
