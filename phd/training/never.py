"""What pretrain_phd.py does not run with, whatever the variant: as phd/training/unsupported.py, from which
start-up takes it.
"""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass

from phd.megatron import cpu
from phd.megatron.documents import documents_masked
from phd.megatron.transformer_config import key_value_heads
from phd.rules.pattern import LayerPattern


@dataclass(frozen=True)
class Unsupported:
    """A setting that is refused."""

    flag: str
    """As typed by the user."""
    refuses: Callable[[Namespace], bool]
    """True for arguments that must not start."""
    remedy: str


NEVER = (
    Unsupported(
        "--attention-backend local",
        lambda a: a.attention_backend.name == "local",
        "leave it out: it makes Megatron overwrite the core attention of every layer",
    ),  # fmt: skip
    Unsupported("--multi-latent-attention", lambda a: a.multi_latent_attention, "leave it out"),
    Unsupported(
        "--reset-attention-mask with --position-embedding-type learned_absolute",
        lambda a: (
            a.reset_attention_mask
            and not a.reset_position_ids
            and a.position_embedding_type == "learned_absolute"
        ),
        "pass --reset-position-ids too: documents are told apart by their positions",
    ),
    Unsupported(
        "--multiple-validation-sets with --test-data-path",
        lambda a: a.multiple_validation_sets and bool(a.test_data_path),
        "leave one out: Megatron would fail on the test set when all is trained",
    ),
    Unsupported(
        "--multiple-validation-sets without --full-validation",
        lambda a: a.multiple_validation_sets and not a.full_validation,
        "pass --full-validation too",
    ),
    Unsupported(
        "--multiple-validation-sets without --valid-data-path",
        lambda a: a.multiple_validation_sets and not (a.valid_data_path or a.per_split_data_args_path),
        "pass --train-data-path and --valid-data-path: a --split has a test set, where Megatron would fail "
        "when all is trained",
    ),
    Unsupported(
        "--full-validation without --multiple-validation-sets",
        lambda a: a.full_validation and not a.multiple_validation_sets,
        "pass --multiple-validation-sets too, for a single set as well: Megatron would fail at the first "
        "validation",
    ),
    Unsupported(
        "--full-validation without --eval-micro-batch-size 1",
        lambda a: a.full_validation and (a.eval_micro_batch_size or a.micro_batch_size) != 1,
        "pass it: Megatron reads whole sets one sample at a time; and --eval-global-batch-size of as many as "
        "data-parallel ranks, or it goes through every set several times",
    ),
    Unsupported(
        "--rampup-batch-size",
        lambda a: a.rampup_batch_size is not None,
        "use --step-batch-size-schedule: Megatron ignores it",
    ),
    Unsupported(
        "--mtp-num-layers (multi-token prediction)",
        lambda a: bool(a.mtp_num_layers),
        "leave it out: its loss and its tokens are not passed on here",
    ),
    Unsupported(
        "--overlap-moe-expert-parallel-comm",
        lambda a: a.overlap_moe_expert_parallel_comm,
        "leave it out: it has a forward step of its own",
    ),
    Unsupported(
        "--heterogeneous-layers-config-path",
        lambda a: a.heterogeneous_layers_config_path is not None,
        "leave it out",
    ),
    Unsupported(
        "--hybrid-layer-pattern",
        lambda a: a.hybrid_layer_pattern is not None,
        "leave it out: this program trains GPT models",
    ),
    Unsupported("--spec", lambda a: a.spec is not None, "leave it out: phd chooses the layer spec"),
    Unsupported(
        "--transformer-impl inference_optimized",
        lambda a: a.transformer_impl == "inference_optimized",
        "use local or transformer_engine",
    ),
    Unsupported(
        "--experimental-attention-variant without --transformer-impl transformer_engine",
        lambda a: a.experimental_attention_variant is not None and a.transformer_impl == "local",
        "leave it out",
    ),
    Unsupported(
        "--sequence-parallel without Transformer Engine, and without --normalization RMSNorm or with "
        "--qk-layernorm",
        lambda a: (
            a.sequence_parallel
            and a.tensor_model_parallel_size > 1
            and a.transformer_impl == "local"
            and (a.normalization != "RMSNorm" or a.qk_layernorm)
        ),
        "pass --normalization RMSNorm and no --qk-layernorm, or no --sequence-parallel",
    ),
    Unsupported(
        "--defer-embedding-wgrad-compute without apex's kernel",
        lambda a: a.defer_embedding_wgrad_compute and not a.gradient_accumulation_fusion,
        "leave it out: it would hold back what that kernel adds to the gradients of weights",
    ),
    Unsupported(
        "--init-model-with-meta-device",
        lambda a: a.init_model_with_meta_device,
        "leave it out: nothing would fill the weights",
    ),
    Unsupported(
        "--moe-grouped-gemm without a GPU",
        lambda a: a.moe_grouped_gemm and cpu.needed(),
        "leave it out: the experts run one after another",
    ),
    Unsupported(
        "--save without --save-interval",
        lambda a: bool(a.save) and a.save_interval is None,
        "pass it: so many iterations lie between two checkpoints",
    ),
    Unsupported(
        "--tokenizer-type NullTokenizer without --vocab-size",
        lambda a: a.tokenizer_type == "NullTokenizer" and a.vocab_size is None,
        "pass it: the number of ids in the data",
    ),
    Unsupported(
        "--tokenizer-type missing",
        lambda a: a.tokenizer_type is None,
        "pass it, with --tokenizer-model: the tokenizer that made the data",
    ),
    Unsupported(
        "--dataloader-type external",
        lambda a: a.dataloader_type == "external",
        "use single or cyclic: the data sets are read here",
    ),
    Unsupported("--sft", lambda a: a.sft, "leave it out: this program pretrains"),
    Unsupported("--fim-data", lambda a: a.fim_data, "leave it out"),
    Unsupported("--perform-rl-step", lambda a: a.perform_rl_step, "leave it out: this program pretrains"),
    Unsupported("--hybrid-context-parallel", lambda a: a.hybrid_context_parallel, "leave it out"),
    Unsupported(
        "--ckpt-format other than torch_dist", lambda a: a.ckpt_format != "torch_dist", "use torch_dist"
    ),
    Unsupported("--inprocess-restart", lambda a: a.inprocess_restart, "leave it out"),
    Unsupported(
        "--fp8-format without --transformer-impl transformer_engine on a GPU",
        lambda a: a.fp8 is not None and (cpu.needed() or a.transformer_impl != "transformer_engine"),
        "use --bf16: Megatron would train in it without a word",
    ),
    Unsupported(
        "--enable-cuda-graph and --external-cuda-graph",
        lambda a: a.enable_cuda_graph or a.external_cuda_graph,
        "use --cuda-graph-impl local or transformer_engine",
    ),
    Unsupported(
        "--cuda-graph-impl with packed documents",
        lambda a: a.cuda_graph_impl != "none" and documents_masked(a),
        "use none: where documents begin, and so what is computed, differs from batch to batch",
    ),
    Unsupported(
        "--cuda-graph-impl transformer_engine with --position-embedding-type yarn",
        lambda a: a.cuda_graph_impl == "transformer_engine" and a.position_embedding_type == "yarn",
        "use local: Megatron would capture the layers without their rotary embedding",
    ),
    Unsupported(
        "--cuda-graph-impl transformer_engine with --phd-consecutive-positions",
        lambda a: a.cuda_graph_impl == "transformer_engine" and a.phd_consecutive_positions,
        "use local: Megatron would capture the layers with one rotary embedding for all copies",
    ),
    Unsupported(
        "--phd-consecutive-positions without --no-rope-fusion",
        lambda a: a.phd_consecutive_positions and a.apply_rope_fusion,
        "pass --no-rope-fusion: the fused kernel knows one rotary embedding for all copies",
    ),
    Unsupported(
        "--phd-consecutive-positions with --position-embedding-type other than rope and yarn",
        lambda a: a.phd_consecutive_positions and a.position_embedding_type not in ("rope", "yarn"),
        "use rope: no other kind rotates a copy by its position",
    ),
    Unsupported(
        "--rope-max-scale with --position-embedding-type other than rope",
        lambda a: a.rope_max_scale > 0 and a.position_embedding_type != "rope",
        "use rope: what is scaled and shifted are its positions",
    ),
    Unsupported(
        "--rope-max-scale with --rotary-seq-len-interpolation-factor",
        lambda a: a.rope_max_scale > 0 and a.rotary_seq_len_interpolation_factor is not None,
        "leave that out: the scale is drawn",
    ),
    Unsupported(
        "--rope-max-scale with --use-rope-scaling",
        lambda a: a.rope_max_scale > 0 and a.use_rope_scaling,
        "leave one out: no exported folder can say both scales",
    ),
    Unsupported(
        "--rope-max-scale with --phd-consecutive-positions",
        lambda a: a.rope_max_scale > 0 and a.phd_consecutive_positions,
        "leave one out: all copies of a token share its scaled position",
    ),
    Unsupported(
        "--rope-max-scale with --cuda-graph-impl other than none",
        lambda a: a.rope_max_scale > 0 and a.cuda_graph_impl != "none",
        "use none: a graph would replay the rotary positions of its capture",
    ),
    Unsupported(
        "--rope-max-scale with packed documents and without --no-rope-fusion, for several rows",
        lambda a: (
            a.rope_max_scale > 0
            and a.apply_rope_fusion
            and documents_masked(a)
            and (a.micro_batch_size or 2) * a.phd_copies > 1
        ),
        "pass --no-rope-fusion: the fused kernel knows one rotary embedding for all rows",
    ),
    Unsupported(
        "--lora-rank with fewer --num-query-groups than tensor-parallel ranks",
        lambda a: a.lora_rank > 0 and key_value_heads(a) < a.tensor_model_parallel_size,
        "use fewer ranks: the adapters of query, key and value are split by groups",
    ),
    Unsupported(
        "--s2-groups with --attention-pattern other than full",
        lambda a: a.s2_groups > 0 and LayerPattern.parse(a.attention_pattern).sparse,
        "leave one out: both say which keys a layer sees in training",
    ),
    Unsupported(
        "--s2-groups with --phd-naive",
        lambda a: a.s2_groups > 0 and a.phd_naive,
        "leave one out: naive repetition has full layers alone",
    ),
    Unsupported(
        "--s2-groups with an odd number of key/value heads",
        lambda a: a.s2_groups > 0 and key_value_heads(a) % 2 > 0,
        "leave it out: half of the heads are shifted",
    ),
    Unsupported(
        "--s2-groups with --seq-length that is no multiple of twice as many",
        lambda a: a.s2_groups > 0 and a.seq_length % (2 * a.s2_groups) > 0,
        "take another number: groups are shifted by half of their positions",
    ),
    Unsupported(
        "--lora-rank with --attention-output-gate",
        lambda a: a.lora_rank > 0 and a.attention_output_gate,
        "leave one out: the gate has no adapter",
    ),
    Unsupported(
        "--lora-rank with --experimental-attention-variant",
        lambda a: a.lora_rank > 0 and a.experimental_attention_variant is not None,
        "leave one out: such layers have other projections",
    ),
    Unsupported(
        "--train-only with --moe-router-enable-expert-bias",
        lambda a: a.train_only is not None and a.moe_router_enable_expert_bias,
        "leave one out: Megatron changes that bias whatever trains",
    ),
    Unsupported(
        "--phd-copy-embedding table with --position-embedding-type learned_absolute",
        lambda a: a.phd_copy_embedding == "table" and a.position_embedding_type == "learned_absolute",
        "use rope, or --phd-copy-embedding vector: a table of tokens has no table of positions beside it",
    ),
    Unsupported(
        "--position-gaps-to with --position-embedding-type other than rope",
        lambda a: a.position_gaps_to is not None and a.position_embedding_type != "rope",
        "use rope: gaps are positions of the rotary embedding",
    ),
    Unsupported(
        "--position-gaps-to with --rope-max-scale",
        lambda a: a.position_gaps_to is not None and a.rope_max_scale > 0,
        "leave one out: both say where the tokens are",
    ),
    Unsupported(
        "--position-gaps-to with --phd-consecutive-positions",
        lambda a: a.position_gaps_to is not None and a.phd_consecutive_positions,
        "leave one out: all copies of a token share its position",
    ),
    Unsupported(
        "--position-gaps-to with --cuda-graph-impl other than none",
        lambda a: a.position_gaps_to is not None and a.cuda_graph_impl != "none",
        "use none: a graph would replay the rotary positions of its capture",
    ),
    Unsupported(
        "--position-gaps-to without --no-rope-fusion, for several rows",
        lambda a: (
            a.position_gaps_to is not None
            and a.apply_rope_fusion
            and (a.micro_batch_size or 2) * a.phd_copies > 1
        ),
        "pass --no-rope-fusion: the fused kernel knows one rotary embedding for all rows",
    ),
    Unsupported(
        "--mask-document-starts without packed documents",
        lambda a: a.mask_document_starts and not documents_masked(a),
        "pass --dataloader-inter-document-masking too, or --reset-attention-mask: else the tokens before a "
        "document are seen, and train its first",
    ),
    Unsupported(
        "--sort-batch-by-documents without --dataloader-inter-document-masking",
        lambda a: a.sort_batch_by_documents and not a.dataloader_inter_document_masking,
        "pass that too: it is by documents that are masked from each other, told by the data's lengths, that "
        "samples cost more or less",
    ),
    Unsupported(
        "--sort-batch-by-documents with --mock-data",
        lambda a: a.sort_batch_by_documents and a.mock_data,
        "leave it out: mock data have no documents",
    ),
    Unsupported(
        "--sort-batch-by-documents with --dataloader-type cyclic",
        lambda a: a.sort_batch_by_documents and a.dataloader_type == "cyclic",
        "take single: cyclic deals out samples in an order of its own",
    ),
    Unsupported(
        "--sort-batch-by-documents with --step-batch-size-schedule",
        lambda a: a.sort_batch_by_documents and a.step_batch_size_schedule is not None,
        "leave one out: batches are sorted by one size",
    ),
    Unsupported(
        "--sort-batch-by-documents with --dataloader-defer-npy-index-mmap",
        lambda a: a.sort_batch_by_documents and a.dataloader_defer_npy_index_mmap,
        "leave one out: the lengths of documents are in those indices",
    ),
    Unsupported(
        "--optimizer-cpu-offload without a GPU",
        lambda a: a.optimizer_cpu_offload and cpu.needed(),
        "leave it out: the optimizer is on the CPU",
    ),
    Unsupported(
        "--cpu-offloading-num-layers without a GPU",
        lambda a: a.cpu_offloading_num_layers > 0 and cpu.needed(),
        "leave it out: activations are on the CPU",
    ),
    Unsupported(
        "--fine-grained-activation-offloading without a GPU",
        lambda a: a.fine_grained_activation_offloading and cpu.needed(),
        "leave it out: activations are on the CPU",
    ),
)
"""What pretrain_phd.py does not run with, K = 1 included."""


TO_TRAIN = (
    Unsupported(
        "--distributed-backend nccl without a GPU",
        lambda a: a.distributed_backend == "nccl" and cpu.needed(),
        "leave it out: gloo is the default where there is no GPU",
    ),
    Unsupported(
        "--lr-decay-style WSD without --lr-wsd-decay-iters",
        lambda a: (
            a.lr_decay_style == "WSD"
            and (a.lr_wsd_decay_iters if a.train_samples is None else a.lr_wsd_decay_samples) is None
            and not a.skip_train
        ),
        "pass it, or --lr-wsd-decay-samples with --train-samples: how long the rate falls at the end",
    ),
    Unsupported(
        "--use-pytorch-profiler without --tensorboard-dir",
        lambda a: a.profile and a.use_pytorch_profiler and not a.tensorboard_dir,
        "pass it, or --run-dir: the profile is written there",
    ),
    Unsupported(
        "--wandb-project without --run-dir",
        lambda a: bool(a.wandb_project) and not (a.wandb_save_dir or a.save),
        "pass it, or --wandb-save-dir: where W&B keeps its files",
    ),
    Unsupported(
        "--phase-transition-iterations",
        lambda a: a.phase_transition_iterations is not None,
        "leave it out: a training from the beginning fails on it",
    ),
    Unsupported(
        "--config-logger-dir",
        lambda a: bool(a.config_logger_dir),
        "leave it out: phd_run.json has every argument",
    ),
    Unsupported("--fake-process-group", lambda a: a.fake_process_group, "leave it out: use `phd plan`"),
    Unsupported(
        "--gpu-sniff-test-interval without a GPU",
        lambda a: a.gpu_sniff_test_interval is not None and cpu.needed(),
        "leave it out: there is nothing to test",
    ),
    Unsupported("--use-sharp without a GPU", lambda a: a.use_sharp and cpu.needed(), "leave it out"),
    Unsupported(
        "--record-memory-history without a GPU",
        lambda a: a.record_memory_history and cpu.needed(),
        "leave it out: `phd plan` tells what a command line takes",
    ),
    Unsupported(
        "--profile without a GPU",
        lambda a: a.profile and not a.use_pytorch_profiler and cpu.needed(),
        "pass --use-pytorch-profiler too: the other profiler is CUDA's",
    ),
    Unsupported(
        "--moe-routing-trace-path without a GPU",
        lambda a: a.moe_routing_trace_path is not None and cpu.needed(),
        "leave it out: it keeps its tensors in pinned memory",
    ),
)
"""What a training does not start with; to plan it, or to prepare its data, is possible."""
