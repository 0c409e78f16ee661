"""For another release of vLLM than ``phd.vllm`` was run with."""

from typing import Any

from phd.hf.configuration import PHDLlamaConfig
from phd.vllm import VLLM


def refusing_config(release: str) -> type[PHDLlamaConfig]:
    """A configuration that raises ValueError when a model's is read."""

    class OtherRelease(PHDLlamaConfig):
        def __init__(self, **kwargs: Any) -> None:
            raise ValueError(
                f"vLLM {release}: phd serves PHD models with vLLM {VLLM} alone, the release that was tested: "
                "install that one (make serve-vllm has it), or use `phd serve --engine transformers`"
            )

    return OtherRelease
