"""Advice of the library, which speaks Python, in the words of the command line that asked."""

from __future__ import annotations

import re
from collections.abc import Collection

PHRASES = {
    "patchmerger.remove(model) takes it out; patchmerger.fit and distill train it as it is": (
        "give the plain model that it was made from; patchmerger fit --init trains it as it is"
    ),
    "patchmerger.remove(model) takes it out": "give the plain model that it was made from",
    "take it out with patchmerger.remove and save that": "start from the plain model that it was made from",
    "patchmerger.insert(model, num_tokens=8) puts one in, and patchmerger accelerate": "patchmerger accelerate",
    "if it is one, describe it with patchmerger.register_host": "patchmerger hosts lists those that can",
    "timm.list_models('*vit*') lists them": "patchmerger hosts --library timm lists those that can merge",
}
"""Advice for Python, and the same for the command line."""

_PREPROCESSING = re.compile(
    r"preprocessing, such as patchmerger\.data\.Preprocessing\(mean=\(([^)]*)\), std=\(([^)]*)\)\)"
)
_INSERT = re.compile(
    r"(?:patchmerger\.)?insert\(model, num_tokens=([^=]+), after=([^=]+?)(?:, positions=['\"](\w+)['\"])?\)"
)
_ARGUMENT = re.compile(r"\b((?:[a-z_]+\.)*[a-z_]+)=('[^']*'|\"[^\"]*\"|True|False|None|-?\d[\d.e-]*)(?![\w(])")
_WORDS = {"True": "true", "False": "false", "None": "null"}


def for_command_line(text: str, options: Collection[str]) -> str:
    """A message of the library with its arguments as options, where the command has them.

    Args:
        text: The message: "replace the model with overwrite=True".
        options: The dotted names of the command's options, such as ``merge.positions``.

    Returns:
        The message for a command line: "replace the model with --overwrite true".
    """
    for python, command in PHRASES.items():
        text = text.replace(python, command)
    text = _INSERT.sub(_placement, text)
    if "preprocessing.mean" in options:
        text = _PREPROCESSING.sub(_preprocessing, text)
    if "model_args" not in options and "model.args" in options:
        text = re.sub(r"\bmodel_args\b", "model.args", text)
    return _ARGUMENT.sub(lambda found: _option(found, options), text)


def _option(found: re.Match[str], options: Collection[str]) -> str:
    """``positions='drop'`` as ``--merge.positions drop``; as it is where no one option, or several, have that name."""
    name, value = found.groups()
    named = [name] if name in options else [each for each in options if each.rpartition(".")[2] == name]
    return f"--{named[0]} {_WORDS.get(value, value.strip(chr(39) + chr(34)))}" if len(named) == 1 else found[0]


def _preprocessing(found: re.Match[str]) -> str:
    """Lists without spaces, at which a shell would split them."""
    mean, std = (numbers.replace(" ", "") for numbers in found.groups())
    return f"--preprocessing.mean [{mean}] --preprocessing.std [{std}]"


def _placement(found: re.Match[str]) -> str:
    tokens, after, positions = found.groups()
    return f"{tokens} tokens after block {after}" + (f", positions {positions}" if positions else "")
