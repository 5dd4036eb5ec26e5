"""Few-shot accuracy: the draws, one pass over the images, the whole protocol against scikit-learn, the command."""

import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from hub.helpers import make_torchvision, make_transformers
from patchmerger import few_shot, insert, save
from patchmerger.cli import main
from patchmerger.data import DataSettings, ImageSet, ImageSplits, Preprocessing, load_images
from patchmerger.data.images import InMemory
from patchmerger.fewshot.probe import STRENGTHS, draw, few_shot_images
from patchmerger.fewshot.settings import FewShotSettings
from patchmerger.reports.html.kinds import section_of
from patchmerger.reports.html.reading import Source

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 10}
INPUT = {"image_size": 8, "preprocessing": Preprocessing((0.5,) * 3, (0.5,) * 3), "progress": False}


@pytest.fixture(scope="module")
def digits():
    return load_images(DataSettings(), seed=0)


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return insert(timm.create_model("vit_tiny_patch16_224", **TINY), num_tokens=4).eval()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    return save(model, tmp_path_factory.mktemp("models") / "run" / "model", class_names=list("0123456789"))


def coloured(counts, seed=0, spread=10):
    """Images of 8 × 8 pixels, each class of a colour of its own."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    colours = torch.tensor([[40, 60, 80], [160, 60, 80], [40, 180, 200]])[labels]
    noise = torch.randint(-spread, spread + 1, (len(labels), 3), generator=generator)
    pictures = [colour.to(torch.uint8).view(3, 1, 1).expand(3, 8, 8) for colour in colours + noise]
    return ImageSet(InMemory(pictures), labels)


def splits(train=(30, 30, 30), validation=(4, 4, 4), test=(5, 5, 5)):
    return ImageSplits(
        train=coloured(train), validation=coloured(validation, 1), test=coloured(test, 2),
        class_names=("red", "green", "blue"), multi_label=False, skipped=(), description="colours",
    )  # fmt: skip


def mean_colour(_, images):
    return images.mean(dim=(2, 3))


# The draws


def test_a_draw_takes_other_images_of_each_class_each_time():
    labels = torch.arange(60) % 3
    drawn = draw(labels, 3, shots=5, draws=4, seed=0)
    assert drawn.shape == (4, 3, 5)
    assert torch.equal(labels[drawn], torch.arange(3)[:, None].expand(4, 3, 5))
    assert all(len(set(images.tolist())) == 5 for images in drawn.flatten(0, 1))
    assert len({tuple(images.tolist()) for images in drawn.flatten(1)}) == 4


def test_fewer_shots_and_more_draws_keep_the_images():
    labels = torch.arange(60) % 3
    drawn = draw(labels, 3, shots=5, draws=4, seed=7)
    assert torch.equal(draw(labels, 3, shots=2, draws=6, seed=7)[:4], drawn[:, :, :2])
    assert not torch.equal(draw(labels, 3, shots=5, draws=4, seed=8), drawn)


# The protocol


def test_one_pass_over_the_images_that_are_needed(model):
    seen = []

    def watched(_, images):
        seen.extend(images[:, 0].flatten(1).mean(dim=1).tolist())
        return images.mean(dim=(2, 3))

    images = splits()
    result = few_shot_images(model, images, FewShotSettings((1, 5, 10), 3), features=watched, **INPUT)
    needed = draw(images.train.targets, 3, 10, 3, 0).unique()
    assert len(seen) == result.images["drawn"] + 12 + 15
    assert result.images == {"train": 90, "drawn": len(needed), "validation": 12, "test": 15}


def test_classes_that_are_told_apart_by_colour_are_told_apart(model):
    result = few_shot_images(model, splits(), FewShotSettings((5, 1), 2), features=mean_colour, **INPUT)
    assert [r.shots for r in result.results] == [5, 1]
    assert (result[5].accuracies, result[5].mean, result[5].sd) == ((1.0, 1.0), 1.0, 0.0)
    assert result.feature_dim == 3
    with pytest.raises(KeyError, match="25 shots were not measured; there are 5, 1"):
        result[25]


def test_the_whole_protocol_equals_scikit_learns(model, digits):
    result = few_shot_images(model, digits, FewShotSettings((2, 10), 2), seed=3, **INPUT)

    @torch.no_grad()
    def features(images):
        pixels = torch.stack([images[i] for i in range(len(images))]).float() / 127.5 - 1
        return model.forward_head(model.forward_features(pixels), pre_logits=True).double().numpy()

    train, validation, test = (features(getattr(digits, name)) for name in ("train", "validation", "test"))
    labels = digits.train.targets.numpy()
    for k in (2, 10):
        for number, rows in enumerate(draw(digits.train.targets, 10, 10, 2, seed=3)[:, :, :k].flatten(1).numpy()):
            scaler = StandardScaler().fit(train[rows])
            right = []
            for strength in STRENGTHS:
                ridge = Ridge(alpha=strength, solver="svd").fit(scaler.transform(train[rows]), np.eye(10)[labels[rows]])
                right.append(
                    [
                        float((ridge.predict(scaler.transform(x)).argmax(axis=1) == y.numpy()).mean())
                        for x, y in ((validation, digits.validation.targets), (test, digits.test.targets))
                    ]
                )
            best = max(range(len(STRENGTHS)), key=lambda i: (right[i][0], i))
            assert result[k].strengths[number] == STRENGTHS[best]
            assert result[k].validation_accuracies[number] == pytest.approx(right[best][0])
            assert result[k].accuracies[number] == pytest.approx(right[best][1], abs=1 / 360)
    assert result[10].mean > result[2].mean > 0.15


def test_the_test_images_choose_nothing(model):
    images = splits()
    shuffled = ImageSet(images.test.images, images.test.targets.flip(0))
    results = [
        few_shot_images(model, replace(images, test=test), FewShotSettings((2,), 3), features=mean_colour, **INPUT)
        for test in (images.test, shuffled)
    ]
    assert results[0][2].strengths == results[1][2].strengths
    assert results[0][2].accuracies != results[1][2].accuracies


def test_the_same_seed_gives_the_same_result(model, digits):
    results = [few_shot_images(model, digits, FewShotSettings((3,), 1), seed=s, **INPUT)[3] for s in (5, 5, 6)]
    assert results[0] == results[1] != results[2]
    assert results[0].sd is None


# What is refused


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"shots": ()}, r"shots \(\(\)\) must be a whole number of at least 1, or a list"),
        ({"shots": (5, 0)}, r"shots \(\(5, 0\)\) must be a whole number of at least 1"),
        ({"shots": (5, 5)}, r"shots \(\[5, 5\]\) names a number twice"),
        ({"draws": 0}, r"draws \(0\) must be a whole number of at least 1"),
    ],
)
def test_numbers_that_make_no_sense(options, text):
    with pytest.raises(ValueError, match=text):
        FewShotSettings(**options)


@pytest.mark.parametrize(
    ("images", "text"),
    [
        (
            splits(train=(30, 7, 30)),
            r"shots \(10\) takes more training images of each class than the 7 of class 'green'",
        ),
        (splits(validation=(4, 4)), r"no validation image is of class 'blue'.*raise data\.validation"),
        (replace(splits(), validation=None), r"data\.validation \(0\) holds out no images to choose the strength on"),
        (replace(splits(), multi_label=True), r"several labels each: few-shot accuracy is for one label an image"),
    ],
)
def test_images_that_do_not_suffice_are_refused_before_any_features(model, images, text):
    with pytest.raises(ValueError, match=text):
        few_shot_images(model, images, FewShotSettings((1, 10)), features=None, **INPUT)


# The command


def test_the_command(folder, tmp_path, capsys):
    out = tmp_path / "results" / "digits.json"
    arguments = ["fewshot", str(folder.parent), "--shots", "[1, 5]", "--draws", "3", "--device", "cpu"]
    assert main([*arguments, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "mean ± sd over 3 draws (seed 0)" in printed
    record = json.loads(out.read_text())
    assert (record["model"], record["seed"], record["draws"]) == (str(folder.parent), 0, 3)
    assert record["environment"]["torch"] == torch.__version__
    assert record["strengths"] == list(STRENGTHS)
    assert record["command"]
    for result in record["results"]:
        assert len(result["accuracies"]) == len(result["strengths"]) == len(result["validation_accuracies"]) == 3
        assert result["mean"] == pytest.approx(np.mean(result["accuracies"]))
        assert result["sd"] == pytest.approx(np.std(result["accuracies"], ddof=1))
        assert f"{100 * result['mean']:.2f} ± {100 * result['sd']:.2f}" in printed
    section = section_of(Source(out, record))
    assert f"{100 * record['results'][-1]['mean']:.2f} ± " in section.verdict
    assert not section.missing
    assert main([*arguments, "--out", str(out)]) == 2
    assert "exists already: take another name, or set overwrite to true" in capsys.readouterr().err
    assert (
        main(["fewshot", str(folder), "--shots", "[1]", "--draws", "1", "--out", str(out), "--overwrite", "true"]) == 0
    )
    assert "one draw (seed 0)" in capsys.readouterr().out
    assert json.loads(out.read_text())["results"][0]["accuracies"] == record["results"][0]["accuracies"][:1]


def test_what_cannot_work_is_refused_before_images_are_read(folder, tmp_path):
    data = DataSettings("no/such/place/at/all")
    with pytest.raises(ValueError, match=r"batch_size \(0\) must be a whole number of at least 1"):
        few_shot(folder, data=data, batch_size=0)
    with pytest.raises(ValueError, match=r"out \(.*\) is a folder: name a file in it"):
        few_shot(folder, data=data, out=tmp_path)
    with pytest.raises(ValueError, match=r"device \('nonsense'\) is not there"):
        few_shot(folder, data=data, device="nonsense")
    with pytest.raises(FileNotFoundError, match=r"nowhere.* does not exist"):
        few_shot(tmp_path / "nowhere", data=data)
    with pytest.raises(ValueError, match=r"no/such/place/at/all"):
        few_shot(folder, data=data)


def test_models_that_cannot_be_probed_are_refused():
    data = DataSettings("no/such/place/at/all")
    with pytest.raises(ValueError, match=r"ViTForImage.* does not say how its images are prepared: give preprocessing"):
        few_shot(make_transformers(), data)
    with pytest.raises(ValueError, match="images of 8 × 16 pixels; square ones are needed"):
        few_shot(timm.create_model("vit_tiny_patch16_224", **TINY | {"img_size": (8, 16)}), data)
    with pytest.raises(TypeError, match=r"data \(int\)"):
        few_shot(make_torchvision(), 3)


@pytest.mark.parametrize("make", [make_torchvision, make_transformers])
def test_models_of_other_libraries(make, tmp_path):
    model, settings = insert(make(), 4), FewShotSettings((2,), 1)
    prepared = Preprocessing((0.5,) * 3, (0.5,) * 3)
    folder = save(model, tmp_path / "model", preprocessing=prepared)
    result = few_shot(folder, "digits", settings, device="cpu", progress=False)
    given = few_shot(model, "digits", settings, preprocessing=prepared, device="cpu", progress=False)
    assert given.results == result.results
    assert (result.feature_dim, result.image_size) == (32, 32)
    assert result[2].mean > 0.15  # chance is 0.1


def test_a_dataset_of_one_s_own(model):
    digits = load_images(DataSettings(), seed=0)
    pairs = [(digits.train[number], int(digits.train.targets[number])) for number in range(300)]
    result = few_shot(model, pairs_of(pairs), FewShotSettings((2,), 1), device="cpu", progress=False)
    assert (result.classes, sum(result.images[name] for name in ("train", "validation", "test"))) == (10, 300)


def pairs_of(pairs):
    class Pairs(torch.utils.data.Dataset):
        def __len__(self):
            return len(pairs)

        def __getitem__(self, number):
            return pairs[number]

    return Pairs()


def test_a_model_in_memory_is_as_good_as_its_folder(model, folder):
    settings = FewShotSettings((2,), 1)
    in_memory, saved = (few_shot(m, settings=settings, device="cpu", progress=False) for m in (model, folder))
    assert in_memory.results == saved.results
    assert in_memory.command is None
