"""The model against Megatron's GPTModel: what K = 1 must share with it, and what K > 1 must keep of it."""

import sys

import pytest

from tests.model.conftest import MODEL, TRAINING
from tests.world import megatron_globals

FLAGS = [*MODEL, *TRAINING, "--mock-data", "--tokenizer-type", "NullTokenizer", "--vocab-size", "255"]
VARIANTS = {
    "PHD": "--phd-copies 2 --phd-window 1",
    "PHD-SWA": "--phd-copies 3 --phd-window 5 --phd-chunk 0",
    "PHD-CSWA": "--phd-copies 3 --phd-window 5 --phd-chunk 12",
    "naive": "--phd-copies 2 --phd-naive",
}


def build(flags: str, vanilla: bool = False, scramble: bool = True):
    """The model that pretrain_phd.py trains with these flags; ``vanilla``: with none of our code."""
    import torch
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.training.argument_utils import core_transformer_config_from_args, gpt_config_from_args
    from megatron.training.models.gpt import GPTModelBuilder

    from phd.model import compat
    from phd.model.arguments import parse_and_validate_args
    from phd.model.builder import PHDModelBuilder, model_config_from_args

    sys.argv = ["pretrain_phd.py", *FLAGS, *flags.split()]
    args = parse_and_validate_args()
    compat.apply(args.phd_copies)
    compat.initialize_megatron()
    groups = ProcessGroupCollection.use_mpu_process_groups()
    if vanilla:
        config = gpt_config_from_args(args, config=core_transformer_config_from_args(args))
        builder = GPTModelBuilder(config)
    else:
        builder = PHDModelBuilder(model_config_from_args(args))
    model = builder.build_model(groups, True, True)
    torch.manual_seed(3)
    for parameter in model.parameters() if scramble else ():  # gains of one would hide mistakes
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def batch(length: int = 40):
    import torch

    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 250, (2, length + 1), generator=generator)
    positions = torch.arange(length).expand(2, -1)
    return tokens[:, :-1].contiguous(), positions, tokens[:, 1:].contiguous()


def forward(flags: str, vanilla: bool = False, length: int = 40):
    """Logits [b, s, v] and the decoder's output [s, b*K, h] of a freshly built model."""
    import torch

    with megatron_globals(), torch.no_grad():
        model = build(flags, vanilla)
        seen = []
        model.decoder.register_forward_hook(lambda module, inputs, output: seen.append(output))
        tokens, positions, _ = batch(length)
        return model(tokens, positions, None), seen[0]


def check_initial_weights(flags: str) -> None:
    import torch

    weights = []
    for variant in ("", flags):
        with megatron_globals():
            weights.append(build(variant, scramble=False).state_dict())
    vanilla, phd = weights
    assert vanilla.keys() == phd.keys()
    for name, value in vanilla.items():
        assert value is None or torch.equal(value, phd[name]), name


def test_initial_weights_do_not_depend_on_copies(world):
    world.run(check_initial_weights, VARIANTS["PHD-CSWA"])


def check_vanilla_is_megatron(flags: str) -> None:
    import torch
    from megatron.core.models.gpt import GPTModel

    results = []
    for vanilla in (False, True):
        with megatron_globals():
            model = build(flags, vanilla)
            assert type(model) is GPTModel
            tokens, positions, labels = batch()
            logits = model(tokens, positions, None)
            model(tokens, positions, None, labels=labels).mean().backward()
            gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
            results.append({"logits": logits, **gradients})
    ours, megatron = results
    assert ours.keys() == megatron.keys()
    for name, value in ours.items():
        assert torch.equal(value, megatron[name]), name
        assert value.abs().sum() > 0, name


@pytest.mark.parametrize("flags", ["", "--qk-layernorm", "--bf16"], ids=["fp32", "qk-layernorm", "bf16"])
def test_one_copy_is_megatrons_gpt_bit_for_bit(world, flags):
    """Logits and every gradient."""
    world.run(check_vanilla_is_megatron, flags)


def check_original_stream(flags: str, same: bool) -> None:
    import torch

    copies = int(flags.split("--phd-copies ")[1].split()[0])
    _, vanilla = forward("", vanilla=True)
    _, hidden = forward(flags)
    originals = hidden[:, ::copies]
    assert torch.allclose(originals, vanilla, rtol=1e-4, atol=1e-4) == same
    assert not torch.allclose(hidden[:, copies - 1 :: copies], vanilla, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_original_stream_is_the_vanilla_model(world, variant):
    """hidden states of copy 0 equal the vanilla model's; naive repetition has no such stream."""
    world.run(check_original_stream, VARIANTS[variant], variant != "naive")


def check_causal(flags: str) -> None:
    import torch

    with megatron_globals(), torch.no_grad():
        model = build(flags)
        tokens, positions, _ = batch()
        logits = model(tokens, positions, None)
        for changed in (0, 11, 12, 23, 39):
            other = tokens.clone()
            other[:, changed] = (other[:, changed] + 1) % 250
            difference = (model(other, positions, None) - logits).abs().amax((0, 2))
            assert (difference[:changed] == 0).all()
            assert difference[changed] > 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_output_sees_a_later_token(world, variant):
    """Through all layers."""
    world.run(check_causal, VARIANTS[variant])


def check_recomputed_prefixes(flags: str) -> None:
    import torch

    with megatron_globals(), torch.no_grad():
        model = build(flags)
        tokens, positions, _ = batch()
        logits = model(tokens, positions, None)
        for length in (1, 2, 5, 11, 12, 13, 24, 25, 39):
            prefix = model(tokens[:, :length], positions[:, :length], None)
            torch.testing.assert_close(prefix[:, -1], logits[:, length - 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_decoding_by_recomputation_equals_the_full_forward(world, variant):
    """at every position, across windows and chunks, the prefix alone gives the same logits."""
    world.run(check_recomputed_prefixes, VARIANTS[variant])


def check_backends(flags: str) -> None:
    import torch

    (flash, _), (reference, _) = (
        forward(f"{flags} --phd-attention-backend {name}") for name in ("flash", "reference")
    )
    torch.testing.assert_close(flash, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_backends_agree_in_the_model(world, variant):
    world.run(check_backends, VARIANTS[variant])
