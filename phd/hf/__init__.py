"""PHD-Transformers in transformers: importing this registers them with AutoModelForCausalLM."""

from phd.hf.cache import PHDCache, kv_bytes
from phd.hf.configuration import PHDLlamaConfig
from phd.hf.modeling import PHDLlamaForCausalLM, PHDLlamaModel

__all__ = ["PHDCache", "PHDLlamaConfig", "PHDLlamaForCausalLM", "PHDLlamaModel", "kv_bytes"]
