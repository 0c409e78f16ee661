"""A run with a copy embedding goes on from a checkpoint that has none, or that of fewer copies: its first
forward pass is that of the checkpoint.

With n copies known to the checkpoint, copy c >= n starts as copy c mod n; copy 0 is the embedding itself, or
a vector of zeros. Master weights of the optimizer likewise; Adam's moments start at zero, and the learning
rate warms up (phd/megatron/young.py).
"""

import functools
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedBase
from megatron.training import get_args

from phd.checkpoint.choice import checkpoint_source, chosen_folder
from phd.checkpoint.read import iteration_of, read_args
from phd.megatron.compat import BORN, GROUP_KEYS, in_order
from phd.megatron.young import parameter_name
from phd.rules.variant import Variant

ORIGINAL = "embedding.word_embeddings.weight"
"""The name of the embedding, of which copy 0's input is a row."""

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's, as its state calls them."""

MASTERS = "fp32_from_fp16_params"
"""What a bf16 optimizer that is not distributed calls its master weights: a list for each group."""

type Place = tuple[Any, ...]
"""Keys and indices, from the root of a state dict."""


def known_copies(saved: Namespace, embedding: str) -> int:
    """How many copies have an input of their own in a checkpoint, the original included; ``saved`` are its
    arguments, ``embedding`` this run's --phd-copy-embedding.
    """
    trained = Variant.from_arguments(vars(saved))
    return trained.copies.count if trained.embedding == embedding else 1


def newborn(saved: Namespace, args: Namespace) -> dict[int, int]:
    """The copies that a checkpoint has no input for, and the copy (0 is the original) that each starts as."""
    if args.phd_copy_embedding == "none":
        return {}
    known = known_copies(saved, args.phd_copy_embedding)
    return {copy: copy % known for copy in range(known, args.phd_copies)}


def describe(born: dict[int, int], embedding: str) -> str:
    """The end of a line that tells what ``newborn`` found: what each new copy's embedding starts as."""
    original = "zero" if embedding == "vector" else "the embedding"
    starts = [
        f"copy {copy} as {f'that of copy {source}' if source else original}" for copy, source in born.items()
    ]
    return f"; anew begins the {embedding} of {', '.join(starts)}" if starts else ""


def weights_alone(args: Namespace, saved: Namespace) -> bool:
    """Whether the optimizer starts anew: then all parameters are equally young."""
    first = checkpoint_source(args) == "pretrained_checkpoint" or args.finetune
    return first or args.no_load_optim or saved.no_save_optim


def resolve_births(args: Namespace) -> None:
    """Set ``args.phd_copy_births``, which every checkpoint keeps: for each hidden copy the iteration at which
    its embedding joined the training, 0 with the model; empty where all did. Tell it, on rank 0.

    Args:
        args: when it is decided which checkpoint is loaded.

    Raises:
        ValueError: there is something to start anew, and no --override-phd-variant.
    """
    args.phd_copy_births = []
    root = getattr(args, checkpoint_source(args))
    folder = chosen_folder(Path(root), args.ckpt_step) if root else None
    if folder is None or args.phd_copy_embedding == "none":
        return
    saved = read_args(folder)
    born = newborn(saved, args)
    if born and not args.override_phd_variant:  # start-up saw a newer one, which is damaged
        raise ValueError(
            f"{folder} has no {args.phd_copy_embedding} for copies {', '.join(map(str, born))}: pass "
            "--override-phd-variant to start them anew"
        )
    if weights_alone(args, saved):
        return
    before = getattr(saved, "phd_copy_births", [])
    births = [*before, *[0] * args.phd_copies][: args.phd_copies - 1]
    for copy in born:
        births[copy - 1] = iteration_of(folder)
    if not any(births):
        return
    args.phd_copy_births = births
    if args.rank == 0:
        told = ", ".join(f"copy {copy} at iteration {birth}" for copy, birth in enumerate(births, 1) if birth)
        print(
            f"> the {args.phd_copy_embedding} of {told} joined the training; its learning rate rises to that "
            f"of the others in {args.phd_copy_embedding_warmup_iters} iterations "
            "(--phd-copy-embedding-warmup-iters)"
        )


def install() -> None:
    """Let Megatron load checkpoints that lack exactly what ``newborn`` names."""
    if hasattr(dist_checkpointing.load, "__wrapped__"):
        return
    load = dist_checkpointing.load

    @functools.wraps(load)
    def load_and_grow(wanted: dict[str, Any], folder: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        graft = _Graft(wanted, get_args(), newborn(read_args(Path(folder)), get_args()))
        state: dict[str, Any] = load(wanted, folder, *args, **kwargs)
        graft.put_into(state)
        return state

    dist_checkpointing.load = load_and_grow


class _Graft:
    """What is cut out of the state dict that Megatron wants from a checkpoint, and put into what it gets.

    Nothing is left in its place, as Megatron loses the indices of what it does not load. It also loses that
    of a group without parameters, which young ones are on all pipeline stages but the first: cut out as well.
    That matters where tensors are not loaded in place: --ckpt-fully-parallel-load.
    """

    def __init__(self, wanted: dict[str, Any], args: Namespace, born: dict[int, int]) -> None:
        embedding = args.phd_copy_embedding
        self._sources = {
            parameter_name(embedding, copy): _source_name(embedding, source) for copy, source in born.items()
        }
        self._births = {args.phd_copy_births[copy - 1] for copy in born if args.phd_copy_births}
        self._wanted = wanted
        self._places: dict[str, Place] = {}
        """Where a tensor stands, by its key in the checkpoint."""
        self._cuts: list[tuple[Place, Any]] = []
        self._cut(wanted, ())

    def _cut(self, tree: Any, place: Place) -> None:
        """From the last to the first, so that no index changes that is still needed."""
        for key, value in reversed([*(tree.items() if isinstance(tree, dict) else enumerate(tree))]):
            here = (*place, key)
            if isinstance(value, ShardedBase):
                self._places[value.key] = here
                out = self._split(value.key) is not None
            elif place[-1:] == ("param_groups",):
                out = value.get(BORN) in self._births
            elif isinstance(value, dict | list):
                empty = not value
                self._cut(value, here)
                out = not value and (not empty or place[-1:] == (MASTERS,))
            else:
                out = False
            if out:
                self._cuts.append((here, tree.pop(key)))

    def _split(self, key: str) -> tuple[str, str] | None:
        """A key of the checkpoint as prefix and young parameter, if it is one's."""
        for name in self._sources:
            if f".{key}".endswith(f".{name}"):
                return key.removesuffix(name), name
        return None

    def put_into(self, state: dict[str, Any]) -> None:
        """Complete what Megatron has loaded."""
        for place, value in reversed(self._cuts):
            parent = _at(state, place[:-1])
            if place[-2:-1] == ("param_groups",):
                value = _joining(value, _at(self._wanted, place[:-1]), parent)
            if isinstance(parent, list):
                parent.insert(place[-1], value)
            else:
                parent[place[-1]] = value
        for place, value in self._cuts:
            if isinstance(value, ShardedBase):
                _at(state, place[:-1])[place[-1]] = self._first_value(value, state)

    def _first_value(self, young: ShardedBase, state: dict[str, Any]) -> torch.Tensor:
        split = self._split(young.key)
        assert split is not None and isinstance(young.data, torch.Tensor)
        prefix, name = split
        source = self._sources[name]
        if source is None or prefix.removesuffix(".").endswith(MOMENTS):
            return torch.zeros_like(young.data, requires_grad=False)
        value: torch.Tensor = _at(state, self._places[prefix + source])
        return value.detach().clone()


def _source_name(embedding: str, copy: int) -> str | None:
    """What a young copy starts as; None for zero."""
    if copy:
        return parameter_name(embedding, copy)
    return ORIGINAL if embedding == "table" else None


def _at(tree: Any, place: Place) -> Any:
    for key in place:
        tree = tree[key]
    return tree


def _joining(group: dict[str, Any], ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict:
    """A group of young parameters as the checkpoint would have it: with rates and step of the group that they
    would belong to if they were older.

    Args:
        ours: the optimizer's other groups.
        theirs: the checkpoint's, in some order.
    """
    old = next(
        its
        for one, its in zip(in_order(ours), in_order(theirs), strict=False)
        if all(one.get(key) == group.get(key) for key in GROUP_KEYS if key != BORN)
    )
    joining = {**old, BORN: group[BORN]}
    if "params" in group:  # not of a distributed optimizer's
        joining["params"] = group["params"].unwrap()
    return joining
