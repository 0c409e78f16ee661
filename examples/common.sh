# shellcheck shell=bash
# Sourced by pretrain.sh and the scripts of slurm/: a size and a variant become Megatron's flags.
#
#   SIZE     a file of sizes/: 151m, 550m, 1.2b (the paper's), 7b (Llama-2's), 300k (for a CPU)
#   VARIANT  vanilla, naive-K, PHD-K, PHD-SWA-K-W-inf or PHD-CSWA-K-W-C, the names of the paper; a pattern of the
#            layers, as longgen-sink; or both, as PHD-CSWA-2-16-32+longgen-sink; with +vector or +table behind the
#            copies their embedding
#
# All variants of a size differ by these flags and the name alone. Needs in the environment:
#   DATA_PREFIX      the data set without .bin, from `phd data tokenize`; or a blend's .txt, from `phd data blend`
#   TOKENIZER_MODEL  the SentencePiece .model file, or a tokenizer.json of Hugging Face (or the folder around it)
# Takes:
#   SEED  (1)        RUNS (runs/SIZE): the folder of the runs, and the W&B group
#   NNODES (1)       NPROC_PER_NODE (the GPUs of the node, else 1)
#   RDZV_ENDPOINT    host:port, the same on every node; needed with NNODES above 1
#   MAX_RESTARTS (3) starts after a rank has died, before the job gives up
#   WANDB_PROJECT    logs to W&B if set

# shellcheck disable=SC2034 # read by those who source this file
find_python() { # -> ROOT, PYTHON
  ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  PYTHON=${PYTHON:-$ROOT/.venv/bin/python}
  if [[ $PYTHON == */* ]]; then PYTHON=$(realpath -ms "$PYTHON"); fi # -s: an environment's is a link
}

local_gpus() { # -> how many this node has
  (nvidia-smi --list-gpus 2>/dev/null || true) | wc -l
}

read_settings() { # SIZE VARIANT -> ROOT, RUN, MODEL, TRAINING, PHD_FLAGS, TOKENIZER, PYTHON
  find_python
  local size=$1 variant=$2 sizes
  sizes=$(cd "$ROOT/examples/sizes" && echo *.sh)
  [ -f "$ROOT/examples/sizes/$size.sh" ] || fail "no size $size; there are: ${sizes//.sh/}"
  # shellcheck source=/dev/null
  source "$ROOT/examples/sizes/$size.sh"
  variant=$(cd "$ROOT" && "$PYTHON" -m phd.commands.cli variant "$variant") || exit
  PHD_FLAGS=(--variant "$variant")
  : "${DATA_PREFIX:?the path of the data set without .bin}" "${TOKENIZER_MODEL:?the SentencePiece .model file, or a tokenizer.json}"
  SEED=${SEED:-1}
  # absolute, as a job starts elsewhere
  RUNS=$(realpath -m "${RUNS:-$ROOT/runs/$size}")
  DATA_PREFIX=$(realpath -m "$DATA_PREFIX")
  TOKENIZER_MODEL=$(realpath -m "$TOKENIZER_MODEL")
  local type=SentencePieceTokenizer
  local tokenizer=${TOKENIZER_MODEL%/tokenizer.json} # Megatron takes its folder
  if [[ -d $tokenizer || $tokenizer != "$TOKENIZER_MODEL" ]]; then type=HuggingFaceTokenizer; fi
  TOKENIZER=(--tokenizer-type "$type" --tokenizer-model "$tokenizer")
  RUN=$RUNS/$variant-seed$SEED
}

finished() { # RUN -> whether it is; says how it stands
  (cd "$ROOT" && "$PYTHON" -m phd.commands.cli status "$1")
}

start_extension() { # SIZE VARIANT FLAG ... -> the script START, with FLAGS before these; slurm/sweep.sh: SIZE VARIANT ...
  local start=$ROOT/examples/${START:-pretrain.sh}
  if [ "${START:-}" = slurm/sweep.sh ]; then
    export TRAIN_FLAGS="${FLAGS[*]} ${TRAIN_FLAGS:-}"
    exec "$start" "$@"
  fi
  exec "$start" "$1" "$2" "${FLAGS[@]}" "${@:3}"
}

snapshot() { # FOLDER -> a copy of the code there, which a job runs, also when it is queued again
  local copy
  copy=$(mktemp -d "$(dirname "$1")/.code.XXXXXX")
  # by name: a checkout also holds data, tokenizers and the runs themselves
  (cd "$ROOT" && tar --exclude=__pycache__ -cf - ./*.py pyproject.toml phd data_tools examples) | tar -xf - -C "$copy"
  if [ -f "$ROOT/GIT_STATE" ]; then # a copy of a copy
    cp "$ROOT/GIT_STATE" "$copy"
  elif git -C "$ROOT" rev-parse --is-inside-work-tree >/dev/null 2>&1; then
    (cd "$ROOT" && git log -1 --format='commit %H%n%ad %s' && git status --short && git diff HEAD) >"$copy/GIT_STATE"
  fi
  mv "$copy" "$1"
}

fail() {
  echo "$(basename "$0"): $*" >&2
  exit 2
}
