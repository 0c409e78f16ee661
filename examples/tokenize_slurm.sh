#!/bin/bash
# Tokenize a folder on a SLURM cluster: an array of tasks, then one job that merges and verifies.
#
#   INPUT=/corpus/web TOKENIZER_MODEL=tok.model OUTPUT_PREFIX=/data/web TASKS=64 examples/tokenize_slurm.sh
#
# Run it again after a failure: finished work units are skipped, so only what is missing is done, and where all is
# done nothing is. Needs a file system that all nodes share. More flags of `phd data tokenize` may follow the script's
# name; SBATCH_PARTITION, SBATCH_ACCOUNT and the like are sbatch's own. TOKENIZE_SBATCH, MERGE_SBATCH: more options for
# the two jobs.
set -euo pipefail
: "${INPUT:?files, folders or patterns}" "${TOKENIZER_MODEL:?a tokenizer file}" "${OUTPUT_PREFIX:?where to write}"
TASKS=${TASKS:-8}
CPUS=${CPUS:-8}
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
find_python
LOGS=${LOGS:-$(dirname "$OUTPUT_PREFIX")/logs}
mkdir -p "$LOGS"

# A node that fails or is preempted gives its task back to the queue; what it had finished stays finished.
# shellcheck disable=SC2086 # INPUT may hold several names, and the options are words
array=$(sbatch --parsable --job-name=phd-tokenize --array="0-$((TASKS - 1))" --cpus-per-task="$CPUS" --requeue \
  --output="$LOGS/tokenize-%a.log" --open-mode=append ${TOKENIZE_SBATCH:-} --wrap="$(printf '%q ' \
    "$PYTHON" -m phd.commands.cli data tokenize --input $INPUT --tokenizer-model "$TOKENIZER_MODEL" \
    --output-prefix "$OUTPUT_PREFIX" --workers "$CPUS" --world-size "$TASKS" \
    --append-eod "$@") --rank \$SLURM_ARRAY_TASK_ID")

# shellcheck disable=SC2086
merge=$(sbatch --parsable --job-name=phd-merge --dependency="afterok:$array" --kill-on-invalid-dep=yes --requeue \
  --output="$LOGS/merge.log" --open-mode=append ${MERGE_SBATCH:-} --wrap="set -e
$(printf '%q ' "$PYTHON" -m phd.commands.cli data merge "$OUTPUT_PREFIX.units" --output-prefix "$OUTPUT_PREFIX")
$(printf '%q ' "$PYTHON" -m phd.commands.cli data verify "$OUTPUT_PREFIX")
$(printf '%q ' rm -rf "$OUTPUT_PREFIX.units")")

echo "array $array of $TASKS tasks, then job $merge merges and verifies; logs in $LOGS"
