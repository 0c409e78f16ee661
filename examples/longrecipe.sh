#!/bin/bash
# Extend the context of a trained model by LongRecipe (arXiv 2409.00509): short samples whose sentences have gaps between
# their positions, then short text at a tenth of the rate, then the mean of the weights before and after.
#
#   phd data condense books --tokenizer-model start/tokenizer --tokens 24000 --output books-24k
#   FROM=start DATA_PREFIX=books-24k REPLAY_PREFIX=instructions BASE=48877310 \
#     TOKENIZER_MODEL=start/tokenizer examples/longrecipe.sh 7b vanilla [FLAG ...]
#
# Run it again to continue: what is finished is passed over. START=slurm/submit.sh queues the three steps of it on a SLURM
# cluster, each behind the one before; TRAIN_SBATCH and AFTER_SBATCH are sbatch options, of the trainings and of the last
# step. The model, a folder as of `phd export`, lies in RUNS/longrecipe/VARIANT-seedSEED then. Beside the variables of common.sh, and of slurm/submit.sh:
#   FROM           checkpoints of the model to extend; `phd import` makes them of a Llama
#   ORIGINAL       (FROM) the model to take the mean with, as checkpoints or a folder of Hugging Face
#   REPLAY_PREFIX  data of the old length, as DATA_PREFIX is the condensed
#   BASE           of the rotary angles: `phd rope-base` computes it
#   TARGET         (80000) positions to read; LENGTH (24000) tokens of a sample
#   ITERATIONS     (104) of BATCH (96) samples; REPLAYED (30) iterations of them with REPLAY_PREFIX
#   RATE           (5e-5) learning rate; the replay has a tenth
# The numbers are the paper's for 80,000 tokens; its replay reads 68M tokens of instructions.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 SIZE VARIANT [FLAG ...]" >&2; exit 2; }
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
: "${FROM:?the checkpoints of the model to extend}"
: "${REPLAY_PREFIX:?data of the old length}" "${BASE:?the base of the rotary angles, from phd rope-base}"
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$HERE/common.sh"
export RUNS="${RUNS:-$HERE/../runs/$1}/longrecipe"
ALL=$(realpath -m "$RUNS")
read_settings "$1" "$2"
SIZE=$1 NAME=$(basename "$RUN") VARIANT=$2
shift 2
FROM=$(realpath -m "$FROM") ORIGINAL=$(realpath -m "${ORIGINAL:-$FROM}") OUTPUT=$ALL/$NAME
TARGET=${TARGET:-80000} START=${START:-pretrain.sh} rate=${RATE:-5e-5}
[ ! -e "$OUTPUT" ] || { echo "$OUTPUT is there: nothing is left to do"; exit; }
tenth=$("$PYTHON" -c 'import sys; print(f"{float(sys.argv[1]) / 10:g}")' "$rate")
SAME=(
  --override-phd-variant --rotary-base "$BASE" --seq-length "${LENGTH:-24000}" --max-position-embeddings "$TARGET"
  --micro-batch-size 1 --global-batch-size "${BATCH:-96}" --lr-decay-style constant --lr-warmup-iters 0
)

train() { # STEP FROM RATE ITERATIONS FLAG ... -> job, where it is queued
  local run=$ALL/$1/$NAME flags=(--pretrained-checkpoint "$2" --lr "$3" --min-lr "$3" --train-iters "$4" "${SAME[@]}" "${@:5}")
  if [ "$START" = pretrain.sh ] && [ -d "$run" ] && finished "$run" >&2; then return; fi
  RUNS=$ALL/$1 "$HERE/$START" "$SIZE" "$VARIANT" "${flags[@]}"
}
after() { echo "${1:+--dependency=afterok:$1 --kill-on-invalid-dep=yes}"; }

if [ "$START" = pretrain.sh ]; then
  train gaps "$FROM" "$rate" "${ITERATIONS:-104}" --position-gaps-to "$TARGET" "$@"
  DATA_PREFIX=$REPLAY_PREFIX train replay "$ALL/gaps/$NAME/checkpoints" "$tenth" "${REPLAYED:-30}" "$@"
else
  gaps=$(train gaps "$FROM" "$rate" "${ITERATIONS:-104}" --position-gaps-to "$TARGET" "$@")
  replay=$(DATA_PREFIX=$REPLAY_PREFIX TRAIN_SBATCH="${TRAIN_SBATCH:-} $(after "$gaps")" \
    train replay "$ALL/gaps/$NAME/checkpoints" "$tenth" "${REPLAYED:-30}" "$@")
fi
merge="cd $(printf '%q' "$ROOT") && $(printf '%q ' "$PYTHON" -m phd.commands.cli merge \
  "$ALL/replay/$NAME/checkpoints" "$ORIGINAL" --weights 0.5 0.5 --output "$OUTPUT")"
if [ "$START" = pretrain.sh ]; then
  finished "$ALL/replay/$NAME" || fail "the replay is not done: start it again to go on"
  bash -c "$merge"
else
  # shellcheck disable=SC2046,SC2086 # the options are words
  job=$(sbatch --parsable --job-name="$SIZE-longrecipe" --nodes=1 --ntasks=1 --requeue --open-mode=append \
    --output="$ALL/merge-$NAME.log" $(after "$replay") ${AFTER_SBATCH:-} --wrap="$merge")
  echo "gaps ${gaps:-finished}, replay ${replay:-finished}, then job ${job%%;*} merges: $OUTPUT"
fi
