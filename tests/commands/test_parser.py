"""What is wrong with an option is said in one line: its name, its value, what it takes, or the name that was meant."""

import shlex
from pathlib import Path

import pytest

from patchmerger.cli import SUBCOMMANDS, main, read_command
from patchmerger.commands.options import in_words, options_of


def error_of(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command line prints, one line on stderr."""
    name, *_ = arguments = shlex.split(line)
    assert main(arguments) == 2
    printed = capsys.readouterr()
    (error,) = printed.err.splitlines()
    assert printed.out == ""
    assert error.startswith(f"patchmerger {name}: ")
    return error


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("cost vit --merge.num_token 4", "--merge.num_tokens"),
        ("fit --augmentation '{crap: pad}'", "--augmentation.crop"),
        ("fit --trainig.lr=3", "--training.lr"),
        ("fit --training.epoch 3", "--training.epochs"),  # a prefix is not accepted
        ("fit --lr 3", "--training.lr"),
        ("fit --mrege null", "--merge"),
        ("bench vit --batchsize 3", "--batch_size"),
    ],
)
def test_a_mistyped_option_gets_the_close_name(line, meant, capsys):
    error = error_of(line, capsys)
    assert "no option --" in error
    assert f"did you mean {meant}?" in error


@pytest.mark.parametrize(
    ("config", "meant"),
    [
        ("trainin: {epochs: 3}", "--training.epochs"),
        ("training: {epoch: 3}", "--training.epochs"),
        ("merge: {num_tokns: 3}", "--merge.num_tokens"),
    ],
)
def test_a_mistyped_name_in_a_config_gets_the_close_name(config, meant, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(config)
    assert f"did you mean {meant}?" in error_of(f"fit --config {tmp_path / 'mine.yaml'}", capsys)


@pytest.mark.parametrize(
    ("line", "option", "takes"),
    [
        ("bench vit --rounds x", "--rounds (x)", "a whole number"),
        ("cost vit --merge.num_tokens x", "--merge.num_tokens (x)", "a whole number or a list of whole numbers"),
        ("cost vit --merge.prefix x", "--merge.prefix (x)", "keep or merge"),
        ("cost vit --merge.after [1,2", "--merge.after ([1,2)", "a list of whole numbers or null, such as ["),
        ("cost vit --merge x", "--merge (x)", "a mapping of its options, auto or null"),
        ("cost vit --args x", "--args (x)", "a mapping"),
        ("fit --training.epochs 1.5", "--training.epochs (1.5)", "a whole number"),
        ("fit --progress maybe", "--progress (maybe)", "true or false"),
        ("bench vit --precision x", "--precision (x)", "float32, bf16, fp16"),
        ("bench vit --compile x", "--compile (x)", "a list of true, false or frozen"),
        ("sweep --num_tokens 4 8", "--num_tokens (4)", "such as [4, 8]"),
    ],
)
def test_a_value_of_another_kind_is_named_with_what_would_do(line, option, takes, capsys):
    error = error_of(line, capsys)
    assert f"{option} must be" in error
    assert takes in error
    assert "<class" not in error


@pytest.mark.parametrize(
    ("line", "facts"),
    [
        ("cost", ["model is missing", "usage: patchmerger cost MODEL [options]"]),
        ("predict", ["model and images are missing", "usage: patchmerger predict MODEL IMAGE|FOLDER"]),
        ("predict vit", ["images is missing"]),
        ("accelerate", ["--model is missing", "usage: patchmerger accelerate"]),
        ("cost vit other", ["'other'"]),
        ("show --images a.png --model vit", ["images is given without --images", "patchmerger show MODEL [IMAGE …]"]),
        ("predict --model=vit a.png", ["model is given without --model", "usage: patchmerger predict MODEL IMAGE"]),
        ("cost vit --merge.num_tokens=8 --merge.keep_rate 0.5", ["--merge.keep_rate and --merge.num_tokens both say"]),
        ("fit --config no/file.yaml", ["--config", "no/file.yaml"]),
        ("fit --merge null --merge.after 3", ["--merge null", "--merge.…"]),
        ("fit --merge=null --merge.after 3", ["--merge null", "--merge.…"]),
        ("fit --training.epochs 0", ["training.epochs (0)"]),
    ],
)
def test_other_errors(line, facts, capsys):
    error = error_of(line, capsys)
    assert all(fact in error for fact in facts)


@pytest.mark.parametrize(
    "given", ["--data photos", "--data=photos", "--data.source photos", "--data '{source: photos}'"]
)
def test_data_is_short_for_its_source(given):
    assert read_command("fit", shlex.split(given)).data.source == "photos"


def test_data_takes_a_config_of_its_own(tmp_path):
    (tmp_path / "photos.yaml").write_text("source: photos\nvalidation: 0.2\n")
    data = read_command("fit", ["--data", str(tmp_path / "photos.yaml")]).data
    assert (data.source, data.validation) == ("photos", 0.2)
    assert read_command("transfer", ["--downstream", "photos"]).downstream.source == "photos"


def test_the_home_folder_is_found_where_the_shell_leaves_it_as_it_is():
    assert read_command("export", ["model", "--format", "torch", "--out=~/vit.pt2"]).out == Path.home() / "vit.pt2"


def test_several_words_stand_after_the_first():
    command = read_command("predict", ["model", "a.png", "photos", "--top", "3"])
    assert (command.model, command.images, command.top) == ("model", ["a.png", "photos"], 3)


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_option_has_a_type_in_words(name):
    for kind in options_of(SUBCOMMANDS[name].load()).values():
        assert not {"[", "typing", "Literal"} & set(in_words(kind).replace("[", " [ ").split())
