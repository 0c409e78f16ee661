#!/bin/bash
# Queue one variant of one size on a SLURM cluster; prints the job id.
#
#   DATA_PREFIX=/data/web TOKENIZER_MODEL=/data/tok.model NNODES=4 SBATCH_TIMELIMIT=24:00:00 \
#     examples/slurm/submit.sh 550m PHD-CSWA-2-16-32
#
# The variables are explained in ../common.sh; RUNS must lie on a file system that all nodes share. SBATCH_ACCOUNT,
# SBATCH_PARTITION and the like are sbatch's own; TRAIN_SBATCH takes more of its options ("--gres=gpu:8"). The run
# folder gets a snapshot of the code (code/) and of the command (launch.sh), which is what the job runs, also when it is
# queued again: change the checkout at will. SIGNAL_SECONDS (120): how long before its time limit the job is told to save.
# A run that is queued already is not queued twice: its job's id is printed. Nothing is, for a run that is finished.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 SIZE VARIANT [FLAG ...]" >&2; exit 2; }
# shellcheck source-path=SCRIPTDIR source=../common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
read_settings "$1" "$2"
NNODES=${NNODES:-1}
mkdir -p "$RUN"

if [ -d "$RUN/code" ]; then
  queued=
  if [ -s "$RUN/job" ]; then # squeue does not know a job for long after its end
    queued=$(squeue --noheader --jobs="$(cat "$RUN/job")" --states=PENDING,RUNNING,SUSPENDED --format=%i 2>/dev/null) || queued=
  fi
  if [ -n "$queued" ]; then
    echo "$RUN is queued already, as job $queued" >&2
    echo "$queued"
    exit
  elif finished "$RUN" >&2; then
    exit
  fi
  echo "$RUN is there already: its own snapshot of code and command continues it, without the flags and variables" \
    "given now; remove $RUN/code and $RUN/launch.sh to take new ones" >&2
  NNODES=$(sed -n 's/^export NNODES=//p' "$RUN/launch.sh")
else
  {
    echo "# What the job of $RUN runs on every node; written by submit.sh."
    for name in DATA_PREFIX TOKENIZER_MODEL SEED RUNS NNODES NPROC_PER_NODE MAX_RESTARTS SHUTDOWN_TIMEOUT WANDB_PROJECT; do
      [ -z "${!name:-}" ] || printf 'export %s=%q\n' "$name" "${!name}"
    done
    # shellcheck disable=SC2016 # to be expanded by the job
    printf 'export PYTHON=${PYTHON:-%q}\n' "$PYTHON"
    printf 'exec %q %s\n' "$RUN/code/examples/pretrain.sh" "$(printf '%q ' "$@")"
  } >"$RUN/launch.sh"
  snapshot "$RUN/code"
fi

# shellcheck disable=SC2086 # the options are words
job=$(sbatch --parsable --job-name="$1-$2-seed$SEED" --nodes="$NNODES" --ntasks-per-node=1 \
  --requeue --open-mode=append --output="$RUN/job-%j.log" --signal="USR1@${SIGNAL_SECONDS:-120}" \
  ${TRAIN_SBATCH:-} "$RUN/code/examples/slurm/job.sh" "$RUN")
job=${job%%;*} # a cluster's name may follow
echo "$job" >"$RUN/job"
echo "$job"
