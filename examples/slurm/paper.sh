#!/bin/bash
# Queue an experiment of the paper (arXiv 2504.14992) as a sweep:
#
#   DATA_PREFIX=/data/web TOKENIZER_MODEL=/data/tok.model NNODES=4 examples/slurm/paper.sh table1
#
# The variables are sweep.sh's. A run that several experiments share is trained once; each has a comparison of its name.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
case ${1:-} in
  figure1) sweep=(151m vanilla naive-2 naive-3 naive-4) ;;                                    # more copies, lower loss
  151m) sweep=(151m vanilla naive-2 PHD-2 PHD-CSWA-2-16-32 PHD-CSWA-3-16-32) ;;               # benchmarks/results, scaled up
  table1) sweep=(1.2b vanilla PHD-CSWA-2-16-32 PHD-CSWA-3-16-32) ;;                           # the main models
  table2) sweep=(550m vanilla PHD-SWA-2-16-inf PHD-SWA-3-16-inf PHD-SWA-5-16-inf) ;;          # more copies
  figure6) sweep=(550m vanilla PHD-2 PHD-SWA-2-2-inf PHD-SWA-2-4-inf PHD-SWA-2-16-inf) ;;     # the window
  figure7) sweep=(550m vanilla PHD-CSWA-2-16-16 PHD-CSWA-2-16-32 PHD-SWA-2-16-inf) ;;         # the chunk
  naive) sweep=(550m vanilla naive-2 PHD-CSWA-2-16-32 PHD-CSWA-3-16-32) ;;                    # what the cache rule costs
  *)
    echo "usage: $0 figure1|151m|table1|table2|figure6|figure7|naive" >&2
    exit 2
    ;;
esac
COMPARISON=$1 exec "$HERE/sweep.sh" "${sweep[@]}"
