#!/bin/bash
# The batch script of a training: one torchrun a node, and afterwards the queue again, or not. submit.sh queues it.
set -uo pipefail
RUN=$1
PYTHON=${PYTHON:-$(bash -c "$(grep '^export PYTHON=' "$RUN/launch.sh"); echo \"\$PYTHON\"")}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(scontrol show node "$first" | grep -o 'NodeAddr=[^ ]*' | cut -d= -f2)
export RDZV_ENDPOINT=$address:$((15000 + SLURM_JOB_ID % 17000)) RDZV_ID=$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}
echo "== $(date '+%F %T') job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURM_JOB_NODELIST"

# SLURM tells the ranks itself, before the time limit (--signal) and when it takes the node away: this script has to
# outlive them to decide. bash runs a trap only after the command in front, so that one is in the background.
trap 'echo "== $(date "+%F %T") SIGTERM: waiting for the ranks to save"' TERM
starts() { cat "$RUN/starts.jsonl" 2>/dev/null | wc -l; }
before=$(starts)
missed=$RUN/missed # how many jobs in a row did not get as far as a start
[ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] || rm -f "$missed"
srun --kill-on-bad-exit=1 bash "$RUN/launch.sh" &
srun_pid=$!
while kill -0 "$srun_pid" 2>/dev/null; do wait "$srun_pid"; done

verdict=$(cd "$RUN/code" && "$PYTHON" -m phd.commands.cli status "$RUN")
code=$?
echo "$verdict"
if [ "$(starts)" -gt "$before" ]; then
  rm -f "$missed"
elif [ "$code" -eq 75 ]; then # this command got further before: a node or the network may have a bad moment
  echo x >>"$missed"
  if [ "$(wc -l <"$missed")" -ge 3 ]; then
    echo "== it did not get as far as its start three times in a row (the reason is above): not queueing again"
    exit 1
  fi
fi
state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)
if [ "$code" -eq 75 ] && [[ ! $state =~ CANCELLED|COMPLETING ]]; then
  echo "== $(date '+%F %T') queueing again"
  scontrol requeue "$SLURM_JOB_ID" # ends this script
  sleep 30
fi
exit "$code"
