"""A run on the cluster that this script is submitted to: `ray submit CLUSTER.yaml run.py`.

With a number of workers, those without a node make the autoscaler start nodes.
"""

import sys

import gradsieve
from gradsieve.recipe.load import load_recipe

recipe, out = sys.argv[1:3]
gradsieve.run(load_recipe(recipe, ["engine.address=auto", "engine.workers=64"]), out)
