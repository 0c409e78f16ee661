"""`python -m data_tools` is `phd data`."""

import argparse
import io
import sys

from data_tools.cli import add_subcommands


def main() -> int:
    """Run one subcommand; bad input is one line on stderr and status 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a locale may lack letters of a text, or of a path
    parser = argparse.ArgumentParser(prog="python -m data_tools", description="Text to Megatron data sets")
    add_subcommands(parser)
    args = parser.parse_args()
    try:
        return args.run(args)
    except (ValueError, OSError) as error:
        print(f"data_tools: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("data_tools: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
