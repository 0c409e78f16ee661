"""Arguments as a user types them: which flag sets one, and what it was given."""

from argparse import Action, ArgumentParser, Namespace
from typing import Any, NoReturn


class Flags:
    """The flags of a parser, by the names of the arguments that they set."""

    def __init__(self, parser: ArgumentParser) -> None:
        self._actions: dict[str, Action] = {}
        for action in parser._actions:
            if action.option_strings:
                self._actions.setdefault(action.dest, action)

    def __iter__(self) -> Any:
        return iter(self._actions)

    def __contains__(self, name: str) -> bool:
        return name in self._actions

    def name(self, argument: str) -> str:
        """``fp8_param_gather`` -> ``--fp8-param-gather``."""
        return self._actions[argument].option_strings[0]

    def default(self, argument: str) -> Any:
        return self._actions[argument].default

    def changed(self, argument: str, args: Namespace) -> bool:
        """Whether it has another value than without its flag."""
        return getattr(args, argument, self.default(argument)) != self.default(argument)

    def shown(self, argument: str, args: Namespace) -> str:
        """The flag with its value: ``--seq-length 64``, ``--swiglu``, ``--lr (not given)``."""
        value, flag = getattr(args, argument, None), self.name(argument)
        if self._actions[argument].nargs == 0:
            return flag if self.changed(argument, args) else f"{flag} (not given)"
        if value is None:
            return f"{flag} (not given)"
        values = value if isinstance(value, (list, tuple)) else [value]
        return " ".join([flag, *(str(each) or '""' for each in values)])


def one_line_errors(parser: ArgumentParser) -> None:
    """Let a flag that the parser refuses end in a ValueError: its own way out prints all eight hundred
    flags first.
    """

    def error(message: str) -> NoReturn:
        raise ValueError(f"{message} (--help lists all flags)")

    setattr(parser, "error", error)  # noqa: B010
