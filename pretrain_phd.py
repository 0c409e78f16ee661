"""Pretrain a PHD-Transformer, or its vanilla baseline (--phd-copies 1), with Megatron-Core.

The shape of Megatron's pretrain_gpt.py: batch, loss, forward step, datasets, main. Takes all of Megatron's
flags and the --phd-* ones; runs on GPUs, and on a machine without one by itself.
"""

from functools import partial
from typing import Any

import phd.megatron  # noqa: F401 (first: it prepares torch for Megatron on a machine without a GPU)

# isort: split

import torch
from megatron.core import parallel_state
from megatron.core.enums import ModelType
from megatron.core.models.gpt import GPTModel
from megatron.core.rerun_state_machine import get_rerun_state_machine
from megatron.core.utils import (
    get_attr_wrapped_model,
    get_batch_on_this_cp_rank,
    get_batch_on_this_tp_rank,
    get_model_config,
)
from megatron.training import (
    get_args,
    get_timers,
    get_tokenizer,
    pretrain,
    print_rank_0,
)
from megatron.training.argument_utils import pretrain_cfg_container_from_args
from megatron.training.utils import is_first_or_last_pipeline_stage

from phd.checkpoint import growth
from phd.megatron import added_parameters, compat
from phd.megatron.builder import model_config_from_args
from phd.megatron.documents import document_params, documents_masked, on_all_ranks
from phd.megatron.loop import HookedLoop
from phd.run.output import outlive_readers
from phd.run.record import POSITION_REACH
from phd.training.arguments import make_global, parse_and_validate_args
from phd.training.dataset import build_datasets
from phd.training.e2_llm import draw, drawn_positions
from phd.training.ending import refuse_start
from phd.training.hooks import TrainingHooks
from phd.training.metrics import describe
from phd.training.shares import DataShares
from phd.training.sorted_batches import SortedBatches

SPIKY_LOSS_FACTOR = 10  # times the largest loss so far, for --check-for-spiky-loss
BATCH_KEYS = ("tokens", "labels", "loss_mask", "position_ids", "attention_mask")


def get_batch(
    data_iterator: Any, vp_stage: int | None, micro_batch_size: int, training: bool
) -> dict[str, Any]:
    """Next micro batch of original tokens, [b, s] each (less where ranks share the sequence); the model makes
    the copies. With packed documents also ``document_starts`` [b, s], and in training with gaps between
    sentences ``rotary_positions`` [b, s], both of the whole sequence.
    """
    args = get_args()
    first_or_last = is_first_or_last_pipeline_stage(vp_stage)
    # what the attention of every stage needs to know
    shape, told = (micro_batch_size, args.seq_length), []
    if documents_masked(args):
        told.append("document_starts")
    if args.position_gaps_to is not None and training:
        told.append("rotary_positions")
    sample = {}
    if parallel_state.get_tensor_model_parallel_rank() == 0 and (first_or_last or told):
        sample = next(data_iterator)
    on_every_stage = {key: on_all_ranks(sample.get(key), shape) for key in told}
    batch = tokens_on_this_rank(sample, vp_stage, micro_batch_size) if first_or_last else {}
    keys = (*BATCH_KEYS, "document_starts", "rotary_positions")
    return dict.fromkeys(keys) | {key: batch.get(key) for key in BATCH_KEYS} | on_every_stage


def tokens_on_this_rank(
    sample: dict[str, torch.Tensor], vp_stage: int | None, micro_batch_size: int
) -> dict[str, Any]:
    """What this rank needs of the micro batch that the first rank of its tensor-parallel group has read."""
    args = get_args()
    batch = dict.fromkeys(BATCH_KEYS) | {
        key: value.cuda(non_blocking=True) for key, value in sample.items() if key in BATCH_KEYS
    }
    batch = get_batch_on_this_tp_rank(
        batch,
        has_cu_seqlens=False,
        is_hybrid_cp=False,
        create_attention_mask_in_dataloader=args.create_attention_mask_in_dataloader,
        broadcast_src_rank=parallel_state.get_tensor_model_parallel_src_rank(),
        broadcast_group=parallel_state.get_tensor_model_parallel_group(),
        cp_size=args.context_parallel_size,
        tp_rank=parallel_state.get_tensor_model_parallel_rank(),
        micro_batch_size=micro_batch_size,
        seq_length=args.seq_length,
        mtp_on_this_rank=False,
        pipeline_model_parallel_size=args.pipeline_model_parallel_size,
        is_pipeline_first_stage=parallel_state.is_pipeline_first_stage(
            ignore_virtual=False, vp_stage=vp_stage
        ),
        is_pipeline_last_stage=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
    )
    return get_batch_on_this_cp_rank(batch, False, cp_group=parallel_state.get_context_parallel_group())


def loss_func(
    loss_mask: torch.Tensor,
    original_losses: torch.Tensor | None,
    losses: torch.Tensor,
    gap_positions: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """Sum of the next-token losses of the last copies, number of original tokens, and both for the log.

    Ranks that share the sequence return the tokens of all of them, and the sum as many times as there are
    ranks: Megatron averages over ranks what it has divided by tokens, and masks may leave one of them fewer.

    Args:
        loss_mask: [b, s].
        original_losses: [b, s], what the original copies predict; in validation alone.
        losses: [b, s], one per original token.
        gap_positions: [b, s], the rotary positions of samples with gaps, whose mean reach is logged.
    """
    loss_mask = loss_mask.view(-1).float()
    loss = torch.sum(losses.view(-1).float() * loss_mask)
    num_tokens = loss_mask.sum().detach().to(torch.int)

    if get_args().check_for_nan_in_loss_and_grad:
        for rejected, name in ((torch.isnan, "NaN"), (torch.isinf, "Inf")):
            get_rerun_state_machine().validate_result(
                result=loss,
                rejection_func=rejected,
                message=f"found {name} in local forward loss calculation",
                tolerance=0.0,
                fatal=True,
            )
    if get_args().check_for_spiky_loss:
        rerun = get_rerun_state_machine()
        rerun.validate_result(
            result=loss,
            rejection_func=partial(rerun.is_unexpectedly_large, threshold=SPIKY_LOSS_FACTOR, context="loss"),
            message="Spiky loss",
            tolerance=0.0,
            fatal=False,
        )
    report = {"lm loss": torch.cat([loss.detach().view(1), num_tokens.view(1)])}
    if original_losses is not None:
        original = torch.sum(original_losses.view(-1).float() * loss_mask)
        report["lm loss original"] = torch.cat([original.view(1), num_tokens.view(1)])
    if gap_positions is not None:
        reach = gap_positions.amax(dim=1) + 1
        report[POSITION_REACH] = torch.stack([reach.sum(), torch.tensor(len(reach)).to(reach)]).float()
    ranks = get_args().context_parallel_size
    if ranks > 1 and not get_args().calculate_per_token_loss:
        torch.distributed.all_reduce(num_tokens, group=parallel_state.get_context_parallel_group())
        loss = loss * ranks
    return loss, num_tokens, report


def rotary_positions(
    document_starts: torch.Tensor | None, with_gaps: torch.Tensor | None = None
) -> torch.Tensor | None:
    """Where the rotary embedding takes this iteration's tokens to be in training, [b, s] or, for all samples,
    [1, s]; None: where they stand.

    Args:
        document_starts: [b, s].
        with_gaps: [b, s], positions that the data set has drawn.
    """
    args = get_args()
    if with_gaps is not None:
        # float64: as exact far out as near; without room for gaps they are the rows' numbers
        return with_gaps.double() if args.position_gaps_to > args.seq_length else None
    if not args.rope_max_scale:
        return None
    return drawn_positions(args, draw(args, args.curr_iteration + 1), document_starts)


def forward_step(data_iterator: Any, model: GPTModel) -> tuple[torch.Tensor, partial]:
    """One micro batch through the model."""
    args, timers = get_args(), get_timers()
    timers("batch-generator", log_level=2).start()
    micro_batch_size = args.micro_batch_size if model.training else args.eval_micro_batch_size
    batch = get_batch(
        data_iterator, get_attr_wrapped_model(model, "vp_stage"), micro_batch_size, model.training
    )
    timers("batch-generator").stop()
    positions = None
    if model.training:
        positions = rotary_positions(batch["document_starts"], batch["rotary_positions"])
    output = model(
        batch["tokens"],
        batch["position_ids"],
        batch["attention_mask"],
        labels=batch["labels"],
        packed_seq_params=document_params(batch["document_starts"], get_model_config(model)),
        **({} if positions is None else {"rotary_positions": positions}),
    )
    losses, original_losses = output if isinstance(output, tuple) else (output, None)
    gap_positions = batch["rotary_positions"]
    return losses, partial(loss_func, batch["loss_mask"], original_losses, gap_positions=gap_positions)


def train_valid_test_datasets_provider(
    shares: DataShares, num_samples: list[int], vp_stage: int | None = None
) -> tuple:
    """Megatron's GPT datasets over .bin/.idx files (--data-path), or mock data (--mock-data). ``shares`` is
    told of the first.
    """
    args = get_args()

    def is_built_on_rank() -> bool:
        on_every_stage = documents_masked(args) or args.position_gaps_to is not None
        needed = is_first_or_last_pipeline_stage(vp_stage) or on_every_stage
        return needed and parallel_state.get_tensor_model_parallel_rank() == 0

    train, *others = build_datasets(args, get_tokenizer(), num_samples, is_built_on_rank)
    shares.built(train)
    if args.sort_batch_by_documents and train is not None:
        train = SortedBatches(train, args.global_batch_size)
    return train, *others


def main() -> None:
    try:
        start = parse_and_validate_args()
        guard = make_global(start.args)
    except ValueError as error:
        refuse_start(error)
    with guard.ending(compat.stopped_by):
        model_config = model_config_from_args(start.args)
        print_rank_0(f"> {describe(start.args, model_config.transformer)}")
        hooks = TrainingHooks(start, model_config.transformer)
        model_config.pre_wrap_hooks.append(hooks.unwrapped)
        model_config.post_wrap_hooks.append(hooks.built)
        compat.apply(start.args.phd_copies)
        added_parameters.install()
        growth.install()
        HookedLoop(hooks, hooks.recorder).install()
        provider = partial(train_valid_test_datasets_provider, hooks.shares)
        # every rank calls the provider; is_built_on_rank decides who builds
        setattr(provider, "is_distributed", True)  # noqa: B010
        pretrain(
            pretrain_cfg_container_from_args(start.args, model_config),
            provider,
            ModelType.encoder_or_decoder,
            forward_step,
        )


if __name__ == "__main__":
    outlive_readers()
    main()
