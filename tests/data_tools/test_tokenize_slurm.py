"""The commands that the SLURM example queues, run one after the other where there is no SLURM."""

import os
import subprocess
import sys

import pytest

from tests.world import ROOT

# Runs what it is to queue, for each member of an array, and prints a number as the job's.
SBATCH = """#!/bin/bash
set -e
tasks=1
for argument; do
  case $argument in
    --array=0-*) tasks=$((${argument#--array=0-} + 1)) ;;
    --wrap=*) job=${argument#--wrap=} ;;
  esac
done
for ((task = 0; task < tasks; task++)); do SLURM_ARRAY_TASK_ID=$task bash -c "$job" >>jobs.log 2>&1; done
echo 1
"""


@pytest.mark.slow
def test_the_same_line_again_does_nothing(tokenizer_model, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n' * 99)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sbatch").write_text(SBATCH)
    (tmp_path / "bin" / "sbatch").chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHON": sys.executable, "INPUT": "in.jsonl",
        "TOKENIZER_MODEL": str(tokenizer_model), "OUTPUT_PREFIX": "o/out", "TASKS": "2", "CPUS": "1",
    }  # fmt: skip
    for last in ("o/out: whole, 99 documents", "o/out.units was deleted after its merge: nothing to do"):
        run = [ROOT / "examples" / "tokenize_slurm.sh", "--unit-bytes", "900"]
        done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True)
        log = (tmp_path / "jobs.log").read_text()
        assert done.returncode == 0, done.stderr + log
        assert last in log
        assert not (tmp_path / "o" / "out.units").exists()
