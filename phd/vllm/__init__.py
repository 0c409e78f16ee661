"""PHD-Transformers in vLLM: its plugin, behind the entry point ``vllm.general_plugins``.

vLLM calls ``register`` in each of its processes. Whatever it imports, a server of any other model waits for.
"""

VLLM = "0.32"
"""The release that this was run with: what it builds on changes with every one."""


def register() -> None:
    """Tell vLLM of our configuration, model and checks. Under another release reading a PHD model's
    configuration raises ValueError; other models are served as ever.
    """
    import transformers
    import vllm

    if vllm.__version__.split("+")[0].rsplit(".", 1)[0] != VLLM:
        from phd.vllm.other_release import refusing_config

        transformers.AutoConfig.register("phd_llama", refusing_config(vllm.__version__), exist_ok=True)
        return
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    import phd.hf  # noqa: F401 (registers the configuration)
    from phd.vllm.settings import PHDSettings

    MODELS_CONFIG_MAP["PHDLlamaForCausalLM"] = PHDSettings
    ModelRegistry.register_model("PHDLlamaForCausalLM", "phd.vllm.model:PHDLlamaForCausalLM")
