#!/bin/bash
# Pretrain one variant of one size with torchrun, on one node or several:
#
#   DATA_PREFIX=data/corpus TOKENIZER_MODEL=tokenizer.model examples/pretrain.sh 151m PHD-CSWA-2-16-32
#
# The variables are explained in common.sh. On several nodes start it on each, with NNODES and RDZV_ENDPOINT. Run it
# again to continue; its end is told by `phd status RUN`. Flags after the variant are added last and so win; those that
# the variant's name stands for are refused. With PLAN=1 it prints what `phd plan` says of the flags, and trains nothing.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 SIZE VARIANT [FLAG ...]" >&2; exit 2; }
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_settings "$1" "$2"
NAME=${PHD_FLAGS[1]} # as everything writes it
shift 2
if [ "$(local_gpus)" -gt 0 ]; then TRAINING+=(--bf16); fi
if [ -n "${WANDB_PROJECT:-}" ]; then TRAINING+=(--wandb-project "$WANDB_PROJECT" --wandb-exp-name "$NAME-seed$SEED"); fi

DATA=(--data-path "$DATA_PREFIX")
if [[ $DATA_PREFIX == *.txt ]]; then DATA=(--data-args-path "$DATA_PREFIX"); fi
# shellcheck disable=SC2054 # the commas are --split's
FLAGS=(
  --run-dir "$RUN" --seed "$SEED" "${DATA[@]}" --split 95,5,0 "${TOKENIZER[@]}"
  --position-embedding-type rope --swiglu --normalization RMSNorm --disable-bias-linear
  --attention-dropout 0 --hidden-dropout 0 --init-method-std 0.02
  --lr-decay-style cosine --weight-decay 0.1 --adam-beta2 0.95 --clip-grad 1.0
  --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather
  --ckpt-fully-parallel-save --dist-ckpt-optim-fully-reshardable --keep-last-checkpoints 3
)
if [ -n "${PLAN:-}" ]; then
  export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}
  exec "$PYTHON" -m phd.commands.cli plan pretrain_phd.py "${MODEL[@]}" "${TRAINING[@]}" "${FLAGS[@]}" "${PHD_FLAGS[@]}" "$@"
fi
export PYTHON RDZV_ID=${RDZV_ID:-$NAME-seed$SEED}
exec "$ROOT/examples/torchrun.sh" "$ROOT/pretrain_phd.py" "${MODEL[@]}" "${TRAINING[@]}" "${FLAGS[@]}" "${PHD_FLAGS[@]}" "$@"
