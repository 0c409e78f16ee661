"""`python -m data_tools` is `phd data`."""

import argparse
import sys

from data_tools.cli import add_subcommands

parser = argparse.ArgumentParser(prog="python -m data_tools", description="Text to Megatron data sets")
add_subcommands(parser)
args = parser.parse_args()
try:
    sys.exit(args.run(args))
except (ValueError, FileNotFoundError) as error:
    sys.exit(f"data_tools: error: {error}")
