# shellcheck shell=bash disable=SC2034 # common.sh reads these
# The paper's 1.2B (its main models, 500B tokens): 1.18B with tied embeddings and a vocabulary of 100K. See 550m.sh for
# the FFN size, and for what the paper does not print.
MODEL=(
  --num-layers 16 --hidden-size 2048 --ffn-hidden-size 8192 --num-attention-heads 32
  --group-query-attention --num-query-groups 8
  --seq-length 4096 --max-position-embeddings 4096
)
TRAINING=(
  --micro-batch-size 2 --global-batch-size 512 --train-iters 238419 # 500B tokens
  --lr 4e-4 --min-lr 4e-5 --lr-warmup-iters 2000
  --save-interval 1000 --eval-interval 1000 --eval-iters 50 --log-interval 10
)
