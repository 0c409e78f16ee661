# shellcheck shell=bash disable=SC2034 # common.sh reads these
# The paper's 550M (its ablations, 300B tokens): 551M with tied embeddings and a vocabulary of 100K. The paper's FFN
# size counts gate and up projections together, Megatron's is half of it. It prints neither sequence length, batch nor
# learning rate: these are OLMo2-1B's.
MODEL=(
  --num-layers 16 --hidden-size 1536 --ffn-hidden-size 4096 --num-attention-heads 16
  --group-query-attention --num-query-groups 4
  --seq-length 4096 --max-position-embeddings 4096
)
TRAINING=(
  --micro-batch-size 4 --global-batch-size 512 --train-iters 143051 # 300B tokens
  --lr 4e-4 --min-lr 4e-5 --lr-warmup-iters 2000
  --save-interval 1000 --eval-interval 1000 --eval-iters 50 --log-interval 10
)
