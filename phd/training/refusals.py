"""Megatron's refusals of flags, put into words of the command line. Megatron asserts, often without a
message, raises errors of many kinds, or ends the process. In every case the statement that failed names the
arguments at fault.
"""

import ast
import contextlib
from argparse import Namespace
from collections.abc import Iterator
from traceback import StackSummary, extract_tb

from phd.training.flags import Flags

OWNERS = ("args", "self", "config")
"""What Megatron calls the object whose attributes are arguments."""


@contextlib.contextmanager
def in_our_words(args: Namespace, flags: Flags) -> Iterator[None]:
    """Around calls of Megatron that look at arguments and nothing else, so that what they raise is the flags'
    fault.

    Raises:
        ValueError: instead of any error, and of the end of the process; names the flags.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        raise ValueError(_refusal(error, args, flags)) from error


def _refusal(error: BaseException, args: Namespace, flags: Flags) -> str:
    around = _statements(extract_tb(error.__traceback__), flags)
    at_fault = _arguments(around[0], flags) if around else []
    conditions = [name for statement in around[1:] for name in _arguments(statement, flags)]
    named = [*at_fault, *(name for name in conditions if flags.changed(name, args))]
    text = "" if isinstance(error, SystemExit) else " ".join(str(error).split())
    if isinstance(error, KeyError):
        text = f"{text} is not known"
    if not text and around and isinstance(around[0], ast.Assert):
        text = f"it wants {_in_flags(around[0].test, flags)}"
    shown = ", ".join(flags.shown(name, args) for name in dict.fromkeys(named))
    if not text or not shown:
        return f"Megatron refuses these flags: {text or shown or type(error).__name__}"
    return f"Megatron refuses these flags: {text} ({shown})"


def _statements(frames: StackSummary, flags: Flags) -> list[ast.stmt]:
    """The statement at which the error arose, and those around it, from the inside out; of the innermost
    function where one of them names an argument, without what names none inside of it.
    """
    for frame in reversed(frames):
        try:
            with open(frame.filename, encoding="utf-8") as file:
                tree = ast.parse(file.read())
        except (OSError, SyntaxError):  # of an extension, or made at run time
            continue
        around = [
            node
            for node in ast.walk(tree)  # from the outside in
            if isinstance(node, ast.stmt)
            and frame.lineno is not None
            and node.lineno <= frame.lineno <= (node.end_lineno or node.lineno)
        ]
        inside_out = list(reversed(around))
        for number, statement in enumerate(inside_out):
            if _arguments(statement, flags):
                return inside_out[number:]
    return []


def _arguments(statement: ast.stmt, flags: Flags) -> list[str]:
    """Arguments of flags in a statement, of an ``if`` in its condition; each once, in their order."""
    found = [
        node.attr
        for node in ast.walk(_head(statement))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in OWNERS
        and node.attr in flags
    ]
    return list(dict.fromkeys(found))


def _head(statement: ast.stmt) -> ast.AST:
    """A statement without the statements in it."""
    match statement:
        case ast.If() | ast.While() | ast.Assert():
            return statement.test
        case ast.For():
            return statement.iter
        case ast.With() | ast.Try() | ast.FunctionDef() | ast.ClassDef():
            return ast.Pass()
    return statement


def _in_flags(condition: ast.expr, flags: Flags) -> str:
    """The condition as text, with flags for arguments: ``--min-lr <= --lr``."""

    class ToFlags(ast.NodeTransformer):
        def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
            known = isinstance(node.value, ast.Name) and node.value.id in OWNERS and node.attr in flags
            return ast.Name(flags.name(node.attr)) if known else node

    text = ast.unparse(ToFlags().visit(condition))
    return text.replace(" is not None", " to be given").replace(" is None", " not to be given")
