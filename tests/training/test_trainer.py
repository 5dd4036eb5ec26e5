"""The trainer of a run: where the training curve goes."""

import sys

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from patchmerger.runs.run_folder import RunFolder
from patchmerger.training import Recipe, TrainingSettings, fit
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
