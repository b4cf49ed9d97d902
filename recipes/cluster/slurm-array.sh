#!/bin/bash
# One run on the GPUs that a SLURM job array gets, without Ray: each takes a share of the features.
#   RECIPE=recipe.yaml RUN=/shared/runs/first SHARES=16 recipes/cluster/slurm-array.sh
set -euo pipefail
: "${RECIPE:?Set RECIPE to the recipe}" "${RUN:?Set RUN to the run folder}" "${SHARES:?Set SHARES}"
one=(--parsable --gpus=1 --cpus-per-task=8 --time=24:00:00)

# If a share is preempted or fails, the last job computes what is missing.
before=$(sbatch "${one[@]}" --job-name=gradsieve-warmup \
  --wrap="gradsieve run '$RECIPE' --out '$RUN' --until warmup --quiet")
# shellcheck disable=SC2016 # SLURM sets the variables in each job
share='"$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"'
shares=$(sbatch "${one[@]}" --job-name=gradsieve-features --requeue \
  --dependency="afterok:$before" --array="1-$SHARES" \
  --wrap="gradsieve features '$RECIPE' --out '$RUN' --shard-of $share --quiet")
sbatch "${one[@]}" --job-name=gradsieve-run --dependency="afterany:$shares" \
  --wrap="gradsieve run '$RECIPE' --out '$RUN' --quiet"
