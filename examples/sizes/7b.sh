# shellcheck shell=bash disable=SC2034 # common.sh reads these
# Llama-2 7B's shape, which LongGen extended from 4K to 128K: to import (`phd import`) and give to extend.sh. With CP
# and TP as the memory asks: `phd plan`.
MODEL=(
  --num-layers 32 --hidden-size 4096 --ffn-hidden-size 11008 --num-attention-heads 32
  --seq-length 4096 --max-position-embeddings 4096 --norm-epsilon 1e-5
  --untie-embeddings-and-output-weights
)
TRAINING=(
  --micro-batch-size 1 --global-batch-size 1024 --train-iters 476837 # 2T tokens
  --lr 3e-4 --min-lr 3e-5 --lr-warmup-iters 2000
  --save-interval 200 --eval-interval 200 --eval-iters 20 --log-interval 10
)
