#!/bin/bash
# Start pretrain_phd.py with torchrun, on one node or several; pretrain.sh and the branches of `phd branch` end here:
#
#   NPROC_PER_NODE=8 examples/torchrun.sh pretrain_phd.py FLAG ...
#
# NNODES, NPROC_PER_NODE, RDZV_ENDPOINT and MAX_RESTARTS are explained in common.sh.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
find_python
if [ "${NNODES:-1}" != 1 ] && [ -z "${RDZV_ENDPOINT:-}" ]; then
  fail "NNODES is $NNODES: set RDZV_ENDPOINT=HOST:PORT, the same on every node"
fi
GPUS=$(local_gpus)
export CUDA_DEVICE_MAX_CONNECTIONS=1
# Without it the ranks of a restart read in torchrun's store where those before them listened (torch 2.13).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# Ranks find each other by the node's name, which on a laptop may lead nowhere: they would wait for minutes.
NODE=()
[ "${NNODES:-1}" != 1 ] || NODE=(--local-addr 127.0.0.1)
# torchrun hands on the signals that it is told of, and gives the ranks this long to save. It would even listen to a
# hangup that nohup has it ignore.
SIGNALS=SIGTERM,SIGINT,SIGQUIT,SIGUSR1
[ -n "$(trap -p HUP)" ] || SIGNALS+=,SIGHUP
exec "$PYTHON" -m torch.distributed.run \
  --nnodes "${NNODES:-1}" --nproc-per-node "${NPROC_PER_NODE:-$((GPUS > 0 ? GPUS : 1))}" \
  --rdzv-backend c10d --rdzv-endpoint "${RDZV_ENDPOINT:-127.0.0.1:0}" --rdzv-id "${RDZV_ID:-pretrain_phd}" \
  "${NODE[@]}" --max-restarts "${MAX_RESTARTS:-3}" \
  --signals-to-handle "$SIGNALS" --shutdown-timeout "${SHUTDOWN_TIMEOUT:-120}" "$@"
