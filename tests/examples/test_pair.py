"""The example pair at a tiny size: two torchrun agents of one rank each, as on two nodes, over c10d."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from data_tools.records import Format
from data_tools.tokenize import tokenize
from data_tools.train import train_tokenizer
from tests.world import ROOT, free_port

TINY = """
    --num-layers 2 --hidden-size 64 --ffn-hidden-size 128 --num-attention-heads 4 --seq-length 64
    --max-position-embeddings 64 --micro-batch-size 2 --global-batch-size 8 --train-iters 4
    --lr-warmup-iters 1 --log-interval 1 --eval-interval 4 --eval-iters 1 --split 80,10,10
"""
SCRIPTS = {"vanilla": "pretrain_151m_vanilla.sh", "PHD-CSWA-2-16-32": "pretrain_151m_phd_cswa_2_16_32.sh"}


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pair")
    text = folder / "source.txt"
    text.write_text("\n=\n".join(path.read_text() for path in sorted((ROOT / "phd").rglob("*.py"))))
    train_tokenizer([text], folder / "tokenizer", vocab_size=512, form=Format(document_separator="="))
    tokenize(
        [text],
        folder / "data",
        tokenizer_model=folder / "tokenizer.model",
        append_eod=True,
        form=Format(document_separator="="),
    )
    return os.environ | {
        "RUNS": str(folder / "runs"),
        "DATA_PREFIX": str(folder / "data"),
        "TOKENIZER_MODEL": str(folder / "tokenizer.model"),
        "NNODES": "2",
        "NPROC_PER_NODE": "1",
    }


@pytest.mark.slow
@pytest.mark.parametrize("variant", SCRIPTS)
def test_two_agents_train_and_log(variant, environment):
    environment = environment | {"RDZV_ENDPOINT": f"127.0.0.1:{free_port()}"}
    command = [str(ROOT / "examples" / SCRIPTS[variant]), *TINY.split()]
    agents = [
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(2)
    ]
    outputs = [agent.communicate(timeout=300)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    run = Path(environment["RUNS"]) / variant
    about = json.loads((run / "tensorboard" / "phd_run.json").read_text())
    assert about["name"] == variant
    assert about["world_size"] == 2
    assert (run / "checkpoints" / "iter_0000004").is_dir()
    assert sum("iteration        4/       4" in output for output in outputs) == 1


def test_scripts_differ_in_name_and_phd_flags_alone():
    lines = [(ROOT / "examples" / script).read_text().splitlines() for script in SCRIPTS.values()]
    differing = [a.partition("=")[0] for a, b in zip(*lines, strict=True) if a != b and not a.startswith("#")]
    assert differing == ["NAME", "PHD_FLAGS"]


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "examples").glob("*.sh")))
def test_scripts_parse(script):
    bash = shutil.which("bash")
    assert bash is not None
    subprocess.run([bash, "-n", str(ROOT / "examples" / script)], check=True)
