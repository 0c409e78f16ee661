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
    if not (args.model / "config.json").is_file():
        raise ValueError(f"{args.model} is not a Hugging Face folder: make one with `phd export`")
    import transformers
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        raise ValueError("the server's packages are not installed: pip install 'pretrain-phd[serve]'")
    from transformers.cli.serve import Serve

    from phd.hf import PHDLlamaForCausalLM
    from phd.hf.load import open_folder

    open_folder(args.model)  # names what is wrong with it
    # The server looks a model's class up in transformers by its name, not through the Auto classes.
    setattr(transformers, PHDLlamaForCausalLM.__name__, PHDLlamaForCausalLM)
    print(f"http://{args.host}:{args.port}/v1/completions, model {args.model}", flush=True)
    Serve(force_model=str(args.model), host=args.host, port=args.port, device=args.device, dtype=args.dtype)
    return 0
