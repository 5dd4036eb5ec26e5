"""Predictions: the classes and features that the model itself gives, for whatever images are given."""

import pytest
import timm
import torch
from PIL import Image
from torch import nn

import patchmerger
from conftest import make_vit
from hosts.test_torchvision import make_plain as make_torchvision
from models.test_classifier import transformers_vit
from patchmerger.data import EvalTransform, Preprocessing, decode, normalize
from patchmerger.prediction import Predictor
from patchmerger.prediction.scorer import imagenet_class_names

HALF = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 0.8)
NAMES = tuple("abcde")


@pytest.fixture
def saved(tmp_path):
    """A merged model in a folder, and the model itself."""
    model = patchmerger.insert(make_vit(), num_tokens=4)
    patchmerger.save(model, tmp_path / "model", preprocessing=HALF, class_names=NAMES)
    return tmp_path / "model", model


def picture(seed: int, size: tuple[int, int] = (40, 50)) -> Image.Image:
    pixels = torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.numpy())


def scores(model: nn.Module, image: Image.Image) -> torch.Tensor:
    """Scores by hand: one image alone."""
    with torch.no_grad():
        return model(normalize(EvalTransform(32, HALF)(decode(image))[None], HALF))[0]


def test_classes_and_probabilities_are_those_of_the_model(saved, tmp_path):
    folder, model = saved
    pictures = [picture(seed, size) for seed, size in enumerate([(40, 50), (32, 32), (90, 33)])]
    for place, image in enumerate(pictures):
        image.save(tmp_path / f"{place}.png")
    found = patchmerger.predict(folder, [tmp_path / f"{place}.png" for place in range(3)], top=3, batch_size=2)
    assert found.class_names == NAMES
    assert [prediction.image for prediction in found] == [str(tmp_path / f"{place}.png") for place in range(3)]
    for prediction, image in zip(found, pictures, strict=True):
        expected = scores(model, image).softmax(0)
        best = expected.argsort(descending=True)[:3].tolist()
        assert [each.index for each in prediction.classes] == best
        assert [each.name for each in prediction.classes] == [NAMES[i] for i in best]
        assert [each.probability for each in prediction.classes] == pytest.approx(expected[best].tolist(), abs=1e-5)


def test_paths_pictures_bytes_and_tensors_give_the_same(saved, tmp_path):
    folder, _ = saved
    image = picture(0)
    image.save(tmp_path / "a.png")
    pixels = decode(image)
    prepared = normalize(EvalTransform(32, HALF)(pixels)[None], HALF)
    predictor = Predictor(folder)
    forms = [str(tmp_path / "a.png"), image, (tmp_path / "a.png").read_bytes(), pixels, pixels[None], prepared]
    found = [predictor(form)[0].classes for form in forms]
    for classes in found:
        assert [each.index for each in classes] == [each.index for each in found[0]]
        assert [each.probability for each in classes] == pytest.approx(
            [each.probability for each in found[0]], abs=1e-5
        )
    assert len(found[0]) == 5
    assert [each.image for each in predictor([image, torch.stack([pixels, pixels])])] == [
        "image 0", "image 1, row 0", "image 1, row 1"
    ]  # fmt: skip
    assert len(patchmerger.predict(predictor, [image, prepared[0], image]).bad) == 0


def test_features_are_what_the_last_layer_classifies(saved):
    folder, model = saved
    images = [picture(seed) for seed in range(3)]
    found = patchmerger.predict(folder, images, features=True, batch_size=2)
    assert found.features.shape == (3, 32)
    with torch.no_grad():
        again = model.head(found.features)
    torch.testing.assert_close(again, torch.stack([scores(model, image) for image in images]), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="features=True"):
        _ = patchmerger.predict(folder, images[0]).features


def test_bad_images_are_passed_over_and_named(saved, tmp_path):
    folder, _ = saved
    picture(0).save(tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:900])
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "nothing.png").touch()
    (tmp_path / "notes.txt").write_text("passed over in a folder")
    files = ["cut.png", "good.png", "nothing.png", "text.jpg"]
    found = patchmerger.predict(folder, [tmp_path / name for name in files])
    assert [prediction.image for prediction in found] == [str(tmp_path / "good.png")]
    assert [bad.image for bad in found.bad] == [str(tmp_path / name) for name in files if name != "good.png"]
    assert found.bad[2].reason == "not an image"
    alone = patchmerger.predict(folder, tmp_path / "text.jpg", features=True)
    assert (len(alone), len(alone.bad)) == (0, 1)


def test_workers_give_the_same(saved, tmp_path):
    folder, _ = saved
    for place in range(6):
        picture(place).save(tmp_path / f"{place}.png")
    (tmp_path / "3.png").write_text("broken")
    predictor = Predictor(folder)
    files = [tmp_path / f"{place}.png" for place in range(6)]
    alone, helped = (patchmerger.predict(predictor, files, batch_size=2, workers=workers) for workers in (0, 2))
    assert alone == helped


def test_a_model_stays_as_it_was(saved):
    _, model = saved
    model.train()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    Predictor(model, preprocessing=HALF)(picture(0))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_names_where_a_model_has_none():
    numbered = Predictor(make_vit(), preprocessing=HALF)
    assert numbered.class_names == ("0", "1", "2", "3", "4")
    assert "numbers" in numbered.scorer.remark
    imagenet = Predictor(make_vit(num_classes=1000), preprocessing=HALF)
    assert imagenet.class_names[0] == "tench"
    assert "ImageNet" in imagenet.scorer.remark
    given = Predictor(make_vit(), preprocessing=HALF, class_names=NAMES)
    assert (given.class_names, given.scorer.remark) == (NAMES, None)
    with pytest.raises(ValueError, match=r"class_names \(2 names\).*5 classes"):
        Predictor(make_vit(), preprocessing=HALF, class_names=["a", "b"])
    with pytest.raises(ValueError, match=r"class_names \('horse'\) must be a sequence of names"):
        Predictor(make_vit(), preprocessing=HALF, class_names="horse")
    with pytest.raises(ValueError, match=r"device \('cpu'\).*give it to the Predictor"):
        patchmerger.predict(given, picture(0), device="cpu")


def test_names_of_imagenet_are_short_and_all_different():
    names = imagenet_class_names()
    assert len(set(names)) == 1000
    assert names[134].startswith("crane (n")
    assert names[281] == "tabby"


def test_a_model_without_classes_gives_features_alone():
    for model in (make_vit(num_classes=0), transformers_without_head()):
        predictor = Predictor(model, preprocessing=HALF)
        with pytest.raises(ValueError, match=r"has no classes.*features=True"):
            predictor(picture(0))
        assert predictor(picture(0), features=True).features.shape == (1, 32)
        with pytest.raises(ValueError, match=r"class_names \(32 names\) means nothing to .*no classes"):
            Predictor(model, preprocessing=HALF, class_names=[str(i) for i in range(32)])


def transformers_without_head() -> nn.Module:
    model = transformers_vit()
    return type(model.base_model)(model.config, add_pooling_layer=True).eval()


def test_several_labels_an_image_have_a_probability_each(saved):
    folder, model = saved
    image = picture(0)
    found = Predictor(folder, multi_label=True)(image)[0].classes
    expected = scores(model, image).sigmoid()
    assert [each.probability for each in found] == pytest.approx(sorted(expected.tolist(), reverse=True), abs=1e-5)
    several = transformers_vit()
    several.config.problem_type = "multi_label_classification"
    assert Predictor(several, preprocessing=HALF).multi_label


@pytest.mark.parametrize("make", [make_vit, transformers_vit, make_torchvision])
def test_a_folder_says_whether_an_image_has_several_labels(make, tmp_path):
    patchmerger.save(make(), tmp_path / "several", preprocessing=HALF, multi_label=True)
    assert Predictor(tmp_path / "several").multi_label
    loaded = patchmerger.load(tmp_path / "several")
    assert Predictor(loaded, preprocessing=HALF).multi_label
    patchmerger.save(loaded, tmp_path / "again", preprocessing=HALF)
    assert Predictor(tmp_path / "again").multi_label
    patchmerger.save(loaded, tmp_path / "one", preprocessing=HALF, multi_label=False)
    assert not Predictor(tmp_path / "one").multi_label


def test_one_score_is_a_yes_or_no_or_refused():
    predictor = Predictor(make_vit(num_classes=1), preprocessing=HALF)
    with pytest.raises(
        ValueError, match=r"VisionTransformer\) gives one score an image.* always 1: .*multi_label=True"
    ):
        predictor(picture(0))
    assert predictor(picture(0), features=True).features.shape == (1, 32)
    ((found,),) = (
        each.classes for each in Predictor(predictor.scorer.net.net, preprocessing=HALF, multi_label=True)(picture(0))
    )
    assert 0 < found.probability < 1


@pytest.mark.parametrize(
    ("change", "error", "facts"),
    [
        ({"top": 0}, ValueError, r"top \(0\)"),
        ({"batch_size": 0}, ValueError, r"batch_size \(0\)"),
        ({"shard": "3/2"}, ValueError, r"shard \('3/2'\)"),
        ({"device": "nowhere"}, ValueError, r"device \('nowhere'\)"),
        ({"images": "no/such.png"}, FileNotFoundError, r"images \(no/such.png\)"),
        ({"images": []}, ValueError, "images is empty"),
        ({"images": [3]}, TypeError, r"images \(int\)"),
        ({"images": torch.zeros(32, 32)}, ValueError, r"images \(\(32, 32\)\).*\(3, H, W\)"),
        ({"images": torch.zeros(3, 0, 32)}, ValueError, r"images \(\(3, 0, 32\)\).*\(3, H, W\)"),
        ({"images": torch.zeros(3, 32, 32, dtype=torch.int64)}, ValueError, r"torch.int64.*uint8"),
        ({"images": torch.zeros(3, 30, 30)}, ValueError, r"\(3, 30, 30\) is not \(3, 32, 32\)"),
    ],
)
def test_what_cannot_be_is_named(saved, change, error, facts):
    with pytest.raises(error, match=facts):
        patchmerger.predict(**{"model": saved[0], "images": picture(0)} | change)


def test_models_that_do_not_fit_are_named():
    class Own(nn.Module):
        image_size = 32

        def __init__(self):
            super().__init__()
            self.inside = make_vit()

        def forward(self, images):
            return self.inside(images)

    with pytest.raises(ValueError, match="does not say how its images are prepared: give preprocessing"):
        Predictor(Own())
    with pytest.raises(ValueError, match="takes images of 1 channels"):
        Predictor(timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=1, in_chans=1))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_and_features_that_are_no_numbers_are_refused(value):
    model = make_vit()
    torch.nn.init.constant_(model.head.bias[0:1].detach(), value)
    for multi_label in (False, True):
        with pytest.raises(ValueError, match=r"model \(.*gives scores that are .*NaN"):
            Predictor(model, preprocessing=HALF, multi_label=multi_label)([picture(0)])
    model = make_vit()
    torch.nn.init.constant_(model.norm.bias, -value)
    with pytest.raises(ValueError, match=r"model \(.*gives features that are .*NaN"):
        Predictor(model, preprocessing=HALF)([picture(0)], features=True)


def test_a_class_may_be_left_out_by_a_score_of_minus_infinity():
    model = make_vit()
    torch.nn.init.constant_(model.head.bias[0:1].detach(), -float("inf"))
    ((found,),) = [Predictor(model, preprocessing=HALF)([picture(0)])]
    assert (found.classes[-1].index, found.classes[-1].probability) == (0, 0)
