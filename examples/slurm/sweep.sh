#!/bin/bash
# Queue a comparison: every variant with every seed, each trained, then exported, then evaluated, and one plot at the end.
#
#   DATA_PREFIX=/data/web TOKENIZER_MODEL=/data/tok.model SEEDS="1 2 3" examples/slurm/sweep.sh 151m \
#     vanilla naive-2 PHD-2 PHD-CSWA-2-16-32 PHD-CSWA-3-16-32
#
# The first variant is the baseline. Variables: submit.sh's, and
#   SEEDS ("1")    EVAL_CORPUS (text for `phd eval --corpus`) or EVAL_TASKS (such as phd_paper): no evaluation without
#   TRAIN_FLAGS    more flags of every training
#   COMPARISON ("comparison")  name of the comparison's files beside the runs: another for another sweep of this size
#   AFTER_SBATCH   more options of sbatch for export, evaluation and comparison, which run on one node
# A job whose training fails for good takes those that wait for it along; the comparison takes what there is. A run that
# is finished or queued, of another sweep for example, is not queued again.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 SIZE BASELINE VARIANT ..." >&2; exit 2; }
size=$1
shift
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=../common.sh
source "$HERE/../common.sh"
for variant in "$@"; do read_settings "$size" "$variant"; done # a wrong name, before anything is queued

after() { # NAME DEPENDENCY COMMAND... -> a job of one task, with the code of RUN's snapshot; prints its id
  local name=$1 dependency=$2
  shift 2
  # singleton: of two sweeps that share a run, the second one's job finds what the first one's has made
  # shellcheck disable=SC2086 # the options are words
  sbatch --parsable --job-name="$name" --nodes=1 --ntasks=1 --chdir="$RUN/code" --dependency="${dependency}singleton" --kill-on-invalid-dep=yes \
    --requeue --open-mode=append --output="$RUNS/$name.log" ${AFTER_SBATCH:-} --wrap="$(printf '%q ' "$@")"
}

trained=() runs=()
for seed in ${SEEDS:-1}; do
  for variant in "$@"; do
    SEED=$seed read_settings "$size" "$variant"
    # shellcheck disable=SC2086 # the flags are words
    job=$(SEED=$seed "$HERE/submit.sh" "$size" "$variant" ${TRAIN_FLAGS:-}) # none for a finished run
    # shellcheck disable=SC2016 # for the job's bash; an export that was queued again may be there already
    export_job=$(after "$size-$variant-seed$seed-export" "${job:+afterok:$job,}" \
      bash -c '[ -d "$2" ] || exec "$0" -m phd.commands.cli export "$1" "$2"' "$PYTHON" "$RUN/checkpoints" "$RUN/model")
    line="$variant seed $seed: train ${job:-finished}, export $export_job"
    if [ -n "${EVAL_CORPUS:-}${EVAL_TASKS:-}" ]; then
      if [ -n "${EVAL_CORPUS:-}" ]; then what=(--corpus "$(realpath -m "$EVAL_CORPUS")"); else what=(--tasks "$EVAL_TASKS"); fi
      line+=", eval $(after "$size-$variant-seed$seed-eval" "afterok:$export_job," \
        "$PYTHON" -m phd.commands.cli eval "$RUN/model" "${what[@]}" --output "$RUN/eval.json")"
    fi
    echo "$line"
    [ -z "$job" ] || trained+=("$job")
    runs+=("$RUN")
  done
done
list=$(IFS=:; echo "${trained[*]}")
comparison=${COMPARISON:-comparison}
echo "$RUNS/$comparison.html: $(after "$size-$comparison" "${list:+afterany:$list,}" \
  "$PYTHON" -m phd.commands.cli compare "${runs[@]}" --output "$RUNS/$comparison")"
