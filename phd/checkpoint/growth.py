"""A run with a copy embedding continues a checkpoint that has none, or one of fewer copies. Its first forward
pass is the checkpoint's.

If the checkpoint has an embedding for n copies, copy c >= n starts as copy c mod n; copy 0's is the model's
embedding, or a vector of zeros. The optimizer's master weights start likewise, Adam's moments at zero, and
the learning rate warms up (phd/megatron/added_parameters.py).

Likewise a run with adapters (--lora-rank) starts from the weights of a checkpoint that has none.
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
from phd.megatron.compat import ADDED_AT, GROUP_KEYS, in_order
from phd.rules.variant import Variant, copy_parameter

ORIGINAL = "embedding.word_embeddings.weight"
"""The name of the model's embedding, whose rows copy 0 enters as."""

ADAPTER = ".lora."
"""In the names of adapters (phd/megatron/lora.py)."""

MOMENTS = ("exp_avg", "exp_avg_sq")
"""The keys of Adam's moments in its state."""

MASTERS = "fp32_from_fp16_params"
"""The key of the master weights, a list for each group, in a bf16 optimizer that is not distributed."""

type Place = tuple[Any, ...]
"""Keys and indices, from the root of a state dict."""


def known_copies(saved: Namespace, embedding: str) -> int:
    """For how many copies, the original included, a checkpoint has what --phd-copy-embedding needs.

    Args:
        saved: the checkpoint's arguments.
        embedding: this run's --phd-copy-embedding.
    """
    trained = Variant.from_arguments(vars(saved))
    return trained.copies.count if trained.embedding == embedding else 1


def added_copies(saved: Namespace, args: Namespace) -> dict[int, int]:
    """The copies whose embedding the checkpoint lacks, and the copy (0 is the original) that each starts
    as.
    """
    if args.phd_copy_embedding == "none":
        return {}
    known = known_copies(saved, args.phd_copy_embedding)
    return {copy: copy % known for copy in range(known, args.phd_copies)}


def describe(added: dict[int, int], embedding: str) -> str:
    """The end of a line that tells what each of ``added_copies`` starts as."""
    original = "zero" if embedding == "vector" else "the embedding"
    starts = [
        f"copy {copy} as {f'that of copy {source}' if source else original}" for copy, source in added.items()
    ]
    return f"; anew begins the {embedding} of {', '.join(starts)}" if starts else ""


def weights_alone(args: Namespace, saved: Namespace) -> bool:
    """Whether the optimizer starts anew: then no parameter is added later than another."""
    first = checkpoint_source(args) == "pretrained_checkpoint" or args.finetune
    return first or args.no_load_optim or saved.no_save_optim


def resolve_additions(args: Namespace) -> None:
    """Set ``args.phd_copy_births``, which is saved with every checkpoint: for each hidden copy the
    iteration at which its embedding was added to the training; 0 if the training began with it; empty if
    that holds for all. Rank 0 prints it.

    Args:
        args: Megatron's, once it is decided which checkpoint is loaded.

    Raises:
        ValueError: an embedding is to be added, and there is no --override-phd-variant.
    """
    args.phd_copy_births = []
    root = getattr(args, checkpoint_source(args))
    folder = chosen_folder(Path(root), args.ckpt_step) if root else None
    if folder is None or args.phd_copy_embedding == "none":
        return
    saved = read_args(folder)
    added = added_copies(saved, args)
    if added and not args.override_phd_variant:  # start-up looked at a newer one, which is damaged
        raise ValueError(
            f"{folder} has no {args.phd_copy_embedding} for copies {', '.join(map(str, added))}: pass "
            "--override-phd-variant to start them anew"
        )
    if weights_alone(args, saved):
        return
    before = getattr(saved, "phd_copy_births", [])
    iterations = [*before, *[0] * args.phd_copies][: args.phd_copies - 1]
    for copy in added:
        iterations[copy - 1] = iteration_of(folder)
    if not any(iterations):
        return
    args.phd_copy_births = iterations
    if args.rank == 0:
        numbered = enumerate(iterations, start=1)
        told = ", ".join(f"copy {copy} at iteration {iteration}" for copy, iteration in numbered if iteration)
        print(
            f"> the {args.phd_copy_embedding} of {told} joined the training; its learning rate rises to that "
            f"of the others in {args.phd_copy_embedding_warmup_iters} iterations "
            "(--phd-copy-embedding-warmup-iters)"
        )


def install() -> None:
    """Let Megatron load checkpoints that lack exactly the embeddings of ``added_copies``, or exactly the
    adapters of --lora-rank.
    """
    if hasattr(dist_checkpointing.load, "__wrapped__"):
        return
    load = dist_checkpointing.load

    @functools.wraps(load)
    def load_and_grow(wanted: dict[str, Any], folder: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        saved = read_args(Path(folder))
        adapters = bool(get_args().lora_rank) and not getattr(saved, "lora_rank", 0)
        added = _AddedState(wanted, get_args(), added_copies(saved, get_args()), adapters)
        state: dict[str, Any] = load(wanted, folder, *args, **kwargs)
        added.put_into(state)
        return state

    dist_checkpointing.load = load_and_grow


class _AddedState:
    """The state of added parameters: removed from the state dict that Megatron asks a checkpoint for, and put
    into the one that was loaded.

    Removed without a placeholder, as Megatron renumbers a list whose entries it does not load. It does so
    for a group without parameters too, and on all pipeline stages but the first the added groups have none:
    they are removed as well. That matters where tensors are not loaded in place:
    --ckpt-fully-parallel-load.
    """

    def __init__(
        self, wanted: dict[str, Any], args: Namespace, added: dict[int, int], adapters: bool
    ) -> None:
        """
        Args:
            adapters: whether the checkpoint has none. They are added to weights alone, and keep their values.
        """
        self._adapters = adapters
        embedding = args.phd_copy_embedding
        self._sources = {
            copy_parameter(embedding, copy): _source_name(embedding, source) for copy, source in added.items()
        }
        self._iterations = {args.phd_copy_births[copy - 1] for copy in added if args.phd_copy_births}
        self._wanted = wanted
        self._places: dict[str, Place] = {}
        """The place of each tensor, by its key in the checkpoint."""
        self._removed: list[tuple[Place, Any]] = []
        self._remove(wanted, ())

    def _remove(self, tree: Any, place: Place) -> None:
        """From the last to the first, so that no index changes that is still needed."""
        for key, value in reversed([*(tree.items() if isinstance(tree, dict) else enumerate(tree))]):
            here = (*place, key)
            if isinstance(value, ShardedBase):
                self._places[value.key] = here
                out = self._split(value.key) is not None or self._is_adapter(value.key)
            elif place[-1:] == ("param_groups",):
                out = value.get(ADDED_AT) in self._iterations
            elif isinstance(value, dict | list):
                empty = not value
                self._remove(value, here)
                out = not value and (not empty or place[-1:] == (MASTERS,))
            else:
                out = False
            if out:
                self._removed.append((here, tree.pop(key)))

    def _split(self, key: str) -> tuple[str, str] | None:
        """A checkpoint's key as prefix and name of an added parameter; None for other parameters' keys."""
        for name in self._sources:
            if f".{key}".endswith(f".{name}"):
                return key.removesuffix(name), name
        return None

    def _is_adapter(self, key: str) -> bool:
        return self._adapters and ADAPTER in key

    def put_into(self, state: dict[str, Any]) -> None:
        """Complete what Megatron has loaded."""
        for place, value in reversed(self._removed):
            parent = _at(state, place[:-1])
            if place[-2:-1] == ("param_groups",):
                value = _joining(value, _at(self._wanted, place[:-1]), parent)
            if isinstance(parent, list):
                parent.insert(place[-1], value)
            else:
                parent[place[-1]] = value
        for place, value in self._removed:
            if isinstance(value, ShardedBase):
                _at(state, place[:-1])[place[-1]] = self._first_value(value, state)

    def _first_value(self, added: ShardedBase, state: dict[str, Any]) -> torch.Tensor:
        split = self._split(added.key)
        assert isinstance(added.data, torch.Tensor)
        if split is None:
            return added.data.detach().clone()
        prefix, name = split
        source = self._sources[name]
        if source is None or prefix.removesuffix(".").endswith(MOMENTS):
            return torch.zeros_like(added.data, requires_grad=False)
        value: torch.Tensor = _at(state, self._places[prefix + source])
        return value.detach().clone()


def _source_name(embedding: str, copy: int) -> str | None:
    """The parameter that an added one starts as, given its copy; None for zero."""
    if copy:
        return copy_parameter(embedding, copy)
    return ORIGINAL if embedding == "table" else None


def _at(tree: Any, place: Place) -> Any:
    for key in place:
        tree = tree[key]
    return tree


def _joining(group: dict[str, Any], ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict:
    """A group of added parameters in the form of the checkpoint's, with learning rates and step of the
    group that they would be in had they not been added.

    Args:
        group: the optimizer's, of added parameters.
        ours: the optimizer's other groups.
        theirs: the checkpoint's groups, in any order.
    """
    old = next(
        its
        for one, its in zip(in_order(ours), in_order(theirs), strict=False)
        if all(one.get(key) == group.get(key) for key in GROUP_KEYS if key != ADDED_AT)
    )
    joining = {**old, ADDED_AT: group[ADDED_AT]}
    if "params" in group:  # a distributed optimizer's groups have none
        joining["params"] = group["params"].unwrap()
    return joining
