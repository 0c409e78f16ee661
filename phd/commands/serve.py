"""`phd serve`: an OpenAI-compatible server on loopback, transformers' or vLLM's, that knows PHD models."""

import argparse
import shlex
from argparse import Namespace
from pathlib import Path
from typing import NoReturn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `phd serve`."""
    parser.add_argument("model", type=Path, help="a Hugging Face folder, as `phd export` writes it")
    parser.add_argument(
        "--host", default="127.0.0.1", help="other addresses let others in: there is no password"
    )
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1; by default a GPU if there is one"
    )
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto")
    parser.add_argument(
        "--engine",
        choices=["transformers", "vllm"],
        default="transformers",
        help="whose server; vllm batches continuously, in an environment of its own (make serve-vllm)",
    )
    parser.add_argument(
        "--vllm-flags",
        default="",
        help='flags for vLLM\'s server, with an = between: --vllm-flags="--tensor-parallel-size 2"',
    )


def run(args: Namespace) -> int:
    """Serve until interrupted.

    Raises:
        ValueError: the folder is no model, or the server's packages are not installed.
    """
    if not 0 < args.port < 65536:
        raise ValueError(f"--port must be from 1 to 65535, got {args.port}")
    if not any((args.model / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise ValueError(f"{args.model} is not a Hugging Face folder: make one with `phd export`")
    if args.engine == "vllm":
        _serve_with_vllm(args)
    if args.vllm_flags:
        raise ValueError("--vllm-flags: flags of vLLM's server, which --engine vllm starts")
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        raise ValueError("the server's packages are not installed: pip install 'pretrain-phd[serve]'")
    from phd.hf.load import open_folder
    from phd.loading import chosen_device

    if args.device != "auto":
        chosen_device(args.device)
    if "@" in str(args.model):  # the server takes what follows for a revision
        raise ValueError(f"{args.model}: the server takes no folder with an @ in its name: give it by a link")
    open_folder(args.model)  # names what is wrong with it
    _check_tokenizer(args.model)
    from phd.serving.server import serve

    serve(args.model, args.host, args.port, args.device, args.dtype)
    return 0


def _serve_with_vllm(args: Namespace) -> NoReturn:
    from torch.cuda import is_available

    from phd.hf.load import open_folder
    from phd.vllm.launch import serve

    if args.device != "auto":
        raise ValueError(f"--device {args.device}: vLLM takes the device that it was built for: leave it out")
    config, _, _ = open_folder(args.model)
    _check_tokenizer(args.model)
    try:
        flags = shlex.split(args.vllm_flags)
    except ValueError as error:
        raise ValueError(f"--vllm-flags {args.vllm_flags}: {error}") from error
    serve(args.model, config, args.host, args.port, args.dtype, flags, cuda=is_available())


def _check_tokenizer(folder: Path) -> None:
    if not (folder / "tokenizer_config.json").is_file():
        raise ValueError(f"{folder} has no tokenizer, which a server needs: export it with one")
