"""The harness's Hugging Face model, with log-likelihoods of continuations computed from a cached context.

The choices of a question share their context: it is read once, for its last logits alone (so a PHD model
runs the hidden copies of its last chunk only), its cache is repeated, and only the choices run in full.

A prompt longer than the model's context is refused. The harness would cut its beginning off, and go on.
"""

from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from torch import Tensor
from tqdm import tqdm

from phd.hf.tokenizer import puts_bos_in_front

Request = tuple[tuple[str, str], list[int], list[int]]
"""((context, continuation), context ids, continuation ids)"""


class _TooLong(Exception):
    """Request number ``args[0]`` has ``args[1]`` tokens with its answer."""


class CachedLM(HFLM):
    """HFLM for a model and tokenizer that are loaded already; ``settings`` are further ones of HFLM.

    Raises:
        ValueError: a prompt is longer than ``max_length``. Names its task; nothing has been computed of the
            other requests of its kind.
    """

    def __init__(self, pretrained: Any, tokenizer: Any, **settings: Any) -> None:
        super().__init__(
            pretrained=pretrained,
            tokenizer=tokenizer,
            softmax_dtype="float32",  # logits in bf16 would be summed in bf16
            # what stands before a text without a context; None is the harness's choice, BOS
            prefix_token_id=None if puts_bos_in_front(tokenizer) else tokenizer.eos_token_id,
            **settings,
        )

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        try:
            return super().loglikelihood(requests, disable_tqdm)
        except _TooLong as error:
            index, tokens = error.args
            raise self._refusal(requests[index], f"{tokens:,} tokens with its answer") from None

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        self._check_room(requests)
        return super().generate_until(requests, disable_tqdm)

    def _check_room(self, requests: list[Instance]) -> None:
        for request in requests:
            prompt, settings = request.args
            tokens = len(self.tok_encode(prompt))
            room = normalize_gen_kwargs(settings, self.max_gen_toks)["max_gen_toks"]
            if tokens + room > self.max_length:
                raise self._refusal(request, f"{tokens:,} tokens, with {room:,} more to generate")

    def _check_length(self, index: int, tokens: int) -> None:
        if tokens - 1 > self.max_length:  # the last token of the answer is not read
            raise _TooLong(index, tokens)

    def _refusal(self, request: Instance, length: str) -> ValueError:
        return ValueError(
            f"{request.task_name}: a prompt has {length}, and the model reads at most {self.max_length:,}: "
            "take fewer --num-fewshot examples, other --tasks, or a model of a longer context"
        )

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        answers: dict[int, tuple[float, bool]] = {}
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, (_, context, continuation) in enumerate(requests):
            self._check_length(index, len(context) + len(continuation))
            if len(context) >= len(continuation):
                groups.setdefault(tuple(context), []).append(index)
        cached = {index for members in groups.values() for index in members}
        with tqdm(total=len(cached), disable=disable_tqdm or not cached, desc="from cached contexts") as bar:
            for batch in self._batches(groups):
                answers |= self._continue(batch, requests)
                bar.update(sum(len(members) for _, members in batch))
        rest = [index for index in range(len(requests)) if index not in cached]
        if rest:
            others = super()._loglikelihood_tokens([requests[i] for i in rest], disable_tqdm, override_bs)
            answers |= dict(zip(rest, others, strict=True))
        for index in cached:
            if requests[index][0] is not None:
                self.cache_hook.add_partial("loglikelihood", requests[index][0], answers[index])
        return [answers[index] for index in range(len(requests))]

    def _batches(self, groups: dict[tuple[int, ...], list[int]]) -> list[list[tuple[list[int], list[int]]]]:
        """Contexts with their requests, of about one length, up to ``batch_size`` requests at a time; those
        of one context in several batches if need be.
        """
        size = self.batch_size if isinstance(self.batch_size, int) else 16
        batches: list[list[tuple[list[int], list[int]]]] = []
        room = 0
        for context, indices in sorted(groups.items(), key=lambda item: -len(item[0])):
            for members in (indices[first : first + size] for first in range(0, len(indices), size)):
                if room < len(members):
                    batches.append([])
                    room = size
                batches[-1].append((list(context), members))
                room -= len(members)
        return batches

    @torch.inference_mode()
    def _continue(
        self, batch: list[tuple[list[int], list[int]]], requests: list[Request]
    ) -> dict[int, tuple[float, bool]]:
        """Sum of a continuation's log-probabilities, and whether each token is the likeliest."""
        lengths = torch.tensor([len(context) for context, _ in batch], device=self.device)
        longest = int(lengths.max())
        # [contexts, longest], padded on the left
        ids = torch.tensor([[0] * (longest - len(c)) + c for c, _ in batch], device=self.device)
        columns = torch.arange(longest, device=self.device)
        mask = (columns >= (longest - lengths)[:, None]).long()
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        output = self.model(
            ids, attention_mask=mask, position_ids=positions, logits_to_keep=1, use_cache=True
        )
        members = [index for _, indices in batch for index in indices]
        counts = torch.tensor([len(indices) for _, indices in batch], device=self.device)
        row = torch.arange(len(batch), device=self.device).repeat_interleave(counts)
        logits = output.logits[row].float()
        continuations = [requests[index][2] for index in members]
        most = max(map(len, continuations))
        # [requests, most], padded on the right, where nothing before sees it
        targets = torch.tensor([c + [0] * (most - len(c)) for c in continuations], device=self.device)
        if most > 1:
            cache = output.past_key_values
            cache.batch_select_indices(row)
            more = torch.ones_like(targets[:, 1:])
            following = lengths[row, None] + torch.arange(most - 1, device=self.device)
            output = self.model(
                targets[:, :-1],
                attention_mask=torch.cat([mask[row], more], dim=1),
                position_ids=following,
                past_key_values=cache,
            )
            logits = torch.cat([logits, output.logits.float()], dim=1)
        return dict(zip(members, _score(logits, targets, continuations), strict=True))


def _score(logits: Tensor, targets: Tensor, continuations: list[list[int]]) -> list[tuple[float, bool]]:
    """From logits [requests, tokens, v]."""
    chosen = logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    greedy = logits.argmax(-1) == targets
    return [
        (float(chosen[index, : len(tokens)].sum()), bool(greedy[index, : len(tokens)].all()))
        for index, tokens in enumerate(continuations)
    ]
