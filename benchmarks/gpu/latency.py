"""`phd bench latency`: reading a prompt, and a step, eager and as a CUDA graph; the 550M's shape."""

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.gpu.piece import Result, main
from benchmarks.gpu.timing import device_of
from phd import bench

# Few enough to end in a minute; all of the figure is `phd bench latency --output FILE`.
FULL = (
    "--shape 550m --prompts 2048 8192 --prefill-copies 2 4 --decode-copies 2 4 16 --rounds 5 "
    "--naive-tokens 8192"
)
DRY = "--shape small --prompts 64 --prefill-copies 2 --decode-copies 2 --context 40 --rounds 1 --steps 1"


def run(dry: bool) -> Result:
    """`phd bench latency`: reading a prompt, and a step, eager and as a CUDA graph; the 550M's shape."""
    device = device_of(dry)
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "latency.json")
        words = f"latency {DRY if dry else FULL} --device {device} --output".split()
        bench.run(parser.parse_args([*words, str(file)]))
        report: Result = json.loads(file.read_text("utf-8"))
    return {"arguments": " ".join(words[:-1])} | {
        key: report[key] for key in ("shape", "dtype", "prefill", "decode")
    }


if __name__ == "__main__":
    raise SystemExit(main(run))
