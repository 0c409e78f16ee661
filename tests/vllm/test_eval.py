"""`phd eval --engine vllm` on a server that runs all copies gives what phd.hf gives."""

import json

import pytest

from phd.commands.cli import main
from tests.models import ENGLISH
from tests.vllm.conftest import started

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

FLAGS = (
    "--max-num-batched-tokens 64 --kv-cache-memory-bytes 33554432 "
    """'--additional-config={"phd_all_positions": true}'"""
)


def test_equal_to_phd_hf(with_tokenizer, vllm_python, tmp_path):
    folder, corpus = with_tokenizer("PHD-CSWA-3-4-8+vector"), tmp_path / "corpus.jsonl"
    words = ENGLISH.split()
    texts = [" ".join((words * 5)[index : index + 60]) for index in range(8)]  # below the context, in tokens
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    def results(name: str, *flags: str) -> dict:
        output = tmp_path / name
        asked = ["--corpus", str(corpus), "--limit", "4", "--output", str(output)]
        assert main(["eval", str(folder), *asked, *flags]) == 0
        rows = json.loads(output.read_text())["results"]
        return {(row["task"], row["metric"]): row["value"] for row in rows}

    expected = results("hf.json")
    with started(folder, tmp_path / "log", FLAGS) as (url, _):
        found = results("vllm.json", "--engine", "vllm", "--server", url)
    assert found.keys() == expected.keys() and len(found) > 2
    for key, value in found.items():
        assert value == pytest.approx(expected[key], rel=1e-4), key
