"""CUDA graphs of layers, as far as a CPU goes: a stand-in for Transformer Engine's capture that keeps its
rules (it sees what it was captured with and no other argument) under Megatron's own training loop.
"""

from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.trainings import losses

COPIES = "--phd-copies 3 --phd-window 5 --phd-chunk 12"


class Graphs:
    """Stands for transformer_engine.pytorch.make_graphed_callables."""

    def __init__(self) -> None:
        self.captured: list[tuple] = []
        self.replays = 0

    def __call__(self, layers: tuple, sample_args: list, *, sample_kwargs: list, **_: Any) -> tuple:
        graphs = []
        for layer, (hidden,), named in zip(layers, sample_args, sample_kwargs, strict=True):
            outputs = layer(hidden, **named)
            self.captured.append((tuple(hidden.shape), sorted(named), tuple(outputs[0].shape)))
            graphs.append(self._graph(layer, hidden, named, outputs))
        return tuple(graphs)

    def _graph(self, layer: Any, sample: Any, named: dict, outputs: tuple) -> Any:
        def replay(hidden: Any, is_first_microbatch: bool, **given: Any) -> tuple:
            tensors = {name: given[name] for name in named}
            assert hidden.shape == sample.shape
            assert all(tensors[name].shape == named[name].shape for name in named)
            # Transformer Engine does not see the others, and would do work for each
            assert all(value is None for name, value in given.items() if name not in named)
            result = layer._te_cuda_graph_capture(hidden, **tensors)
            assert result[0].shape == outputs[0].shape
            self.replays += 1
            return result

        vars(replay)["reset"] = lambda: None  # frees a graph when the training is over
        return replay


def train_with_graphs(flags: list[str]) -> tuple[list, int]:
    """Run pretrain_phd.py as on a GPU with Transformer Engine's graphs."""
    import contextlib
    import sys
    from unittest.mock import patch

    import phd.megatron  # noqa: F401 (before Megatron)

    # isort: split
    from megatron.core.transformer import cuda_graphs, transformer_layer

    from phd.megatron import cpu
    from phd.training import arguments
    from tests.world import run_pretrain

    def validate(args: Any) -> None:
        validate_args(args)
        args.te_rng_tracker = False  # Transformer Engine's, which Megatron asks for

    validate_args, graphs = arguments.validate_args, Graphs()
    engine = {name: ModuleType(name) for name in ("transformer_engine", "transformer_engine.pytorch")}
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.dict(sys.modules, engine))
        for owner, name, value in (
            (arguments, "validate_args", validate),
            (cpu, "switch_off", lambda args: []),
            (cuda_graphs, "HAVE_TE_GRAPHS", True),
            (cuda_graphs, "is_te_min_version", lambda version: True),
            (transformer_layer, "is_te_min_version", lambda version: True),
        ):
            stack.enter_context(patch.object(owner, name, value))
        stack.enter_context(patch.object(cuda_graphs, "make_graphed_callables", graphs, create=True))
        run_pretrain([*flags, "--cuda-graph-impl", "transformer_engine", "--cuda-graph-warmup-steps", "1"])
    return graphs.captured, graphs.replays


@pytest.fixture(scope="module")
def training(base_flags) -> list[str]:
    # Megatron's static inputs are bf16
    return [*base_flags, "--bf16", "--train-iters", "3", "--global-batch-size", "4", *COPIES.split()]


@pytest.fixture(scope="module")
def eager(world, training, tmp_path_factory):
    """eager(flags, ranks): losses and gradient norms without graphs."""

    @cache
    def run(flags: str, ranks: int) -> dict:
        folder = tmp_path_factory.mktemp("eager")
        world.pretrain([*training, *flags.split(), "--tensorboard-dir", str(folder)], ranks)
        return losses(folder)

    return run


@pytest.mark.parametrize(
    ("flags", "modules", "ranks", "shapes"),
    [
        ("", "", 1, [(40, 6, 64, 6)] * 3 + [(40, 6, 64, 2)]),
        ("--no-phd-prune-last-layer", "", 1, [(40, 6, 64, 6)] * 4),
        ("", "--cuda-graph-modules attn", 1, [(40, 6, 64, 6)] * 3 + [(40, 6, 64, 2)]),
        ("", "--cuda-graph-modules mlp", 1, [(40, 6, 64, 6)] * 3 + [(40, 2, 64, 2)]),
        (
            "--tensor-model-parallel-size 2 --sequence-parallel",
            "",
            2,
            [(20, 6, 64, 6)] * 3 + [(20, 6, 64, 2)],
        ),
        ("--context-parallel-size 2", "", 2, [(20, 6, 64, 6)] * 3 + [(20, 6, 64, 2)]),
    ],
    ids=["pruned", "whole", "attention", "mlp", "TP2-SP", "CP2"],
)
def test_captured_layers_fit_what_they_get(
    flags, modules, ranks, shapes, world, training, eager, tmp_path: Path
):
    """Static inputs have K rows a sample and no mask, and the training is that without graphs."""
    with_graphs = [*training, *flags.split(), *modules.split(), "--tensorboard-dir", str(tmp_path)]
    results = world.run(train_with_graphs, with_graphs, ranks=ranks)
    for captured, replays in results:
        assert [(*given, taken[1]) for given, _, taken in captured] == shapes
        assert all(names == ([] if "mlp" in modules else ["rotary_pos_emb"]) for _, names, _ in captured)
        micro_batches = 4 // (2 * 1)
        assert replays == 4 * 2 * micro_batches  # layers, iterations after the first
    assert losses(tmp_path) == eager(flags, ranks)


def layers_that_replay(training: bool) -> list[tuple[int, list[str]]]:
    """Layers that a forward pass gives to Megatron's manager of local graphs, and the names they get."""
    import sys

    import torch
    from megatron.core.process_groups_config import ProcessGroupCollection

    from phd.megatron import compat
    from phd.megatron.builder import PHDModelBuilder, model_config_from_args
    from phd.megatron.graphed_layer import GraphedLayer
    from phd.training.arguments import parse_for_tool
    from tests.megatron.test_phd_model import FLAGS, batch
    from tests.world import megatron_globals

    sys.argv = ["pretrain_phd.py", *FLAGS, *COPIES.split()]
    seen = []

    def manager(layer: Any, args: tuple, kwargs: dict) -> Any:
        assert not args
        seen.append((layer.layer_number, sorted(kwargs)))
        return torch.nn.Module.__call__(layer, **kwargs)

    with megatron_globals():
        args = parse_for_tool()
        args.cuda_graph_impl = "transformer_engine"  # the local manager itself asks for a GPU
        compat.apply(args.phd_copies)
        compat.initialize_megatron()
        groups = ProcessGroupCollection.use_mpu_process_groups()
        model = PHDModelBuilder(model_config_from_args(args)).build_model(groups, True, True)
        model.train(training)
        for layer in model.decoder.layers:
            assert type(layer) is GraphedLayer
            layer.cudagraph_manager = manager
        tokens, positions, labels = batch()
        model(tokens, positions, None, labels=labels)
    return seen


def test_local_graph_of_a_pruned_layer_is_left_out_in_validation(world):
    """Megatron would replay the graph of training, which gives the last copies alone."""
    (trained,) = world.run(layers_that_replay, True)
    (validated,) = world.run(layers_that_replay, False)
    assert [number for number, _ in trained] == [1, 2, 3, 4]
    assert [number for number, _ in validated] == [1, 2, 3]
    assert all("hidden_states" in names and "attention_mask" not in names for _, names in trained + validated)
