# Sourced by the scripts beside it, which set NAME and PHD_FLAGS and nothing else: the paper's 151M size (its
# Figure 1; the paper prints no sizes, these give 151M with a vocabulary of 50K and tied embeddings).
#
# Needs:  DATA_PREFIX (from `phd data tokenize`, without .bin), TOKENIZER_MODEL (SentencePiece)
# Takes:  RUNS (default runs/151m), NNODES, NPROC_PER_NODE, RDZV_ENDPOINT (host:port, the same on every node),
#         WANDB_PROJECT; flags after the script's name are added last and so win.
set -euo pipefail
: "${DATA_PREFIX:?the path of the data set without .bin}" "${TOKENIZER_MODEL:?the SentencePiece .model file}"
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
RUN=${RUNS:-$ROOT/runs/151m}/$NAME
mkdir -p "$RUN"
export CUDA_DEVICE_MAX_CONNECTIONS=1

MODEL=(
  --num-layers 12 --hidden-size 768 --ffn-hidden-size 3072 --num-attention-heads 12
  --seq-length 2048 --max-position-embeddings 2048 --position-embedding-type rope
  --swiglu --normalization RMSNorm --disable-bias-linear --attention-dropout 0 --hidden-dropout 0
)
TRAINING=(
  --micro-batch-size 8 --global-batch-size 512 --train-iters 95367 # 100B tokens
  --lr 6e-4 --min-lr 6e-5 --lr-decay-style cosine --lr-warmup-iters 2000
  --weight-decay 0.1 --adam-beta2 0.95 --clip-grad 1.0 --init-method-std 0.02 --seed 1234
  --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather
)
DATA=(
  --data-path "$DATA_PREFIX" --split 990,8,2 --data-cache-path "$RUN/index-cache"
  --tokenizer-type SentencePieceTokenizer --tokenizer-model "$TOKENIZER_MODEL"
)
OUTPUT=(
  --save "$RUN/checkpoints" --load "$RUN/checkpoints" --save-interval 1000
  --tensorboard-dir "$RUN/tensorboard" --log-interval 10 --eval-interval 1000 --eval-iters 50
)
if command -v nvidia-smi >/dev/null; then TRAINING+=(--bf16); fi
if [ -n "${WANDB_PROJECT:-}" ]; then
  export WANDB_RUN_GROUP=${WANDB_RUN_GROUP:-151m}
  OUTPUT+=(--wandb-project "$WANDB_PROJECT" --wandb-save-dir "$RUN")
fi

exec "${PYTHON:-$ROOT/.venv/bin/python}" -m torch.distributed.run \
  --nnodes "${NNODES:-1}" --nproc-per-node "${NPROC_PER_NODE:-8}" \
  --rdzv-backend c10d --rdzv-endpoint "${RDZV_ENDPOINT:-127.0.0.1:0}" --rdzv-id "$NAME" \
  "$ROOT/pretrain_phd.py" "${MODEL[@]}" "${TRAINING[@]}" "${DATA[@]}" "${OUTPUT[@]}" "${PHD_FLAGS[@]}" "$@"
