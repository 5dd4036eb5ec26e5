"""Advice to someone at a command line is a command line: arguments are options, and no line of Python is asked for."""

import re
from pathlib import Path

import pytest
import transformers
from PIL import Image

import patchmerger
from conftest import make_vit
from models.test_classifier import transformers_vit
from patchmerger.cli import SUBCOMMANDS, main
from patchmerger.commands.advice import PHRASES, for_command_line

SOURCE = Path(patchmerger.__file__).parent


@pytest.mark.parametrize(
    ("command", "message", "said"),
    [
        ("convert", "replace the model with overwrite=True", "replace the model with --overwrite true"),
        ("fit", "or insert with positions='drop'", "or insert with --merge.positions drop"),
        ("fit", "mean nothing with merge.reducer='tome'", "mean nothing with --merge.reducer tome"),
        ("plan", "positions='drop' leaves the bias out", "--positions drop leaves the bias out"),
        ("predict", "ask for its features (features=True)", "ask for its features (--features true)"),
        ("cost", "overwrite=True", "overwrite=True"),  # it has no such option
        ("fit", "with model_args {'depth': 3}", "with model.args {'depth': 3}"),
        ("convert", "with model_args {'depth': 3}", "with model_args {'depth': 3}"),
        ("plan", "patchmerger.insert(model, num_tokens=8, after=6)", "8 tokens after block 6"),
        (
            "test",
            "give preprocessing, such as patchmerger.data.Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))",
            "give --preprocessing.mean [0.5,0.5,0.5] --preprocessing.std [0.5,0.5,0.5]",
        ),
    ],
)
def test_arguments_become_the_options_of_the_command(command, message, said):
    assert for_command_line(message, SUBCOMMANDS[command].options()) == said


def test_what_is_put_into_other_words_is_still_said():
    files = SOURCE.rglob("*.py")
    source = " ".join(path.read_text() for path in files if path.name != "advice.py")
    source = re.sub(r'"\s*\n\s*f?"', "", source)
    assert [phrase for phrase in PHRASES if phrase not in source] == []


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    patchmerger.save(patchmerger.insert(make_vit(), 4), folder / "merged")
    patchmerger.save(transformers_vit(transformers.ViTForImageClassification), folder / "unsaid")
    patchmerger.save(
        patchmerger.insert(transformers_vit(transformers.ViTForImageClassification), 4), folder / "unsaid-merged"
    )
    Image.new("RGB", (32, 32)).save(folder / "picture.png")
    return folder


@pytest.fixture
def places(saved, monkeypatch):
    monkeypatch.chdir(saved)


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("accelerate --model merged --data digits", "give the plain model that it was made from"),
        ("plan merged", "give the plain model that it was made from"),
        ("fit --init merged --merge null --data digits --out a", "start from the plain model"),
        ("cost beit_base_patch16_224 --merge.num_tokens 4", "--merge.positions drop leaves the bias out"),
        ("cost vlt", "patchmerger hosts --library timm lists"),
        ("test unsaid --data digits", "--preprocessing.mean [0.5,0.5,0.5]"),
        ("predict unsaid picture.png", "--preprocessing.mean [0.5,0.5,0.5]"),
        ("fewshot unsaid --data digits", "--preprocessing.mean [0.5,0.5,0.5]"),
        ("patterns unsaid merged --data digits", "--preprocessing.mean [0.5,0.5,0.5]"),
        ("accelerate --model unsaid --data.source digits", "--preprocessing.mean [0.5,0.5,0.5]"),
        ("show unsaid-merged picture.png", "--preprocessing.mean [0.5,0.5,0.5]"),
    ],
)
def test_what_a_command_says(line, advice, places, capsys):
    assert main(line.split()) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert advice in said
    assert not re.search(r"\w=\S|patchmerger\.\w+\(", said), said


def test_a_plan_ends_with_a_command_line(capsys):
    arguments = ["--image_size", "64", "--num_tokens", "[4, 8]"]
    assert main(["plan", "vit_tiny_patch16_224", "--speedup", "1.3", *arguments]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(
        r"the first: patchmerger accelerate --model vit_tiny_patch16_224 --after \d+ --num_tokens \d --data FOLDER",
        line,
    )
    assert main(["plan", "vit_tiny_patch16_224", "--speedup", "1.3", "--mergers", "2", *arguments]) == 0
    assert "patchmerger fit --init vit_tiny_patch16_224 --merge.after '[" in capsys.readouterr().out
