"""Megatron's GPT data sets as the flags describe them."""

import hashlib
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig, MockGPTDataset
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.training.utils import get_blend_and_blend_per_split

from phd.run.files import read_json

SPLITS = ("train", "validation", "test")


def build_datasets(
    args: Namespace, tokenizer: Any, num_samples: Sequence[int | None], is_built_on_rank: Callable[[], bool]
) -> tuple:
    """Training, validation and test data sets over .bin/.idx files (--data-path), or mock data (--mock-data).

    Args:
        args: Megatron's, validated.
        tokenizer: Megatron's.
        num_samples: samples asked for, of train, validation and test.
        is_built_on_rank: whether this rank needs them; asked in a process group only.

    Raises:
        ValueError: see ``refuse_missing``, ``refuse_other_tokenizer``, ``refuse_empty_splits``.
    """
    blend, blend_per_split = get_blend_and_blend_per_split(args)
    config = GPTDatasetConfig(
        random_seed=args.seed,
        sequence_length=args.seq_length,
        blend=blend,
        blend_per_split=blend_per_split,
        split=args.split,
        multiple_validation_sets=args.multiple_validation_sets,
        full_validation=args.full_validation,
        num_dataset_builder_threads=args.num_dataset_builder_threads,
        path_to_cache=args.data_cache_path,
        mmap_bin_files=args.mmap_bin_files,
        tokenizer=tokenizer,
        # position ids tell where documents start; no mask is made of them
        reset_position_ids=args.reset_position_ids or args.reset_attention_mask,
        reset_attention_mask=False,
        inter_document_masking=args.dataloader_inter_document_masking,
        eod_mask_loss=args.eod_mask_loss,
        create_attention_mask=args.create_attention_mask_in_dataloader,
        object_storage_cache_path=args.object_storage_cache_path,
        mid_level_dataset_surplus=args.mid_level_dataset_surplus,
        allow_ambiguous_pad_tokens=args.allow_ambiguous_pad_tokens,
        fast_cache_load=args.dataloader_fast_cache_load,
        defer_npy_index_mmap=args.dataloader_defer_npy_index_mmap,
    )
    if not args.mock_data:
        refuse_missing(config)
        refuse_other_tokenizer(config, args.tokenizer_model)
        refuse_empty_splits(config, num_samples)
    cache = Path(args.data_cache_path)
    own = args.run_folder and Path(args.run_folder) in cache.parents  # no other job writes there
    if own and args.rank == 0:
        remove_torn_caches(cache)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    kind = MockGPTDataset if args.mock_data else GPTDataset
    return tuple(BlendedMegatronDatasetBuilder(kind, num_samples, is_built_on_rank, config).build())


def refuse_missing(config: GPTDatasetConfig) -> None:
    """Check that every file of every data set is there, before Megatron reads the first.

    Raises:
        ValueError: names the file.
    """
    for prefix in _prefixes(config):
        for suffix in (".idx", ".bin"):
            file = Path(f"{prefix}{suffix}")
            if not (file.is_file() or "://" in str(prefix)):
                raise ValueError(
                    f"{file} of --data-path is missing: put it back, or make it with `phd data tokenize`"
                )


def refuse_other_tokenizer(config: GPTDatasetConfig, tokenizer_model: str | None) -> None:
    """Check the tokenizer against the cards that `phd data` writes: ids of another one train without a word.

    Data sets without a card pass, and so does a folder as tokenizer, as transformers writes its file anew.

    Raises:
        ValueError: names the data set and the tokenizer.
    """
    if tokenizer_model is None or not Path(tokenizer_model).is_file():
        return
    with Path(tokenizer_model).open("rb") as file:
        ours = hashlib.file_digest(file, "sha256").hexdigest()
    for prefix in _prefixes(config):
        card = read_json(Path(f"{prefix}.json"))
        theirs = card.get("tokenizer_sha256", card.get("made_from", {}).get("tokenizer_sha256"))
        if theirs not in (None, ours):
            raise ValueError(
                f"{prefix} was made with another tokenizer than --tokenizer-model {tokenizer_model} (sha256 "
                f"{theirs[:12]} and {ours[:12]}): pass that one, or tokenize the text again"
            )


def _prefixes(config: GPTDatasetConfig) -> Iterator[str]:
    for blend in (config.blend, *(config.blend_per_split or ())):
        if blend is not None:
            yield from blend[0]


def remove_torn_caches(folder: Path) -> None:
    """Remove index caches that a kill or a full disk cut short: Megatron takes any file for a whole one."""
    for file in folder.glob("*.npy") if folder.is_dir() else ():
        try:
            np.load(file, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, OSError):
            file.unlink()


def refuse_empty_splits(config: GPTDatasetConfig, num_samples: Sequence[int | None]) -> None:
    """Check that ``--split`` leaves every data set at least one document for each split in use.

    Megatron's builder lacks the check: it never ends where a split that is asked for is empty.

    Args:
        config: with its split matrix made.
        num_samples: samples asked for, of train, validation and test.

    Raises:
        ValueError: names the data set, the split and how many documents there are.
    """
    if config.blend is None or config.split_matrix is None:
        return
    for prefix in config.blend[0]:
        documents = len(IndexedDataset(str(prefix)).sequence_lengths)
        for name, wanted, bounds in zip(SPLITS, num_samples, config.split_matrix, strict=True):
            if wanted and bounds is not None and round(bounds[0] * documents) == round(bounds[1] * documents):
                raise ValueError(
                    f"--split {config.split} leaves no document of {prefix} ({documents} documents) for "
                    f"{name}: give it a larger share, or --eval-iters 0 for no evaluation"
                )
