"""PHD-Transformers in transformers: importing this registers them with the Auto classes.

Under a transformers before 5.23, as vLLM brings one, that is the configuration alone.
"""

from typing import TYPE_CHECKING, Any

import transformers
from packaging.version import Version
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from phd.hf.configuration import PHDLlamaConfig

_OLDEST = "5.23"
"""transformers' release that the model needs."""

AutoConfig.register(PHDLlamaConfig.model_type, PHDLlamaConfig, exist_ok=True)

if TYPE_CHECKING or Version(transformers.__version__) >= Version(_OLDEST):
    from phd.hf.cache import PHDCache
    from phd.hf.modeling import PHDLlamaForCausalLM, PHDLlamaModel

    AutoModel.register(PHDLlamaConfig, PHDLlamaModel)
    AutoModelForCausalLM.register(PHDLlamaConfig, PHDLlamaForCausalLM)
else:

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        raise ImportError(
            f"phd.hf.{name} needs transformers {_OLDEST}, this is {transformers.__version__}: "
            f"pip install 'transformers~={_OLDEST}', in an environment without vLLM"
        )


__all__ = ["PHDCache", "PHDLlamaConfig", "PHDLlamaForCausalLM", "PHDLlamaModel"]
