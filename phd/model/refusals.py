"""What Megatron says to flags that it refuses, in words of the command line.

It asserts, often without a text, raises errors of many kinds, or ends the process. Whatever it is, the
statement that failed names the arguments at fault.
"""

import ast
import contextlib
from argparse import Namespace
from collections.abc import Iterator
from traceback import StackSummary, extract_tb

from phd.model.flags import Flags

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
    statement = _failed_statement(extract_tb(error.__traceback__))
    named = [name for name in _arguments(statement) if name in flags]
    text = "" if isinstance(error, SystemExit) else " ".join(str(error).split())
    if isinstance(error, KeyError):
        text = f"{text} is not known"
    if not text and isinstance(statement, ast.Assert):
        text = f"it wants {_in_flags(statement.test, flags)}"
    shown = ", ".join(flags.shown(name, args) for name in named)
    if not text or not shown:
        return f"Megatron refuses these flags: {text or shown or type(error).__name__}"
    return f"Megatron refuses these flags: {text} ({shown})"


def _failed_statement(frames: StackSummary) -> ast.stmt | None:
    """The innermost statement at which the error arose; where it names no argument, as under an ``if``, the
    one around it.
    """
    for frame in reversed(frames):
        try:
            with open(frame.filename, encoding="utf-8") as file:
                tree = ast.parse(file.read())
        except (OSError, SyntaxError):  # of an extension, or made at run time
            continue
        around = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.stmt)
            and not isinstance(node, (ast.FunctionDef, ast.ClassDef))
            and frame.lineno is not None
            and node.lineno <= frame.lineno <= (node.end_lineno or node.lineno)
        ]
        for statement in reversed(around):  # ast.walk goes from the outside in
            if _arguments(statement):
                return statement
    return None


def _arguments(statement: ast.stmt | None) -> list[str]:
    """Names of the arguments in a statement, of an ``if`` in its condition; each once, in their order."""
    if statement is None:
        return []
    found = [
        node.attr
        for node in ast.walk(_head(statement))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in OWNERS
    ]
    return list(dict.fromkeys(found))


def _head(statement: ast.stmt) -> ast.AST:
    """A statement without the statements in it."""
    match statement:
        case ast.If() | ast.While() | ast.Assert():
            return statement.test
        case ast.For():
            return statement.iter
        case ast.With() | ast.Try():
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
