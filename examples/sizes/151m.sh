# shellcheck shell=bash disable=SC2034 # common.sh reads these
# The paper's 151M (its Figure 1, 100B tokens). The paper prints no sizes; these give 151M with tied embeddings
# and a vocabulary of 50K.
MODEL=(
  --num-layers 12 --hidden-size 768 --ffn-hidden-size 3072 --num-attention-heads 12
  --seq-length 2048 --max-position-embeddings 2048
)
TRAINING=(
  --micro-batch-size 8 --global-batch-size 512 --train-iters 95367 # 100B tokens
  --lr 6e-4 --min-lr 6e-5 --lr-warmup-iters 2000
  --save-interval 1000 --eval-interval 1000 --eval-iters 50 --log-interval 10
)
