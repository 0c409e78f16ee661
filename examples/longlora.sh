#!/bin/bash
# Extend the context of a trained model by LongLoRA (arXiv 2309.12307): linear interpolation, shifted groups in training,
# adapters of rank 8 on the attention's projections, and embeddings and norms; all other weights stay as they are.
#
#   FROM=start DATA_PREFIX=data/blend.txt TOKENIZER_MODEL=start/tokenizer examples/longlora.sh 7b vanilla
#
# On a SLURM cluster the same, queued: START=slurm/submit.sh for one run; START=slurm/sweep.sh for several variants (then
# all words behind SIZE are variants), each trained from FROM, exported with its adapters merged, and compared. Run it
# again to continue. Flags after the variant win: --s2-groups 0 trains with full attention. Beside the variables of
# common.sh, and of the scripts of slurm/:
#   FROM        checkpoints of the model to extend; `phd import` makes them of a Llama
#   CONTEXT     (4096) positions that it was trained with, before any interpolation
#   LENGTH      (32768) tokens of a sample, and the new context
#   ITERATIONS  (1000) of BATCH (64) samples; with the learning rate of 2e-5 the paper's for 7B and 13B
#   START       (pretrain.sh) which of the scripts here trains
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 SIZE VARIANT [FLAG ...]" >&2; exit 2; }
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
find_python
: "${FROM:?the checkpoints of the model to extend}"
CONTEXT=${CONTEXT:-4096} LENGTH=${LENGTH:-32768} SIZE=$1
FLAGS=(
  --pretrained-checkpoint "$(realpath -m "$FROM")" --override-phd-variant
  --seq-length "$LENGTH" --max-position-embeddings "$LENGTH"
  --rotary-seq-len-interpolation-factor $(((LENGTH + CONTEXT - 1) / CONTEXT))
  --s2-groups 4 --lora-rank 8 --lora-alpha 16 --train-only "lora,embedding,norm"
  --micro-batch-size 1 --global-batch-size "${BATCH:-64}" --train-iters "${ITERATIONS:-1000}"
  --lr 2e-5 --min-lr 2e-5 --lr-decay-style constant --lr-warmup-iters 20 --weight-decay 0
)
export RUNS="${RUNS:-$ROOT/runs/$SIZE}/longlora"
start_extension "$@"
