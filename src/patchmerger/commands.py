"""The subcommands, and how their results and errors are shown."""

from __future__ import annotations

import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from inspect import signature
from itertools import pairwise
from typing import Any

import torch
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from patchmerger import __version__
from patchmerger.acceleration.accelerating import accelerate
from patchmerger.census.survey import survey
from patchmerger.costs.model_cost import Cost, cost
from patchmerger.costs.planning import plan
from patchmerger.fewshot.probe import few_shot
from patchmerger.models.build import build_model
from patchmerger.models.settings import MergeSettings, ModelSettings
from patchmerger.reports.acceleration import show_acceleration
from patchmerger.reports.acceleration_study import report_accelerations
from patchmerger.reports.census import show_census
from patchmerger.reports.comparison import report_comparison
from patchmerger.reports.few_shot import show_few_shot
from patchmerger.reports.speed import show_speed
from patchmerger.reports.sweep import report_sweep
from patchmerger.reports.training import show_evaluation, show_fit
from patchmerger.reports.transfer import report_transfer
from patchmerger.speed.suite import bench
from patchmerger.studies.acceleration_study import accelerate_study
from patchmerger.studies.comparison import compare
from patchmerger.studies.merger_sweep import sweep
from patchmerger.studies.transfer_study import transfer
from patchmerger.training.evaluation import evaluate
from patchmerger.training.fitting import fit


def model_cost(
    name: str,
    *,
    args: dict[str, Any] | None = None,
    merge: MergeSettings | None = MergeSettings(),
    num_classes: int = 1000,
    image_size: int | None = None,
) -> Cost:
    """Tokens, FLOPs and parameters of a ViT, block by block, and the speed-up that they predict.

    Args:
        name: A timm architecture, such as vit_base_patch16_224.
        args: Arguments for timm.create_model.
        merge: The merger; "--merge null" for the plain model.
        num_classes: Outputs of the head.
        image_size: Height and width of the images in pixels; the model's own if not given.
    """
    with torch.device("meta"):
        model = build_model(ModelSettings(name, args or {}), merge, num_classes=num_classes)
    return cost(model, image_size)


# What runs, what shows its results (and may give an exit status), and a summary.
COMMANDS: dict[str, tuple[Callable[..., Any], Callable[[Any], int | None], str]] = {
    "compare": (compare, report_comparison, "train the same ViT with and without a merger, side by side"),
    "sweep": (sweep, report_sweep, "train a grid of mergers: where to merge, and to how many tokens"),
    "transfer": (transfer, report_transfer, "train upstream, then few-shot and fine-tuned on other images"),
    "fit": (fit, show_fit, "train one ViT, merged or plain"),
    "accelerate": (accelerate, show_acceleration, "make a trained ViT faster, and as accurate again"),
    "accelerate-study": (accelerate_study, report_accelerations, "accelerate trained ViTs: speed-ups times budgets"),
    "test": (evaluate, show_evaluation, "evaluate a saved model on images"),
    "fewshot": (few_shot, show_few_shot, "few-shot accuracy of a saved model's features"),
    "bench": (bench, show_speed, "measure a merged ViT's speed against the plain one's"),
    "cost": (model_cost, print, "tokens, FLOPs and parameters of a ViT, block by block"),
    "plan": (plan, print, "where to merge for a wanted speed-up, or a budget of FLOPs"),
    "hosts": (survey, show_census, "which models of timm, transformers and torchvision take a merger"),
}


# Those that go on where they were interrupted.
RESUMED = ("compare", "sweep", "transfer", "fit", "accelerate", "accelerate-study")

# The first argument of these needs no option's name.
POSITIONAL = {"test": "MODEL ", "fewshot": "MODEL ", "plan": "MODEL ", "bench": "MODEL [MODEL …] ", "cost": "NAME "}
# First arguments that Python gives models and the command line names: the argument, how many, its help.
NAMED = {
    "accelerate": (
        "model",
        None,
        "The trained model: a folder (of patchmerger, of a run, of transformers), a timm architecture with weights, a "
        "name on the Hugging Face hub, or a safetensors file.",
    ),
    "plan": ("model", None, "A timm architecture, or the folder of a saved model."),
    "bench": ("models", "+", "Timm architectures, and folders of saved models."),
}


def build_parser() -> ArgumentParser:
    """The one parser of all subcommands."""
    parser = ArgumentParser(
        prog="patchmerger",
        description="Make Vision Transformers about twice as fast by learning to merge their tokens.",
        version=__version__,
    )
    parser.add_argument("--traceback", action="store_true", help="Show where an error was raised.")
    subcommands = parser.add_subcommands(required=True, dest="command", title="commands")
    for name, (function, _, summary) in COMMANDS.items():
        usage = f"patchmerger {name} {POSITIONAL.get(name, '')}[options]"
        command = ArgumentParser(description=f"{summary[0].upper()}{summary[1:]}.", usage=usage)
        command.add_argument("--config", action=ActionConfigFile, help="Read options from a YAML file.")
        argument, number, text = NAMED.get(name, (None, None, None))
        if argument is not None:
            if name in POSITIONAL:
                command.add_argument(argument, type=str, nargs=number, help=text)
            else:
                command.add_argument(f"--{argument}", type=str, required=True, help=text)
        command.add_function_arguments(
            function,
            fail_untyped=False,
            as_group=False,
            as_positional=name in POSITIONAL,
            skip=({"command"} & signature(function).parameters.keys()) | ({argument} - {None}),
        )
        subcommands.add_subcommand(name, command, help=summary)
    return parser


def run(arguments: Sequence[str] | None = None) -> int:
    """Parse ``arguments`` and run the command that they name."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = build_parser()
    if _merges_and_does_not(arguments):
        parser.error("--merge null asks for the plain model and --merge.… for a merger: give one of them")
    options = parser.parse_args(arguments)
    name = options.command
    function, show, _ = COMMANDS[name]
    values: Namespace = parser.instantiate(options)[name]
    given = {key: value for key, value in vars(values).items() if key != "config"}
    if "command" in signature(function).parameters:
        given["command"] = shlex.join([parser.prog, *arguments])
    warnings.filterwarnings("once", category=UserWarning)
    try:
        results = function(**given)
        if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
            return show(results) or 0
    except (ValueError, OSError, FloatingPointError) as error:
        if options.traceback:
            raise
        print(f"patchmerger {name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        goes_on = ": the same command again goes on from the last checkpoint" if name in RESUMED else ""
        print(f"\ninterrupted{goes_on}", file=sys.stderr)
        return 130
    return 0


def _merges_and_does_not(arguments: Sequence[str]) -> bool:
    """Whether "--merge null" stands beside "--merge.num_tokens 8" and the like, of which the later would win."""
    plain = "--merge=null" in arguments or ("--merge", "null") in pairwise(arguments)
    return plain and any(argument.startswith("--merge.") for argument in arguments)
