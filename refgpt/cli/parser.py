"""The parser of ``refgpt`` and of its commands: argparse with suggestions for mistyped words."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from refgpt._common.wording import did_you_mean, listed, shown, told

#: What options want, by what makes it of a text.
NUMBERS: dict[Any, str] = {int: "a whole number", float: "a number"}


class CommandParser(argparse.ArgumentParser):
    """An ``argparse.ArgumentParser`` that suggests the option or choice that was probably meant, with the command's own
    usage."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As in argparse, but left-over arguments are an error of this command, not of the whole program."""
        namespace, left = super().parse_known_args(args, namespace)
        for action in self._get_positional_actions():
            # argparse treats an optional positional as absent if options stand between it and the one before.
            absent = action.nargs == "?" and getattr(namespace, action.dest, None) == action.default
            if absent and left and not _is_option(left[0]):
                action(self, namespace, left.pop(0), None)
        if left:
            self.error(self._unknown(left))
        return namespace, left

    def option_strings(self) -> list[str]:
        """Every option, in its short and long forms."""
        return [string for action in self._actions for string in action.option_strings]

    def flags(self) -> dict[str, str]:
        """The long form of each option, keyed by the attribute that holds its value."""
        return {
            action.dest: next((s for s in action.option_strings if s.startswith("--")), action.option_strings[0])
            for action in self._actions
            if action.option_strings
        }

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, in one readable line, and exit with 2."""
        super().error(told(message))

    def _unknown(self, left: Sequence[str]) -> str:
        options = [text for text in left if _is_option(text)]
        if not options:
            return f"unexpected argument {listed(left[:1])}; put a text that has spaces in quotes"
        name = options[0].partition("=")[0]
        known = self.option_strings()
        hint = did_you_mean(name, known) or f"; {self.prog} --help lists the options"
        return f"unknown option {listed([name])}{hint}"

    def _get_option_tuples(self, option_string: str) -> Any:
        """As in argparse, but several names of one option do not make its beginning ambiguous."""
        found = super()._get_option_tuples(option_string)
        return found[:1] if len({id(match[0]) for match in found}) == 1 else found

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError:
            choices = [str(choice) for choice in action.choices or ()]
            hint = did_you_mean(str(value), choices)
            message = f"there is no {listed([str(value)])}; choose from {', '.join(choices)}{hint}"
            raise argparse.ArgumentError(action, message) from None

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError:
            wanted = NUMBERS.get(action.type)
            if wanted is None:
                raise
            raise argparse.ArgumentError(action, f"got {shown(arg_string)}; wanted {wanted}") from None

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if action.option_strings and action.nargs is None and arg_strings == ["--"]:
            # For example --labels=--: before Python 3.13, argparse drops the value and then fails because there is
            # none.
            value = self._get_value(action, "--")
            self._check_value(action, value)
            return value
        return super()._get_values(action, arg_strings)


def _is_option(text: str) -> bool:
    return len(text) > 1 and text.startswith("-")
