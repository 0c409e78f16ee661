"""Sizes that have to fit each other: checked before Megatron does, whose words count in samples and ranks."""

import math
from argparse import Namespace

from phd.megatron.transformer_config import prunes_last_layer
from phd.run.arguments import flag

WITHOUT_DEFAULT = (
    *("num_layers", "hidden_size", "num_attention_heads", "seq_length", "max_position_embeddings"),
    "micro_batch_size",
)


def refuse_missing_sizes(args: Namespace) -> None:
    """Check that the sizes without a default are given, on the command line or by a checkpoint.

    Raises:
        ValueError: names them.
    """
    missing = [flag(name) for name in WITHOUT_DEFAULT if getattr(args, name) is None]
    if missing:
        what = "is missing: it has no default" if len(missing) == 1 else "are missing: they have no defaults"
        raise ValueError(f"{', '.join(missing)} {what}")


def refuse_sizes(args: Namespace) -> None:
    """Check that the model's sizes, the batch and the number of ranks divide as they must.

    Raises:
        ValueError: names the flags, their values and some that fit.
    """
    tensor, pipeline = args.tensor_model_parallel_size, args.pipeline_model_parallel_size
    context = args.context_parallel_size
    copies, rest = divmod(args.world_size, tensor * pipeline * context)
    if rest or not copies:
        raise ValueError(
            f"{args.world_size} rank(s) do not divide into groups of {tensor * pipeline * context} "
            f"(--tensor-model-parallel-size {tensor} x --pipeline-model-parallel-size {pipeline} x "
            f"--context-parallel-size {context}): start a multiple of that (NNODES x NPROC_PER_NODE), or "
            "change the flags"
        )
    experts = (args.expert_tensor_parallel_size or tensor) * args.expert_model_parallel_size
    if args.num_experts and args.world_size % (experts * pipeline):
        raise ValueError(
            f"{args.world_size} rank(s) do not divide into groups of {experts * pipeline} "
            f"(--expert-model-parallel-size {args.expert_model_parallel_size} x "
            f"--expert-tensor-parallel-size {args.expert_tensor_parallel_size or tensor} x "
            f"--pipeline-model-parallel-size {pipeline}): start a multiple of that, or pass "
            "--expert-tensor-parallel-size 1"
        )
    if args.kv_channels is None and args.hidden_size % args.num_attention_heads:
        raise ValueError(
            f"--hidden-size {args.hidden_size} is no multiple of --num-attention-heads "
            f"{args.num_attention_heads}: correct one, or pass --kv-channels"
        )
    groups = args.num_query_groups
    if args.group_query_attention and args.num_attention_heads % groups:
        raise ValueError(
            f"--num-attention-heads {args.num_attention_heads} is no multiple of --num-query-groups "
            f"{groups}: correct one"
        )
    if args.num_experts and args.moe_router_topk > args.num_experts:
        raise ValueError(
            f"--moe-router-topk {args.moe_router_topk} is more than --num-experts {args.num_experts}: "
            "lower it"
        )
    if args.max_position_embeddings < args.seq_length:
        raise ValueError(
            f"--seq-length {args.seq_length} is more than --max-position-embeddings "
            f"{args.max_position_embeddings}: raise that, or take shorter samples"
        )
    whole, micro = args.global_batch_size, args.micro_batch_size
    if not args.decrease_batch_size_if_needed:
        _refuse_batch("--global-batch-size", whole, micro, copies)
    whole, micro = args.eval_global_batch_size or whole, args.eval_micro_batch_size or micro
    _refuse_batch("--eval-global-batch-size", whole, micro, copies)


def _refuse_batch(flag: str, whole: int | None, micro: int, copies: int) -> None:
    step = micro * copies
    if whole is not None and whole % step:
        below = whole - whole % step
        fits = f"{below} or {below + step}" if below else str(step)
        of = "--eval-micro-batch-size" if "eval" in flag else "--micro-batch-size"
        raise ValueError(
            f"{flag} {whole} is no multiple of {step} ({of} {micro} x {copies} data-parallel rank(s)): take "
            f"{fits}"
        )


def refuse_batch_schedule(schedule: list[tuple[int, int]], micro: int, copies: int) -> None:
    """Check every batch of --step-batch-size-schedule: the loop would end where the first comes that does not
    divide.

    Args:
        schedule: thresholds and batch sizes.
        micro: samples of a micro batch.
        copies: data-parallel ranks.

    Raises:
        ValueError: names the size.
    """
    for _, whole in schedule:
        _refuse_batch("a batch of --step-batch-size-schedule of", whole, micro, copies)


def refuse_schedule(args: Namespace) -> None:
    """Check that there is something to train, and that the warm-up ends before it. Megatron asserts the
    second without a word when the model has been built, and does not check the first.

    Args:
        args: validated.

    Raises:
        ValueError: names the flags.
    """
    if args.skip_train:
        return
    if args.train_samples is not None and args.train_samples < args.global_batch_size:
        raise ValueError(
            f"--train-samples {args.train_samples} is less than one batch (--global-batch-size "
            f"{args.global_batch_size}): nothing would be trained; raise the one or lower the other"
        )
    for unit in ("iters", "samples"):
        warmup = getattr(args, f"lr_warmup_{unit}")
        total = getattr(args, f"lr_decay_{unit}") or getattr(args, f"train_{unit}")
        if total and warmup >= total:
            decay = "train" if getattr(args, f"lr_decay_{unit}") is None else "lr-decay"
            raise ValueError(
                f"--lr-warmup-{unit} {warmup} must be less than --{decay}-{unit} {total}: "
                f"add --lr-warmup-{unit} {total // 10}"
            )


def padding_line(args: Namespace, vocab_size: int) -> str | None:
    """One line where tensor parallelism makes the vocabulary another size. The loss is moved by it: ids
    without a meaning are predicted too, at first as often as all others.

    Args:
        args: validated, with the vocabulary's padded size set.
        vocab_size: ids of the tokenizer.
    """
    tensor, multiple = args.tensor_model_parallel_size, args.make_vocab_size_divisible_by
    alone, together = (math.ceil(vocab_size / each) * each for each in (multiple, multiple * tensor))
    if alone == together or args.padded_vocab_size != together:
        return None
    line = (
        f"--tensor-model-parallel-size {tensor} pads the vocabulary to {together} ids, 1 would to {alone}: "
        f"the first losses are higher by {math.log(together / alone):.4f}"
    )
    if alone % tensor == 0:
        line += f"; --make-vocab-size-divisible-by {alone // tensor} makes them equal"
    return line


def linear_rows(args: Namespace) -> set[int]:
    """Rows of the tensors that linear layers get on one rank: in training, in validation, and for the texts
    of --sample-prompts; empty where the checkpoint is to tell sizes.
    """
    if args.seq_length is None or args.micro_batch_size is None:
        return set()
    training = args.micro_batch_size
    samples = {training, args.eval_micro_batch_size or training, len(args.sample_prompts or ()) or training}
    rows = {count * args.phd_copies for count in samples}
    if prunes_last_layer(args):
        rows.add(training)
    if args.fp8_output_proj:
        rows |= samples  # the head gets the last copies
    ranks = args.context_parallel_size
    if args.sequence_parallel:
        ranks *= args.tensor_model_parallel_size
    return {args.seq_length * count // ranks for count in rows}
