#!/bin/bash
# Extend the context of a trained model by E2-LLM (arXiv 2401.06951): one training on samples of the old length, whose
# rotary positions are scaled and shifted otherwise in every iteration; then any context up to MAX_SCALE times the old.
#
#   FROM=start DATA_PREFIX=data/blend.txt TOKENIZER_MODEL=start/tokenizer examples/e2_llm.sh 7b vanilla
#
# On a SLURM cluster the same, queued: START=slurm/submit.sh for one run; START=slurm/sweep.sh for several variants (then
# all words behind SIZE are variants), each trained from FROM, exported, and compared. Run it again to continue. To read
# more than the old context: `phd export RUN/checkpoints OUT --rope-scale 8`, `phd eval RUN --rope-scale auto`. Beside
# the variables of common.sh, and of the scripts of slurm/:
#   FROM        checkpoints of the model to extend; `phd import` makes them of a Llama
#   CONTEXT     (4096) positions that it was trained with
#   LENGTH      (CONTEXT) tokens of a sample
#   MAX_SCALE   (20) the largest scale that is drawn
#   ITERATIONS  (30000) of BATCH (16) samples; with the learning rate of 1e-5 the paper's
#   START       (pretrain.sh) which of the scripts here trains
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 SIZE VARIANT [FLAG ...]" >&2; exit 2; }
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
find_python
: "${FROM:?the checkpoints of the model to extend}"
CONTEXT=${CONTEXT:-4096} SIZE=$1
LENGTH=${LENGTH:-$CONTEXT}
longest=$((LENGTH > CONTEXT ? LENGTH : CONTEXT))
FLAGS=(
  --pretrained-checkpoint "$(realpath -m "$FROM")" --override-phd-variant
  --rope-max-scale "${MAX_SCALE:-20}" --rope-context "$CONTEXT"
  --seq-length "$LENGTH" --max-position-embeddings "$longest"
  --micro-batch-size 1 --global-batch-size "${BATCH:-16}" --train-iters "${ITERATIONS:-30000}"
  --lr 1e-5 --min-lr 1e-5 --lr-decay-style constant --lr-warmup-iters 0
)
export RUNS="${RUNS:-$ROOT/runs/$SIZE}/e2-llm"
start_extension "$@"
