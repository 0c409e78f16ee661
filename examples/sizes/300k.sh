# shellcheck shell=bash disable=SC2034 # common.sh reads these
# 0.3M parameters, for a CPU: the reproduction in benchmarks/results.
MODEL=(
  --num-layers 4 --hidden-size 64 --ffn-hidden-size 176 --num-attention-heads 4
  --group-query-attention --num-query-groups 2
  --seq-length 128 --max-position-embeddings 128
)
TRAINING=(
  --micro-batch-size 32 --global-batch-size 32 --train-iters 250 # 1.0M tokens
  --lr 3e-3 --min-lr 0 --lr-warmup-iters 25
  --save-interval 50 --eval-interval 50 --eval-iters 20 --log-interval 10
)
