"""The files that an exported folder carries so that it loads without `phd`: our own, flat, with relative
imports.
"""

import importlib.util
import re
from functools import cache
from pathlib import Path

AUTO_MAP = {
    "AutoConfig": "configuration_phd.PHDLlamaConfig",
    "AutoModel": "modeling_phd.PHDLlamaModel",
    "AutoModelForCausalLM": "modeling_phd.PHDLlamaForCausalLM",
}
"""config.json's entry that tells transformers where the classes are."""
ENTRIES = {"phd.hf.configuration": "configuration_phd", "phd.hf.modeling": "modeling_phd"}
"""The modules with these classes, and their files' names."""
IMPORT = re.compile(r"^( *)from (phd[\w.]*) import", re.MULTILINE)


def write_code(folder: Path) -> None:
    """Put every module of ``carried`` into ``folder``."""
    names = carried()
    for module, name in names.items():
        source = IMPORT.sub(lambda match: f"{match[1]}from .{names[match[2]]} import", _source(module))
        (folder / f"{name}.py").write_text(source, encoding="utf-8")


@cache
def carried() -> dict[str, str]:
    """Our modules that ``ENTRIES`` import, themselves or through others, and the names of their files."""
    names: dict[str, str] = {}
    waiting = [*ENTRIES]
    while waiting:
        module = waiting.pop()
        if module not in names:
            names[module] = ENTRIES.get(module) or _flat(module)
            waiting += [match[2] for match in IMPORT.finditer(_source(module))]
    assert len({*names.values()}) == len(names), f"two files of one name: {names}"
    return names


def _flat(module: str) -> str:
    """phd.attention -> phd_attention, phd.attention.kernels.cpu -> phd_kernels_cpu."""
    _, package, *path = module.split(".")
    return "_".join(["phd", *(path or [package])])


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).read_text(encoding="utf-8")
