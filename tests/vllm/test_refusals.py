"""What vLLM is refused for a PHD model: one line with flag and remedy. And the block size."""

import pytest

from phd.rules.variant import Variant
from phd.vllm.refusals import Asked, block_size, check_asked, check_variant, ring_slots

CSWA = Variant.parse("PHD-CSWA-2-16-32")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("naive-2", "naive repetition"),
        ("PHD-SWA-2-4-inf", "without chunks.*PHD-CSWA-2-4-C"),
        ("PHD-2+longgen-sink", "keep some keys only"),
        ("longgen-sink", "keep some keys only"),
        ("block-sparse.32.32.2", "keep some keys only"),
    ],
)
def test_variants_that_vllm_cannot_serve(name, words):
    with pytest.raises(ValueError, match=f"^phd_variant .*{words}.*`phd serve --engine transf") as error:
        check_variant(Variant.parse(name))
    assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["vanilla", "PHD-2", "PHD-CSWA-3-5-12+table"])
def test_variants_that_vllm_serves(name):
    check_asked(Variant.parse(name), Asked(), 4, 2)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"pipeline_parallel_size": 2}, "--pipeline-parallel-size 2.*--tensor-parallel-size"),
        ({"context_parallel_size": 2}, "--decode-context-parallel-size.*--tensor-parallel-size"),
        ({"enable_lora": True}, "--enable-lora.*merge the adapter"),
        ({"speculative_config": True}, "--speculative-config.*leave it out"),
        ({"kv_transfer_config": True}, "--kv-transfer-config.*leave it out"),
        ({"kv_cache_dtype": "fp8"}, "--kv-cache-dtype fp8.*leave it out"),
        ({"enable_dbo": True}, "--enable-dbo.*leave it out"),
        ({"pooling": True}, "--runner pooling.*leave it out"),
        ({"tensor_parallel_size": 3}, "--tensor-parallel-size 3.*take 1 or 2 or 4"),
    ],
)
def test_flags_that_hidden_copies_do_not_go_with(asked, words):
    with pytest.raises(ValueError, match=words) as error:
        check_asked(CSWA, Asked(**asked), 4, 2)
    assert "\n" not in str(error.value)
    check_asked(Variant.parse("vanilla"), Asked(**asked), 4, 2)  # vLLM's own affair


@pytest.mark.parametrize(
    ("name", "asked", "unit", "default", "expected"),
    [
        ("PHD-CSWA-2-16-32", {}, 32, 128, 128),
        ("PHD-CSWA-2-16-32", {}, 16, 16, 32),
        ("PHD-CSWA-3-5-12", {}, 32, 128, 192),  # the least common multiple of 12 and 32 is 96
        ("PHD-CSWA-9-16-16", {}, 16, 16, 128),  # a ring of 16 * 8
        ("PHD-2", {}, 16, 16, 16),
        ("PHD-2", {"block_size": 48}, 16, 16, 48),
        ("PHD-CSWA-3-5-12", {"block_size": 32, "enable_prefix_caching": False}, 32, 128, 32),
    ],
)
def test_block_size(name, asked, unit, default, expected):
    assert block_size(Variant.parse(name), Asked(**asked), unit, default) == expected


@pytest.mark.parametrize(
    ("name", "asked", "words"),
    [
        ("PHD-CSWA-3-5-12", {"block_size": 32}, "--block-size 32 is no multiple of the chunk.*12: take 48"),
        ("PHD-CSWA-9-16-16", {"block_size": 112}, "--block-size 112 is no room for.*take 128"),
        ("PHD-CSWA-4-16-32", {"block_size": 32}, "--block-size 32 is no room for.*take 64"),
        ("PHD-2", {"block_size": 40}, "--block-size 40 is no multiple of 16.*take 16"),
        (
            "PHD-CSWA-2-16-32",
            {"prefix_match_unit": 16},
            "--prefix-match-unit 16 is no.*leave it out",
        ),
    ],
)
def test_block_size_refused(name, asked, words):
    with pytest.raises(ValueError, match=words):
        block_size(Variant.parse(name), Asked(**asked), 16, 16)


def test_another_release_is_refused_when_a_model_is_read():
    from phd.vllm.other_release import refusing_config

    with pytest.raises(ValueError, match=r"vLLM 0.33.0: .* with vLLM 0.32 alone.*make serve-vllm"):
        refusing_config("0.33.0").from_dict({"model_type": "phd_llama", "phd_variant": "PHD-2"})


@pytest.mark.parametrize(("block", "slots"), [(32, 8), (96, 6), (48, 6), (192, 6), (64, 8), (112, 7)])
def test_rings_divide_a_block(block, slots):
    """Or prefix hits would end at common multiples alone."""
    assert ring_slots(Variant.parse("PHD-CSWA-2-7-16"), block) == slots
    assert ring_slots(Variant.parse("PHD-2"), block) == 0
