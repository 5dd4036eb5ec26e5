"""The options of a command by name and type, what each takes in words, and what is wrong with one."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_PLAIN = {int: "a whole number", float: "a number", str: "a text", Path: "a path", type(None): "null"}
_EXAMPLES = {int: "[4, 8]", float: "[0.5, 1]"}


def options_of(command: type[Any], prefix: str = "") -> dict[str, Any]:
    """The type of each option by its dotted name, such as ``training.epochs``, in the order of the fields."""
    options: dict[str, Any] = {}
    hints = get_type_hints(command)
    for field in (each for each in fields(command) if each.init):
        options[prefix + field.name] = hints[field.name]
        for kind in _members(hints[field.name]):
            if is_dataclass(kind) and isinstance(kind, type):
                options |= options_of(kind, f"{prefix}{field.name}.")
    return options


def in_words(kind: Any) -> str:
    """What an option of a type takes: ``a whole number or a list of whole numbers``."""
    parts = list(dict.fromkeys(part for member in _members(kind) for part in _parts(member)))
    return f"{', '.join(parts[:-1])} or {parts[-1]}" if len(parts) > 1 else parts[0]


def close_names(name: str, known: Iterable[str]) -> str:
    """``"; did you mean …?"`` for a name that is close to a known one, or is the last part of one; else nothing."""
    known = list(known)
    last = [each for each in known if each.rpartition(".")[2] == name.lstrip("-")]
    close = last or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {' or '.join(close[:2])}?" if close else ""


def explain(message: str, options: Mapping[str, Any]) -> str:
    """A message of the parser in one plain line, which names the option and what it takes.

    Args:
        message: As jsonargparse writes it, over several lines and with types of Python.
        options: Those of the command.
    """
    names = [f"--{name}" for name in options]
    if message.startswith("unrecognized arguments: "):
        word = message.removeprefix("unrecognized arguments: ").split()[0].split("=")[0]
        return f"no option {word}{close_names(word, names)}" if word[0] == "-" else f"{word!r} has no option before it"
    parents = ".".join(re.findall(r'Parser key "([^"]+)":\n', message))
    unknown = re.search(r"Option '([^']+)' is not accepted|Group '([^']+)' does not accept option '([^']+)'", message)
    if unknown:
        path = ".".join(filter(None, (parents, *unknown.groups())))
        return f"no option --{path}{close_names(f'--{path}', names)}"
    given = re.findall(r"(?:Got value|Given value): (.*)", message)
    if parents in options and given:
        value = given[0] if len(given) == 1 else given[-2]  # the last is of the whole group
        return f"--{parents} ({value}) must be {_with_example(options[parents])}"
    return " ".join(re.sub(r'Parser key "([^"]+)":', r"--\1:", message).split())


def _members(kind: Any) -> Iterator[Any]:
    """The types of a union, one after the other."""
    if get_origin(kind) in (Union, types.UnionType):
        for member in get_args(kind):
            yield from _members(member)
    else:
        yield kind


def _parts(kind: Any) -> list[str]:
    """What stands between commas and "or": each value of a literal, or one phrase."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return [str(argument) for argument in arguments]
    if kind is bool:
        return ["true", "false"]
    if kind is dict or origin in (dict, Mapping):
        return ["a mapping {name: value}"]
    if isinstance(origin, type) and issubclass(origin, Sequence):
        one = arguments[0]
        words = f"{_PLAIN[one].removeprefix('a ')}s" if one in _PLAIN else in_words(one)
        return [f"{len(arguments)} {words}" if origin is tuple and ... not in arguments else f"a list of {words}"]
    if is_dataclass(kind):
        return ["a mapping of its options"]
    return [_PLAIN.get(kind, getattr(kind, "__name__", str(kind)))]


def _with_example(kind: Any) -> str:
    words = in_words(kind)
    lists = [member for member in _members(kind) if isinstance(get_origin(member), type)]
    if not lists or get_origin(lists[0]) in (dict, Mapping):
        return words
    inner = next(_members(get_args(lists[0])[0]))
    example = f"[{', '.join(map(str, get_args(inner)[:2]))}]" if get_origin(inner) is Literal else "[one, two]"
    return f"{words}, such as {_EXAMPLES.get(inner, example)}"
