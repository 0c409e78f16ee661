#!/bin/bash
# Extend the context of a trained model while turning it into LongGen's hybrid, through a schedule of lengths:
#
#   FROM=runs/151m/vanilla-seed1/checkpoints DATA_PREFIX=long/blend.txt TOKENIZER_MODEL=tokenizer.model \
#     examples/extend.sh 151m vanilla "8192 32768" [FLAG ...]
#
# A length may have a RoPE base of its own behind it, and behind that a learning rate: "65536:8000000:1e-5 524288:128000000".
# Every length is a run of pretrain.sh, in RUNS/NAME-LENGTH, that starts from the weights of the one before.
# Run it again to continue: what is finished is passed over. `phd data upsample` makes the data, `phd import` a
# checkpoint of a Llama. Beside the variables of common.sh:
#   FROM               checkpoints of the model to extend
#   ATTENTION_PATTERN  (longgen-sink) full is the baseline
#   STAGE_TOKENS       (5000000000) tokens of each length; LongGen's one stage had so many
#   BATCH_TOKENS       (4194304) tokens of an iteration
#   LR_SCHEDULE        (constant) cosine: up over the first tenth of a length's iterations, down to a tenth of the rate
#   PLAN               if set, what each length takes (phd plan), and no training
# LongGen's learning rate, batch and RoPE base are not known. These are of Fu et al. (arXiv 2402.10171), who trained
# on the same data: a constant 2e-5, 4M tokens. `phd rope-base` computes a base.
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: $0 SIZE VARIANT \"LENGTH ...\" [FLAG ...]" >&2; exit 2; }
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_settings "$1" "$2"
SIZE=$1 VARIANT=$2 LENGTHS=$3 ALL=$RUNS
shift 3
: "${FROM:?the checkpoints of the model to extend}"
PATTERN=$(cd "$ROOT" && "$PYTHON" -m phd.commands.cli variant "${ATTENTION_PATTERN:-longgen-sink}") || exit
WHOLE=$VARIANT+$PATTERN
if [ "$PATTERN" = vanilla ]; then WHOLE=$VARIANT; elif [ "$VARIANT" = vanilla ]; then WHOLE=$PATTERN; fi
TOKENS=${STAGE_TOKENS:-5000000000} BATCH=${BATCH_TOKENS:-4194304}

case ${LR_SCHEDULE:-constant} in
  constant | cosine) ;;
  *) fail "LR_SCHEDULE is constant or cosine, not $LR_SCHEDULE" ;;
esac
for stage in $LENGTHS; do
  IFS=: read -r length base lr rest <<<"$stage"
  [[ $length$base =~ ^[0-9]+$ && -z $rest ]] || fail "$stage: expected LENGTH, LENGTH:BASE or LENGTH:BASE:LR"
  [ $((BATCH % length)) = 0 ] || fail "BATCH_TOKENS $BATCH is no multiple of the length $length"
done
for stage in $LENGTHS; do
  IFS=: read -r length base lr _ <<<"$stage"
  lr=${lr:-2e-5}
  RATE=(--lr "$lr" --min-lr "$lr" --lr-decay-style constant --lr-warmup-iters 0)
  if [ "${LR_SCHEDULE:-constant}" = cosine ]; then
    lowest=$("$PYTHON" -c 'import sys; print(f"{float(sys.argv[1]) / 10:g}")' "$lr")
    RATE=(--lr "$lr" --min-lr "$lowest" --lr-decay-style cosine --lr-warmup-iters $((TOKENS / BATCH / 10)))
  fi
  export RUNS="$ALL/$WHOLE-$length"
  run=$RUNS/$WHOLE-seed$SEED
  if [ -z "${PLAN:-}" ] && [ -d "$run" ] && finished "$run"; then
    echo "extend.sh: $length tokens are done"
  else
    "$ROOT/examples/pretrain.sh" "$SIZE" "$WHOLE" --pretrained-checkpoint "$FROM" --override-phd-variant \
      --seq-length "$length" --max-position-embeddings "$length" ${base:+--rotary-base "$base"} \
      --micro-batch-size 1 --global-batch-size $((BATCH / length)) --train-iters $((TOKENS / BATCH)) \
      "${RATE[@]}" "$@"
    [ -z "${PLAN:-}" ] || continue
    # saved after a signal or --exit-duration-in-mins, it ends with 0 too
    finished "$run" || fail "$length tokens are not done: start it again to go on"
  fi
  FROM=$run/checkpoints
done
