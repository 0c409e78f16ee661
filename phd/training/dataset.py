"""Megatron's GPT data sets as the flags describe them."""

import contextlib
import copy
import math
import pickle
import resource
import struct
import zlib
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig, MockGPTDataset
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset
from megatron.core.datasets.utils import Split
from megatron.training.utils import get_blend_and_blend_per_split

from phd.megatron.documents import documents_masked
from phd.run.files import read_json, sha256, write_json
from phd.training.position_gaps import gap_positions, segment_starts, sentence_end_ids
from phd.training.run_folder import run_folder

SPLITS = ("train", "validation", "test")

INDEX_HEADER = struct.Struct("<9sQBQQ")  # of an .idx: magic, version, code of the ids, sequences, documents

SIZES_FILE = "data.json"
"""In a run's own index cache: the bytes of the data that it was made for."""


@dataclass(kw_only=True)
class SamplesConfig:
    """What the training samples are, beside Megatron's flags: their order, and what of them is trained on."""

    data_iters: int | None = None
    """Order the training samples as a run of so many iterations would, of which this one trains the first
    --train-iters. How often Megatron goes through the data, and so its order, follows from the number of
    iterations: runs of several lengths see the same batches with one --data-iters."""

    mask_document_starts: bool = False
    """With packed documents: no loss for the first token of a document, of which nothing that the model may
    see tells. Megatron's masking has the last token of a document predict it."""

    sort_batch_by_documents: bool = False
    """With packed documents: within each global batch, samples in the order of the sum of their documents'
    squared lengths, so that ranks compute about as much at the same time (ProLong, arXiv 2410.02660). What an
    iteration trains on stays the same."""


def refuse_order(args: Namespace) -> None:
    """Check --data-iters.

    Args:
        args: Megatron's, validated.

    Raises:
        ValueError: names the flags.
    """
    if args.data_iters is None:
        return
    if args.train_samples is not None:
        raise ValueError("--data-iters does not run with --train-samples: leave one of them out")
    if args.train_iters is not None and args.data_iters < args.train_iters:
        raise ValueError(
            f"--data-iters {args.data_iters} is less than --train-iters {args.train_iters}: raise it to that "
            "or more, or leave it out"
        )


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
        ValueError: see ``refuse_missing``, ``refuse_torn``, ``refuse_other_tokenizer``,
            ``refuse_empty_splits``, ``sentence_end_ids``.
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
    train = args.data_iters * args.global_batch_size if args.data_iters else num_samples[0]
    wanted = [0 if args.skip_train else train, *num_samples[1:]]
    if not args.mock_data:
        if config.mock:  # then Megatron would make it without being asked
            raise ValueError("there is no data: pass --data-path, of what `phd data` made, or --mock-data")
        refuse_missing(config)
        sizes = refuse_torn(config)
        refuse_other_tokenizer(config, args.tokenizer_model)
        refuse_empty_splits(config, wanted)
    cache = Path(args.data_cache_path)
    own = run_folder(args) in cache.parents  # no other job writes there
    if own and args.rank == 0:
        for file in torn_caches(cache):
            file.unlink()
        if not args.mock_data:
            remove_caches_of_other_data(cache, sizes)
    allow_open_files()
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    kind = MockGPTDataset if args.mock_data else GPTDataset
    more: list[type] = []
    if documents_masked(args):
        more = [_DocumentStartsMasked if args.mask_document_starts else _DocumentStarts]
    told = {}
    if args.position_gaps_to is not None:
        more = [_PositionGaps, *more]
        told = {
            "sentence_ends": np.array(sentence_end_ids(args.position_sentence_ends, [*_prefixes(config)])),
            "room": args.position_gaps_to - args.seq_length,
        }
    if more:
        # of the same name: Megatron names the index caches after the class
        kind = type(kind.__name__, (*more, kind), told)
    try:
        return tuple(_WantedSplits(kind, wanted, is_built_on_rank, config).build())
    except (ValueError, EOFError, OSError, pickle.UnpicklingError) as error:  # numpy's, which name no file
        if torn := torn_caches(cache):
            raise ValueError(
                f"{torn[0]} of --data-cache-path was cut short, or is still being written: wait for the job "
                "that writes it, or delete the file, and it is built again"
            ) from error
        raise


class _DocumentStarts(GPTDataset):
    """Adds to each sample ``document_starts`` [s], int64: the position at which each position's document
    starts. Made here, of position ids that count from 0 in each document: whoever gives a token another
    position for its rotary embedding does so later.
    """

    def __getitem__(self, idx: int | None) -> dict[str, torch.Tensor]:
        sample = super().__getitem__(idx)
        positions = sample["position_ids"]
        return sample | {"document_starts": torch.arange(len(positions)) - positions}


class _DocumentStartsMasked(_DocumentStarts):
    """Masks the loss of targets that begin a document, the one behind the sample's last token included."""

    def __getitem__(self, idx: int | None) -> dict[str, torch.Tensor]:
        sample = super().__getitem__(idx)
        starts = sample["document_starts"]
        if self.config.inter_document_masking:
            # Where the next sample begins is where this one's last target lies.
            _, offset = self.sample_index[self.shuffle_index[idx or 0] + 1]
            next_begins = offset == 0
        else:  # documents end where their EOD says
            next_begins = sample["tokens"][-1] == self.config.tokenizer.eod
        begins = torch.cat([starts == torch.arange(len(starts)), torch.tensor([bool(next_begins)])])
        return sample | {"loss_mask": sample["loss_mask"].masked_fill(begins[1:], 0.0)}


class _PositionGaps(GPTDataset):
    """Adds to each training sample ``rotary_positions`` [s], int64, drawn from --seed, the data set's name
    and the sample's number alone: the same for any number of workers and ranks, and after a resume.
    """

    sentence_ends: np.ndarray
    room: int

    def __getitem__(self, idx: int | None) -> dict[str, torch.Tensor]:
        sample = super().__getitem__(idx)
        if self.index_split is not Split.train:
            return sample
        tokens = sample["tokens"].numpy()
        starts = sample.get("document_starts")
        documents = np.zeros(len(tokens), np.int64) if starts is None else starts.numpy()
        segments = segment_starts(np.isin(tokens, self.sentence_ends), documents)
        name = zlib.crc32(Path(self.dataset_path or "").name.encode())
        draw = np.random.default_rng([self.config.random_seed, name, int(idx or 0)])
        positions = gap_positions(segments, documents, self.room, draw)
        return sample | {"rotary_positions": torch.from_numpy(positions)}


class _WantedSplits(BlendedMegatronDatasetBuilder):
    """Builds the splits of which samples are asked for, and None for the others. Megatron would build them
    for 0 samples: without an end where a split has no document, and in vain elsewhere.
    """

    def __init__(
        self,
        kind: type[GPTDataset],
        wanted: list[int | None],
        is_built_on_rank: Callable[[], bool],
        config: GPTDatasetConfig,
    ) -> None:
        # The data sets get the whole: the names of their caches hold all bounds of --split.
        self._whole = config
        config = copy.copy(config)
        for bounds in ("split_matrix", "blend_per_split"):
            if splits := getattr(config, bounds):
                asked = [None if count == 0 else split for split, count in zip(splits, wanted, strict=True)]
                setattr(config, bounds, asked)
        super().__init__(kind, wanted, is_built_on_rank, config)

    def build_generic_dataset(self, *args: Any) -> Any:
        return super().build_generic_dataset(*args[:-1], self._whole)


def allow_open_files() -> None:
    """Raise the limit of open files to what the machine allows: it is 1024 at first on many, and each data
    set of a blend keeps three open, its .idx and its .bin for training and for validation.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS allows less than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def refuse_missing(config: GPTDatasetConfig | Namespace) -> None:
    """Check that every file of every data set is there, before Megatron reads the first.

    Raises:
        ValueError: names the file, or the flag without which Megatron does not read an object store.
    """
    for prefix in _prefixes(config):
        if _remote(prefix):
            if config.object_storage_cache_path is None:
                raise ValueError(f"{prefix} needs --object-storage-cache-path: a folder for its index files")
            continue
        for suffix in (".idx", ".bin"):
            file = Path(f"{prefix}{suffix}")
            if not file.is_file():
                raise ValueError(
                    f"{file} of --data-path is missing: put it back, or make it with `phd data tokenize`"
                )


def refuse_weights(config: GPTDatasetConfig | Namespace) -> None:
    """Check the weights of blends: a weight of 0 makes Megatron divide by zero.

    Raises:
        ValueError: names the data set and its weight.
    """
    for blend in (config.blend, *(config.blend_per_split or ())):
        for prefix, weight in zip(*blend, strict=True) if blend is not None and blend[1] else ():
            if not (weight > 0 and math.isfinite(weight)):
                raise ValueError(
                    f"{prefix} of --data-path has weight {weight:g}: take a number above 0, or leave the "
                    "data set out"
                )


def refuse_torn(config: GPTDatasetConfig) -> dict[str, list[int]]:
    """Check that every file has the bytes of which its index tells, and at least one token. Megatron maps
    them into memory: it would end in numpy's words, which name no file, or by SIGBUS without a word.

    Returns:
        for every data set the bytes of its .idx and of its .bin.

    Raises:
        ValueError: names the file.
    """
    sizes = {}
    for prefix in _prefixes(config):
        if _remote(prefix):
            continue
        index, content = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
        has = [index.stat().st_size, content.stat().st_size]
        if has[0] < INDEX_HEADER.size:
            raise ValueError(_torn(index, has[0], INDEX_HEADER.size))
        with index.open("rb") as file:
            _, _, code, sequences, documents = INDEX_HEADER.unpack(file.read(INDEX_HEADER.size))
            needs = INDEX_HEADER.size + 12 * sequences + 8 * documents
            if has[0] < needs:
                raise ValueError(_torn(index, has[0], needs))
            if sequences:  # the last one's length and offset
                file.seek(INDEX_HEADER.size + 4 * (sequences - 1))
                (length,) = struct.unpack("<i", file.read(4))
                file.seek(INDEX_HEADER.size + 12 * sequences - 8)
                (offset,) = struct.unpack("<q", file.read(8))
                needs = offset + length * DType.size(code)
                if has[1] < needs:
                    raise ValueError(_torn(content, has[1], needs))
        if not has[1]:
            raise ValueError(f"{content} of --data-path holds no token: leave it out, or make it again")
        sizes[str(Path(prefix).resolve())] = has
    return sizes


def _torn(file: Path, has: int, needs: int) -> str:
    return (
        f"{file} of --data-path ends after {has} of {needs} bytes: it was cut short, or its .idx or .bin "
        "replaced: copy both again, or make them with `phd data tokenize`"
    )


def refuse_other_tokenizer(config: GPTDatasetConfig, tokenizer_model: str | None) -> None:
    """Check the tokenizer against the cards that `phd data` writes: ids of another one train without a word.

    Data sets without a card pass, and so does a folder as tokenizer, as transformers writes its file anew.

    Raises:
        ValueError: names the data set and the tokenizer.
    """
    if tokenizer_model is None or not Path(tokenizer_model).is_file():
        return
    ours = sha256(Path(tokenizer_model))
    for prefix in _prefixes(config):
        card = read_json(Path(f"{prefix}.json"))
        theirs = card.get("tokenizer_sha256", card.get("made_from", {}).get("tokenizer_sha256"))
        if theirs not in (None, ours):
            raise ValueError(
                f"{prefix} was made with another tokenizer than --tokenizer-model {tokenizer_model} (sha256 "
                f"{theirs[:12]} and {ours[:12]}): pass that one, or tokenize the text again"
            )


def _prefixes(config: GPTDatasetConfig | Namespace) -> Iterator[str]:
    for blend in (config.blend, *(config.blend_per_split or ())):
        if blend is not None:
            yield from blend[0]


def torn_caches(folder: Path) -> list[Path]:
    """Index caches that a kill or a full disk cut short: Megatron takes any file for a whole one."""
    torn = []
    for file in sorted(folder.glob("*.npy")) if folder.is_dir() else ():
        try:
            np.load(file, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, OSError):
            torn.append(file)
    return torn


def remove_caches_of_other_data(folder: Path, sizes: dict[str, list[int]]) -> None:
    """Remove the run's index caches if its data have been replaced since the last start: Megatron knows them
    by their path alone, and would look for the old documents in the new files.

    Args:
        folder: of the caches; sizes are remembered there.
        sizes: of the files of every data set, as :func:`refuse_torn` returns them.
    """
    before = read_json(folder / SIZES_FILE)
    replaced = [prefix for prefix, has in sizes.items() if before.get(prefix, has) != has]
    for prefix in replaced:
        print(
            f"> WARNING: {prefix} was replaced since the last start of this run (.idx, .bin: {sizes[prefix]} "
            f"bytes, were {before[prefix]}): training goes on with the new data"
        )
    for file in folder.glob("*.npy") if replaced else ():
        file.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / SIZES_FILE, before | sizes)


def refuse_empty_splits(config: GPTDatasetConfig, num_samples: Sequence[int | None]) -> None:
    """Check that every data set has something for each split in use.

    Megatron lacks the check: its builder never ends where a split has no token, and its loop fails at the
    first validation where there is no such split. A test split that is not there is left out.

    Args:
        config: with its split matrix made.
        num_samples: samples asked for, of train, validation and test; None is all that there are.

    Raises:
        ValueError: names the data set, the split and what there is.
    """
    for split, (name, wanted) in enumerate(zip(SPLITS, num_samples, strict=True)):
        if wanted == 0:
            continue
        remedy = "give it more"
        if name != "train":
            no_more = "leave --full-validation out" if wanted is None else "pass --eval-iters 0"
            remedy += f", or {no_more} for no such evaluation"
        parts = list(_parts(config, split))
        if not parts and name != "test":
            raise ValueError(f"neither --split nor a data path of its own leaves data for {name}: {remedy}")
        for prefix, (first, last) in parts:
            if _remote(prefix):
                continue
            dataset = IndexedDataset(prefix)  # what it gives lies in its file, and goes with it
            documents = len(dataset.sequence_lengths)
            mine = dataset.sequence_lengths[round(first * documents) : round(last * documents)]
            has = f"--split {config.split} leaves {prefix}" if config.split else f"{prefix} has"
            if mine.sum() == 0:
                what, of = ("token", " documents") if len(mine) else ("document", "")
                raise ValueError(f"{has} no {what} for {name} ({documents}{of} in all): {remedy}")
            sample = config.sequence_length + 1
            if wanted is None and mine.sum() < sample:
                raise ValueError(
                    f"{has} {mine.sum()} tokens for {name}, where a sample takes {sample} (--seq-length and "
                    f"one): {remedy}"
                )


def _parts(config: GPTDatasetConfig, split: int) -> Iterator[tuple[str, tuple[float, float]]]:
    """The data sets of a split, and the part of each that belongs to it."""
    if config.blend is not None:
        blend, bounds = config.blend, config.split_matrix[split] if config.split_matrix else None
    else:
        blend, bounds = config.blend_per_split[split] if config.blend_per_split else None, (0.0, 1.0)
    if blend is not None and bounds is not None:
        for prefix in blend[0]:
            yield str(prefix), bounds


def _remote(prefix: str) -> bool:
    """Whether it lies in an object store, which Megatron reads and we do not."""
    return "://" in str(prefix)
