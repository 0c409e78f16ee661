#!/bin/sh
# SLURM and munge from Debian's packages, unless they are there already. Fails where that is not possible.
set -eu
for program in munged slurmctld slurmd sbatch; do
  command -v "$program" >/dev/null 2>&1 || missing=$program
done
[ -n "${missing:-}" ] || exit 0
[ "$(id -u)" = 0 ] || { echo "$missing is missing, and installing it needs root" >&2; exit 1; }
command -v apt-get >/dev/null 2>&1 || { echo "$missing is missing, and there is no apt-get" >&2; exit 1; }
export DEBIAN_FRONTEND=noninteractive
apt-get update -q && apt-get install -q -y --no-install-recommends slurmctld slurmd slurm-client munge
