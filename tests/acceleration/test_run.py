"""A trained model in, a faster one out: every kind of model, interrupted and resumed; bad input is told first."""

import hashlib
import json
import shutil

import datasets
import pytest
import timm
import torch
import transformers
from PIL import Image

from conftest import make_images, make_timm, make_vit
from patchmerger import accelerate, insert, load, save
from patchmerger.acceleration import agreement, distillation_task
from patchmerger.cli import main
from patchmerger.data import DataSettings, load_images
from patchmerger.hub import describe
from patchmerger.insertion.inserted import mergers
from patchmerger.models.classifier import divergence
from patchmerger.reports.accelerate import report
from processes import Running
from quick_acceleration import quick
from trained_on_digits import trained_vit

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning"),
]


class Own(torch.utils.data.Dataset):
    """Some of the digits, as a dataset of one's own."""

    def __init__(self, count):
        digits = load_images(DataSettings(), seed=0).train
        self.images, self.labels = digits.gather(range(count)), digits.targets.tolist()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]


UNTRAINED = pytest.mark.filterwarnings("ignore:model .* no more than by chance:UserWarning")


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    before = hashes(folder)
    out = tmp_path_factory.mktemp("runs") / "run"
    results = accelerate(str(folder), DataSettings(), out=out, max_drop=60, **quick(1.4, 0.3))
    assert hashes(folder) == before
    return out, results


def hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_the_model_is_kept_and_is_as_its_results_say(finished, folder):
    out, results = finished
    assert json.loads((out / "results.json").read_text()) == results
    model = load(out / "model")
    (merger,) = mergers(model)
    assert (merger.after, merger.num_tokens) == (results["placement"]["after"], results["placement"]["num_tokens"])
    assert results["speedup"]["predicted"] >= 1.4
    assert results["speedup"]["measured"] > 0
    assert model.pretrained_cfg["mean"] == load(folder).pretrained_cfg["mean"]
    result = main(["test", str(out / "model")])
    assert result == 0
    plain_weights = load(folder).state_dict()
    assert set(model.state_dict()) - set(plain_weights) == {f"{merger.name}.{part}" for part in (
        "weight", "norm.weight", "norm.bias")}  # fmt: skip


def test_accuracy_is_that_on_images_that_were_held_out(finished, capsys):
    out, results = finished
    found = results["evaluation"]
    assert found["plain"]["agreement"] == 1
    assert found["plain"]["accuracy"] > 0.5
    assert found["recovered"]["images"] == 360
    assert 0 <= found["recovered"]["ece"] <= 1
    assert found["initialised"]["divergence"] > 0
    main(["test", str(out / "model"), "--progress", "false"])
    assert f"{100 * found['recovered']['accuracy']:.2f}%" in capsys.readouterr().out


def test_the_same_call_gives_the_results_again(finished, folder):
    out, results = finished
    assert accelerate(str(folder), DataSettings(), out=out, max_drop=60, **quick(1.4, 0.3)) == results
    with pytest.raises(ValueError, match=r"belongs to a run with other settings \(placement.speedup: 1.4 there"):
        accelerate(str(folder), DataSettings(), out=out, max_drop=60, **quick(1.3, 0.3))


def test_a_model_that_was_moved_is_the_same_one_and_another_is_not(finished, folder, tmp_path):
    out, results = finished
    arguments = {"out": out, "max_drop": 60, **quick(1.4, 0.3)}
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert results["settings"]["model"] == str(folder)
    assert accelerate(moved, DataSettings(), **arguments) == results
    renamed = save(load(folder), tmp_path / "renamed", class_names=list("abcdefghij"))
    with pytest.raises(ValueError, match=r"belongs to a run with other settings \(classes: "):
        accelerate(renamed, DataSettings(), **arguments)
    with torch.no_grad():
        (model := load(folder)).head.bias += 1
    other = save(model, tmp_path / "other", class_names=list("0123456789"))
    with pytest.raises(ValueError, match=r"belongs to a run with other settings \(weights: "):
        accelerate(other, DataSettings(), **arguments)


def test_interrupted_it_goes_on_to_the_same_model(finished, folder, tmp_path, monkeypatch):
    import patchmerger.acceleration.run as steps

    arguments = {"out": tmp_path / "run", "max_drop": 60, **quick(1.4, 0.3)}

    def cut(*_, **__):
        raise KeyboardInterrupt("the power is cut")

    for name in ("distill", "measure_speed"):
        with monkeypatch.context() as patch:
            patch.setattr(steps, name, cut)
            with pytest.raises(KeyboardInterrupt, match="the power is cut"):
                accelerate(str(folder), DataSettings(), **arguments)
        assert not (tmp_path / "run" / "results.json").exists()
    monkeypatch.setattr(steps, "calibrate", cut)  # is not done again
    accelerate(str(folder), DataSettings(), **arguments)
    ours, theirs = load(tmp_path / "run" / "model").state_dict(), load(finished[0] / "model").state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_a_drop_that_is_too_large_is_said_with_what_would_help(folder, tmp_path, capsys):
    settings = quick(after=1, num_tokens=1, epochs=0, method="random")
    results = accelerate(str(folder), DataSettings(), out=tmp_path / "run", max_drop=0, **settings)
    assert results["met"] is False
    assert results["recovery"]["steps"] == 0
    report(results)
    printed = " ".join(capsys.readouterr().out.split())
    assert "more than the 0 points that were accepted. " in printed
    assert "more training (--epochs 1); a later merge (--after 2 --num_tokens 1: " in printed
    assert (tmp_path / "run" / "model" / "config.json").exists()


@UNTRAINED
@pytest.mark.parametrize("kind", ["registers", "RoPE", "transformers", "relative bias"])
def test_any_model_goes_through_the_same_call(kind, tmp_path):
    tiny = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 2, "num_classes": 10}
    method = "located" if kind in ("registers", "transformers") else "soft"
    model = {
        "registers": lambda: make_vit("registers, LayerScale", num_classes=10),
        "RoPE": lambda: make_timm("vit_small_patch16_rope_224", **tiny),
        "relative bias": lambda: make_timm("beit_base_patch16_224", **tiny),
        "transformers": lambda: tmp_path / "vit",
    }[kind]()
    if kind == "transformers":
        config = transformers.ViTConfig(
            hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, image_size=32,
            patch_size=8, num_labels=10,
        )  # fmt: skip
        processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
        save(transformers.ViTForImageClassification(config).eval(), tmp_path / "vit", image_processor=processor)
    data = {"train": Own(100), "test": Own(40)}
    recovery = {"batch_size": 16}
    results = accelerate(model, data, out=tmp_path / "run", max_drop=100, **quick(1.2, 0.2, method, recovery=recovery))
    accelerated = load(tmp_path / "run" / "model")
    assert mergers(accelerated)[0].num_tokens == results["placement"]["num_tokens"]
    assert results["evaluation"]["recovered"]["accuracy"] is not None
    if kind == "transformers":
        assert (tmp_path / "run" / "model" / "preprocessor_config.json").exists()
        assert accelerated(make_images()).logits.shape == (2, 10)


def test_images_without_labels_are_enough(folder, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    digits = some_digits(60)
    for number, image in enumerate(digits):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "photos" / f"{number}.png")
    results = accelerate(
        folder, DataSettings(str(tmp_path / "photos")), out=tmp_path / "run",
        **quick(1.4, 1, "soft", recovery={"batch_size": 8}),
    )  # fmt: skip
    assert (results["metric"], results["met"]) == ("agreement", None)
    assert results["evaluation"]["recovered"]["accuracy"] is None
    assert results["recovery"]["steps"] == 6
    report(results)
    assert "agrees with it on" in " ".join(capsys.readouterr().out.split())


def test_images_that_were_swapped_for_others_are_noticed_when_it_is_resumed(folder, tmp_path, monkeypatch):
    def photos(change):
        (tmp_path / "photos").mkdir(exist_ok=True)
        for number, image in enumerate(some_digits(60)):
            Image.fromarray(change(image).permute(1, 2, 0).numpy()).save(tmp_path / "photos" / f"{number}.png")

    def cut(*_, **__):
        raise KeyboardInterrupt("the power is cut")

    arguments = {"out": tmp_path / "run", **quick(1.4, 0.2, "random", recovery={"batch_size": 8})}
    photos(lambda image: image)
    with monkeypatch.context() as patch:
        patch.setattr("patchmerger.acceleration.run.distill", cut)
        with pytest.raises(KeyboardInterrupt, match="the power is cut"):
            accelerate(folder, str(tmp_path / "photos"), **arguments)
    photos(lambda image: 255 - image)
    with pytest.raises(ValueError, match=r"images, or their labels, are others .*put them back.*another folder"):
        accelerate(folder, str(tmp_path / "photos"), **arguments)
    photos(lambda image: image)
    assert accelerate(folder, str(tmp_path / "photos"), **arguments)["recovery"]["steps"] >= 1


def test_a_dataset_of_ones_own_is_taken(folder, tmp_path):
    data = {"train": Own(100), "test": Own(40)}
    arguments = {"out": tmp_path / "run", "max_drop": 100, **quick(1.4, 1, "random", recovery={"batch_size": 16})}
    results = accelerate(folder, data, **arguments)
    assert results["settings"]["data"]["source"] == "Own"
    assert results["evaluation"]["plain"]["images"] == 40
    assert accelerate(folder, data, **arguments) == results
    with pytest.raises(TypeError, match="data"):
        accelerate(folder, 5, out=tmp_path / "other", **quick())


def some_digits(count):
    return load_images(DataSettings(), seed=0).train.gather(range(count))


def test_a_time_bounds_the_recovery(folder, tmp_path):
    results = accelerate(
        folder, DataSettings(), out=tmp_path / "run", max_drop=90, **quick(1.4, budget="1s", method="random")
    )
    assert 0 < results["recovery"]["seconds"] < 5
    assert results["recovery"]["phases"]


def test_a_teacher_at_chance_is_warned_of_before_training(folder, tmp_path, monkeypatch):
    import patchmerger.acceleration.run as steps

    wrong = timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=2, embed_dim=32, depth=4, num_heads=2, num_classes=10
    )

    def never(*_, **__):
        raise AssertionError("the warning must come first")

    monkeypatch.setattr(steps, "calibrate", never)
    message = r"no more than by chance.* 10 classes .* The usual causes are a wrong normalisation .* another order"
    with pytest.raises(UserWarning, match=message):
        accelerate(wrong, DataSettings(), out=tmp_path / "run", **quick(1.4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"speedup": 40.0}, r"speedup \(40\) is more than merging saves"),
        ({"model": lambda: insert(trained_vit())}, "has a merger already"),
        ({"model": lambda: make_vit(num_classes=7)}, r"data \(digits\) has 10 classes, but the head .* has 7"),
        ({"labels": False, "max_drop": 0.5}, r"max_drop \(0.5\) is a drop of accuracy, which needs labels"),
        ({"max_drop": -1.0}, r"max_drop \(-1\) must be 0 or more points"),
        ({"recovery": {"frozen_blocks": 3}}, r"recovery.frozen_blocks \(3\) must be at most 2, the block of the first"),
        ({"recovery": {"label_weight": 1.0}, "labels": False}, "needs labels"),
        ({"recovery": {"batch_size": 5000}}, r"recovery.batch_size \(5000\) is more than the 1293 training images"),
        ({"data": DataSettings("no/such/folder/here")}, "no/such/folder/here"),
    ],
)
def test_bad_input_is_told_before_anything_runs(change, message, tmp_path):
    arguments = quick(**{"speedup": 1.4, "data": DataSettings(), **change})
    model = arguments.pop("model", trained_vit)()
    with pytest.raises(ValueError, match=message):
        accelerate(model, arguments.pop("data"), out=tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_classes_in_another_order_are_told(tmp_path):
    folder = save(trained_vit(), tmp_path / "digits", class_names=list("9876543210"))
    with pytest.raises(ValueError, match=r"has the model's classes in another order: 0, 1, 2, 3, 4 … there, 9, 8"):
        accelerate(folder, DataSettings(), out=tmp_path / "run", **quick())


def test_classes_of_other_names_are_warned_of(tmp_path):
    folder = save(trained_vit(), tmp_path / "digits", class_names=[f"number {digit}" for digit in range(10)])
    with pytest.raises(
        UserWarning, match=r"names its classes 0, 1, 2, 3, 4 …, model .* number 0, number 1.* taken to be"
    ):
        accelerate(folder, DataSettings(), out=tmp_path / "run", **quick())


def test_the_command(folder, tmp_path, capsys):
    options = ["--speedup", "1.4", "--epochs", "0.02", "--query_init", "soft", "--calibration_images", "32"]
    options += ["--recovery.accelerator", "cpu", "--rounds", "1", "--out", str(tmp_path / "run"), "--max_drop", "90"]
    assert main(["accelerate", "--model", str(folder), *options]) == 0
    told = capsys.readouterr()
    assert [line[:3] for line in told.err.splitlines() if line[1:3] == "/5"] == ["1/5", "2/5", "3/5", "4/5", "5/5"]
    assert "merged, not trained" in told.out
    assert (tmp_path / "run" / "acceleration.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "run" / "results.json").read_text())["command"]
    assert main(["accelerate", "--model", "no_such_model", "--out", str(tmp_path / "other")]) == 2
    assert "patchmerger accelerate: model (no_such_model) is no folder here" in capsys.readouterr().err


@UNTRAINED
@pytest.mark.parametrize("labels", [True, False])
def test_several_labels_an_image(labels, tmp_path, monkeypatch):
    compared = []
    for module in (agreement, distillation_task):
        monkeypatch.setattr(
            module,
            "divergence",
            lambda *scores, **more: compared.append(more["multi_label"]) or divergence(*scores, **more),
        )
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in some_digits(80)]
    names = datasets.ClassLabel(names=["a", "b", "c"])
    table = datasets.Dataset.from_dict(
        {"image": pictures, "tags": [[number % 3, (number // 3) % 3] for number in range(80)]},
        features=datasets.Features({"image": datasets.Image(), "tags": datasets.Sequence(names)}),
    )
    datasets.DatasetDict({"train": table}).save_to_disk(str(tmp_path / "tagged"))
    save(make_vit(num_classes=3), tmp_path / "plain", multi_label=True)
    results = accelerate(
        tmp_path / "plain", DataSettings(str(tmp_path / "tagged"), workers=0), out=tmp_path / "run", labels=labels,
        max_drop=100 if labels else None, **quick(1.2, 0.3, recovery={"batch_size": 16}),
    )  # fmt: skip
    assert results["metric"] == ("mAP" if labels else "agreement")
    assert all(compared)
    assert describe(tmp_path / "run" / "model").multi_label
    assert 0 < (results["evaluation"]["recovered"]["accuracy" if labels else "agreement"]) <= 1
    assert results["evaluation"]["recovered"]["ece"] is None


def accelerate_in(out, model):
    results = accelerate(str(model), DataSettings(), out=out, max_drop=60, **quick(1.4, 0))
    print(results["evaluation"]["recovered"]["accuracy"])


@pytest.mark.slow  # the lock itself is tested with the folder of a run
def test_two_processes_on_one_folder_end_with_the_same_results(folder, tmp_path):
    both = [Running(accelerate_in, tmp_path / "run", folder) for _ in range(2)]
    ended = [process.wait() for process in both]
    assert [process.code for process in ended] == [0, 0], ended
    assert len({process.out for process in ended}) == 1
    assert "waiting: another process is at the run" in "".join(process.err for process in ended)


def test_frozen_weights_are_told(tmp_path):
    model = trained_vit().requires_grad_(False)
    with pytest.warns(UserWarning, match=r"([\d,]+) of its \1 parameters are frozen .*model\.requires_grad_\(True\)"):
        accelerate(model, DataSettings(), out=tmp_path / "run", **quick(1.4, 0.1))
