"""Run by vLLM's python: the cases of a job, one after another in one process, and what came out as JSON.

.venv-vllm/bin/python -m tests.vllm.worker JOB.json RESULT.json
"""

import json
import math
import os
import random
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_LOGGING_LEVEL"] = "WARNING"

SETTINGS = {
    "skip_tokenizer_init": True,
    "enforce_eager": True,
    "dtype": "float32",
    "kv_cache_memory_bytes": 32 << 20,
    "block_size": 32,
    "max_model_len": 256,
    "seed": 0,
}


def tokens_of(outputs: Any) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in outputs]


def run(case: dict[str, Any]) -> dict[str, Any]:
    from vllm import LLM, SamplingParams, TokensPrompt

    llm = LLM(case["folder"], **SETTINGS | case.get("settings", {}))
    prompts = [TokensPrompt(prompt_token_ids=prompt) for prompt in case["prompts"]]
    sampling = SamplingParams(
        temperature=0, max_tokens=case["max_tokens"], ignore_eos=True, detokenize=False,
        prompt_logprobs=case.get("prompt_logprobs"), logprobs=case.get("logprobs"),
    )  # fmt: skip
    result: dict[str, Any] = {"passes": []}
    preemptions, hits = counted(llm)
    for seed in range(case.get("passes", 1)):
        order = [*range(len(prompts))]
        if case.get("shuffled"):
            random.Random(seed).shuffle(order)
        if case.get("aborts"):
            abort_some(llm, prompts, sampling)
        outputs = llm.generate([prompts[i] for i in order], sampling, use_tqdm=False)
        found: list[Any] = [None] * len(prompts)
        for i, output in zip(order, outputs, strict=True):
            found[i] = output
        result["passes"].append(tokens_of(found))
        if case.get("prompt_logprobs") is not None:
            result["prompt_logprobs"] = [[numbers(x) for x in output.prompt_logprobs] for output in found]
        if case.get("logprobs") is not None:
            result["logprobs"] = [[numbers(x) for x in output.outputs[0].logprobs] for output in found]
        result.setdefault("resident", []).append(resident_bytes())
    result["preemptions"], result["hits"] = sum(preemptions), hits
    result["blocks_free"], result["blocks"] = blocks(llm)
    result["block_size"] = llm.llm_engine.vllm_config.cache_config.block_size
    return result


def numbers(logprobs: Any) -> dict[str, float | str] | None:
    """Of one position by token; as text what JSON has no number for. None of the first position."""
    if logprobs is None:
        return None
    values = {str(token): x.logprob for token, x in logprobs.items()}
    return {token: x if math.isfinite(x) else str(x) for token, x in values.items()}


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def scheduler(llm: Any) -> Any:
    return llm.llm_engine.engine_core.engine_core.scheduler


def blocks(llm: Any) -> tuple[int, int]:
    pool = scheduler(llm).kv_cache_manager.block_pool
    return pool.get_num_free_blocks(), pool.num_gpu_blocks - 1


def counted(llm: Any) -> tuple[list[int], list[int]]:
    """Lists that grow with each preemption (1) and each prefix hit (its tokens)."""
    preemptions: list[int] = []
    hits: list[int] = []
    one = scheduler(llm)
    preempt, lookup = one._preempt_request, one.kv_cache_manager.get_computed_blocks

    def preempted(*args: Any, **kwargs: Any) -> Any:
        preemptions.append(1)
        return preempt(*args, **kwargs)

    def looked_up(*args: Any, **kwargs: Any) -> Any:
        found = lookup(*args, **kwargs)
        if found[1]:
            hits.append(found[1])
        return found

    one._preempt_request, one.kv_cache_manager.get_computed_blocks = preempted, looked_up
    return preemptions, hits


def abort_some(llm: Any, prompts: list[Any], sampling: Any) -> None:
    """Start all prompts, and abort every one in the middle of its prompt or its answer."""
    engine = llm.llm_engine
    names = [
        engine.add_request(f"aborted-{index}", prompt, sampling) or f"aborted-{index}"
        for index, prompt in enumerate(prompts)
    ]
    for name in names:
        engine.step()
        engine.abort_request([name])
    while engine.has_unfinished_requests():
        engine.step()


@contextmanager
def mutated(name: str | None) -> Iterator[None]:
    """A mistake that the comparison must notice."""
    from phd.vllm import hidden, model

    attention: Any = model.PHDAttention
    make, write = hidden.make_plan, attention._write_ring

    def narrow(*args: Any, **kwargs: Any) -> Any:
        plan = make(*args, **kwargs)
        plan.seen[:, 1:] = False
        return plan

    if name == "window ignored":
        hidden.make_plan = narrow
    elif name == "ring not written":
        attention._write_ring = lambda self, new: None
    else:
        assert name is None
    yield
    hidden.make_plan, attention._write_ring = make, write


def main() -> None:
    job, result = map(Path, sys.argv[1:])
    found = {}
    for case in json.loads(job.read_text()):
        try:
            with mutated(case.get("mutation")):
                found[case["name"]] = run(case)
        except Exception as error:
            line = f"{type(error).__name__}: {error}"
            found[case["name"]] = {"error": line, "traceback": traceback.format_exc()}
        result.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
