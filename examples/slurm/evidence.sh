#!/bin/bash
# Queue a trunk and, when it is trained, its branches: the question of docs/evidence.md at a size for GPUs.
#
#   DATA_PREFIX=/data/web TOKENIZER_MODEL=/data/tok.model NNODES=4 examples/slurm/evidence.sh 151m
#
# The trunk is vanilla at a constant learning rate. A job of one task waits for it and queues a family of branches for
# each length with branch.sh. Variables: submit.sh's for the trunk, branch.sh's for the branches, and
#   SHARES ("10 30")    lengths of the branches, in percent of the trunk's iterations
#   ORDERS ("1 2 3")    a branch of every variant for each
#   VARIANTS            (vanilla, PHD-CSWA-2-16-32 without, with vectors, with a table)
#   BRANCH_DATA_PREFIX  the branches' data set; without it other orders show them texts that the trunk has seen
#   RUNS                (runs/SIZE-branches): the folder of all
# The same line again queues what is neither finished nor queued.
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: $0 SIZE" >&2; exit 2; }
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=../common.sh
source "$HERE/../common.sh"
export RUNS=${RUNS:-runs/$1-branches} PYTHON
read_settings "$1" vanilla
trunk_iters=$(printf '%s\n' "${TRAINING[@]}" | sed -n '/^--train-iters$/{n;p;}')
variants=${VARIANTS:-vanilla PHD-CSWA-2-16-32 PHD-CSWA-2-16-32+vector PHD-CSWA-2-16-32+table}
shares=${SHARES:-10 30}
longest=0
for share in $shares; do if [ "$share" -gt "$longest" ]; then longest=$share; fi; done
longest=$((trunk_iters * longest / 100))

trunk=$("$HERE/submit.sh" "$1" vanilla --lr-decay-style constant) # no job for one that is finished
script=
for share in $shares; do
  # shellcheck disable=SC2086 # the variants and orders are words
  words=$(printf '%q ' "OUTPUT=$RUNS/branches-$share" "$RUN/code/examples/slurm/branch.sh" "$RUN" --variants $variants \
    --iterations $((trunk_iters * share / 100)) --longest "$longest" --orders ${ORDERS:-1 2 3} \
    ${BRANCH_DATA_PREFIX:+--flags --data-path "$(realpath -m "$BRANCH_DATA_PREFIX")"})
  script+="env $words"$'\n'
done
# shellcheck disable=SC2086 # the options are words
branches=$(sbatch --parsable --job-name="$1-branches" --nodes=1 --ntasks=1 ${trunk:+--dependency=afterok:$trunk} \
  --kill-on-invalid-dep=yes --requeue --open-mode=append --output="$RUNS/branches.log" ${AFTER_SBATCH:-} \
  --wrap="set -e; export PYTHON=$(printf '%q' "$PYTHON")"$'\n'"$script")
echo "trunk ${trunk:-finished}, then job ${branches%%;*} queues its branches: $RUNS/branches.log, then" \
  "$RUNS/branches-{${shares// /,}}/comparison.html"
