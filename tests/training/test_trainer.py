"""The trainer of a run: where the training curve goes."""

import sys

import pytest
import timm
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from patchmerger.acceleration import accelerate
from patchmerger.acceleration.settings import RecoverySettings
from patchmerger.runs.run_folder import RunFolder
from patchmerger.studies import compare, comparison
from patchmerger.studies.settings import ComparisonSettings
from patchmerger.training import Recipe, TrainingSettings, evaluate, fit, fitting
from patchmerger.training.trainer import Stopwatch, make_trainer


@pytest.mark.parametrize(("name", "kind"), [("csv", CSVLogger), ("tensorboard", TensorBoardLogger), ("none", None)])
def test_the_training_curve_goes_where_it_is_asked_to(tmp_path, name, kind):
    folder = RunFolder(tmp_path / "run", {})
    training = TrainingSettings(logger=name, accelerator="cpu")
    loggers = make_trainer(training, folder, Stopwatch(), progress=False).loggers
    assert [type(logger) for logger in loggers] == ([] if kind is None else [kind])
    assert all(str(folder.path / "logs") in str(logger.save_dir) for logger in loggers)
    assert not folder.path.exists()  # nothing is made before the run begins
    assert "wandb" not in sys.modules


def test_a_logger_that_is_not_installed_is_refused_before_anything(tmp_path, monkeypatch):
    monkeypatch.setattr("patchmerger.training.trainer.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"training.logger \('wandb'\) .*pip install wandb"):
        fit(Recipe(training=TrainingSettings(logger="wandb")), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_goes_on_in_the_same_run_of_weights_and_biases(tmp_path, monkeypatch):
    begun = []

    class Recorded(CSVLogger):
        def __init__(self, **options):
            super().__init__(options["save_dir"])
            begun.append(options)

    monkeypatch.setattr("patchmerger.training.trainer.WandbLogger", Recorded)
    for _ in range(2):
        folder = RunFolder(tmp_path / "photos", {"seed": 3})
        make_trainer(TrainingSettings(logger="wandb", accelerator="cpu"), folder, Stopwatch(), progress=False)
    first, second = begun
    assert first == second
    assert (first["id"], first["resume"]) == (folder.fingerprint[:16], "allow")
    assert (first["name"], first["project"], first["config"]) == ("photos", "patchmerger", {"seed": 3})


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"accelerator": "tpu"}, r"training\.accelerator \('tpu'\) is not here.*'auto'.*'cpu'"),
        ({"accelerator": "abacus"}, r"training\.accelerator \('abacus'\) is not here"),
        (
            {"accelerator": "cpu", "devices": -1},
            r"training\.devices \(-1\) with .*accelerator \('cpu'\).*1 device",
        ),
        ({"accelerator": "cpu", "strategy": "dp"}, r"training\.strategy \('dp'\).* cannot be had here"),
    ],
)
def test_devices_that_are_not_here_are_named_before_images_are_read(training, message, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "load_images", pytest.fail)
    monkeypatch.setattr(comparison, "read_images", pytest.fail)
    wanted = TrainingSettings(**training)
    for run, settings in ((fit, Recipe), (compare, ComparisonSettings)):
        if run is fit or wanted.devices == 1:  # a study takes no other number
            with pytest.raises(ValueError, match=message) as caught:
                run(settings(training=wanted), out=tmp_path / "run")
            assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("run", [evaluate, accelerate])
def test_evaluation_and_acceleration_name_an_accelerator_that_is_not_here(run, tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", img_size=8, patch_size=2, embed_dim=16, num_heads=2)
    given = {"accelerator": "tpu"} if run is evaluate else {"recovery": RecoverySettings(accelerator="tpu")}
    more = {} if run is evaluate else {"out": tmp_path / "run"}
    with pytest.raises(ValueError, match=r"accelerator \('tpu'\) is not here.*'cpu' always is"):
        run(model, "digits", **given, **more, progress=False)


@pytest.mark.parametrize("devices", [0, "0", -2, "none", "1,x"])
def test_a_number_of_devices_is_checked_when_it_is_given(devices):
    with pytest.raises(ValueError, match=rf"training\.devices \({devices!r}\) must be a number of devices, at least 1"):
        TrainingSettings(devices=devices)
    assert [TrainingSettings(devices=good).devices for good in (2, "2", "auto", -1, "0,1", "0,")]
