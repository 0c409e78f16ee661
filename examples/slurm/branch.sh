#!/bin/bash
# Queue the branches of a trained run as one array of jobs, variants x orders, and their comparison after it:
#
#   NNODES=4 SBATCH_TIMELIMIT=24:00:00 examples/slurm/branch.sh runs/151m/vanilla-seed1 \
#     --variants vanilla PHD-CSWA-2-16-32 --iterations 5000 --orders 1 2 3
#
# The arguments are those of `phd branch`, but for --output: that is OUTPUT (RUN-branches), on a file system that all
# nodes share. Variables: submit.sh's NNODES, NPROC_PER_NODE, MAX_RESTARTS, TRAIN_SBATCH, SIGNAL_SECONDS and
# SHUTDOWN_TIMEOUT, and sweep.sh's AFTER_SBATCH. OUTPUT gets a snapshot of the code. Each job is queued again until its
# branch is finished or has failed. The same line again queues what is not finished, once its array has left the queue.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 RUN --variants NAME ... --iterations N [--orders SEED ...]" >&2; exit 2; }
# shellcheck source-path=SCRIPTDIR source=../common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
find_python
trunk=$(realpath -m "$1")
shift
OUTPUT=$(realpath -m "${OUTPUT:-$trunk-branches}")
export NNODES=${NNODES:-1}
mkdir -p "$OUTPUT"
if [ -s "$OUTPUT/job" ]; then # squeue does not know a job for long after its end
  queued=$(squeue --noheader --jobs="$(cat "$OUTPUT/job")" --states=PENDING,RUNNING,SUSPENDED --format=%i 2>/dev/null) || queued=
  [ -z "$queued" ] || fail "$OUTPUT is queued already, as job $(cat "$OUTPUT/job")"
fi
[ -d "$OUTPUT/code" ] || snapshot "$OUTPUT/code"
phd() { # the snapshot's, wherever this was called
  PYTHONPATH=$OUTPUT/code "$PYTHON" -P -m phd.commands.cli "$@"
}

launchers=$(phd branch "$trunk" --output "$OUTPUT" --print "$@")
runs=()
while read -r _ launcher; do
  [ -n "$launcher" ] || continue
  run=$(dirname "$launcher")
  ln -sfn ../code "$run/code"
  runs+=("$run")
done <<<"$launchers"
[ ${#runs[@]} -gt 0 ] || exit 0

# Of the runs the one whose place is the task's number. sbatch wraps for sh.
script="set -- $(printf '%q ' "${runs[@]}")
shift \$SLURM_ARRAY_TASK_ID
exec bash $(printf '%q' "$OUTPUT/code/examples/slurm/job.sh") \"\$1\""
# shellcheck disable=SC2086 # the options are words
array=$(sbatch --parsable --job-name="$(basename "$OUTPUT")" --array="0-$((${#runs[@]} - 1))" --nodes="$NNODES" \
  --ntasks-per-node=1 --requeue --open-mode=append --output="$OUTPUT/job-%A_%a.log" \
  --signal="USR1@${SIGNAL_SECONDS:-120}" ${TRAIN_SBATCH:-} --wrap="$script")
array=${array%%;*} # a cluster's name may follow
echo "$array" >"$OUTPUT/job"
# shellcheck disable=SC2086
comparison=$(sbatch --parsable --job-name="$(basename "$OUTPUT")-comparison" --nodes=1 --ntasks=1 --chdir="$OUTPUT/code" \
  --dependency="afterany:$array" --requeue --open-mode=append --output="$OUTPUT/comparison.log" ${AFTER_SBATCH:-} \
  --wrap="$(printf '%q ' "$PYTHON" -m phd.commands.cli compare "$OUTPUT" --output "$OUTPUT/comparison")")
echo "array $array of ${#runs[@]} branches, then job $comparison: $OUTPUT/comparison.html"
