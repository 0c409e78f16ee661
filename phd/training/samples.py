"""Texts that a model under training continues, greedily, at every validation."""

from argparse import Namespace
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from megatron.training import get_tokenizer


def refuse_samples(args: Namespace) -> None:
    """Check that --sample-prompts can run; Megatron's flags are parsed and not yet validated.

    Raises:
        ValueError: the model is spread over ranks in a way that this simple decoding does not follow, or
            takes batches of one size only.
    """
    if not args.sample_prompts:
        return
    for size, flag in (
        (args.pipeline_model_parallel_size, "--pipeline-model-parallel-size"),
        (args.context_parallel_size, "--context-parallel-size"),
    ):
        if size > 1:
            raise ValueError(
                f"--sample-prompts does not run with {flag} {size}: leave it out, use `phd generate`"
            )
    for one_size, flag in (
        (args.cuda_graph_impl == "local", "--cuda-graph-impl local"),
        (args.tp_comm_overlap, "--tp-comm-overlap"),
    ):
        if one_size:
            raise ValueError(f"--sample-prompts does not run with {flag}: leave it out, use `phd generate`")


@torch.no_grad()
def continue_prompts(model: torch.nn.Module, args: Namespace) -> list[dict[str, str]]:
    """The prompts of --sample-prompts and what ``model`` makes of them, --sample-tokens tokens each.

    No key-value cache: the whole sequence again for each token, which for a few samples is nothing beside the
    validation. Every rank must call it; the data-parallel ones do the same work.
    """
    tokenizer = get_tokenizer()
    prompts = [tokenizer.tokenize(text) for text in args.sample_prompts]
    prompts = [ids[: args.seq_length - 1] or [tokenizer.eod] for ids in prompts]
    length = args.seq_length
    tokens = torch.full((len(prompts), length), tokenizer.eod, dtype=torch.long, device="cuda")
    for row, ids in enumerate(prompts):
        tokens[row, : len(ids)] = torch.tensor(ids)
    ends = torch.tensor([len(ids) for ids in prompts], device="cuda")
    rows = torch.arange(len(prompts), device="cuda")
    positions = torch.arange(length, device="cuda").expand(len(prompts), length)
    was_training = model.training
    model.eval()
    for _ in range(args.sample_tokens):
        if int(ends.max()) == length:
            break
        logits = model(tokens, positions, None)[rows, ends - 1]  # [prompts, v / TP]
        if parallel_state.get_tensor_model_parallel_world_size() > 1:
            logits = gather_from_tensor_model_parallel_region(logits)
        tokens[rows, ends] = logits[:, : tokenizer.vocab_size].argmax(-1)
        ends += 1
    model.train(was_training)
    texts = [_text(tokenizer, tokens[row, : ends[row]].tolist(), len(ids)) for row, ids in enumerate(prompts)]
    return [{"prompt": prompt, "text": text} for prompt, text in zip(args.sample_prompts, texts, strict=True)]


def _text(tokenizer: Any, ids: list[int], prompt_length: int) -> str:
    """The text after the prompt, up to the end of the document."""
    new = ids[prompt_length:]
    if tokenizer.eod in new:
        new = new[: new.index(tokenizer.eod)]
    # decoded as a whole: the first piece after the prompt may begin with a space that it would lose alone
    prompt = tokenizer.detokenize(ids[:prompt_length])
    return tokenizer.detokenize(ids[:prompt_length] + new).removeprefix(prompt)
