#!/bin/bash
# ProLong (arXiv 2410.02660): extend a context to 65,536 and then to 524,288 tokens, with 20,971,520,000 tokens each:
#
#   FROM=start DATA=long TOKENIZER_MODEL=start/tokenizer examples/prolong.sh 7b vanilla [FLAG ...]
#
# DATA/64k.txt and DATA/512k.txt are the blends of the two stages: docs/operations.md makes them, with the shares of prolong/.
# Run it again to continue. PLAN=1 prints what each stage takes. Beside the variables of extend.sh and common.sh:
#   STAGES  (65536:8000000:1e-5 524288:128000000:1e-5) length, RoPE base and highest learning rate of each: ProLong's for
#           Llama-3-8B. Its scripts take 5e-6 in the second stage, its paper 1e-5.
# ProLong goes into the second stage with the optimizer's state; here, as in all of extend.sh, a stage starts from weights.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 SIZE VARIANT [FLAG ...]" >&2; exit 2; }
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
: "${FROM:?the checkpoints of the model to extend}" "${DATA:?the folder of the blends 64k.txt and 512k.txt}"
find_python
SIZE=$1
VARIANT=$(cd "$ROOT" && "$PYTHON" -m phd.commands.cli variant "$2") || exit
shift 2
read -r -a stages <<<"${STAGES:-65536:8000000:1e-5 524288:128000000:1e-5}"
[ ${#stages[@]} = 2 ] || fail "STAGES are two, LENGTH:BASE:LR each"
export ATTENTION_PATTERN=full LR_SCHEDULE=cosine STAGE_TOKENS=${STAGE_TOKENS:-20971520000}
export RUNS=${RUNS:-$ROOT/runs/$SIZE} FROM DATA_PREFIX BATCH_TOKENS

extend() { # STAGE FLAG ...
  "$ROOT/examples/extend.sh" "$SIZE" "$VARIANT" "$1" --dataloader-inter-document-masking --mask-document-starts \
    --sort-batch-by-documents "${@:2}"
}
DATA_PREFIX=$DATA/64k.txt BATCH_TOKENS=4194304 # 64 sequences, 5000 iterations
extend "${stages[0]}" "$@"
if [ -z "${PLAN:-}" ]; then FROM=$RUNS/$VARIANT-${stages[0]%%:*}/$VARIANT-seed${SEED:-1}/checkpoints; fi
DATA_PREFIX=$DATA/512k.txt BATCH_TOKENS=8388608 # 16 sequences, 2500 iterations
extend "${stages[1]}" "$@"
