"""PHD-Transformers in transformers: importing this registers them with the Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from phd.hf.cache import PHDCache
from phd.hf.configuration import PHDLlamaConfig
from phd.hf.modeling import PHDLlamaForCausalLM, PHDLlamaModel

AutoConfig.register(PHDLlamaConfig.model_type, PHDLlamaConfig)
AutoModel.register(PHDLlamaConfig, PHDLlamaModel)
AutoModelForCausalLM.register(PHDLlamaConfig, PHDLlamaForCausalLM)

__all__ = ["PHDCache", "PHDLlamaConfig", "PHDLlamaForCausalLM", "PHDLlamaModel"]
