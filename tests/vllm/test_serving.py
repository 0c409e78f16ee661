"""An exported folder in vLLM, through its scheduler and caches, gives phd.hf's greedy tokens exactly."""

import pytest
import torch

from tests.vllm.conftest import SETTINGS, random_prompts, run_worker

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

NEW = 40
PROMPTS = random_prompts(1, 2, 7, 31, 40, 64, 100, 150)
(COMMON,) = random_prompts(96, seed=1)
PROMPTS += [COMMON + rest for rest in random_prompts(1, 17, 40, seed=2)]
MANY = random_prompts(*range(1, 65, 2), seed=3)
SPLIT = {"max_num_batched_tokens": 37}
FEW = SPLIT | {"num_gpu_blocks_override": 20}
EVERYWHERE = {"additional_config": {"phd_all_positions": True}}
VARIANTS = (
    *("PHD-2", "PHD-CSWA-2-4-8", "PHD-CSWA-3-4-8+vector", "PHD-CSWA-4-7-16", "PHD-CSWA-2-16-32"),
    *("PHD-CSWA-4-3-6+table", "vanilla"),
)
"""The last chunk does not divide a block of 32. The vanilla one goes through our class, as PHDLlama."""
REFUSED: dict[str, tuple[dict, str]] = {
    "pipeline": ({"pipeline_parallel_size": 2}, "--pipeline-parallel-size 2"),
    "lora": ({"enable_lora": True}, "--enable-lora"),
    "drafts": (
        {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}},
        "--speculative-config",
    ),
    "offloading": ({"kv_offloading_size": 1.0}, "--kv-transfer-config or --kv-offloading-size"),
    "fp8": ({"kv_cache_dtype": "fp8"}, "--kv-cache-dtype fp8"),
    "pooling": ({"runner": "pooling"}, "--runner pooling"),
    "block": ({"block_size": 44}, "--block-size 44 is no multiple of the chunk"),
    "heads": ({"tensor_parallel_size": 8}, "tensor"),
    "positions": ({"additional_config": {"phd_all_positions": "yes"}}, "phd_all_positions must be true or"),
}


def cases(served) -> list[dict]:
    job = []

    def add(name: str, variant: str, prompts=PROMPTS, **more) -> None:
        job.append(
            {"name": name, "folder": str(served(variant)), "prompts": prompts, "max_tokens": NEW} | more
        )

    for variant in VARIANTS:
        settings: dict = FEW | ({"block_size": 96} if variant.startswith("PHD-CSWA-4-3-6") else {})
        add(f"{variant} few", variant, passes=2, settings=settings)
    for variant in VARIANTS[:2]:
        add(f"{variant} whole", variant, settings={"max_num_batched_tokens": 1024})
        add(f"{variant} split", variant, passes=2, settings=SPLIT)
    add("everywhere", "PHD-CSWA-4-7-16", settings=FEW | EVERYWHERE)
    add("aborts", "PHD-CSWA-3-4-8+vector", aborts=True, passes=2, settings=FEW)
    add("many", "PHD-CSWA-2-4-8", MANY, shuffled=True, passes=3, settings=SPLIT | {"max_num_seqs": 32})
    wide: dict = {"max_num_batched_tokens": 256}
    add("often", "PHD-CSWA-2-4-8", MANY[:25], max_tokens=4, passes=20, settings=wide)
    add("prompt", "PHD-CSWA-3-4-8+vector", PROMPTS[:6], max_tokens=2, prompt_logprobs=3, logprobs=3,
        settings=SPLIT | EVERYWHERE | {"enable_prefix_caching": False})  # fmt: skip
    add("no copies", "PHD-CSWA-3-4-8+vector", PROMPTS[3:4], max_tokens=1, prompt_logprobs=1)
    add("chosen", "PHD-CSWA-4-3-6+table", PROMPTS[:3], settings=wide | {"block_size": None})
    for name in ("window ignored", "ring not written"):
        add(name, "PHD-CSWA-2-16-32", mutation=name, settings=SPLIT)
    for name, (refused, _) in REFUSED.items():
        add(name, "PHD-CSWA-4-7-16", PROMPTS[:1], settings=refused)
    add("swa", "PHD-SWA-2-5-inf", PROMPTS[:1])
    add("hybrid", "longgen-sink.16.1.1", PROMPTS[:1])
    return job


@pytest.fixture(scope="module")
def outcome(served, vllm_python, tmp_path_factory):
    """Of all cases, in one process."""
    return run_worker(vllm_python, cases(served), tmp_path_factory.mktemp("job"))


def the(outcome: dict, name: str) -> dict:
    found = outcome[name]
    assert "error" not in found, found["traceback"]
    return found


def assert_nothing_is_held(found: dict) -> None:
    assert found["blocks_free"] == found["blocks"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_through_preemptions(outcome, continued, variant):
    """37 tokens a step, so borders anywhere; prefix hits; too few blocks for all requests at once."""
    found, expected = the(outcome, f"{variant} few"), continued(variant, PROMPTS, NEW)
    assert found["passes"] == [expected, expected]
    assert found["hits"] and not any(hit % found["block_size"] for hit in found["hits"])
    assert found["preemptions"] or found["block_size"] == 96
    assert_nothing_is_held(found)


@pytest.mark.parametrize("schedule", ["whole", "split"])
@pytest.mark.parametrize("variant", VARIANTS[:2])
def test_equal_in_one_step_and_in_many(outcome, continued, variant, schedule):
    found, expected = the(outcome, f"{variant} {schedule}"), continued(variant, PROMPTS, NEW)
    assert all(tokens == expected for tokens in found["passes"])


def test_equal_with_all_copies_at_all_positions(outcome, continued):
    assert the(outcome, "everywhere")["passes"] == [continued("PHD-CSWA-4-7-16", PROMPTS, NEW)]


def test_equal_after_aborts(outcome, continued):
    """Requests that ended in the middle of a prompt or an answer leave nothing behind."""
    found, expected = the(outcome, "aborts"), continued("PHD-CSWA-3-4-8+vector", PROMPTS, NEW)
    assert found["passes"] == [expected, expected]
    assert_nothing_is_held(found)


def test_equal_in_any_order(outcome, continued):
    expected = continued("PHD-CSWA-2-4-8", MANY, NEW)
    assert the(outcome, "many")["passes"] == [expected] * 3


def test_memory_does_not_grow(outcome):
    """500 requests."""
    resident = the(outcome, "often")["resident"]
    assert len(resident) == 20 and resident[-1] - resident[4] < 16 << 20


@pytest.mark.parametrize("mutation", ["window ignored", "ring not written"])
def test_mistakes_are_noticed(outcome, continued, mutation):
    (found,) = the(outcome, mutation)["passes"]
    expected = continued("PHD-CSWA-2-16-32", PROMPTS, NEW)
    assert sum(a == b for a, b in zip(found, expected, strict=True)) <= 1


def test_block_size_is_chosen(outcome, continued):
    found = the(outcome, "chosen")
    assert found["block_size"] == 192  # a multiple of 6 and of 32, from 128 on
    assert found["passes"] == [continued("PHD-CSWA-4-3-6+table", PROMPTS[:3], NEW)]


def test_log_probabilities(outcome, make_model):
    """Of prompts and answers, beside phd.hf's; the first position of a prompt has none."""
    found = the(outcome, "prompt")
    model = make_model("PHD-CSWA-3-4-8+vector", **SETTINGS)
    for prompt, answer, of_prompt, of_answer in zip(
        PROMPTS, found["passes"][0], found["prompt_logprobs"], found["logprobs"], strict=False
    ):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0]
        expected = logits.log_softmax(dim=-1)
        assert of_prompt[0] is None and len(of_prompt) + len(of_answer) == len(prompt) + len(answer)
        for position, values in enumerate([*of_prompt[1:], *of_answer]):
            for token, value in values.items():
                assert value == pytest.approx(expected[position, int(token)].item(), abs=1e-4)


def test_log_probabilities_without_copies_are_no_numbers(outcome):
    """Never those of a zero, which look like any other. Of 31 tokens the last 7 lie in one chunk of 8."""
    (values,) = the(outcome, "no copies")["prompt_logprobs"]
    found = [[x == "nan" for x in position.values()] for position in values[1:]]
    assert all(map(all, found[:24])) and not any(map(any, found[24:])) and len(found) == 30


def test_the_vanilla_model_is_stock(outcome, served, vllm_python, make_model, tmp_path):
    """Its weights as a Llama, which vLLM serves by itself."""
    from transformers import LlamaConfig

    model = make_model("vanilla", **SETTINGS)
    folder = tmp_path / "llama"
    model.save_pretrained(folder)
    settings = {k: v for k, v in model.config.to_dict().items() if not k.startswith(("phd_", "auto_map"))}
    config = LlamaConfig(**settings | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    config.save_pretrained(folder)
    job = [{"name": "stock", "folder": str(folder), "prompts": PROMPTS, "max_tokens": NEW, "settings": SPLIT}]
    found = run_worker(vllm_python, job, tmp_path)
    assert the(found, "stock")["passes"] == the(outcome, "vanilla few")["passes"][:1]


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(outcome, name):
    assert REFUSED[name][1] in outcome[name]["error"]


def test_models_refused_by_name(outcome):
    assert "without chunks" in outcome["swa"]["error"]
    assert "layers that keep some keys only" in outcome["hybrid"]["error"]
