"""benchmarks/latency.py: reading a prompt, and a step, eager and as a CUDA graph; the 550M's shape."""

from benchmarks import latency
from benchmarks.gpu.piece import Result, keep, main, say, target
from benchmarks.gpu.timing import device_of
from benchmarks.timing import steady

# What the targets need; all of the figure is `python -m benchmarks.latency --output FILE`.
FULL = (
    "--shape 550m --prompts 2048 8192 --prefill-copies 2 16 --decode-copies 2 16 64 256 --rounds 5 "
    "--styles naive PHD-CSWA --naive-tokens 4096"
)
DRY = (
    "--shape small --prompts 64 --prefill-copies 2 --decode-copies 2 --context 40 --rounds 1 --steps 1 "
    "--styles naive PHD-CSWA"
)
WIDEST = 64
"""K up to which a step is to cost as much as vanilla's: it reads the same weights."""


def run(dry: bool) -> Result:
    """benchmarks/latency.py: reading a prompt, and a step, eager and as a CUDA graph; the 550M's shape."""
    device = device_of(dry)
    words = f"{DRY if dry else FULL} --device {device}".split()
    args = latency.parse(words)
    prefill: list[Result] = []
    decode: list[Result] = []
    failed = None
    with steady(device):
        say("model")
        base, report = latency.prepare(args)
        about = {key: value for key, value in report.items() if key not in ("command", "started", "machine")}
        keep(arguments=" ".join(words), **about)
        # the graphs first, as targets go by them
        for graphed in (True, False) if device.type == "cuda" else (False,):
            say(f"steps{', CUDA graphs' if graphed else ''}")
            try:
                decode += latency.decode(base, args, report, graphed=graphed)
            except RuntimeError as error:  # what cannot be captured: the rest still runs
                failed = error
            keep(decode=decode, targets=targets(prefill, decode))
        for length in args.prompts:
            say(f"a prompt of {length} tokens")
            prefill += latency.prefill(base, length, args)
            keep(prefill=prefill, targets=targets(prefill, decode))
    if failed:
        raise failed
    return {}


def targets(prefill: list[Result], decode: list[Result]) -> list[Result]:
    """Of PHD-CSWA. Reading a prompt is to cost what its rows do, and a step what vanilla's does while that is
    bound by reading weights, then what its FLOPs do.
    """
    found = []
    for row in prefill:
        if row["style"] == "PHD-CSWA":
            what = f"prompt of {row['prompt']}, K = {row['copies']}: PHD / (vanilla x rows)"
            found.append(target(what, row["times_floor"], at_most=1.05))
    for row in decode:
        if row["style"] != "PHD-CSWA" or not row["graphed"]:
            continue
        what = f"graphed step, K = {row['copies']}: PHD / vanilla"
        if row["copies"] <= WIDEST:
            line = target(what, row["ratio"], at_most=1.05)
        else:
            line = target(f"{what}, over the roofline's", row["ratio"] / row["floor_ratio"], at_most=1.15)
        found.append(line | {"times_roofline": row["times_floor"]})
    return found


if __name__ == "__main__":
    raise SystemExit(main(run))
