"""Models of transformers come back from their folders as they were, and transformers reads the plain model in them."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

import patchmerger
from conftest import make_images
from hub.families import FAMILIES, make, make_merged
from hub.helpers import assert_round_trip, change_config, make_towers, make_transformers, read_config, run
from patchmerger.data import EvalTransform, Preprocessing, normalize
from patchmerger.hosts import find_host
from patchmerger.hub import SavedMerger, describe, load, save
from patchmerger.insertion import insert, remove
from patchmerger.insertion.inserted import mergers
from patchmerger.reducers import AveragePool
from patchmerger.runs.files import read_json, write_json

pytestmark = pytest.mark.usefixtures("one_thread", "quiet_transformers")


# Round trips


@pytest.mark.parametrize("name", ["ViTForImageClassification", "DINOv3ViTModel", "ASTForAudioClassification"])
def test_round_trip_of_a_plain_model(name, folder):
    assert_round_trip(make(name), folder)


@pytest.mark.parametrize("name", FAMILIES)
def test_round_trip(name, folder):
    model = make_merged(name)
    again = assert_round_trip(model, folder)
    assert [(m.after, m.positions) for m in mergers(again)] == [(m.after, m.positions) for m in mergers(model)]
    assert type(again).__name__ == name
    assert describe(folder).architecture == name


def test_several_mergers_and_reducers(folder):
    model = insert(make("ViTForImageClassification"), 9, after=1, norm="both", scale=0.3)
    insert(model, 6, after=2, reducer=AveragePool(6))
    insert(model, 4, after=3, norm="none")
    assert_round_trip(model, folder)
    assert describe(folder).mergers == (
        SavedMerger(1, 9, "keep", "patchmerger", norm="both", scale=0.3, eps=1e-6),
        SavedMerger(2, 6, "keep", "average", arguments={"num_heads": 1}),
        SavedMerger(3, 4, "keep", "patchmerger", norm="none", scale=1.0, eps=None),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_dtype_is_kept(dtype, folder):
    model = make_merged().to(dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    again = load(save(model, folder))
    assert {tensor.dtype for tensor in again.state_dict().values()} == {dtype}
    assert all(torch.equal(tensor, before[name]) for name, tensor in again.state_dict().items())


def test_weights_of_several_dtypes(folder):
    model = make("DINOv3ViTModel")
    save(model, folder)
    model.embeddings.mask_token.data = model.embeddings.mask_token.data.double()
    with pytest.raises(ValueError, match=r"mask_token in torch\.float32, not torch\.float64 \(give all weights of the"):
        save(model, folder, overwrite=True)
    assert load(folder).embeddings.mask_token.dtype == torch.float32


def test_saving_leaves_the_model_alone(folder):
    model = make_merged().train()
    find_host(model).blocks[0].eval()
    modes = [module.training for module in model.modules()]
    config = model.config.to_dict()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    save(model, folder)
    load(folder)
    assert torch.equal(torch.rand(3), expected)
    assert [module.training for module in model.modules()] == modes
    assert model.config.to_dict() == config


def test_the_implementation_of_attention_is_no_part_of_the_model(folder):
    model = make_merged()
    model.set_attn_implementation("eager")
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = True
    save(model, folder)
    assert load(folder).config._attn_implementation == "sdpa"


# What transformers itself makes of the folder


def test_transformers_reads_a_plain_folder_and_we_read_its(folder, tmp_path):
    model = make()
    save(model, folder)
    assert torch.equal(run(transformers.ViTForImageClassification.from_pretrained(folder)), run(model))
    model.save_pretrained(tmp_path / "theirs")
    assert read_config(folder) == read_config(tmp_path / "theirs")
    assert torch.equal(run(load(tmp_path / "theirs")), run(model))


@pytest.mark.parametrize("name", ["ViTForImageClassification", "DINOv3ViTModel"])
def test_transformers_reads_the_plain_model_in_a_merged_folder(name, folder, tmp_path):
    model = make_merged(name)
    save(model, folder)
    names = load_file(folder / "model.safetensors")
    assert sum(".1.merger." in key for key in names) == 6, "a reader of the file must see that there is a merger"
    plain, found = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    assert not found["missing_keys"]
    assert all(".merger." in key for key in found["unexpected_keys"])
    assert torch.equal(run(plain), run(remove(model)))
    save(plain, tmp_path / "plain")  # its config still has our key
    assert mergers(load(tmp_path / "plain")) == []


def test_a_loaded_model_saved_by_transformers_does_not_claim_its_mergers(folder, tmp_path):
    load(save(make_merged(), folder)).save_pretrained(tmp_path / "theirs")
    assert "patchmerger" not in read_config(tmp_path / "theirs")


def test_shards(folder):
    model = make_merged(after=(1, 3))
    ours = read_config(save(model, folder))["patchmerger"]
    model.save_pretrained(folder, max_shard_size="50KB")
    (folder / "model.safetensors").unlink()
    change_config(folder, patchmerger=ours)
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    assert torch.equal(run(load(folder)), run(model))
    save(model, folder, overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


# Without transformers


def test_nothing_imports_transformers_before_it_is_needed():
    files = list(Path(patchmerger.__file__).parent.rglob("*.py"))
    found = [path for path in files if re.search(r"^(from|import) transformers\b", path.read_text(), re.MULTILINE)]
    assert files
    assert found == []


def test_transformers_is_not_installed(folder, monkeypatch):
    save(make_merged(), folder)
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert describe(folder).num_classes == 5
    with pytest.raises(ModuleNotFoundError, match=r"not installed: pip install 'patchmerger\[hf\]'"):
        load(folder)


@pytest.mark.parametrize("part", ["whole", "vision"])
def test_two_towers_and_the_vision_tower_alone(part, folder):
    model = insert(make_towers(), 4)
    model = model if part == "whole" else model.vision_model
    given = {"pixel_values": make_images()} | ({"input_ids": torch.tensor([[0, 5, 1]])} if part == "whole" else {})
    name = "logits_per_image" if part == "whole" else "pooler_output"
    again = load(save(model, folder))
    assert torch.equal(getattr(again(**given), name), getattr(model(**given), name))
    assert [(found.after, found.num_tokens) for found in mergers(again)] == [(2, 4)]


# How images are prepared


def test_a_model_that_draws_at_random(folder):
    model = insert(make_transformers("ViTMAEModel", mask_ratio=0.5), 2)
    assert [merger.num_tokens for merger in mergers(load(save(model, folder)))] == [2]


def test_an_image_processor_is_saved_along(folder):
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3])
    save(make_merged(), folder, image_processor=processor, class_names=["ant", "bee", "crane", "été", "dog"])
    again = transformers.AutoImageProcessor.from_pretrained(folder)
    assert (list(again.image_mean), dict(again.size)) == ([0.1, 0.2, 0.3], {"height": 32, "width": 32})
    saved = describe(folder)
    assert (saved.library, saved.num_classes, saved.input_size) == ("transformers", 5, (3, 32, 32))
    assert saved.preprocessing == Preprocessing((0.1, 0.2, 0.3), (0.5,) * 3, 1.0, "bilinear", "squash")
    assert saved.class_names == ("ant", "bee", "crane", "été", "dog")
    assert load(folder).config.id2label[3] == "été"
    save(load(folder), folder, overwrite=True)
    assert describe(folder).class_names == saved.class_names
    assert describe(folder).preprocessing is None, "the processor is no part of the model: it is given each time"


def test_a_processor_is_made_from_numbers(folder):
    save(
        make_merged(), folder, preprocessing=Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.8, "bilinear", "squash")
    )
    saved = describe(folder).preprocessing
    assert saved == Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.8, "bilinear", "squash")
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    pixels = processor(torch.full((3, 50, 60), 255, dtype=torch.uint8), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 32, 32)
    torch.testing.assert_close(pixels[0, :, 0, 0], (1 - torch.tensor(saved.mean)) / torch.tensor(saved.std))


PROCESSORS = {
    "ViTImageProcessor": {"size": {"height": 32, "width": 32}},
    "DeiTImageProcessor": {"size": {"height": 40, "width": 40}, "crop_size": {"height": 32, "width": 32}},
    "CLIPImageProcessor": {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}},
    "BitImageProcessor": {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}},
    "SiglipImageProcessor": {"size": {"height": 32, "width": 32}},
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_images_are_prepared_as_the_processor_does(name, folder):
    processor = getattr(transformers, name)(**PROCESSORS[name])
    save(make(), folder, image_processor=processor)
    image = torch.randint(0, 256, (3, 40, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = processor(image, return_tensors="pt")["pixel_values"]
    known = describe(folder).preprocessing
    given = normalize(EvalTransform(32, known)(image)[None], known)
    assert (given - expected).abs().max() < 0.03 / min(known.std)
    config = read_json(folder / "preprocessor_config.json")
    write_json(folder / "preprocessor_config.json", config | {"rescale_factor": 1 / 127.5})
    assert describe(folder).preprocessing is None


@pytest.mark.parametrize(("kind", "crop_mode"), [("ViTFeatureExtractor", "squash"), ("CLIPImageProcessor", "center")])
def test_one_number_for_the_size_means_what_its_class_means(kind, crop_mode, folder):
    save(make(), folder)
    said = {"feature_extractor_type": kind, "size": 40, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    write_json(folder / "preprocessor_config.json", said | {"do_center_crop": True, "crop_size": 32})
    assert describe(folder).preprocessing == Preprocessing((0.5,) * 3, (0.5,) * 3, 0.8, "bilinear", crop_mode)


def test_a_spectrogram_s_extractor(folder):
    extractor = transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=64)
    save(make("ASTForAudioClassification"), folder, image_processor=extractor)
    assert transformers.AutoFeatureExtractor.from_pretrained(folder).max_length == 64
    assert describe(folder).input_size is None


def test_labels_that_say_nothing_are_none(folder):
    assert describe(save(make(), folder)).class_names is None
    change_config(folder, id2label=None)
    assert describe(folder).num_classes == 2, "what transformers leaves out is its default"
    other = make("SiglipVisionModel")
    assert describe(save(other, folder, overwrite=True)).num_classes == 0


def test_describe_reads_a_config_that_says_little(folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "vit", "architectures": ["ViTModel"]}))
    saved = describe(folder)
    assert (saved.num_classes, saved.input_size, saved.preprocessing, saved.mergers) == (0, None, None, ())
