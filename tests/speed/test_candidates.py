import re
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file

from conftest import make_images, make_vit
from patchmerger.hub import save
from patchmerger.insertion import insert
from patchmerger.insertion.inserted import mergers
from patchmerger.speed.candidates import build_candidates
from patchmerger.speed.settings import BenchSettings

pytestmark = pytest.mark.usefixtures("one_thread")


def test_plain_and_merged_have_the_same_weights():
    state = torch.random.get_rng_state()
    settings = BenchSettings(image_size=32, num_tokens=2, after=3)
    found = build_candidates("vit_tiny_patch16_224", settings, seed=1)
    assert torch.equal(state, torch.random.get_rng_state())
    plain, merged = found.models["plain"], found.models["merged"]
    assert not mergers(plain)
    assert [(m.after, m.num_tokens) for m in mergers(merged)] == [(3, 2)]
    assert (found.after, found.num_tokens, found.positions) == ((3,), (2,), None)
    assert all(torch.equal(value, merged.state_dict()[key]) for key, value in plain.state_dict().items())
    again = build_candidates(
        "vit_tiny_patch16_224", BenchSettings(image_size=32, num_tokens=2, after=3), seed=1
    ).models["merged"]
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in merged.state_dict().items())


def test_without_a_seed_nothing_has_weights():
    found = build_candidates("beit_base_patch16_224", BenchSettings(num_tokens=[64, 8], after=[4, 8], against=None))
    assert all(p.is_meta for model in found.models.values() for p in model.parameters())
    assert found.positions == "drop"
    assert found.num_tokens == (64, 8)


def test_a_saved_model_is_measured_as_it_is(tmp_path):
    merged = insert(make_vit(), (9, 3), after=(1, 3))
    save(merged, tmp_path / "merged")
    found = build_candidates(str(tmp_path / "merged"), seed=0)
    assert (found.after, found.num_tokens) == ((1, 3), (9, 3))
    assert not mergers(found.models["plain"])
    with torch.no_grad():
        assert torch.equal(found.models["merged"](make_images()), merged(make_images()))
    save(make_vit(), tmp_path / "plain")
    assert build_candidates(str(tmp_path / "plain"), BenchSettings(num_tokens=5, after=3), seed=0).after == (3,)


def test_a_file_of_weights(tmp_path):
    save_file(timm.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "weights.safetensors")
    settings = BenchSettings(architecture="vit_tiny_patch16_224", num_tokens=4)
    found = build_candidates(str(tmp_path / "weights.safetensors"), settings, seed=0)
    assert found.num_tokens == (4,)
    with pytest.raises(ValueError, match="name the architecture"):
        build_candidates(str(tmp_path / "weights.safetensors"))


def test_vit_pytorch_at_the_same_shape():
    pytest.importorskip("vit_pytorch")
    found = build_candidates(
        "vit_tiny_patch16_224", BenchSettings(image_size=32, num_tokens=2, after=5, against="vit-pytorch"), seed=0
    )
    plain, theirs = found.models["plain"], found.models["vit-pytorch"]
    assert theirs(make_images()).shape == (2, 1000)
    assert theirs.transformer.patch_merge_layer_index == 4
    assert theirs.transformer.patch_merger.queries.shape == (2, 192)
    ours, others = (sum(p.numel() for p in model.parameters()) for model in (plain, theirs))
    assert abs(ours - others) < 0.01 * ours
    with pytest.raises(ValueError, match=re.escape("against ('vit-pytorch') has no counterpart of Eva")):
        build_candidates("eva02_tiny_patch14_224", BenchSettings(against="vit-pytorch"))
    with pytest.raises(ValueError, match=re.escape("has no counterpart of ParallelScalingBlock")):
        build_candidates("vit_base_patch16_xp_224", BenchSettings(against="vit-pytorch"))
    with pytest.raises(ValueError, match=re.escape("against ('vit-pytorch') has one merger, and not 2")):
        build_candidates("vit_tiny_patch16_224", BenchSettings(num_tokens=[9, 3], after=[1, 3], against="vit-pytorch"))


def test_vit_pytorch_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "vit_pytorch.vit_with_patch_merger", None)
    with pytest.raises(
        ValueError, match=re.escape("against ('vit-pytorch') is not installed: pip install vit-pytorch")
    ):
        build_candidates("vit_tiny_patch16_224", BenchSettings(against="vit-pytorch"))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("vit_smal_patch16_224", {}, "did you mean vit_small"),
        ("resnet18", {}, "ResNet cannot take a merger"),
        (
            "vit_tiny_patch16_224",
            {"image_size": 100},
            "image_size (100, 100) does not divide by the patch size (16, 16): take (96, 96), say",
        ),
        ("vit_tiny_patch16_224", {"after": 12}, "after (12) must be a block from 1 to 11"),
        (
            "vit_tiny_patch16_224",
            {"num_tokens": 400},
            "num_tokens (400) after block 6 is more than the 196",
        ),
    ],
)
def test_what_cannot_be_built(name, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build_candidates(name, BenchSettings(**arguments))


def test_another_method_in_the_mergers_place():
    candidates = build_candidates("vit_tiny_patch16_224", BenchSettings(num_tokens=8, reducer="tome"))
    assert type(candidates.models["merged"].blocks[5].merger).__name__ == "ToMe"
    with pytest.raises(ValueError, match=r"against \('vit-pytorch'\) has a PatchMerger: leave reducer \('tome'\)"):
        BenchSettings(reducer="tome", against="vit-pytorch")
