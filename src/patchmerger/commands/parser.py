"""The parser of a subcommand: options from the fields of its dataclass, errors in one line, close names for typos."""

from __future__ import annotations

import re
import shlex
from argparse import Action
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

from docstring_parser import parse as parse_docstring
from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter

from patchmerger.commands.options import explain, in_words, options_of

_CONFIGS = (".yaml", ".yml", ".json")
_SOURCES = ("--data", "--downstream")


class HelpFormatter(DefaultHelpFormatter):
    """Help that says in words what each option takes, and names each once."""

    def _get_type_str(self, action: Action) -> str | None:
        kind = getattr(action, "_typehint", None)
        return super()._get_type_str(action) if kind is None else in_words(kind)

    def _get_help_string(self, action: Action) -> str:
        if action.dest.endswith("help"):
            return action.help or ""
        text = super()._get_help_string(action).replace("type: %(type)s, default", "%(type)s; default")
        if hasattr(action.default, "__dict__") or (isinstance(action.default, dict) and action.default):
            text = text.replace("; default: %(default)s", "")  # that of the options of a settings class
        if isinstance(action.default, tuple):
            text = text.replace("%(default)s", str(list(action.default)).replace("%", "%%"))
        return text.replace("type: %(type)s", "%(type)s").replace("``", "")

    def _expand_help(self, action: Action) -> str:
        return re.sub(r"(?<=default: )(True|False)(?=\)$)", lambda word: word[0].lower(), super()._expand_help(action))

    def _format_action_invocation(self, action: Action) -> str:
        return super()._format_action_invocation(action).split(f", {(action.option_strings or ['?'])[0]}+")[0]


class CommandParser(ArgumentParser):
    """A parser whose errors are one line, with close names for an option that does not exist."""

    options: Mapping[str, Any] = {}

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **{"formatter_class": HelpFormatter, **settings})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the line and leave with exit status 2."""
        if not self.exit_on_error:  # one of those that jsonargparse makes for a nested class
            super().error(message, ex)
        missing = message.removeprefix("the following arguments are required: ")
        positional = {action.dest for action in self._actions if not action.option_strings}
        named = re.match(r"unrecognized arguments: --(\w+)", message)
        if named and named[1] in positional:
            message = f"{named[1]} is given without --{named[1]}; usage: {self.usage}"
        elif missing != message:
            names = [name if name in positional else f"--{name}" for name in missing.split(", ")]
            message = f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} missing; usage: {self.usage}"
        self.exit(2, f"{self.prog}: {explain(message, self.options)}; {self.prog} --help lists the options\n")


def make_parser(name: str, command: type[Any], usage: str = "") -> CommandParser:
    """The parser of one subcommand.

    Args:
        name: The subcommand.
        command: Its dataclass, whose fields are the options and whose docstring is the help.
        usage: What stands before the options: then fields without a default are positional, and so are lists of
            words, which take several.
    """
    parser = CommandParser(
        prog=f"patchmerger {name}",
        usage=" ".join(["patchmerger", name, *([usage] if usage else []), "[options]"]),
        description=parse_docstring(command.__doc__ or "").description,
        allow_abbrev=False,
    )
    parser.options = options_of(command)
    # A dataclass has the types of inherited fields as text, which says nothing in the module of the command.
    vars(command)["__init__"].__annotations__.update(get_type_hints(command))
    parser.add_argument("--config", action=ActionConfigFile, help="Read options from a YAML file.")
    words = [field for field in fields(command) if usage and parser.options[field.name] == list[str]]
    texts = _texts(command)
    for field in fields(command):  # positional arguments are read in the order in which they are added
        if field in words:
            many: Any = {"nargs": "+"} if field.default_factory is MISSING else {"nargs": "*", "default": []}
            parser.add_argument(field.name, type=str, help=texts[field.name], **many)
        elif field.default is MISSING and field.default_factory is MISSING and usage:
            parser.add_argument(field.name, type=parser.options[field.name], help=texts[field.name])
    given = {field.name for field in fields(command) if any(field.name == a.dest for a in parser._actions)}
    parser.add_class_arguments(command, as_group=False, skip=given)
    for action in parser._actions:
        _describe(action)
    return parser


def read_command(parser: CommandParser, command: type[Any], arguments: Sequence[str]) -> Any:
    """The command with its options.

    Raises:
        ValueError: An option whose value cannot be.
        SystemExit: With 2 for options that cannot be read, with 0 after ``--help`` and ``--print_config``.
    """
    if _merges_and_does_not(arguments):
        parser.error("--merge null asks for the plain model and --merge.… for a merger: give one of them")
    if {"--merge.keep_rate", "--merge.num_tokens"} <= {argument.partition("=")[0] for argument in arguments}:
        parser.error("--merge.keep_rate and --merge.num_tokens both say how many tokens go on: give one of them")
    values = vars(parser.instantiate(parser.parse_args(_spelled_out(arguments))))
    # A shell leaves the ~ of --out=~/x as it is.
    values = {name: value.expanduser() if isinstance(value, Path) else value for name, value in values.items()}
    return command(**{field.name: values[field.name] for field in fields(command) if field.init})


def _texts(command: type[Any]) -> dict[str, str | None]:
    """What its docstring, or that of a class that it inherits from, says of each option."""
    described = [parse_docstring(each.__doc__ or "") for each in reversed(command.__mro__)]
    return {parameter.arg_name: parameter.description for each in described for parameter in each.params}


def _describe(action: Action) -> None:
    """Say in plain words what the options do that jsonargparse adds."""
    option = next(iter(action.option_strings), "")
    if option == "-h":
        action.help = "Show this text and exit."
    elif option.endswith(".help"):
        action.help = f"List the options {option.removesuffix('help')}… and exit."
    elif option in _SOURCES:
        action.help, action.metavar = f"Short for {option}.source; or a YAML file with the options {option}.…", "SOURCE"
    elif action.help == "Path to a configuration file.":
        action.help, action.metavar = f"A YAML file with the options {option}.…", "FILE"
    elif len(str(action.metavar)) > 60:  # all the values it takes, which the text says too
        action.metavar = "NAME"
    elif option == "--print_config":
        action.help = "Print all options as YAML, as --config reads them, and exit."


def command_line(arguments: Sequence[str]) -> str:
    """The line that asked for a command, as it is kept in results."""
    return shlex.join(["patchmerger", *arguments])


def _spelled_out(arguments: Sequence[str]) -> list[str]:
    """``--data FOLDER`` is short for ``--data.source FOLDER``, and likewise ``--downstream``; configs stay."""
    spelled: list[str] = []
    for place, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option in _SOURCES:
            value = value if equals else next(iter(arguments[place + 1 :]), "")
            if not value.endswith(_CONFIGS) and not value.startswith(("{", "-")):
                argument = f"{option}.source{equals}{value if equals else ''}"
        spelled.append(argument)
    return spelled


def _merges_and_does_not(arguments: Sequence[str]) -> bool:
    """Whether "--merge null" stands beside "--merge.num_tokens 8" and the like, of which the later would win."""
    plain = "--merge=null" in arguments or ("--merge", "null") in pairwise(arguments)
    return plain and any(argument.startswith("--merge.") for argument in arguments)
