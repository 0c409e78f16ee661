"""`phd serve`: transformers' own OpenAI-compatible server, on loopback, with PHD models known to it."""

import argparse
from argparse import Namespace
from pathlib import Path


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


def run(args: Namespace) -> int:
    """Serve until interrupted.

    Raises:
        ValueError: the folder is no model, or the server's packages are not installed.
    """
    if not 0 < args.port < 65536:
        raise ValueError(f"--port must be from 1 to 65535, got {args.port}")
    if not any((args.model / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise ValueError(f"{args.model} is not a Hugging Face folder: make one with `phd export`")
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
    if not (args.model / "tokenizer_config.json").is_file():
        raise ValueError(f"{args.model} has no tokenizer, which a server needs: export it with one")
    from phd.serving.server import serve

    serve(args.model, args.host, args.port, args.device, args.dtype)
    return 0
