"""The command line: Megatron's flags plus ours, CPU defaults where there is no GPU, checks at start-up."""

import dataclasses
import os
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from importlib.util import find_spec
from pathlib import Path
from traceback import extract_tb

import megatron.core.tokenizers
from megatron.core.num_microbatches_calculator import StepBatchsizeNumMicroBatchesCalculator
from megatron.training.argument_utils import ArgumentGroupFactory, core_transformer_config_from_args
from megatron.training.arguments import parse_args, validate_args
from megatron.training.checkpointing import load_args_from_checkpoint
from megatron.training.global_vars import get_tokenizer, set_global_variables
from megatron.training.training import get_megatron_ddp_config, get_megatron_optimizer_config
from megatron.training.utils import print_rank_0

from phd.checkpoint.choice import checkpoint_source, mend_tracker, resolve_checkpoint
from phd.config import PartialTrainingConfig, PHDConfig
from phd.megatron import compat, cpu
from phd.megatron.transformer_config import PHDTransformerConfig, key_value_heads
from phd.run.config import RunConfig
from phd.run.record import training_suffix
from phd.run.wandb import name_run
from phd.training.dataset import SamplesConfig, refuse_order
from phd.training.e2_llm import E2Config, refuse_e2
from phd.training.ending import OnlyHere
from phd.training.flags import Flags, one_line_errors
from phd.training.full_heads import FullHeadsConfig, take_full_heads
from phd.training.guard import RunGuard
from phd.training.inputs import refuse_missing_inputs
from phd.training.modules import refuse_missing_modules
from phd.training.position_gaps import GapsConfig, refuse_gaps
from phd.training.refusals import in_our_words
from phd.training.resume import (
    CannotGoOn,
    PHDCheckpointConfig,
    compare_with_checkpoint,
    record_contents,
)
from phd.training.run_folder import refuse_mixing, resolve_run_folder, run_folder
from phd.training.samples import refuse_samples
from phd.training.sizes import (
    padding_line,
    refuse_batch_schedule,
    refuse_missing_sizes,
    refuse_schedule,
    refuse_sizes,
)
from phd.training.unread import refuse_unread
from phd.training.unsupported import refuse_empty_last_stage, refuse_unsupported
from phd.training.values import refuse_values
from phd.training.variant_flags import add_variant_flags, take_variant

TOKENIZERS = Path(megatron.core.tokenizers.__file__).parent

# Megatron's defaults are for Transformer Engine, and for the kernels of apex.
WITHOUT_TRANSFORMER_ENGINE = {
    "transformer_impl": "local",
    "no_persist_layer_norm": True,
    "apply_rope_fusion": False,
}
# Defaults that end the training where the module of the kernel is missing. With Transformer Engine too: the
# output layer is Megatron's own, and takes apex's kernel for its gradient.
APEX_KERNELS = {
    "gradient_accumulation_fusion": "fused_weight_gradient_mlp_cuda",
    "masked_softmax_fusion": "scaled_masked_softmax_cuda",
}

LONGEST_TEMPORARY_FOLDER = (107 if sys.platform == "linux" else 103) - len("/pymp-12345678/listener-12345678")
"""In bytes: the kernel's limit for a socket's path, less what Python adds."""


def add_phd_arguments(parser: ArgumentParser) -> ArgumentParser:
    """Add the PHD flags; change the defaults that cannot run without a CUDA device, Transformer Engine or
    apex, and those that are of no use here.
    """
    ArgumentGroupFactory(PHDConfig).build_group(parser, title="PHD-Transformer and LongGen")
    add_variant_flags(parser)
    ArgumentGroupFactory(PartialTrainingConfig).build_group(
        parser, title="training a part of the model (LongLoRA)"
    )
    ArgumentGroupFactory(PHDCheckpointConfig).build_group(parser, title="PHD checkpoints")
    ArgumentGroupFactory(RunConfig).build_group(parser, title="run folder")
    ArgumentGroupFactory(SamplesConfig).build_group(parser, title="training samples")
    ArgumentGroupFactory(FullHeadsConfig).build_group(parser, title="DuoAttention")
    ArgumentGroupFactory(E2Config).build_group(parser, title="E2-LLM")
    ArgumentGroupFactory(GapsConfig).build_group(parser, title="LongRecipe")
    parser.set_defaults(
        exit_signal_handler=True,
        # Nothing reads it: causal attention, ours and Megatron's, makes its own, and documents come as
        # positions. It would be s*s bytes a sample.
        create_attention_mask_in_dataloader=False,
        # The other is an optional package; Megatron refuses its older versions, and it saves without what
        # phd/megatron/compat.py mends.
        async_strategy="mcore",
    )
    if cpu.needed():
        parser.set_defaults(**cpu.CPU_DEFAULTS)
    else:
        parser.set_defaults(**{name: find_spec(module) is not None for name, module in APEX_KERNELS.items()})
        if find_spec("transformer_engine") is None:
            parser.set_defaults(**WITHOUT_TRANSFORMER_ENGINE)
    _mend_help(parser)
    one_line_errors(parser)
    return parser


def _mend_help(parser: ArgumentParser) -> None:
    """Some of Megatron's help texts hold a bare percent sign, on which --help ends with an error."""
    for action in parser._actions:
        if action.help:
            try:
                action.help % {**vars(action), "prog": parser.prog}
            except (ValueError, TypeError, KeyError):
                action.help = action.help.replace("%", "%%")


def phd_config_from_args(args: Namespace) -> PHDConfig:
    """The PHD flags as a validated PHDConfig. Raises ValueError that names the flag."""
    return _from_args(PHDConfig, args)


def _from_args[Config: (PHDConfig, PartialTrainingConfig, RunConfig)](
    kind: type[Config], args: Namespace
) -> Config:
    return kind(**{field.name: getattr(args, field.name) for field in dataclasses.fields(kind)})


@dataclasses.dataclass(frozen=True)
class Start:
    """A checked command line."""

    args: Namespace
    """Megatron's and ours."""
    step_asked: bool
    """Whether --ckpt-step was given. ``args.ckpt_step`` may also name what replaces a damaged checkpoint."""


def parse_and_validate_args(to_train: bool = True) -> Start:
    """sys.argv -> checked arguments. Nothing is written yet; see ``make_global``.

    Args:
        to_train: whether a training follows, which needs more than its plan does.

    Raises:
        ValueError: a flag is bad or does not run with PHD, or the checkpoint to load is damaged or of another
            model; names the flag or file and the remedy.
    """
    if "RANK" not in os.environ:  # started without torchrun
        be_rank_0(1)
    args, flags = _parse()
    take_variant(args)
    refuse_unread(args, flags)
    refuse_values(args, flags)
    config = phd_config_from_args(args)
    _from_args(RunConfig, args)  # checks its flags
    vars(args).update(vars(_from_args(PartialTrainingConfig, args)))  # what follows from what was given
    resolve_run_folder(args)
    refuse_mixing(args)
    step_asked = args.ckpt_step is not None
    resolve_checkpoint(args)
    if args.use_checkpoint_args:
        source = checkpoint_source(args)
        if getattr(args, source):
            mend_tracker(Path(getattr(args, source)))  # each rank: they do not know each other yet
        load_args_from_checkpoint(args, source)
    refuse_missing_sizes(args)  # used by the checks below
    take_full_heads(args)
    config = phd_config_from_args(args)
    if args.eval_interval is None:  # Megatron divides by it, with --eval-iters 0 too
        args.eval_interval = 1000
    refuse_unsupported(args, to_train)
    refuse_samples(args)
    if cpu.needed():
        for line in cpu.switch_off(args):
            print_rank_0(f"> {line}", args.rank)
    if to_train:
        refuse_missing_modules(args)
    refuse_sizes(args)
    refuse_e2(args)
    refuse_gaps(args)
    config.layers(args.num_layers, key_value_heads(args))  # fits the model, or ends here
    if args.async_save:  # else Megatron saves synchronously after a warning
        args.use_persistent_ckpt_worker = True
    args.wandb_exp_name = args.wandb_exp_name or config.variant.label + training_suffix(vars(args))
    if args.data_cache_path is None:
        # Megatron would keep its index caches beside the data and unpickle whatever lies there.
        args.data_cache_path = str(Path(args.run_dir or args.save or _user_cache(), "index-cache"))
    with in_our_words(args, flags):
        validate_args(args)
    refuse_schedule(args)
    refuse_order(args)
    record_contents(args)
    compare_with_checkpoint(args, config, step_asked)
    _refuse_configs(args, flags, to_train)
    return Start(args, step_asked)


def _parse() -> tuple[Namespace, Flags]:
    """sys.argv -> arguments, and the flags that there are."""
    parsers: list[ArgumentParser] = []

    def remember(parser: ArgumentParser) -> ArgumentParser:
        parsers.append(add_phd_arguments(parser))
        return parser

    if any(word.partition("=")[0] == "--yaml-cfg" for word in sys.argv[1:]):
        raise ValueError("pretrain_phd.py does not run with --yaml-cfg (pass flags)")  # no flag would be read
    try:
        args = parse_args(remember)
    except RuntimeError as error:  # --enable-msc without its package: named, with what to install
        raise ValueError(str(error)) from error
    return args, Flags(parsers[0])


def _refuse_configs(args: Namespace, flags: Flags, to_train: bool) -> None:
    """Build the configurations of the training, which check themselves: on every rank, before the run
    folder is taken.

    Raises:
        ValueError: names the flags.
    """
    with in_our_words(args, flags):
        config = core_transformer_config_from_args(args, config_class=PHDTransformerConfig)
        if to_train:
            get_megatron_optimizer_config(args)
            get_megatron_ddp_config(args)
        batches = _batch_schedule(args)
    refuse_batch_schedule(batches, args.micro_batch_size, args.data_parallel_size)
    refuse_empty_last_stage(args, config)


def _batch_schedule(args: Namespace) -> list[tuple[int, int]]:
    """Thresholds and batch sizes of --step-batch-size-schedule; nothing without it."""
    if args.step_batch_size_schedule is None:
        return []
    silent = 1  # a rank that logs nothing
    return StepBatchsizeNumMicroBatchesCalculator(
        args.micro_batch_size,
        args.data_parallel_size,
        args.decrease_batch_size_if_needed,
        silent,
        args.step_batch_size_schedule,
        args.seq_length,
    ).schedule


def make_global(args: Namespace) -> RunGuard:
    """Begin a training: take its run folder, set ``args`` as Megatron's global ones, start TensorBoard and
    W&B if the flags ask for them, and listen to signals.

    Raises:
        ValueError: a flag is missing that only a training needs; a file that a flag names is not there;
            TMPDIR is too long for the processes that this one starts; another job holds the run folder, or it
            cannot be written; the tokenizer does not load.
    """
    if args.train_iters is None and args.train_samples is None:
        raise ValueError("pass --train-iters or --train-samples: neither has a default")
    if args.lr is None and not args.skip_train:
        raise ValueError("--lr is missing: it has no default")
    if args.num_workers or args.async_save:
        refuse_long_temporary_folder()
    try:
        refuse_missing_inputs(args)
    except ValueError as error:  # to the job of a run, "failed" is the word for what no other start mends
        raise CannotGoOn(str(error), args) from error
    folder = run_folder(args)
    guard = RunGuard(args, folder)
    if folder and args.wandb_project and args.rank == args.world_size - 1:
        name_run(folder)
    try:
        set_global_variables(args)
    except Exception as error:
        if type(error).__module__.split(".")[0] == "wandb":
            raise OnlyHere(
                f"W&B does not start ({error}): WANDB_MODE=offline keeps its files for later"
            ) from error
        if not any(TOKENIZERS in Path(frame.filename).parents for frame in extract_tb(error.__traceback__)):
            raise
        refusal = (
            f"--tokenizer-type {args.tokenizer_type} does not load --tokenizer-model {args.tokenizer_model} "
            f"({' '.join(str(error).split())[:300]}): take another type, or correct the path"
        )
        guard.failed(refusal)
        raise ValueError(refusal) from error
    if line := padding_line(args, get_tokenizer().vocab_size):
        print_rank_0(f"> {line}", args.rank)
    compat.stop_on_signals(args.async_save)
    return guard


def refuse_long_temporary_folder() -> None:
    """Check that the paths of the sockets to a DataLoader's workers and to the saver are short enough.
    Otherwise the workers' errors are lost, and the training waits for them for ever.

    Raises:
        ValueError: they are too long.
    """
    folder = tempfile.gettempdir()
    if (length := len(os.fsencode(folder))) > LONGEST_TEMPORARY_FOLDER:
        raise ValueError(
            f"the temporary folder {folder} has a name of {length} bytes, and sockets in it are possible up "
            f"to {LONGEST_TEMPORARY_FOLDER}: set TMPDIR to a shorter one, such as TMPDIR=/tmp"
        )


def be_rank_0(world_size: int) -> None:
    """Make this process the first of ``world_size``, whatever its environment says. A single rank takes a
    port that the system chooses.
    """
    os.environ |= {
        **{
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size),
        },
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "TORCHELASTIC_USE_AGENT_STORE": "False"},
    }


def parse_for_tool(world_size: int = 1) -> Namespace:
    """sys.argv -> checked arguments, set as Megatron's global ones, for a program that does not train, but is
    like the first rank of a training of ``world_size``.
    """
    be_rank_0(world_size)
    args = parse_and_validate_args(to_train=False).args
    args.tensorboard_dir, args.wandb_project, args.exit_signal_handler = None, "", False
    set_global_variables(args)
    return args


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "pretrain-phd")
