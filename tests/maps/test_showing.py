"""``patchmerger show``: what it reads, keeps in its folder, draws, and refuses."""

import json
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from transformers import ASTFeatureExtractor

from conftest import make_timm, make_vit
from hosts.tiny import make_model
from maps.constructed import expected, picking
from patchmerger import insert, save
from patchmerger.cli import main
from patchmerger.data import Preprocessing
from patchmerger.maps import ShowSettings, merge_maps, read_shown, show
from patchmerger.maps.inputs import ModelInputs, class_in_turn
from patchmerger.maps.special_inputs import inputs_for

pytestmark = pytest.mark.usefixtures("one_thread")

HALF = Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 1.0, "bilinear")
PICKS = [[(0, 0)], [(0, 3), (1, 2)], [(3, 3)]]


@pytest.fixture
def saved(tmp_path) -> Path:
    return save(picking(PICKS), tmp_path / "model", preprocessing=HALF)


def write_images(folder: Path, *sizes: tuple[int, int]) -> list[str]:
    paths = []
    for number, (height, width) in enumerate(sizes):
        pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"photo {number}.png")
        paths.append(str(folder / f"photo {number}.png"))
    return paths


def test_maps_and_numbers_are_kept_in_the_folder(saved, tmp_path):
    paths = write_images(tmp_path, (32, 32), (100, 70))
    results = show(saved, paths, out=tmp_path / "out", command="patchmerger show …")
    read, tensors = read_shown(tmp_path / "out")
    assert read == results
    assert [image["name"] for image in results["images"]] == paths
    for number in range(2):
        torch.testing.assert_close(tensors[f"images.{number}.1.maps"], expected(PICKS, (4, 4), 1)[0])
        [found] = results["images"][number]["mergers"]
        assert found["effective_patches"] == pytest.approx([1, 2, 1], abs=1e-2)
        assert found["shares"] == pytest.approx([1 / 16, 2 / 16, 1 / 16])
        assert found["unused"] == pytest.approx(12 / 16)
    assert results["mergers"][0]["num_tokens"] == 3
    assert results["statistics"] is None


def test_the_view_is_what_the_model_sees_enlarged_where_the_file_has_more(tmp_path):
    inputs = ModelInputs(make_vit(), HALF)
    image = torch.randint(0, 255, (3, 64, 128), dtype=torch.uint8)
    shown = inputs.prepare(image, "photo")
    torch.testing.assert_close(shown.view, image[:, :, 32:96])
    assert shown.inputs.shape == (1, 3, 32, 32)
    small = inputs.prepare(image[:, :40, :40], "small")
    assert small.view.shape == (3, 32, 32)
    torch.testing.assert_close(small.inputs[0], (small.view.float() / 255 - 0.5) / 0.5)


def test_rectangular_models_see_the_middle_of_an_image():
    inputs = ModelInputs(make_vit(img_size=(16, 64)), HALF)
    image = torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8)
    shown = inputs.prepare(image, "photo")
    assert tuple(shown.inputs.shape) == (1, 3, 16, 64)
    torch.testing.assert_close(shown.view, image[:, 24:40])


def test_naflex_keeps_the_shape_of_an_image(tmp_path):
    sizes = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5, "img_size": 32}
    model = insert(make_timm("naflexvit_base_patch16_gap", **sizes), 2)
    [path] = write_images(tmp_path, (40, 160))
    folder = save(model, tmp_path / "model", preprocessing=HALF)
    results = show(folder, [path], out=tmp_path / "out")
    rows, columns = results["images"][0]["grid"]
    assert columns >= 3 * rows


def test_an_image_that_cannot_be_read_is_named_and_the_rest_shown(saved, tmp_path, capsys):
    [good] = write_images(tmp_path, (32, 32))
    (tmp_path / "broken.png").write_bytes(b"no image")
    out = tmp_path / "out"
    status = main(
        ["show", str(saved), str(tmp_path / "broken.png"), good, str(tmp_path / "none.jpg"), "--out", str(out)]
    )
    printed = " ".join(capsys.readouterr().out.split())
    assert status == 1
    assert "broken.png: not an image" in printed
    assert "none.jpg: does not exist" in printed
    assert (out / "photo-0.png").is_file()
    assert (out / "photo-0.svg").is_file()
    assert len(json.loads((out / "results.json").read_text())["images"]) == 1


def test_none_that_can_be_read_is_an_error(saved, tmp_path):
    with pytest.raises(ValueError, match=r"none of the images.*gone\.png: does not exist"):
        show(saved, [tmp_path / "gone.png"], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_merger_is_told_the_command_that_adds_one(tmp_path):
    plain = save(make_vit(), tmp_path / "plain", preprocessing=HALF)
    with pytest.raises(ValueError, match=r"no merger.*patchmerger accelerate --model .*plain --data"):
        show(plain, write_images(tmp_path, (32, 32)), out=tmp_path / "out")


def test_nothing_to_show_is_refused(saved, tmp_path):
    with pytest.raises(ValueError, match=r"images is empty and data is None"):
        show(saved, out=tmp_path / "out")
    with pytest.raises(ValueError, match=r"examples \(0\) and limit \(0\)"):
        ShowSettings(examples=0, limit=0)


def test_a_device_that_is_not_there_is_refused_before_the_model_is_looked_for(tmp_path):
    with pytest.raises(ValueError, match=r"device \('cuda:99'\) is not there"):
        show(tmp_path / "model", ["a.png"], out=tmp_path / "out", device="cuda:99")


def test_a_folder_with_something_else_stays_as_it_is(saved, tmp_path):
    [image] = write_images(tmp_path, (32, 32))
    with pytest.raises(FileExistsError, match=r"model.* holds something else"):
        show(saved, [image], out=saved, overwrite=True)
    (tmp_path / "link").symlink_to("gone")
    with pytest.raises(FileExistsError, match=r"out \(.*link\) is a link to gone, which is not there"):
        show(saved, [image], out=tmp_path / "link")
    show(saved, [image], out=tmp_path / "out")
    with pytest.raises(FileExistsError, match="--overwrite true"):
        show(saved, [image], out=tmp_path / "out")
    show(saved, [image], out=tmp_path / "out", overwrite=True)


def test_images_of_a_dataset_are_shown_in_turn_with_statistics_over_more(saved, tmp_path):
    settings = ShowSettings(examples=12, limit=40, batch_size=16)
    results = show(saved, data="digits", settings=settings, out=tmp_path / "out")
    assert sorted(image["label"] for image in results["images"][:10]) == [str(digit) for digit in range(10)]
    assert len(results["images"]) == 12
    [means] = results["statistics"]
    assert means["images"] == 40
    assert means["unused"] == pytest.approx(12 / 16)


def test_classes_are_drawn_in_turn():
    targets = torch.tensor([0, 0, 0, 1, 1, 2])
    chosen = class_in_turn(targets, 4, seed=0)
    assert sorted(targets[chosen[:3]].tolist()) == [0, 1, 2]
    assert int(targets[chosen[3]]) == 0
    assert class_in_turn(targets, 99, seed=1) != class_in_turn(targets, 99, seed=2)
    assert len(set(class_in_turn(targets, 99, seed=1))) == 6


def test_spectrograms_of_ast_have_a_row_for_each_frequency(tmp_path):
    model = insert(make_model("ASTModel"), 2, 1)
    config = model.config
    values = np.random.default_rng(0).normal(size=(config.max_length, config.num_mel_bins)).astype(np.float32)
    np.save(tmp_path / "sound.npy", values)
    np.save(tmp_path / "short.npy", values[:3])
    np.savez(tmp_path / "same.npz", values)
    np.savez(tmp_path / "two.npz", values, values)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "same.npz").read_bytes()[:500])
    (tmp_path / "text.wav").write_text("no sound at all")
    tone = (8000 * np.sin(np.arange(16_000) / 6)).astype("<i2")
    for name, rate, seconds, width in (
        ("tone", 16_000, 1, 2),
        ("fast", 44_100, 1, 2),
        ("bit", 16_000, 1, 1),
        ("no", 16_000, 0, 2),
    ):
        with wave.open(str(tmp_path / f"{name}.wav"), "wb") as sound:
            sound.setparams((2, width, rate, 0, "NONE", ""))
            sound.writeframes(np.stack([tone, tone], axis=1).tobytes()[: 64_000 * seconds])
    facts = {
        "short.npy": "its shape is (3, ", "two.npz": "2 arrays", "cut.npz": "not a .npz", "text.wav": "not a .wav",
        "fast.wav": "44,100 Hz", "bit.wav": "8 bits a sample", "no.wav": "0 samples", "none.wav": "does not exist",
    }  # fmt: skip
    names = ["sound.npy", "same.npz", "tone.wav", *facts]
    results = show(model, [tmp_path / name for name in names], out=tmp_path / "out")
    unread = {error["name"].rpartition("/")[2]: error["reason"] for error in results["unread"]}
    assert list(unread) == list(facts)
    assert all(facts[name] in reason for name, reason in unread.items())
    _, tensors = read_shown(tmp_path / "out")
    view = tensors["images.0.view"][0]
    assert tuple(view.shape) == (config.num_mel_bins, config.max_length)
    time, frequency = np.unravel_index(values.argmax(), values.shape)
    assert int(view[frequency, time]) == 255
    wanted = merge_maps(model, {"input_values": torch.from_numpy(values)[None]})
    torch.testing.assert_close(tensors["images.0.1.maps"], wanted[0])
    torch.testing.assert_close(tensors["images.1.1.maps"], wanted[0])
    extractor = ASTFeatureExtractor(num_mel_bins=config.num_mel_bins, max_length=config.max_length)
    spectrogram = extractor(tone / 2**15, sampling_rate=16_000, return_tensors="pt")
    wanted = merge_maps(model, {"input_values": spectrogram["input_values"]})
    torch.testing.assert_close(tensors["images.2.1.maps"], wanted[0])


def test_siglip2_keeps_the_shape_of_an_image(tmp_path):
    model = insert(make_model("Siglip2VisionModel"), 2, 1)
    [path] = write_images(tmp_path, (40, 160))
    inputs = inputs_for(model, HALF, "siglip2").read(Path(path), "photo")
    rows, columns = inputs.inputs["spatial_shapes"][0].tolist()
    assert columns >= 3 * rows
    patch = model.config.patch_size
    second = (inputs.view[:, :patch, patch : 2 * patch].float() / 255 - 0.5) / 0.5  # of the first row
    torch.testing.assert_close(inputs.inputs["pixel_values"][0, 1], second.permute(1, 2, 0).flatten())
    assert merge_maps(model, inputs.inputs).shape == (1, 2, rows, columns)


def test_videos_are_refused():
    with pytest.raises(ValueError, match=r"model \(clip\) takes videos"):
        inputs_for(make_model("VivitModel"), HALF, "clip")


def test_overwrite_replaces_the_pictures_of_the_earlier_call(saved, tmp_path):
    paths = write_images(tmp_path, (32, 32), (40, 40), (48, 48))
    out = tmp_path / "out"
    assert main(["show", str(saved), *paths[:2], "--out", str(out)]) == 0
    (out / "notes.png").write_bytes(b"not ours")
    assert main(["show", str(saved), paths[2], "--out", str(out), "--overwrite", "true"]) == 0
    assert sorted(file.name for file in out.iterdir()) == [
        "maps.safetensors", "notes.png", "photo-2.png", "photo-2.svg", "results.json",
    ]  # fmt: skip
    assert main(["report", str(out), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "of photo-2" in page
    assert "of notes" not in page


def test_statistics_of_images_of_several_shapes_are_refused(tmp_path):
    sizes = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5, "img_size": 32}
    model = insert(make_timm("naflexvit_base_patch16_gap", **sizes), 2)
    folder = save(model, tmp_path / "model", preprocessing=HALF)
    (tmp_path / "photos").mkdir()
    write_images(tmp_path / "photos", *((40, 160), (160, 40)) * 8)
    with pytest.raises(ValueError, match=r"limit \(\d+\): statistics are of images of one shape.*pixels: take limit 0"):
        show(folder, data=tmp_path / "photos", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    results = show(folder, data=tmp_path / "photos", settings=ShowSettings(examples=4, limit=0), out=tmp_path / "out")
    assert results["images"]
    assert results["statistics"] is None


def test_models_of_other_images_than_rgb_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"model \(grey\) takes images of 1 channels"):
        inputs_for(insert(make_vit(in_chans=1), 4, 2), HALF, "grey")


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(32, 48), (32, 32), (64, 24)])
def test_images_are_prepared_as_timm_does(size, interpolation, mode):
    image = torch.randint(0, 255, (3, 70, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    known = Preprocessing((0.5, 0.5, 0.5), (1.0, 1.0, 1.0), 0.9, interpolation, mode)
    found = ModelInputs(make_vit(img_size=size), known).fit(image)
    transform = create_transform(
        (3, *size), is_training=False, mean=known.mean, std=known.std, crop_pct=0.9, interpolation=interpolation,
        crop_mode=mode, use_prefetcher=True,
    )  # fmt: skip
    expected = torch.as_tensor(transform(Image.fromarray(image.permute(1, 2, 0).numpy())))
    assert (found.int() - expected.int()).abs().max() <= 2
