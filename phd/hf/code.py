"""The files that an exported folder carries so that it loads without `phd`: our own, flat, with relative
imports.
"""

import importlib.util
import re
from pathlib import Path

MODULES = {
    "phd.hf.configuration": "configuration_phd",
    "phd.hf.modeling": "modeling_phd",
    "phd.hf.attend": "phd_attend",
    "phd.hf.cache": "phd_cache",
    "phd.hf.padding": "phd_padding",
    "phd.hf.plan": "phd_plan",
    "phd.hf.rows": "phd_rows",
    "phd.attention": "phd_attention",
    "phd.attention.band": "phd_band",
    "phd.attention.context_parallel": "phd_context_parallel",
    "phd.attention.flash": "phd_flash",
    "phd.attention.flex": "phd_flex",
    "phd.attention.full": "phd_full",
    "phd.attention.kept": "phd_kept",
    "phd.attention.kernels": "phd_kernels",
    "phd.attention.kernels.cpu": "phd_kernels_cpu",
    "phd.attention.kernels.cuda": "phd_kernels_cuda",
    "phd.attention.layout": "phd_layout",
    "phd.attention.memo": "phd_memo",
    "phd.attention.pattern": "phd_pattern",
    "phd.attention.reference": "phd_reference",
    "phd.attention.rule": "phd_rule",
    "phd.attention.sparse": "phd_sparse",
}
AUTO_MAP = {
    "AutoConfig": "configuration_phd.PHDLlamaConfig",
    "AutoModel": "modeling_phd.PHDLlamaModel",
    "AutoModelForCausalLM": "modeling_phd.PHDLlamaForCausalLM",
}
"""config.json's entry that tells transformers where the classes are."""


def write_code(folder: Path) -> None:
    """Put every module of ``MODULES`` into ``folder``."""
    for module, name in MODULES.items():
        spec = importlib.util.find_spec(module)
        assert spec is not None and spec.origin is not None
        source = Path(spec.origin).read_text(encoding="utf-8")
        (folder / f"{name}.py").write_text(_relative(source, module), encoding="utf-8")


def _relative(source: str, module: str) -> str:
    def local(match: re.Match) -> str:
        if match[2] not in MODULES:
            raise ValueError(f"{module} imports {match[2]}, which phd/hf/code.py does not list")
        return f"{match[1]}from .{MODULES[match[2]]} import"

    return re.sub(r"^( *)from (phd[\w.]*) import", local, source, flags=re.MULTILINE)
