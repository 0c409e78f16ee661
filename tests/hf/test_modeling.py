"""Every way through the model gives the logits of the dense rule: prompts, steps, padding, gradients."""

from copy import deepcopy
from dataclasses import is_dataclass

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from phd.hf import PHDCache, PHDLlamaConfig, PHDLlamaForCausalLM
from tests.models import (
    SHAPE,
    VARIANTS,
    assert_close,
    assert_close_in_half_precision,
    left_padded,
    reference_logits,
)

HYBRID = "1sink.4.1.2-1full-1block-sparse.4.3.1"


def test_k_1_is_llama(make_model, ids):
    """Bit for bit, through a prompt and steps."""
    model = make_model("vanilla")
    llama = LlamaForCausalLM(model.config)
    llama.load_state_dict(model.state_dict())
    with torch.no_grad():
        ours, theirs = model(ids[:, :20]), llama(ids[:, :20])
        assert torch.equal(ours.logits, theirs.logits)
        caches = ours.past_key_values, theirs.past_key_values
        steps = [
            m(ids[:, 20:21], past_key_values=c).logits for m, c in zip((model, llama), caches, strict=True)
        ]
    assert torch.equal(*steps)


@pytest.mark.parametrize("tied", [False, True])
def test_weights_are_made_once(tied, monkeypatch):
    """Not Llama's own before, which would be three models at the peak; and as random as the config says."""
    made = []
    reset = torch.nn.Linear.reset_parameters
    monkeypatch.setattr(torch.nn.Linear, "reset_parameters", lambda x: (made.append(x), reset(x)))
    settings = SHAPE | {"hidden_size": 64, "pad_token_id": None, "tie_word_embeddings": tied}
    model = PHDLlamaForCausalLM(PHDLlamaConfig(**settings, phd_copies=2, phd_window=4))
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert {*made} == {*linear} and len(made) == len(linear)
    for module in (*linear, model.model.embed_tokens):
        assert abs(module.weight.std() / settings["initializer_range"] - 1) < 0.1
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    with torch.device("meta"):
        assert PHDLlamaForCausalLM(model.config).device.type == "meta"


def test_variants_differ(make_model, ids):
    """A test that compares logits proves nothing if K, W and C have no effect."""
    logits = [reference_logits(make_model(name), ids)[:, -1] for name in VARIANTS]
    for index, one in enumerate(logits):
        assert all((one - other).abs().max() > 0.05 for other in logits[index + 1 :])


def test_all_logits(model, expected, ids):
    with torch.no_grad():
        assert_close(model(ids, use_cache=False).logits, expected)
        assert_close(model(ids[:, :30], use_cache=False).logits, expected[:, :30])


def test_prompts_of_every_length_then_steps(model, expected, ids):
    """1 .. 2C + 1 tokens of prompt, the last logits only; then token by token over a chunk's end."""
    longest = 2 * (model.config.copies.chunk or 16) + 1
    with torch.no_grad():
        for length in range(1, min(longest, 66) + 1):
            output = model(ids[:, :length], logits_to_keep=1)
            assert_close(output.logits[:, 0], expected[:, length - 1])
            for position in range(length, length + 9):
                cache = output.past_key_values
                output = model(ids[:, position : position + 1], past_key_values=cache)
                assert_close(output.logits[:, 0], expected[:, position])


@pytest.mark.parametrize("step", [2, 7, 33])
def test_continuing_a_cached_prompt(model, expected, ids, step):
    cache, logits = None, []
    with torch.no_grad():
        for first in range(0, ids.shape[1], step):
            output = model(ids[:, first : first + step], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            logits.append(output.logits)
    assert_close(torch.cat(logits, dim=1), expected)


@pytest.mark.parametrize(
    "keep",
    [3, torch.tensor([21, 25, 29]), torch.tensor([-1]), torch.tensor([-3, 24])],
    ids=["int", "tensor", "last", "from-both-ends"],
)
def test_logits_to_keep(model, expected, ids, keep):
    with torch.no_grad():
        logits = model(ids[:, :30], logits_to_keep=keep).logits
    columns = [27, 28, 29] if isinstance(keep, int) else keep % 30
    assert_close(logits, expected[:, columns])


def test_rolled_back_hidden_tokens_come_back(model, expected, ids):
    with torch.no_grad():
        for length in range(9, 40, 6):
            for back in (1, 3, 8):
                cache = model(ids[:, :length], logits_to_keep=1).past_key_values
                cache.crop(-back)
                assert cache.get_seq_length() == length - back
                output = model(ids[:, length - back : length + 1], past_key_values=cache)
                assert_close(output.logits, expected[:, length - back : length + 1])
            cache = model(ids[:, :length], logits_to_keep=1).past_key_values
            cache.drop_hidden()  # a stored prompt: originals alone
            for position in range(length, length + 3):
                output = model(ids[:, position : position + 1], past_key_values=cache)
                assert_close(output.logits[:, 0], expected[:, position])


def test_rolled_back_batches_take_positions(model, expected, ids):
    """Positions as ``generate`` passes them, a row for each sample."""
    with torch.no_grad():
        for change in (lambda cache: cache.crop(-3), lambda cache: cache.drop_hidden()):
            cache = model(ids[:, :20], logits_to_keep=1).past_key_values
            change(cache)
            first = cache.get_seq_length()
            output = model(
                ids[:, first:24], past_key_values=cache, position_ids=torch.arange(first, 24).expand(2, -1)
            )
            assert_close(output.logits, expected[:, first:24])


def test_embeddings_instead_of_ids(make_model, ids):
    model = make_model("PHD-CSWA-3-5-12")
    expected = reference_logits(model, ids)
    with torch.no_grad():
        output = model(inputs_embeds=model.model.embed_tokens(ids[:, :17]), logits_to_keep=1)
        assert_close(output.logits[:, 0], expected[:, 16])
        cache = output.past_key_values
        cache.crop(-1)
        with pytest.raises(ValueError, match="passed as inputs_embeds"):
            model(ids[:, 16:17], past_key_values=cache)


def test_static_cache(model, expected, ids):
    with torch.no_grad():
        for length in (1, 4, 11, 12, 13, 33):
            cache = PHDCache(model.config, max_cache_len=ids.shape[1])
            output = model(ids[:, :length], past_key_values=cache, logits_to_keep=1)
            assert_close(output.logits[:, 0], expected[:, length - 1])
            for position in range(length, length + 15):
                output = model(ids[:, position : position + 1], past_key_values=cache)
                assert_close(output.logits[:, 0], expected[:, position])
            turn = slice(length + 15, length + 24)
            output = model(ids[:, turn], past_key_values=cache)
            assert_close(output.logits, expected[:, turn])


@pytest.mark.parametrize("padding", [0, 5])
def test_gradients(make_model, ids, padding):
    """Of the loss of a batch, against the dense rule on its samples one by one."""
    model = deepcopy(make_model("PHD-CSWA-3-5-12"))
    parameters = list(model.parameters())
    short = ids[:, :30].clone()
    short[1] = short[1].roll(padding)
    mask, labels = torch.ones_like(short), short.clone()
    mask[1, :padding], labels[1, : padding + 1] = 0, -100
    model.train()
    loss = model(short, attention_mask=mask if padding else None, labels=labels).loss
    gradients = torch.autograd.grad(loss, parameters)
    model.set_attn_implementation("eager")
    counts = torch.tensor([29, 29 - padding])
    parts = [model(x[None], labels=x[None]).loss for x in (short[0], short[1, padding:])]
    expected_loss = (torch.stack(parts) * counts).sum() / counts.sum()
    expected = torch.autograd.grad(expected_loss, parameters)
    assert_close(loss, expected_loss)
    for gradient, wanted in zip(gradients, expected, strict=True):
        assert (gradient - wanted).abs().max() <= 2e-5 * wanted.abs().max()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output_hidden_states": True}, "output_hidden_states"),
        ({"output_attentions": True}, "output_attentions"),
        ({"past_key_values": "vanilla"}, "DynamicCache: a PHD model needs a PHDCache"),
        ({"inputs_embeds": torch.zeros(1, 3, 32)}, "one of them"),
    ],
)
def test_refused(make_model, ids, settings, message):
    from transformers import DynamicCache

    if "past_key_values" in settings:
        settings = {"past_key_values": DynamicCache()}
    with pytest.raises(ValueError, match=message):
        make_model("PHD-CSWA-3-5-12")(ids[:1, :3], **settings)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(make_model, ids, dtype):
    """Prompt, steps and dense rule agree as far as rounding lets them."""
    model = deepcopy(make_model("PHD-CSWA-3-5-12", initializer_range=0.1)).to(dtype)
    assert_close_in_half_precision(model, ids)


@pytest.mark.parametrize("variant", ["vanilla", "PHD-CSWA-3-5-12"])
@pytest.mark.parametrize("pattern", [None, HYBRID], ids=["full", "hybrid"])
def test_autocast(variant, pattern, make_model, ids):
    """Rotary angles stay in fp32 there, which made queries and keys so too."""
    model = deepcopy(make_model(variant, initializer_range=0.1))
    if pattern:
        name = pattern if variant == "vanilla" else f"{variant}+{pattern}"
        hybrid = PHDLlamaForCausalLM(PHDLlamaConfig(**model.config.to_dict() | {"phd_variant": name}))
        hybrid.load_state_dict(model.state_dict())
        model = hybrid.eval()
    padded, mask = left_padded(ids, 6)
    labels = padded.masked_fill(mask == 0, -100)
    for settings in ({}, {"attention_mask": mask}):
        exact = model(padded, labels=labels, **settings).loss
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(padded, labels=labels, **settings).loss
        loss.backward()
        assert abs(loss - exact) < exact * torch.finfo(torch.bfloat16).eps
    expected = reference_logits(model, ids)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(ids[:, :17], logits_to_keep=1)
        for position in range(17, 27):
            torch.testing.assert_close(
                output.logits[:, 0].float(), expected[:, position - 1], rtol=0.1, atol=0.1
            )
            output = model(ids[:, position : position + 1], past_key_values=output.past_key_values)


def test_layers_on_several_devices(make_model, ids, monkeypatch):
    """What a layer is called with goes to its device by accelerate's own rule, once for all layers there."""
    from accelerate.utils import send_to_device  # type: ignore[import-untyped]

    from phd.hf import modeling
    from phd.hf.steps import Step
    from phd.hf.steps.blocks import BlocksStep

    model = make_model("PHD-CSWA-3-5-12")
    settings = dict(model.config.to_dict(), phd_variant=f"PHD-CSWA-3-5-12+{HYBRID}")
    hybrid = PHDLlamaForCausalLM(PHDLlamaConfig(**settings)).eval()
    padded, mask = left_padded(ids, 6)
    steps = []
    layer = modeling.PHDLlamaDecoderLayer.forward

    def forward(self, *arguments, step, **settings):
        steps.append(step)
        return layer(self, *arguments, step=step, **settings)

    monkeypatch.setattr(modeling.PHDLlamaDecoderLayer, "forward", forward)
    static = PHDCache(model.config, max_cache_len=40)
    with torch.no_grad():
        model(padded, attention_mask=mask)
        hybrid(padded, attention_mask=mask)
        output = hybrid(padded[:, :20], attention_mask=mask[:, :20], logits_to_keep=1)
        hybrid(padded[:, 20:23], attention_mask=mask[:, :23], past_key_values=output.past_key_values)
        for columns in (slice(0, 20), slice(20, 21)):
            model(padded[:, columns], attention_mask=mask[:, : columns.stop], past_key_values=static)

    def tensors(x):
        """All in a step but what is for the host, and blocks, which are made where they are needed."""
        if isinstance(x, torch.Tensor):
            yield x
        elif isinstance(x, list | tuple):
            for part in x:
                yield from tensors(part)
        elif is_dataclass(x) or isinstance(x, Step):
            for name, value in vars(x).items():
                if name != "document_starts":
                    yield from tensors(value)

    for step in steps:
        moved = send_to_device({"step": step}, "meta")["step"]
        assert send_to_device(step, "meta") is moved
        assert len([*tensors(step)]) > 0
        assert {x.device.type for x in tensors(moved)} == {"meta"}
        if isinstance(step, BlocksStep):
            for rule in step.rules:
                there = moved.blocks(rule, torch.empty(0, device="meta"))
                assert {x.device.type for x in tensors(there)} == {"meta"}
                here = step.blocks(rule, padded.float())
                assert {x.device.type for x in tensors(here)} == {"cpu"}


def test_layers_on_disk(make_model, ids, tmp_path):
    """device_map: accelerate loads a layer when it is called."""
    from transformers import AutoModelForCausalLM

    model = make_model("PHD-CSWA-3-5-12")
    model.save_pretrained(tmp_path / "model")
    places = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    places |= {f"model.layers.{index}": "disk" if index else "cpu" for index in range(3)}
    spread = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "layers"
    )
    assert spread.model.layers[1].mlp.up_proj.weight.device.type == "meta"
    settings = {"max_new_tokens": 9, "do_sample": False}
    assert torch.equal(spread.generate(ids[:, :20], **settings), model.generate(ids[:, :20], **settings))


@pytest.mark.slow
def test_flex_attention(make_model, ids):
    """Another implementation of transformers' interface; the originals of a prompt run through it."""
    model = deepcopy(make_model("PHD-CSWA-3-5-12"))
    expected = reference_logits(model, ids)
    torch._dynamo.reset()
    model.set_attn_implementation("flex_attention")
    with torch.no_grad():
        output = model(ids[:, :25], logits_to_keep=1)
        assert_close(output.logits[:, 0], expected[:, 24])
        output = model(ids[:, 25:26], past_key_values=output.past_key_values)
        assert_close(output.logits[:, 0], expected[:, 25])


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (0, 0)])
def test_nothing(model, shape):
    """No samples or no columns: empty logits, with gradients or without, and a cache that goes on."""
    empty = torch.zeros(shape, dtype=torch.long)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            output = model(empty, attention_mask=torch.ones_like(empty), use_cache=True)
            assert output.logits.shape == (*shape, model.config.vocab_size)
            if grad:
                output.logits.sum().backward()
                model.zero_grad()
    assert model(empty, use_cache=False).past_key_values is None
    with pytest.raises(ValueError, match="prompts of shape .*: give at least one"):
        model.generate(empty)


def test_no_logits(model, ids):
    for keep in (torch.tensor([]), torch.tensor([], dtype=torch.long), torch.zeros(76, dtype=torch.bool)):
        assert model(ids, logits_to_keep=keep).logits.shape == (2, 0, model.config.vocab_size)


def test_a_step_without_columns_changes_nothing(model, expected, ids):
    with torch.no_grad():
        cache = model(ids[:, :20]).past_key_values
        model(ids[:, :0], past_key_values=cache)
        assert_close(model(ids[:, 20:21], past_key_values=cache).logits[:, 0], expected[:, 20])


def test_tuples(make_model, ids):
    """As Llama's: by the argument and by the configuration, of both classes."""
    model = deepcopy(make_model("PHD-CSWA-3-5-12"))
    states, logits = model.model(ids).last_hidden_state, model(ids).logits
    assert torch.equal(model.model(ids, return_dict=False)[0], states)
    model.config.return_dict = False
    assert isinstance(model.model(ids), tuple) and torch.equal(model.model(ids)[0], states)
    assert isinstance(model(ids), tuple) and torch.equal(model(ids)[0], logits)
    assert torch.equal(model(ids, return_dict=True).logits, logits)


@pytest.mark.parametrize(
    ("name", "value"),
    [("output_hidden_states", True), ("output_hidden_states", 0), ("output_attentions", True),
     ("is_causal", False)],
)  # fmt: skip
def test_what_is_not_offered_is_refused_by_either_way(make_model, ids, name, value):
    model = deepcopy(make_model("PHD-SWA-2-5-inf"))
    with pytest.raises(ValueError, match=name):
        model(ids, **{name: value})
    model.set_attn_implementation("eager")
    setattr(model.config, name, value)
    with pytest.raises(ValueError, match=name):
        model(ids)


@pytest.mark.parametrize("variant", ["vanilla", "PHD-CSWA-3-5-12"])
def test_fewer_layers(make_model, ids, variant):
    """A lowered num_hidden_layers leaves the last ones out, as in Llama."""
    model = deepcopy(make_model(variant))
    short = deepcopy(model)
    del short.model.layers[2:]
    short.config.num_hidden_layers = model.config.num_hidden_layers = 2
    whole = make_model(variant)(ids).logits
    with torch.no_grad():
        assert torch.equal(model(ids).logits, short(ids).logits)
        assert not torch.equal(model(ids).logits, whole)
        cache = model(ids[:, :9]).past_key_values
        assert_close(model(ids[:, 9:10], past_key_values=cache).logits, short(ids).logits[:, 9:10])
    assert len(cache.layers) == 2


def test_checkpointing_by_the_configuration(make_model, ids):
    """Checkpointing gives the same gradients, and returns no cache, which the backward would fill again."""
    model = deepcopy(make_model("PHD-CSWA-3-5-12")).train()
    config = deepcopy(model.config)
    config.gradient_checkpointing = True
    again = PHDLlamaForCausalLM(config).train()
    again.load_state_dict(model.state_dict())
    assert again.model.gradient_checkpointing
    for each in (model, again):
        output = each(ids[:, :20], labels=ids[:, :20], use_cache=True)
        output.loss.backward()
    assert output.past_key_values is None
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_one_seed_gives_llamas_weights():
    made = []
    for make in (
        lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
        lambda: PHDLlamaForCausalLM(PHDLlamaConfig(**SHAPE, phd_copies=2)),
    ):
        torch.manual_seed(3)
        made.append(make().state_dict())
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


def test_continuous_batching_is_refused(make_model):
    with pytest.raises(ValueError, match="continuous batching is not offered"):
        make_model("PHD-SWA-2-5-inf").generate_batch([[1, 2, 3]], max_new_tokens=2)
