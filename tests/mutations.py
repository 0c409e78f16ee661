"""Mistakes that the tests must notice: each is one change of the code, and the fewest tests that fail for it.

`python -m tools.mutate` makes them one at a time in a copy of the tree and runs these tests alone. A mutation
goes in whenever a mistake of its kind was made or is feared, before looking which test would catch it.
"""

from typing import NamedTuple


class Mutation(NamedTuple):
    """One change that some test of the default lane must fail for."""

    name: str
    file: str
    """From the root of the repository."""
    old: str
    """Stands in ``file`` exactly once."""
    new: str
    tests: str
    """Files or tests one of which must fail, with spaces between, as pytest takes them."""


ATTENTION = (
    Mutation(
        "name-silent-on-numbers",
        "phd/rules/keys.py",
        "if self == default:",
        "if self.stride == default.stride:",
        "tests/rules/test_keys.py",
    ),
    Mutation(
        "rows-of-a-part-one-off",
        "phd/attention/kept.py",
        "first = piece.rows.start - (piece.begin - piece.document)",
        "first = piece.rows.start - (piece.begin - piece.document) + 1",
        "tests/attention/test_sparse.py",
    ),
    Mutation(
        "rule-window-one-too-wide",
        "phd/rules/copies.py",
        "_larger(position - self.window + 1, document_start)",
        "_larger(position - self.window, document_start)",
        "tests/rules/test_copies.py",
    ),
    Mutation(
        "rule-chunk-border-one-off",
        "phd/rules/copies.py",
        "position - (position - document_start) % self.chunk)",
        "position - (position - document_start + 1) % self.chunk)",
        "tests/rules/test_copies.py",
    ),
    Mutation(
        "rule-own-copy-unseen",
        "phd/rules/rule.py",
        "(key == query) & (key_copy <= query_copy)",
        "(key == query) & (key_copy < query_copy)",
        "tests/rules/test_rule.py",
    ),
    Mutation(
        "rule-document-start-unseen",
        "phd/rules/rule.py",
        "original = (key_copy == 0) & (key <= query) & (key >= document_start)",
        "original = (key_copy == 0) & (key <= query) & (key > document_start)",
        "tests/rules/test_rule.py",
    ),
    Mutation(
        "band-window-one-too-narrow",
        "phd/attention/band.py",
        "self.causal & (self.key_position >= start - first)",
        "self.causal & (self.key_position > start - first)",
        "tests/attention/test_attention.py::test_shapes",
    ),
    Mutation(
        "band-query-gradient-sign",
        "phd/attention/band.py",
        "rows += self._unpack(grad_rows, heads)",
        "rows -= self._unpack(grad_rows, heads)",
        "tests/attention/test_attention.py::test_shapes",
    ),
    Mutation(
        "band-halo-gradient-lost",
        "phd/attention/band.py",
        "grad_halo[kind] = rows[: self.halo]",
        "grad_halo[kind] = 0",
        "tests/attention/test_context_parallel.py::test_ranks_equal_one_process",
    ),
    Mutation(
        "band-overlapping-key-gradients",
        "phd/attention/band.py",
        "turns = -(-(self.block + self.halo) // self.block)",
        "turns = max(1, (self.block + self.halo) // self.block)",
        "tests/attention/test_attention.py::test_shapes",
    ),
    Mutation(
        "merge-weights-swapped",
        "phd/attention/kernels/__init__.py",
        "torch.sigmoid(more_lse - lse)",
        "torch.sigmoid(lse - more_lse)",
        "tests/attention/test_attention.py::test_shapes",
    ),
    Mutation(
        "merge-lse-not-added",
        "phd/attention/kernels/__init__.py",
        "torch.logaddexp(lse, more_lse)",
        "torch.maximum(lse, more_lse)",
        "tests/attention/test_attention.py::test_shapes",
    ),
    Mutation(
        "pattern-local-one-block-more",
        "phd/rules/keys.py",
        "query_block - key_block < self.local",
        "query_block - key_block <= self.local",
        "tests/rules/test_keys.py",
    ),
    Mutation(
        "pattern-stride-skips-a-block",
        "phd/rules/keys.py",
        "range(-(-sink // self.stride) * self.stride, end, self.stride)",
        "range((sink // self.stride + 1) * self.stride, end, self.stride)",
        "tests/rules/test_keys.py",
    ),
    Mutation(
        "kept-window-first-key-lost",
        "phd/rules/keys.py",
        "yield Part(first, last, (range(start, first),), count)",
        "yield Part(first, last, (range(start + 1, first),), count)",
        "tests/rules/test_keys.py",
    ),
    Mutation(
        "kept-far-blocks-one-block-late",
        "phd/rules/keys.py",
        "((bound + self.local) * block for bound in bounds)",
        "((bound + self.local + 1) * block for bound in bounds)",
        "tests/rules/test_keys.py",
    ),
    Mutation(
        "sparse-query-gradient-overwritten",
        "phd/attention/sparse.py",
        "grad_query[where] += grad_rows",
        "grad_query[where] = grad_rows",
        "tests/attention/test_sparse.py",
    ),
    Mutation(
        "layout-piece-of-document-one-off",
        "phd/attention/layout.py",
        "slice(sample, sample + 1), int(positions[begin]))",
        "slice(sample, sample + 1), int(positions[begin]) + 1)",
        "tests/attention/test_layout.py",
    ),
    Mutation(
        "last-copy-is-the-first",
        "phd/attention/inputs.py",
        "query = query[:, :, -1:]",
        "query = query[:, :, :1]",
        "tests/attention/test_attention.py::test_last_copy_only",
    ),
)

CONTEXT_PARALLEL = (
    Mutation(
        "cp-kept-keys-of-the-first-block-alone",
        "phd/attention/kept.py",
        "last = piece.document + keys.stop + (part.count - 1) * part.block",
        "last = piece.document + keys.stop",
        "tests/attention/test_context_parallel.py::test_ranks_equal_one_process",
    ),
    Mutation(
        "cp-halo-dropped",
        "phd/attention/flash.py",
        "return self.layout.parallel.halos(torch.stack(tails))",
        "return torch.zeros_like(torch.stack(tails))",
        "tests/attention/test_context_parallel.py::test_ranks_equal_one_process",
    ),
    Mutation(
        "cp-halo-of-the-wrong-rows",
        "phd/attention/flash.py",
        "return slice(end - self.layout.halo, end)",
        "return slice(end - self.layout.halo - 1, end - 1)",
        "tests/attention/test_context_parallel.py::test_ranks_equal_one_process",
    ),
    Mutation(
        "cp-halo-gradient-overwrites",
        "phd/attention/flash.py",
        "grad_hidden[:, self._tail(run)] += grad_tail",
        "grad_hidden[:, self._tail(run)] = grad_tail",
        "tests/attention/test_context_parallel.py::test_ranks_equal_one_process",
    ),
    Mutation(
        "cp-halo-forgotten-for-packed-chunks",
        "phd/attention/layout.py",
        "aligned = document_starts is None and copies.chunk is not None",
        "aligned = copies.chunk is not None",
        "tests/attention/test_layout.py",
    ),
    Mutation(
        "cp-wrong-slice",
        "phd/attention/slices.py",
        "Run(slice(part, 2 * part), (2 * size - 1 - rank) * part),",
        "Run(slice(part, 2 * part), (size + rank) * part),",
        "tests/attention/test_context_parallel.py::test_ranks_equal_one_process",
    ),
    Mutation(
        "cp-kept-gradient-not-given-back",
        "phd/attention/context_parallel.py",
        "return own.index_add_(0, exchange.send, received).movedim(0, 1)",
        "return own.movedim(0, 1)",
        "tests/attention/test_context_parallel.py::test_ranks_equal_one_process",
    ),
)

TRITON = (
    Mutation(
        "triton-band-mask-one-off",
        "phd/attention/kernels/triton_band.py",
        "reached = key_position[None, :] >= start[:, None]",
        "reached = key_position[None, :] > start[:, None]",
        "tests/attention/kernels/test_triton_band.py::test_equal_to_the_reference",
    ),
    Mutation(
        "triton-band-last-queries-of-keys-forgotten",
        "phd/attention/kernels/triton_band.py",
        "range(key_begin, key_end + WINDOW - 1, positions)",
        "range(key_begin, key_end + WINDOW - 2, positions)",
        "tests/attention/kernels/test_triton_band.py::test_equal_to_the_reference",
    ),
    Mutation(
        "triton-rows-own-original-unseen",
        "phd/attention/kernels/triton_rows.py",
        "(key_column[None, :] <= column[:, None]) & (key_column >= pad)[None, :]",
        "(key_column[None, :] < column[:, None]) & (key_column >= pad)[None, :]",
        "tests/attention/kernels/test_triton_rows.py::test_equal_to_the_rule",
    ),
    Mutation(
        "triton-rows-window-one-too-wide",
        "phd/attention/kernels/triton_rows.py",
        "band = tl.maximum(column - (WINDOW - 1), pad)",
        "band = tl.maximum(column - WINDOW, pad)",
        "tests/attention/kernels/test_triton_rows.py::test_equal_to_the_rule",
    ),
    Mutation(
        "triton-rows-ring-slot-one-off",
        "phd/attention/kernels/triton_rows.py",
        "slot = (tl.load(end) - 1) % RING * HIDDEN + copy",
        "slot = tl.load(end) % RING * HIDDEN + copy",
        "tests/attention/kernels/test_triton_rows.py::test_equal_to_the_rule",
    ),
)

MODEL = (
    Mutation(
        "model-copies-in-blocks",
        "phd/megatron/phd_model.py",
        "decoder_input.repeat_interleave(self.config.phd_copies, dim=1)",
        "decoder_input.repeat(1, self.config.phd_copies, 1)",
        "tests/megatron/test_phd_model.py::test_original_stream_is_the_vanilla_model",
    ),
    Mutation(
        "model-first-copy-to-the-head",
        "phd/megatron/phd_model.py",
        "last_copy = hidden_states[:, copies - 1 :: copies].contiguous()",
        "last_copy = hidden_states[:, ::copies].contiguous()",
        "tests/megatron/test_phd_model.py::test_pruned_last_layer_equals_the_unpruned",
    ),
    Mutation(
        "last-layer-residual-of-the-first-copy",
        "phd/megatron/last_layer.py",
        "residual = residual[:, copies - 1 :: copies]",
        "residual = residual[:, ::copies]",
        "tests/megatron/test_phd_model.py::test_pruned_last_layer_equals_the_unpruned",
    ),
    Mutation(
        "last-layer-pruned-in-validation-too",
        "phd/megatron/core_attention.py",
        "return self.prunes and self.training",
        "return self.prunes",
        "tests/training/test_validation.py::test_pruning_does_not_touch_validation",
    ),
    Mutation(
        "core-attention-pattern-of-the-layer-before",
        "phd/megatron/core_attention.py",
        "config.layers(config.num_layers)[layer_number - 1]",
        "config.layers(config.num_layers)[layer_number - 2]",
        "tests/commands/test_export.py::test_same_logits_as_megatron",
    ),
    Mutation(
        "documents-not-told-to-the-model",
        "pretrain_phd.py",
        'packed_seq_params=document_params(batch["document_starts"], get_model_config(model)),',
        "packed_seq_params=None,",
        "tests/megatron/test_context_parallel.py::test_documents_change_the_loss",
    ),
    Mutation(
        "documents-start-one-late",
        "phd/megatron/documents.py",
        "starts = (torch.arange(shape[1]) - position_ids).cuda(non_blocking=True)",
        "starts = (torch.arange(shape[1]) - (position_ids - 1).clamp(min=0)).cuda(non_blocking=True)",
        "tests/megatron/test_documents.py",
    ),
    Mutation(
        "loss-of-masked-tokens-counted",
        "pretrain_phd.py",
        "loss = torch.sum(losses.view(-1).float() * loss_mask)",
        "loss = torch.sum(losses.view(-1).float())",
        "tests/test_pretrain_phd.py",
    ),
    Mutation(
        "pipeline-messages-of-samples",
        "phd/megatron/compat.py",
        "return schedule(micro_batch_size=micro_batch_size * copies, **schedule_kwargs)",
        "return schedule(micro_batch_size=micro_batch_size, **schedule_kwargs)",
        "tests/training/test_validation.py::test_named_validation_sets",
    ),
)

COSTS = (
    Mutation(
        "flops-causal-half-forgotten",
        "phd/rules/keys.py",
        "return self.count * self.block * (self.block + 1) // 2",
        "return self.count * self.block * self.block",
        "tests/rules/test_flops.py",
    ),
    Mutation(
        "flops-pruned-layer-in-full",
        "phd/rules/variant.py",
        "(1 if pruned else count) * rest + products",
        "count * rest + products",
        "tests/rules/test_flops.py",
    ),
    Mutation(
        "kv-bytes-of-a-whole-window",
        "phd/rules/rule.py",
        "copies.hidden * (length - copies.band_start(length))",
        "copies.hidden * (length - copies.band_start(length) + 1)",
        "tests/rules/test_rule.py",
    ),
    Mutation(
        "plan-one-micro-batch-too-few",
        "phd/commands/plan.py",
        "return min(micro_batches, stages - stage)",
        "return max(1, min(micro_batches, stages - stage - 1))",
        "tests/commands/test_plan.py::test_memory_is_what_the_allocator_gave",
    ),
    Mutation(
        "plan-forgets-fp32-weights",
        "phd/commands/plan.py",
        "size[args.exp_avg_sq_dtype] + (4 if args.bf16 else 0)",
        "size[args.exp_avg_sq_dtype]",
        "tests/commands/test_plan.py",
    ),
)

RUNS = (
    Mutation(
        "checkpoint-torn-accepted",
        "phd/checkpoint/integrity.py",
        "if path.stat().st_size < end:",
        "if path.stat().st_size == 0:",
        "tests/checkpoint/test_integrity.py::test_damaged_checkpoint_is_named",
    ),
    Mutation(
        "checkpoint-checksum-ignored",
        "phd/checkpoint/integrity.py",
        "        if broken:\n",
        "        if broken is False:\n",
        "tests/checkpoint/test_integrity.py::test_damaged_checkpoint_is_named",
    ),
    Mutation(
        "checkpoint-all-ranks-read-one-share",
        "phd/checkpoint/integrity.py",
        "for item in items[rank::world_size]:",
        "for item in items[::world_size]:",
        "tests/checkpoint/test_integrity.py::test_damaged_checkpoint_is_named",
    ),
    Mutation(
        "checkpoint-of-another-variant-accepted",
        "phd/training/resume.py",
        "    if different or variants:\n",
        "    if different:\n",
        "tests/training/test_resume.py::test_another_variant_is_refused_unless_asked_for",
    ),
    Mutation(
        "checkpoint-of-another-model-accepted",
        "phd/training/resume.py",
        "    different = other_model(was, now, names)\n",
        "    different = other_model(was, now, names[:5])\n",
        "tests/training/test_resume.py::test_another_model_is_refused",
    ),
    Mutation(
        "starts-before-forgotten",
        "phd/run/starts.py",
        "        if first < iteration\n",
        "        if first > iteration\n",
        "tests/run/test_starts.py",
    ),
    Mutation(
        "record-cut-without-a-checkpoint",
        "phd/run/recorder.py",
        "        if lines and not iteration:\n",
        "        if lines and iteration < 0:\n",
        "tests/run/test_recorder.py",
    ),
    Mutation(
        "checkpoint-replaced-before-the-new-one-is-whole",
        "phd/checkpoint/saves.py",
        "            save()\n            maybe_finalize_async_save(blocking=True)\n",
        "            save()\n",
        "tests/training/test_guard.py::test_an_asynchronous_save_is_awaited_before_it_replaces_another",
    ),
    Mutation(
        "checkpoint-removed-data-first",
        "phd/checkpoint/retention.py",
        '(folder / ".metadata").unlink(missing_ok=True)',
        'folder.joinpath("never").unlink(missing_ok=True)',
        "tests/training/test_guard.py::test_killed_while_saving",
    ),
    Mutation(
        "checkpoint-keeps-one-too-few",
        "phd/checkpoint/retention.py",
        "if iteration_of(folder) <= newest][keep:]:",
        "if iteration_of(folder) <= newest][keep - 1 :]:",
        "tests/training/test_guard.py::test_killed_while_saving",
    ),
    Mutation(
        "checkpoint-tracker-taken-for-granted",
        "phd/checkpoint/choice.py",
        "        write_text(tracker, str(whole[0]))",
        "        write_text(tracker, str(whole[-1]))",
        "tests/training/test_guard.py::test_a_damaged_checkpoint_is_passed_over",
    ),
    Mutation(
        "record-line-twice-after-resume",
        "phd/run/recorder.py",
        'write_text(self._path, "".join(line_text(line) for line in kept))',
        'write_text(self._path, "".join(line_text(line) for line in lines))',
        "tests/run/test_recorder.py",
    ),
    Mutation(
        "record-resumed-one-late",
        "phd/run/recorder.py",
        'kept = [line for line in lines if line["iteration"] <= iteration]',
        'kept = [line for line in lines if line["iteration"] <= iteration + 1]',
        "tests/run/test_recorder.py",
    ),
    Mutation(
        "lock-shared",
        "phd/run/lock.py",
        "fcntl.LOCK_EX | fcntl.LOCK_NB",
        "fcntl.LOCK_SH | fcntl.LOCK_NB",
        "tests/run/test_lock.py",
    ),
    Mutation(
        "lock-not-taken",
        "phd/training/guard.py",
        "                self._lock = RunLock(folder)\n",
        "",
        "tests/training/test_guard.py::test_a_second_job_is_refused",
    ),
    Mutation(
        "status-fruitless-starts-for-ever",
        "phd/run/status.py",
        'if checkpoint != content["from"]:',
        'if checkpoint >= content["from"]:',
        "tests/run/test_status.py",
    ),
    Mutation(
        "signal-not-heard",
        "phd/megatron/compat.py",
        "        self._signal_received = True\n",
        "",
        "tests/training/test_guard.py::test_a_signal_saves_and_the_next_start_goes_on",
    ),
    Mutation(
        "signal-exit-code-of-success",
        "phd/training/guard.py",
        "stop.code = os.EX_TEMPFAIL",
        "stop.code = 0",
        "tests/training/test_guard.py::test_a_signal_saves_and_the_next_start_goes_on",
    ),
    Mutation(
        "known-failure-started-again",
        "phd/training/guard.py",
        'self._ended("failed", known)',
        "self._died(known)",
        "tests/training/test_guard.py::test_a_gpu_without_room_is_no_reason_to_start_again",
    ),
)

HUGGING_FACE = (
    Mutation(
        "hf-ring-index-one-off",
        "phd/hf/cache.py",
        "+ self.cumulative_length) % self.ring",
        "+ self.cumulative_length + 1) % self.ring",
        "tests/hf/test_modeling.py::test_static_cache",
    ),
    Mutation(
        "hf-crop-leaves-a-slot",
        "phd/hf/cache.py",
        "self.hidden_keys.shape[2] - slots * self.width)",
        "self.hidden_keys.shape[2] - (slots - 1) * self.width)",
        "tests/hf/test_modeling.py::test_rolled_back_hidden_tokens_come_back",
    ),
    Mutation(
        "hf-crop-leaves-an-id",
        "phd/hf/cache.py",
        "self._map_ids(lambda x: x[:, :-removed])",
        "self._map_ids(lambda x: x[:, : x.shape[1] - removed + 1])",
        "tests/hf/test_modeling.py::test_rolled_back_hidden_tokens_come_back",
    ),
    Mutation(
        "hf-hidden-copies-of-one-layer-too-few",
        "phd/hf/bands.py",
        "slot - num_layers * (copies.window - 1)",
        "slot - (num_layers - 1) * (copies.window - 1)",
        "tests/hf/test_modeling.py::test_prompts_of_every_length_then_steps",
    ),
    Mutation(
        "hf-recomputed-copies-enter-by-other-tokens",
        "phd/hf/modeling.py",
        "ids = None if input_ids is None else torch.cat([before, input_ids], dim=1)",
        "ids = None if input_ids is None else torch.cat([input_ids, before], dim=1)",
        "tests/hf/test_copy_embedding.py::test_rolled_back_hidden_tokens_come_back",
    ),
    Mutation(
        "hf-copies-exchange-their-tables",
        "phd/hf/copy_embedding.py",
        "torch.stack([table(ids) for table in self.tables], dim=2)",
        "torch.stack([table(ids) for table in reversed(self.tables)], dim=2)",
        "tests/hf/test_copy_embedding.py::test_all_logits",
    ),
    Mutation(
        "hf-tables-keep-their-vocabulary",
        "phd/hf/copy_embedding.py",
        "for index, table in enumerate(tables):",
        "for index, table in enumerate(tables[:0]):",
        "tests/hf/test_copy_embedding.py::test_tables_follow_the_vocabulary",
    ),
    Mutation(
        "hf-naive-mask-counts-tokens",
        "phd/hf/cache.py",
        "return layer.get_mask_sizes(0)[0]",
        "return layer.get_seq_length()",
        "tests/hf/test_naive.py::test_decoding",
    ),
    Mutation(
        "hf-naive-consecutive-positions-of-tokens",
        "phd/hf/steps/naive.py",
        "positions = count * positions + copy",
        "positions = positions + copy",
        "tests/hf/test_naive.py::test_is_llama_on_repeated_tokens",
    ),
    Mutation(
        "hf-naive-crop-leaves-copies",
        "phd/hf/cache.py",
        "super().crop(tokens_to_remove * self.copies)",
        "super().crop(tokens_to_remove)",
        "tests/hf/test_naive.py::test_rollback",
    ),
    Mutation(
        "hf-static-cache-sees-the-new-slot-twice",
        "phd/hf/steps/static.py",
        "seen = (buffer < self.slot)[None]",
        "seen = (buffer <= self.slot)[None]",
        "tests/hf/test_modeling.py::test_static_cache",
    ),
    Mutation(
        "hf-padding-hides-the-first-token",
        "phd/hf/steps/blocks.py",
        "real = torch.arange(begin, device=like.device) >= pads[:, None]",
        "real = torch.arange(begin, device=like.device) > pads[:, None]",
        "tests/hf/test_padding.py",
    ),
    Mutation(
        "hf-padding-gap-accepted",
        "phd/hf/padding.py",
        "+ tokens[:, 0] > 1).any()",
        "+ tokens[:, 0] > 2).any()",
        "tests/hf/test_padding.py::test_masks_and_positions_that_are_refused",
    ),
    Mutation(
        "hf-retained-block-too-few",
        "phd/hf/retained.py",
        "blocks = max(0, -(-(start - min(pads)) // keys.block))",
        "blocks = max(0, (start - min(pads)) // keys.block)",
        "tests/hf/test_retained.py",
    ),
    Mutation(
        "convert-keys-for-values",
        "phd/hf/convert.py",
        "grouped[:, -2].flatten(0, 1), grouped[:, -1].flatten(0, 1)",
        "grouped[:, -1].flatten(0, 1), grouped[:, -2].flatten(0, 1)",
        "tests/hf/test_convert.py",
    ),
    Mutation(
        "convert-gate-for-up",
        "phd/hf/convert.py",
        '["mlp.gate_proj.weight", "mlp.up_proj.weight"]',
        '["mlp.up_proj.weight", "mlp.gate_proj.weight"]',
        "tests/commands/test_export.py::test_same_logits_as_megatron",
    ),
    Mutation(
        "convert-weight-transposed",
        "phd/hf/convert.py",
        "yield prefix + theirs, read(LAYERS + ours, layer)",
        "yield prefix + theirs, read(LAYERS + ours, layer).t()",
        "tests/hf/test_convert.py",
    ),
)

DATA = (
    Mutation(
        "data-torn-unit-accepted",
        "data_tools/shard.py",
        "append_suffix(prefix, end).stat().st_size == size",
        "append_suffix(prefix, end).stat().st_size >= 0",
        "tests/data_tools/test_shard.py",
    ),
    Mutation(
        "data-eod-dropped",
        "data_tools/shard.py",
        "last = [] if eos_id is None else [np.array([eos_id], np.uint32)]",
        "last: list[np.ndarray] = []",
        "tests/data_tools/test_shard.py",
    ),
    Mutation(
        "data-document-of-the-next-unit",
        "data_tools/records.py",
        "position + sum(map(len, lines[:-1])) >= end:",
        "position + sum(map(len, lines[:-1])) > end:",
        "tests/data_tools/test_units.py",
    ),
    Mutation(
        "data-units-merged-by-name",
        "data_tools/merge.py",
        "for index, name in enumerate(names):",
        "for index, name in enumerate(sorted(names)):",
        "tests/data_tools/test_tokenize.py::test_workers_ranks_and_units_do_not_change_the_files",
    ),
    Mutation(
        "data-merged-document-ends-not-moved",
        "data_tools/merge.py",
        "yield ends[start : start + BLOCK] + sequences",
        "yield ends[start : start + BLOCK]",
        "tests/data_tools/test_merge.py",
    ),
    Mutation(
        "data-card-before-the-files",
        "data_tools/cards.py",
        "    write_json(coming, card)\n",
        '    write_json(coming, card)\n    write_json(append_suffix(prefix, ".json"), card)\n',
        "tests/data_tools/test_cards.py",
    ),
    Mutation(
        "data-verify-ignores-checksums",
        "data_tools/verify.py",
        'if segment["crc32"] not in (None, crc):',
        'if segment["crc32"] is False:',
        "tests/data_tools/test_verify.py",
    ),
    Mutation(
        "data-cut-through-added-tokens",
        "data_tools/encoders/tokenizer_json.py",
        ' or " " in token.content',
        "",
        "tests/data_tools/encoders/test_hugging_face.py::test_added_tokens_are_found_in_the_whole_text",
    ),
    Mutation(
        "data-characters-newer-than-the-tables",
        "data_tools/encoders/hugging_face.py",
        "if not all_known(plain):",
        "if not plain:",
        "tests/data_tools/encoders/test_hugging_face.py::test_splits_that_are_taken_for_certain",
    ),
    Mutation(
        "data-nfc-of-newer-tables",
        "data_tools/encoders/hugging_face.py",
        'document["normalizer"] = None',
        "pass",
        "tests/data_tools/encoders/test_hugging_face.py::test_nfc_is_that_of_tokenizers",
    ),
    Mutation(
        "data-documents-without-tokens-kept",
        "data_tools/shard.py",
        "if not all(lengths):",
        "if False:",
        "tests/data_tools/test_shard.py::test_documents_without_tokens_are_bad_records",
    ),
    Mutation(
        "data-blend-temperature-upside-down",
        "data_tools/blend.py",
        "math.log(part.tokens / most) / (temperature or 1.0)",
        "math.log(part.tokens / most) * (temperature or 1.0)",
        "tests/data_tools/test_blend.py",
    ),
    Mutation(
        "data-blend-counts-what-no-training-reads",
        "data_tools/blend.py",
        "last = round(train_share * float(indexed.sequences))",
        "last = indexed.sequences",
        "tests/data_tools/test_blend.py",
    ),
    Mutation(
        "data-output-over-an-input",
        "data_tools/places.py",
        "if (key := file_key(output)) in read:",
        "if (key := file_key(output)) in list(read)[:0]:",
        "tests/data_tools/test_places.py",
    ),
    Mutation(
        "data-linked-files-read-twice",
        "data_tools/inputs.py",
        "file_key(source.path) or source.path",
        "source.path",
        "tests/data_tools/test_inputs.py",
    ),
)

COMPARE = (
    Mutation(
        "compare-difference-sign",
        "phd/compare/groups.py",
        "differences[seed] = losses[0] - losses[1]",
        "differences[seed] = losses[1] - losses[0]",
        "tests/compare/test_groups.py",
    ),
    Mutation(
        "compare-pairs-of-other-seeds",
        "phd/compare/groups.py",
        "{run.seed: (run, partners[run.seed]) for run in group.runs if run.seed in partners}",
        "dict(zip(partners, zip(group.runs, baseline.runs)))",
        "tests/compare/test_groups.py",
    ),
    Mutation(
        "compare-interval-too-narrow",
        "phd/compare/statistics.py",
        "* stdev(values) / math.sqrt(n)",
        "* stdev(values) / n",
        "tests/compare/test_statistics.py",
    ),
)

MUTATIONS = (*ATTENTION, *CONTEXT_PARALLEL, *TRITON, *MODEL, *COSTS, *RUNS, *HUGGING_FACE, *DATA, *COMPARE)
