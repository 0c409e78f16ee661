"""Fields of a foreign Hugging Face folder that make transformers load code or files from elsewhere: refused
by name, before transformers reads any of them.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILES = (
    *("config.json", "generation_config.json", "tokenizer_config.json"),
    *("processor_config.json", "preprocessor_config.json"),
)
_ATTENTION = ("eager", "sdpa", "flex_attention")
"""What transformers and torch have; any other name may be fetched from a hub and run."""
_OWN_CODE = ("configuration_phd.", "modeling_phd.")
_CODE = ("custom_generate", "custom_pipelines", "trust_remote_code", "assistant_model", "kernel_config")


def check_folder(folder: Path) -> None:
    """Raise ValueError if a file of ``folder`` asks for code or weights from elsewhere; names the field."""
    if (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"{folder} holds a peft adapter, which names another model: load that model, merge the adapter "
            "(peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()), save the result with its "
            "tokenizer, and give that folder"
        )
    for name in FILES:
        file = folder / name
        if not file.is_file():
            continue
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file} is not JSON ({error})") from error
        for key, value in _fields(content):
            if reason := _reason(name, key, value):
                raise ValueError(f"{file}: {key} = {json.dumps(value)[:80]}: {reason}: delete the field")


def _fields(content: Any) -> Iterator[tuple[str, Any]]:
    """Of all levels."""
    stack = [content]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            yield from item.items()
            stack += item.values()
        elif isinstance(item, list):
            stack += item


def _reason(file: str, key: str, value: Any) -> str | None:
    if value is None:
        return None
    if key in _CODE:
        return "it loads code or another model"
    if key.endswith(("_implementation", "_implementation_internal")):
        choices = value.values() if isinstance(value, dict) else [value]
        if any(choice not in _ATTENTION for choice in choices if choice is not None):
            return "it may load a kernel from a hub"
    if key == "auto_map":
        places = [
            place
            for entry in (value.values() if isinstance(value, dict) else [value])
            for place in (entry if isinstance(entry, list) else [entry])
            if place is not None
        ]
        if file != "config.json" or not all(str(place).startswith(_OWN_CODE) for place in places):
            return "it loads code that is not phd's"
    return None
