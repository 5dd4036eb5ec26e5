"""The command line: the table of subcommands, and how one is called; its options are in ``commands/NAME.py``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol, cast

from patchmerger import __version__


class Command(Protocol):
    """What each file of ``commands/`` has: a dataclass of this name, whose fields are the options."""

    def run(self, command: str) -> int:
        """Do it, show the result, and return the exit status; ``command`` is the line that asked for it."""


@dataclass(frozen=True)
class Subcommand:
    """A line of the table: the name, what it does, what stands before its options, and whether it resumes."""

    name: str
    summary: str
    usage: str = ""
    resumes: bool = False

    def load(self) -> type[Command]:
        """Import its file."""
        command: type[Command] = import_module(f"patchmerger.commands.{self.name.replace('-', '_')}").Command
        return command

    def options(self) -> list[str]:
        """The dotted names of its options."""
        from patchmerger.commands.options import options_of

        return list(options_of(self.load()))


SUBCOMMANDS = {
    subcommand.name: subcommand
    for subcommand in (
        Subcommand("demo", "train a ViT on digits, make it faster, and hold both side by side", resumes=True),
        Subcommand("compare", "train the same ViT with and without a merger, side by side", resumes=True),
        Subcommand("sweep", "train a grid of mergers: where to merge, and to how many tokens", resumes=True),
        Subcommand("transfer", "train upstream, then few-shot and fine-tuned on other images", resumes=True),
        Subcommand("fit", "train one ViT, merged or plain", resumes=True),
        Subcommand("accelerate", "make a trained ViT faster, and as accurate again", resumes=True),
        Subcommand("accelerate-study", "compare ways to make trained ViTs faster", resumes=True),
        Subcommand("place-study", "fewer tokens in trained ViTs: placed, merged, or both", resumes=True),
        Subcommand("test", "evaluate a saved model on images", "MODEL"),
        Subcommand("predict", "classes of images, or their features, by a saved model", "MODEL IMAGE|FOLDER [...]"),
        Subcommand("fewshot", "few-shot accuracy of a saved model's features", "MODEL"),
        Subcommand("patterns", "compare how models reduce tokens, and what that does", "MODEL [MODEL …]"),
        Subcommand("show", "what a model merges, in pictures: the patches in each token", "MODEL [IMAGE …]"),
        Subcommand("bench", "measure a merged ViT's speed against the plain one's", "MODEL [MODEL …]"),
        Subcommand("cost", "tokens, FLOPs and parameters of a ViT, block by block", "MODEL"),
        Subcommand("plan", "where to merge for a wanted speed-up, or a budget of FLOPs", "MODEL"),
        Subcommand("export", "a model as an ONNX, OpenVINO or torch file, checked to be the same model", "MODEL"),
        Subcommand("convert", "the weights of a checkpoint, as a folder that every command takes", "CHECKPOINT"),
        Subcommand("report", "saved results as one HTML page", "FOLDER [FOLDER …]"),
        Subcommand("hosts", "which models of timm, transformers and torchvision take a merger"),
    )
}

_DESCRIPTION = "Make Vision Transformers about twice as fast by learning to merge their tokens."


def help_text() -> str:
    """What ``patchmerger --help`` prints."""
    width = max(map(len, SUBCOMMANDS))
    commands = "\n".join(f"  {name:{width}}  {each.summary}" for name, each in SUBCOMMANDS.items())
    return f"""usage: patchmerger COMMAND [options]

{_DESCRIPTION}

commands:
{commands}

options:
  --version    print the version
  --traceback  show where an error was raised, and a warning given
  --help       this text; patchmerger COMMAND --help lists the options of a command"""


def read_command(name: str, arguments: Sequence[str]) -> Command:
    """The command of this name, with its options.

    Raises:
        ValueError: An option whose value cannot be.
        SystemExit: With 2 for options that cannot be read, with 0 after ``--help`` and ``--print_config``.
    """
    from patchmerger.commands import parser

    subcommand = SUBCOMMANDS[name]
    command = subcommand.load()
    options = parser.make_parser(name, command, subcommand.usage)
    return cast(Command, parser.read_command(options, command, arguments))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``patchmerger``; returns the exit status."""
    from patchmerger.commands import terminal

    given = sys.argv[1:] if arguments is None else list(arguments)
    name = next((word for word in given if word in SUBCOMMANDS), None)
    resumes = name is not None and SUBCOMMANDS[name].resumes
    status = terminal.guarded(
        lambda: _run(given),
        name,
        resumes=resumes,
        show_traceback="--traceback" in given,
        options=lambda: () if name is None else SUBCOMMANDS[name].options(),
    )
    if arguments is None:  # the process ends with this command
        terminal.leave_at_once_when_interrupted()
    return status


def _run(arguments: list[str]) -> int:
    from patchmerger.commands.options import close_names
    from patchmerger.commands.parser import command_line

    before = next((place for place, word in enumerate(arguments) if not word.startswith("-")), len(arguments))
    options, name, rest = arguments[:before], arguments[before : before + 1], arguments[before + 1 :]
    if "--version" in options:
        print(f"patchmerger {__version__}")
        return 0
    if {"--help", "-h"} & set(options):
        print(help_text())
        return 0
    if unknown := [option for option in options if option != "--traceback"]:
        print(f"patchmerger: no option {unknown[0]}{close_names(unknown[0], ['--version', '--help', '--traceback'])}; "
              "patchmerger COMMAND --help lists those of a command", file=sys.stderr)  # fmt: skip
        return 2
    if not name:
        print(help_text(), file=sys.stderr)
        return 2
    if name[0] not in SUBCOMMANDS:
        print(f"patchmerger: no command {name[0]!r}{close_names(name[0], SUBCOMMANDS)}; patchmerger --help lists them",
              file=sys.stderr)  # fmt: skip
        return 2
    command = read_command(name[0], [word for word in rest if word != "--traceback"])
    return command.run(command_line(arguments))


if __name__ == "__main__":
    raise SystemExit(main())
