#!/bin/bash
# Pretrain one variant of one size with torchrun, on one node or several:
#
#   DATA_PREFIX=data/corpus TOKENIZER_MODEL=tokenizer.model examples/pretrain.sh 151m PHD-CSWA-2-16-32
#
# The variables are explained in common.sh. On several nodes start it on each, with NNODES and RDZV_ENDPOINT. Run it
# again to continue; its end is told by `phd status RUN`. Flags after the variant are added last and so win; those that
# the variant's name stands for are refused.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 SIZE VARIANT [FLAG ...]" >&2; exit 2; }
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
read_settings "$1" "$2"
NAME=${PHD_FLAGS[1]} # as everything writes it
shift 2
[ "${NNODES:-1}" = 1 ] || [ -n "${RDZV_ENDPOINT:-}" ] || fail "NNODES is $NNODES: set RDZV_ENDPOINT=HOST:PORT, the same on every node"

LOCAL_GPUS=$( (nvidia-smi --list-gpus 2>/dev/null || true) | wc -l)
if [ "$LOCAL_GPUS" -gt 0 ]; then TRAINING+=(--bf16); fi
export CUDA_DEVICE_MAX_CONNECTIONS=1
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
# Without it the ranks of a restart read in torchrun's store where those before them listened (torch 2.13).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# Ranks find each other by the node's name, which on a laptop may lead nowhere: they would wait for minutes.
NODE=()
[ "${NNODES:-1}" != 1 ] || NODE=(--local-addr 127.0.0.1)
# torchrun hands on the signals that it is told of, and gives the ranks this long to save. It would even listen to a
# hangup that nohup has it ignore.
SIGNALS=SIGTERM,SIGINT,SIGQUIT,SIGUSR1
[ -n "$(trap -p HUP)" ] || SIGNALS+=,SIGHUP
exec "$PYTHON" -m torch.distributed.run \
  --nnodes "${NNODES:-1}" --nproc-per-node "${NPROC_PER_NODE:-$((LOCAL_GPUS > 0 ? LOCAL_GPUS : 1))}" \
  --rdzv-backend c10d --rdzv-endpoint "${RDZV_ENDPOINT:-127.0.0.1:0}" --rdzv-id "${RDZV_ID:-$NAME-seed$SEED}" \
  "${NODE[@]}" --max-restarts "${MAX_RESTARTS:-3}" \
  --signals-to-handle "$SIGNALS" --shutdown-timeout "${SHUTDOWN_TIMEOUT:-120}" \
  "$ROOT/pretrain_phd.py" "${MODEL[@]}" "${TRAINING[@]}" "${FLAGS[@]}" "${PHD_FLAGS[@]}" "$@"
