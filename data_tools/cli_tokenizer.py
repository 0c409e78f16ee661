"""The flags that name a tokenizer."""

import argparse
from pathlib import Path


def add_tokenizer(parser: argparse.ArgumentParser, *, required: bool, purpose: str) -> None:
    """--tokenizer-model and --tiktoken-pattern."""
    parser.add_argument(
        "--tokenizer-model",
        type=Path,
        required=required,
        help=f"{purpose}: SentencePiece .model, Hugging Face tokenizer.json or its folder, tiktoken "
        ".tiktoken or .json",
    )
    parser.add_argument(
        "--tiktoken-pattern",
        help="v1 or v2 of Megatron's TikTokenizer; r50k_base, cl100k_base, o200k_base or llama3 (Llama 3's "
        "tokenizer.model) of ranks",
    )
