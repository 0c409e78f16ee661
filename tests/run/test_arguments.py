"""Which arguments hold two trainings apart."""

import os
import shlex
import sys

import pytest

from phd.run.arguments import argument_name, differing, flag
from tests.trainings import MODEL, TRAINING

FLAGS = [*MODEL, *TRAINING, "--mock-data", "--tokenizer-type", "NullTokenizer", "--vocab-size", "255"]
LAYOUTS = shlex.split("""
    "--tensor-model-parallel-size 2" "--tensor-model-parallel-size 2 --sequence-parallel"
    "--pipeline-model-parallel-size 2" "--pipeline-model-parallel-size 2 --micro-batch-size 1"
    "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1"
    "--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2"
    "--pipeline-model-parallel-size 2 --decoder-first-pipeline-num-layers 1"
    "--pipeline-model-parallel-size 2 --pipeline-model-parallel-layout Et|tttL"
    "--pipeline-model-parallel-size 4 --no-overlap-p2p-communication"
    "--context-parallel-size 2" "--context-parallel-size 2 --cp-comm-type all_gather"
    "--use-distributed-optimizer" "--use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather"
    "--use-distributed-optimizer --dist-ckpt-optim-fully-reshardable --ckpt-fully-parallel-save"
    "--overlap-grad-reduce --ddp-bucket-size 1000" "--ddp-num-buckets 2 --overlap-grad-reduce"
    "--ddp-average-in-collective" "--no-gradient-reduce-div-fusion" "--no-align-grad-reduce"
    "--micro-batch-size 1" "--micro-batch-size 1 --eval-micro-batch-size 2"
    "--recompute-activations"
    "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
    "--recompute-granularity selective --recompute-modules mlp"
    "--use-tp-pp-dp-mapping" "--disable-gloo-process-groups" "--distributed-timeout-minutes 3"
    "--num-workers 3" "--async-save" "--manual-gc --manual-gc-interval 5" "--cross-entropy-loss-fusion"
    "--no-masked-softmax-fusion" "--calc-ft-timeouts" "--log-throughput --timing-log-level 2"
    "--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2
     --microbatch-group-size-per-virtual-pipeline-stage 2"
    "--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2"
""")
EXPERTS = "--num-experts 4 --moe-router-topk 2 --moe-ffn-hidden-size 64"
EXPERT_LAYOUTS = shlex.split("""
    "--expert-model-parallel-size 2" "--expert-model-parallel-size 4"
    "--tensor-model-parallel-size 2 --sequence-parallel --expert-tensor-parallel-size 1"
    "--tensor-model-parallel-size 2 --sequence-parallel --expert-model-parallel-size 2"
    "--moe-token-dispatcher-type alltoall" "--moe-layer-recompute"
    "--moe-token-dispatcher-type alltoall --moe-shared-expert-overlap --expert-model-parallel-size 2"
""")


@pytest.mark.parametrize("text", ["--train-iters", "train-iters", "train_iters"])
def test_spellings_of_a_flag(text):
    assert argument_name(text) == "train_iters"
    assert flag("train_iters") == "--train-iters"


@pytest.mark.parametrize(
    ("path", "content"), [("tokenizer_model", "tokenizer_sha256"), ("data_args_path", "data_args")]
)
def test_a_file_is_known_by_its_content(path, content):
    """Where that is recorded: in another place it is the same, and in the same place it may be another."""
    here, there = {path: "here", content: "one"}, {path: "there", content: "one"}
    assert differing(here, there) == []
    assert differing(here, here | {content: "two"}) == [content, path][:1]
    assert differing({path: "here"}, here | {content: "two"}) == []  # older code recorded the path alone
    assert differing({path: "here"}, there) == [path]
    assert differing({path: "here", content: None}, there) == [path]


def test_what_older_code_recorded_beside_the_arguments():
    """It follows from arguments that are compared themselves."""
    older = {"run_folder": "run", "ckpt_step_given": True, "phd_documents": True}
    assert differing(older, {}) == differing({}, older) == []


def held_against(base: list[str], layouts: list[str]) -> dict[str, object]:
    """Which arguments tell each layout on four ranks from the base on one."""
    from phd.training.arguments import parse_and_validate_args
    from phd.training.metrics import recorded

    def record(flags: list[str], ranks: int) -> dict:
        sys.argv = ["pretrain_phd.py", *base, *flags]
        os.environ["WORLD_SIZE"] = str(ranks)
        return recorded(parse_and_validate_args().args)

    one = record([], 1)
    found: dict[str, object] = {}
    for layout in layouts:
        try:
            found[layout] = differing(one, record(layout.split(), 4))
        except ValueError as error:
            found[layout] = str(error)
    return found


@pytest.mark.parametrize(
    ("more", "layouts"), [("", LAYOUTS), (EXPERTS, EXPERT_LAYOUTS)], ids=["dense", "experts"]
)
def test_no_layout_holds_runs_apart(world, more, layouts):
    """With all that Megatron derives from it and that nobody has typed."""
    (found,) = world.run(held_against, [*FLAGS, *more.split()], layouts)
    assert {layout: names for layout, names in found.items() if names} == {}


def unknown_layout_arguments() -> list[str]:
    """Of Megatron's own lists of what is layout, the flags that we hold against a run."""
    import dataclasses

    from megatron.core.distributed import DistributedDataParallelConfig
    from megatron.core.model_parallel_config import ModelParallelConfig

    from phd.training.arguments import parse_and_validate_args

    sys.argv = ["pretrain_phd.py", *FLAGS]
    flags = vars(parse_and_validate_args().args)
    fields = [*dataclasses.fields(ModelParallelConfig), *dataclasses.fields(DistributedDataParallelConfig)]
    names = {field.name for field in fields} & set(flags)
    return sorted(name for name in names if differing({name: 1}, {name: 2}))


MATTERS = set(
    shlex.split("""
    fp16 bf16 params_dtype deterministic_mode perform_initialization use_cpu_initialization
    hybrid_context_parallel fp8_param_gather fp4_param_gather
    megatron_fsdp_main_params_dtype megatron_fsdp_main_grads_dtype
    megatron_fsdp_grad_comm_dtype use_megatron_fsdp mtp_standalone
""")
)
"""Precision, initial weights, other batches."""


def test_what_megatron_calls_layout_is_known(world):
    """A new release may have more: each is to be let pass, or named here."""
    (names,) = world.run(unknown_layout_arguments)
    assert sorted({*names} ^ MATTERS) == []
