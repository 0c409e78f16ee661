"""The model against Megatron's GPTModel: what K = 1 must share with it, and what K > 1 and sparse layers must
keep of it.
"""

import sys

import pytest

from tests.trainings import MODEL, PATTERN, TRAINING
from tests.world import megatron_globals

FLAGS = [*MODEL, *TRAINING, "--mock-data", "--tokenizer-type", "NullTokenizer", "--vocab-size", "255"]
VARIANTS = {
    "PHD": "--phd-copies 2 --phd-window 1",
    "PHD-SWA": "--phd-copies 3 --phd-window 5 --phd-chunk 0",
    "PHD-CSWA": "--phd-copies 3 --phd-window 5 --phd-chunk 12",
    "naive": "--phd-copies 2 --phd-naive",
}
PATTERNED = VARIANTS | {"PHD-CSWA-longgen": f"{VARIANTS['PHD-CSWA']} {PATTERN}"}


def build(flags: str, vanilla: bool = False, scramble: bool = True):
    """The model that pretrain_phd.py trains with these flags; ``vanilla``: with none of our code."""
    import torch
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.training.argument_utils import core_transformer_config_from_args, gpt_config_from_args
    from megatron.training.models.gpt import GPTModelBuilder

    from phd.megatron import compat
    from phd.megatron.builder import PHDModelBuilder, model_config_from_args
    from phd.training.arguments import parse_for_tool

    sys.argv = ["pretrain_phd.py", *FLAGS, *flags.split()]
    args = parse_for_tool()
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


@pytest.mark.parametrize(
    "flags",
    ["", "--qk-layernorm", "--bf16", "--attention-pattern 4*full"],
    ids=["fp32", "qk-layernorm", "bf16", "all-layers-full"],
)
def test_one_copy_is_megatrons_gpt_bit_for_bit(world, flags):
    """Logits and every gradient."""
    world.run(check_vanilla_is_megatron, flags)


def norm_beside_apex(flags: str) -> str:
    """The last norm of a model where Megatron would put apex's behind local layers."""
    from unittest.mock import patch

    from megatron.core.fusions.fused_layer_norm import FusedLayerNorm
    from megatron.core.models.gpt import gpt_layer_specs
    from megatron.core.transformer import transformer_block

    from phd.megatron import layer_specs

    with (
        megatron_globals(),
        patch.object(transformer_block, "LayerNormImpl", FusedLayerNorm),
        patch.object(layer_specs, "LayerNormImpl", FusedLayerNorm),
        patch.object(gpt_layer_specs, "LNImpl", FusedLayerNorm),
    ):
        return type(build(flags).decoder.final_layernorm).__name__


@pytest.mark.parametrize("flags", ["", "--phd-copies 2", "--num-experts 4 --moe-router-topk 2"])
def test_rms_norm_beside_apex_is_torchs(world, flags):
    """Apex's is a LayerNorm and nothing else: Megatron asserts."""
    assert world.run(norm_beside_apex, flags) == ["RMSNorm"]


def check_original_stream(flags: str, same: bool, feature: str = "") -> None:
    import torch

    copies = int(flags.split("--phd-copies ")[1].split()[0])
    _, vanilla = forward(feature, vanilla=True)
    _, hidden = forward(f"{flags} {feature} --no-phd-prune-last-layer")
    originals = hidden[:, ::copies]
    assert torch.allclose(originals, vanilla, rtol=1e-4, atol=1e-4) == same
    assert not torch.allclose(hidden[:, copies - 1 :: copies], vanilla, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_original_stream_is_the_vanilla_model(world, variant):
    """Hidden states of copy 0 equal the vanilla model's; this does not hold for naive repetition."""
    world.run(check_original_stream, VARIANTS[variant], variant != "naive")


def check_patterned_original_stream() -> None:
    import torch

    _, sparse = forward(PATTERN)
    _, copies = forward(f"{VARIANTS['PHD-CSWA']} {PATTERN} --no-phd-prune-last-layer")
    torch.testing.assert_close(copies[:, ::3], sparse, rtol=1e-4, atol=1e-4)
    (kept, _), (vanilla, _) = forward("--attention-pattern longgen-sink"), forward("", vanilla=True)
    torch.testing.assert_close(kept, vanilla, rtol=1e-4, atol=1e-4)  # 40 positions are all within the pattern
    assert not torch.allclose(forward(PATTERN)[0], vanilla, rtol=1e-2, atol=1e-2)


def test_original_stream_of_sparse_layers(world):
    """That of K = 1 with the same pattern; and a pattern that drops nothing is the vanilla model."""
    world.run(check_patterned_original_stream)


def check_groups() -> None:
    import torch

    with megatron_globals(), torch.no_grad():
        model = build("--attention-pattern groups.8.4")
        tokens, positions, _ = batch()
        trained = model.train()(tokens, positions, None)
        validated = model.eval()(tokens, positions, None)
    with megatron_globals(), torch.no_grad():
        full = build("").eval()(tokens, positions, None)
    torch.testing.assert_close(validated, full, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(trained[:, :4], full[:, :4], rtol=1e-4, atol=1e-4)  # the first group
    assert not torch.allclose(trained[:, 4:], full[:, 4:], rtol=1e-2, atol=1e-2)


def test_groups_are_of_training_alone(world):
    """Validation and inference see all earlier tokens."""
    world.run(check_groups)


def check_dropped_token() -> None:
    """Position 13 of 40 is in no block that the last position's sparse layers keep."""
    import torch

    differences = []
    for flags in ("--num-layers 1 --attention-pattern sink.4.1.2", PATTERN):
        with megatron_globals(), torch.no_grad():
            model = build(flags)
            tokens, positions, _ = batch()
            logits = model(tokens, positions, None)
            tokens[:, 13] = (tokens[:, 13] + 1) % 250
            differences.append((model(tokens, positions, None) - logits).abs().amax((0, 2)))
    one_layer, hybrid = differences
    assert (one_layer[20:] == 0).all() and (one_layer[13:16] > 0).all()
    assert hybrid[39] > 0


def test_a_token_that_is_not_kept(world):
    """A dropped token changes nothing behind one sparse layer, but reaches a hybrid's output through its
    full layers.
    """
    world.run(check_dropped_token)


FEATURES = {
    "mixture-of-experts": "--num-experts 4 --moe-router-topk 2 --moe-ffn-hidden-size 64",
    "qk-norm": "--qk-layernorm",
    "yarn": "--position-embedding-type yarn",
    "llama-3-rope": "--use-rope-scaling --rope-scaling-factor 4 --rotary-base 500000",
    "partial-rotary": "--rotary-percent 0.5",
    "some-layers-without-rope": "--no-rope-freq 2",
    "learned-positions": "--position-embedding-type learned_absolute",
    "no-positions": "--position-embedding-type none",
    "output-gate": "--attention-output-gate --no-phd-prune-last-layer",
}
"""Features that README lists as running with copies, beside the layouts of test_parallel.py."""


@pytest.mark.parametrize("feature", FEATURES)
def test_original_stream_with_features(world, feature):
    world.run(check_original_stream, VARIANTS["PHD-CSWA"], True, FEATURES[feature])


# an expert multiplies as many rows as were sent to it, so later tokens change the rounding of earlier ones
@pytest.mark.parametrize("feature", [name for name in FEATURES if name != "mixture-of-experts"])
def test_features_change_nothing_of_causality(world, feature):
    world.run(check_causal, f"{VARIANTS['PHD-CSWA']} {FEATURES[feature]}")


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


@pytest.mark.parametrize("variant", PATTERNED)
def test_no_output_sees_a_later_token(world, variant):
    """Through all layers."""
    world.run(check_causal, PATTERNED[variant])


def check_recomputed_prefixes(flags: str) -> None:
    import torch

    with megatron_globals(), torch.no_grad():
        model = build(flags)
        tokens, positions, _ = batch()
        logits = model(tokens, positions, None)
        for length in (1, 2, 5, 11, 12, 13, 24, 25, 39):
            prefix = model(tokens[:, :length], positions[:, :length], None)
            torch.testing.assert_close(prefix[:, -1], logits[:, length - 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", PATTERNED)
def test_decoding_by_recomputation_equals_the_full_forward(world, variant):
    """At every position, across windows and chunks, the prefix alone gives the same logits."""
    world.run(check_recomputed_prefixes, PATTERNED[variant])


def check_backends(flags: str) -> None:
    import torch

    (flash, _), (reference, _) = (
        forward(f"{flags} --phd-attention-backend {name}") for name in ("flash", "reference")
    )
    torch.testing.assert_close(flash, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", PATTERNED)
def test_backends_agree_in_the_model(world, variant):
    world.run(check_backends, PATTERNED[variant])


def results(model, params=None, mask=None) -> dict:
    """Logits, losses and every gradient of a built model on one batch."""
    tokens, positions, labels = batch()
    logits = model(tokens, positions, mask, packed_seq_params=params)
    losses = model(tokens, positions, mask, labels=labels, packed_seq_params=params)
    losses.mean().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {"logits": logits.detach(), "losses": losses.detach(), **gradients}


def assert_same(ours: dict, expected: dict) -> None:
    """To the rounding of fp32, relative to the largest number of each tensor."""
    assert ours.keys() == expected.keys()
    for name, value in ours.items():
        error = (value - expected[name]).abs().max() / expected[name].abs().max()
        assert error < 1e-5, (name, float(error))


def check_pruned_last_layer(flags: str) -> None:
    by_pruning = []
    for pruning in ("", "--no-phd-prune-last-layer"):
        rows: list[int] = []
        with megatron_globals():
            model = build(f"{flags} {pruning}")
            model.decoder.layers[-1].mlp.register_forward_hook(
                lambda module, inputs, output, rows=rows: rows.append(output[0].shape[1])
            )
            by_pruning.append(results(model))
    assert rows == [2 * model.config.phd_copies] * 2  # of the unpruned model, the last that was built
    assert_same(*by_pruning)


@pytest.mark.parametrize("variant", PATTERNED)
def test_pruned_last_layer_equals_the_unpruned(world, variant):
    """Logits, losses, all gradients."""
    world.run(check_pruned_last_layer, PATTERNED[variant])


def check_pruned_rows() -> None:
    with megatron_globals():
        model = build(VARIANTS["PHD-CSWA"])
        rows = {}
        for number in (2, 3):
            for name in ("linear_proj", "linear_qkv"):
                module = getattr(model.decoder.layers[number].self_attention, name)
                module.register_forward_hook(
                    lambda module, inputs, output, key=(number, name): rows.update({key: output[0].shape[1]})
                )
        tokens, positions, _ = batch()
        model(tokens, positions, None)
    assert rows == {(2, "linear_qkv"): 6, (2, "linear_proj"): 6, (3, "linear_qkv"): 6, (3, "linear_proj"): 2}


def test_pruning_saves_the_other_copies(world):
    world.run(check_pruned_rows)


DOCUMENTS = ((3, 12, 25), (40,))


def check_documents(flags: str) -> None:
    """Each document's logits are those of the document alone."""
    import torch

    from phd.megatron.documents import document_params
    from tests.attention.test_attention import starts_of

    with megatron_globals(), torch.no_grad():
        model = build(f"{flags} --reset-attention-mask")
        tokens, positions, _ = batch()
        params = document_params(starts_of(*DOCUMENTS), model.config)
        packed = model(tokens, positions, None, packed_seq_params=params)
        for sample, lengths in enumerate(DOCUMENTS):
            begin = 0
            for length in lengths:
                rows = slice(begin, begin + length)
                alone = model(tokens[sample : sample + 1, rows], positions[:1, :length], None)
                torch.testing.assert_close(packed[sample : sample + 1, rows], alone, rtol=1e-4, atol=1e-4)
                begin += length


@pytest.mark.parametrize("variant", ["", *PATTERNED.values()], ids=["vanilla", *PATTERNED])
def test_packed_documents_equal_separate_runs(world, variant):
    world.run(check_documents, variant)


def check_vanilla_documents() -> None:
    import torch

    from phd.attention.reference import dense_mask
    from phd.megatron.documents import document_params
    from phd.rules.rule import AttentionRule
    from tests.attention.test_attention import starts_of

    starts = starts_of(*DOCUMENTS)
    with megatron_globals():
        model = build("--reset-attention-mask")
        ours = results(model, document_params(starts, model.config))
    with megatron_globals():
        model = build("--reset-attention-mask", vanilla=True)
        for layer in model.decoder.layers:  # so that the mask is read
            layer.self_attention.attn_mask_type = type(layer.self_attention.attn_mask_type).arbitrary
            layer.self_attention.core_attention.scale_mask_softmax.attn_mask_type = (
                layer.self_attention.attn_mask_type
            )
        mask = dense_mask(AttentionRule(), 40, document_starts=starts)[:, None, :, 0, :, 0]
        expected = results(model, mask=~mask)
    assert_same(ours, expected)
    assert not torch.equal(mask[0], mask[1])


def test_vanilla_with_documents_is_megatrons_gpt_under_a_mask(world):
    """Logits, losses and every gradient of the packed baseline, whose attention is ours."""
    world.run(check_vanilla_documents)
