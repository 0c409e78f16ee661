"""The harness's model where vLLM's server runs it (`phd serve --engine vllm`), over HTTP."""

import json
import math
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from tqdm import tqdm

from phd.evaluation.harness import CachedLM, Request

AT_ONCE = 32
"""Requests that the server has at a time."""
PATIENCE_S = 3600
ALL_POSITIONS = "--vllm-flags='--additional-config={\"phd_all_positions\":true}'"


class Server:
    """vLLM's, at ``url``, with the model of ``folder``.

    Raises:
        ValueError: nobody answers there, or with another model.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url.rstrip("/"), folder
        (entry,) = self._call("/v1/models")["data"][:1]
        self.name, self.context = entry["id"], entry["max_model_len"]
        if Path(self.name).resolve() != folder.resolve():
            raise ValueError(f"--server {url} serves {self.name}, not {folder}: start one with {folder}")

    def complete(self, **body: Any) -> dict[str, Any]:
        """The one answer to a request.

        Raises:
            ValueError: it is refused.
        """
        answer = self._call("/v1/completions", {"model": self.name, "temperature": 0} | body)
        (choice,) = answer["choices"]
        return choice

    def _call(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            if "not JSON compliant: nan" in text:
                raise ValueError(
                    f"--server {self.url} has no log-probabilities of prompts: start it with `phd serve "
                    f"{self.folder} --engine vllm {ALL_POSITIONS}`"
                ) from error
            raise ValueError(f"--server {self.url} refuses a request: {' '.join(text.split())}") from error
        except OSError as error:
            raise ValueError(
                f"--server {self.url} does not answer ({error}): start it with `phd serve {self.folder} "
                f"--engine vllm {ALL_POSITIONS}`"
            ) from error


class ServedLM(CachedLM):
    """``CachedLM`` whose numbers come from a server. The answer's last token is read too, and vLLM keeps room
    for one more: the longest prompt is two tokens shorter than the model's context.

    Args:
        model: with the configuration alone, on the meta device.
    """

    def __init__(self, model: Any, tokenizer: Any, server: Server) -> None:
        super().__init__(model, tokenizer, batch_size=1, max_length=server.context - 2)
        self.server = server

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        for index, (_, context, continuation) in enumerate(requests):
            self._check_length(index, len(context) + len(continuation))
        return self._map(self._score, requests, disable_tqdm)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        self._check_room(requests)
        return self._map(self._generate, requests, disable_tqdm)

    def _map(self, function: Any, requests: list[Any], disable_tqdm: bool) -> list[Any]:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            answers = pool.map(function, requests)
            return [*tqdm(answers, total=len(requests), disable=disable_tqdm, desc="from the server")]

    def _score(self, request: Request) -> tuple[float, bool]:
        _, context, continuation = request
        tokens = context + continuation
        found = self.server.complete(prompt=tokens, max_tokens=1, prompt_logprobs=1)["prompt_logprobs"]
        chosen = [found[place][str(tokens[place])] for place in range(len(context), len(tokens))]
        total = math.fsum(x["logprob"] for x in chosen)
        return total, all(x["rank"] == 1 for x in chosen)

    def _generate(self, request: Instance) -> str:
        prompt, settings = request.args
        settings = normalize_gen_kwargs(settings, self.max_gen_toks)
        stop = handle_stop_sequences(settings.get("until"), self.tok_decode([self.eot_token_id]))
        answer = self.server.complete(
            prompt=self.tok_encode(prompt), max_tokens=settings["max_gen_toks"], stop=[x for x in stop if x]
        )
        return answer["text"]


def make_empty(folder: Path) -> Any:
    """The folder's model without memory for its weights, which the harness asks for and does not run."""
    from transformers import AutoModelForCausalLM

    from phd.hf.load import open_folder

    config, _, _ = open_folder(folder)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).eval()
