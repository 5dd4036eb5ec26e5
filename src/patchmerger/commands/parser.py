"""The parser of a subcommand: options from the fields of its dataclass, errors in one line, close names for typos."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Any, NoReturn, get_type_hints

from docstring_parser import parse as parse_docstring
from jsonargparse import ActionConfigFile, ArgumentParser

_CONFIGS = (".yaml", ".yml", ".json")


class CommandParser(ArgumentParser):
    """A parser whose errors are one line, with close names for an option that does not exist."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the line and leave with exit status 2."""
        if not self.exit_on_error:  # one of those that jsonargparse makes for a nested class
            super().error(message, ex)
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            option = unknown.split()[0].split("=")[0]
            known = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
            kind = "no option" if option.startswith("-") else "no place for"
            message = f"{kind} {option}{close_names(option, known)}"
        lines = (line.strip().removeprefix("- ") for line in message.splitlines())
        self.exit(2, f"{self.prog}: {' '.join(filter(None, lines))}; {self.prog} --help lists the options\n")


def make_parser(name: str, command: type[Any], summary: str, usage: str = "") -> CommandParser:
    """The parser of one subcommand.

    Args:
        name: The subcommand.
        command: Its dataclass, whose fields are the options.
        summary: What it does, in a line.
        usage: What stands before the options: then the first field is positional, and takes several words where it
            is a list.
    """
    parser = CommandParser(
        prog=f"patchmerger {name}",
        usage=" ".join(["patchmerger", name, *([usage] if usage else []), "[options]"]),
        description=f"{summary[0].upper()}{summary[1:]}.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", action=ActionConfigFile, help="Read options from a YAML file.")
    first = fields(command)[0].name
    several = bool(usage) and get_type_hints(command)[first] == list[str]
    if several:
        described = {parameter.arg_name: parameter.description for parameter in parse_docstring(command.__doc__).params}
        parser.add_argument(first, type=str, nargs="+", help=described[first])
    parser.add_class_arguments(command, as_group=False, as_positional=bool(usage), skip={first} if several else set())
    return parser


def read_command(parser: CommandParser, command: type[Any], arguments: Sequence[str]) -> Any:
    """The command with its options.

    Raises:
        ValueError: An option whose value cannot be.
        SystemExit: With 2 for options that cannot be read, with 0 after ``--help`` and ``--print_config``.
    """
    if _merges_and_does_not(arguments):
        parser.error("--merge null asks for the plain model and --merge.… for a merger: give one of them")
    values = vars(parser.instantiate(parser.parse_args(_spelled_out(arguments))))
    return command(**{field.name: values[field.name] for field in fields(command)})


def close_names(name: str, known: Iterable[str]) -> str:
    """``"; did you mean …?"`` for a name that is close to a known one, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def command_line(arguments: Sequence[str]) -> str:
    """The line that asked for a command, as it is kept in results."""
    return shlex.join(["patchmerger", *arguments])


def _spelled_out(arguments: Sequence[str]) -> list[str]:
    """``--data FOLDER`` is short for ``--data.source FOLDER``, and likewise ``--downstream``; configs stay."""
    spelled: list[str] = []
    for place, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option in ("--data", "--downstream"):
            value = value if equals else next(iter(arguments[place + 1 :]), "")
            if not value.endswith(_CONFIGS) and not value.startswith(("{", "-")):
                argument = f"{option}.source{equals}{value if equals else ''}"
        spelled.append(argument)
    return spelled


def _merges_and_does_not(arguments: Sequence[str]) -> bool:
    """Whether "--merge null" stands beside "--merge.num_tokens 8" and the like, of which the later would win."""
    plain = "--merge=null" in arguments or ("--merge", "null") in pairwise(arguments)
    return plain and any(argument.startswith("--merge.") for argument in arguments)
