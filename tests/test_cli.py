"""The command line: help that reads well, configs that load, errors in one line, results that are shown."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from patchmerger.cli import SUBCOMMANDS, main, read_command

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))

HEAVY = {"torch", "lightning", "sklearn", "timm", "transformers", "datasets", "matplotlib"}


def test_help_and_errors_start_at_once():
    asked = [["--help"], ["--version"], ["cst"], *([name, "--help"] for name in SUBCOMMANDS)]
    asked += [["cost"], ["cost", "vit_tiny_patch16_224", "--merge.num_token", "8"]]
    code = (
        "import sys; from patchmerger.cli import main\n"
        f"for arguments in {asked!r}:\n"
        f"    main(arguments); assert not {HEAVY!r} & set(sys.modules), (arguments, {HEAVY!r} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    assert main([]) == 2
    printed = capsys.readouterr().out
    for name, subcommand in SUBCOMMANDS.items():
        assert name in printed
        assert subcommand.summary in printed


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_option_is_explained(name, capsys):
    assert main([name, "--help"]) == 0
    printed = capsys.readouterr().out
    options = printed.split("\n  --")[1:]
    assert len(options) >= 5
    for option in options:
        explanation = option.replace("\n", " ").split(" (")[0].split(None, 1)
        assert len(explanation) == 2, option
    assert not re.search(r"Literal|Union|Optional|<class|: None|: True|``", printed)
    assert all(len(line) <= 80 for line in printed.splitlines())
    assert printed.startswith(f"usage: patchmerger {name} ")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_and_says_what_it_costs(path):
    text = path.read_text()
    for word in ("Model", "Cost", "Expected", "Command"):
        assert f"# {word}" in text
    command = text.split("# Command")[1].split("\n")[0].split()
    assert command[0] == "patchmerger"
    assert command[1] in ("compare", "sweep", "transfer", "accelerate-study", "place-study")
    assert command[2:4] == ["--config", f"configs/{path.name}"]
    options = read_command(command[1], ["--config", str(path)])
    for key, value in yaml.safe_load(text).items():
        if not isinstance(value, dict):
            given = getattr(options, key)
            given = list(map(str, given)) if key == "models" else list(given) if isinstance(given, tuple) else given
            assert given == value


def test_a_printed_config_is_one_that_can_be_read(tmp_path, capsys):
    assert main(["fit", "--training.epochs", "7", "--merge.num_tokens", "16", "--print_config"]) == 0
    (tmp_path / "config.yaml").write_text(capsys.readouterr().out)
    options = read_command("fit", ["--config", str(tmp_path / "config.yaml")])
    assert (options.training.epochs, options.merge.num_tokens) == (7, 16)


def test_cost_is_printed(capsys):
    assert main(["cost", "vit_base_patch16_224"]) == 0
    printed = capsys.readouterr().out
    assert "1.90" in printed
    assert "blocks.5.merger" in printed
    assert main(["cost", "vit_base_patch16_224", "--merge", "null"]) == 0
    assert "no merger" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["cost", "vit_bse_patch16_224"], "did you mean vit_base_patch16_224"),
        (["cost", "resnet50"], "ResNet cannot take a merger"),
        (["fit", "--data.source", "no/such/folder/here", "--out", "{tmp}/run"], "no/such/folder/here"),
        (["test", "{tmp}/nothing"], "nothing"),
        (["compare", "--variants", "[plain, melted]", "--out", "{tmp}/run"], "'melted' is not ready-made"),
    ],
)
def test_errors_are_one_line_and_an_exit_status(arguments, text, tmp_path, capsys):
    assert main([a.format(tmp=tmp_path) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"patchmerger {arguments[0]}: ")
    assert text in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["cst"], "did you mean cost?"),
        (["--verion"], "did you mean --version?"),
        (["--traceback", "fitt"], "mean fit?"),
    ],
)
def test_a_mistyped_command_gets_the_close_name(arguments, text, capsys):
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert text in line


@pytest.mark.parametrize(("name", "goes_on"), [("cost", False), ("fit", True)])
def test_an_interrupt_promises_only_what_holds(name, goes_on, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(SUBCOMMANDS[name].load(), "run", interrupted)
    assert main([name, *(["vit_tiny_patch16_224"] if name == "cost" else [])]) == 130
    assert ("goes on from the last checkpoint" in capsys.readouterr().err) == goes_on


def test_the_traceback_is_shown_when_asked_for(capsys):
    assert main(["--traceback", "cost", "vit_bse_patch16_224"]) == main(["cost", "vit_bse_patch16_224", "--traceback"])
    printed = capsys.readouterr().err
    assert printed.count("Traceback (most recent call last)") >= 2
    assert printed.splitlines()[-1].startswith("patchmerger cost: ")


def test_fit_and_test_from_the_shell(tmp_path, capsys):
    model = json.dumps({"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 2, "num_heads": 2})
    fit = ["fit", "--model.name", "vit_tiny_patch16_224", "--model.args", model, "--merge.num_tokens", "4"]
    training = ["--training.epochs=1", "--training.warmup_epochs=0", "--training.batch_size=256", "--progress=false"]
    assert main([*fit, *training, "--training.accelerator=cpu", "--out", str(tmp_path / "run")]) == 0
    first = capsys.readouterr().out
    assert "test accuracy" in first
    assert "predicted speed-up" in first
    assert main(["test", str(tmp_path / "run"), "--progress=false", "--accelerator=cpu"]) == 0
    assert "on 360 images" in capsys.readouterr().out


def test_nothing_is_imported_without_need():
    program = """
import sys, patchmerger
assert not {"torch", "timm"} & sys.modules.keys()
patchmerger.PatchMerger, patchmerger.insert
heavy = {"lightning", "datasets", "sklearn", "matplotlib", "jsonargparse"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
assert callable(patchmerger.cost)
import patchmerger.merger, patchmerger.insertion
assert callable(patchmerger.cost)

import timm, torch
patchmerger.insert(timm.create_model("vit_tiny_patch16_224", depth=2))
try:
    patchmerger.insert(torch.nn.Linear(1, 1))
except patchmerger.UnsupportedModelError:
    assert "transformers" not in sys.modules
    print("done")
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.strip() == "done", done.stderr


def test_no_module_bears_the_name_of_a_public_function():
    import patchmerger

    modules = {path.stem for path in Path(patchmerger.__file__).parent.iterdir()}
    assert not modules & set(patchmerger.__all__)
