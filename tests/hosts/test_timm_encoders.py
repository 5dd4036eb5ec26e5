"""Qwen3's, DeepSeek's and Gemma 4's encoders: without a grid, and padded where they can be."""

import copy

import pytest
import torch
from torch import Tensor, nn

from conftest import make_timm
from hosts.families import FAMILIES, Hand, family_images, gemma_table, make_family
from hosts.merged_families import places
from patchmerger.hosts import UnsupportedModelError
from patchmerger.insertion import insert, remove
from patchmerger.insertion.inserted import mergers

pytestmark = pytest.mark.usefixtures("one_thread")

GRID_ENCODERS = ("Qwen3", "DeepSeek")
PROJECTORS = {"Qwen3": "merge", "DeepSeek": "align"}


def make_encoder(name: str, **kwargs) -> nn.Module:
    """The encoder alone, as timm builds it for a language model, and its pooling."""
    family = FAMILIES[name]
    sizes = {key: value for key, value in family.sizes.items() if key != "num_classes"}
    return make_timm(f"{family.architecture}_enc", **{**sizes, **family.arguments, **kwargs})


def merge(model: nn.Module, num_tokens=5, after=2, **kwargs) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return insert(model, num_tokens, after, **{"prior": None} | kwargs)


@pytest.mark.parametrize("pool", ["", "avg"])
@pytest.mark.parametrize("name", GRID_ENCODERS)
@torch.no_grad()
def test_an_encoder_alone(name, pool):
    images, plain = family_images(), make_encoder(name, global_pool=pool)
    model = merge(copy.deepcopy(plain), 9)  # the reshape to 6 × 6 patches would pass: 9 · 32 = 36 · 8
    assert model.forward_features(images).shape == (2, 1, 9, 32)
    expected = Hand(plain, 0, places(model)).features(images)
    torch.testing.assert_close(model.forward_features(images), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(model(images), expected if pool == "" else expected.mean(dim=(1, 2)), rtol=0, atol=1e-5)
    assert [found.name for found in mergers(model)] == ["blocks.1.merger"]
    assert torch.equal(remove(model)(images), plain(images))


@pytest.mark.parametrize("name", GRID_ENCODERS)
@torch.no_grad()
def test_classifier(name):
    images, model = family_images(), merge(make_family(name), 9)
    assert [found.name for found in mergers(model)] == ["encoder.blocks.1.merger"]
    assert model.forward_features(images).shape == (2, 1, 9, 32)
    model.reset_classifier(3, "")
    assert model(images).shape == (2, 9, 3)


@pytest.mark.parametrize("name", GRID_ENCODERS)
@pytest.mark.parametrize("part", ["classifier", "encoder"])
@torch.no_grad()
def test_intermediates_and_final_features(name, part):
    images = family_images()
    plain = make_family(name) if part == "classifier" else make_encoder(name, global_pool="")
    model = merge(copy.deepcopy(plain), 9, 3)
    wanted = plain.forward_intermediates(images, [0, 2], output_fmt="NLC", norm=True, intermediates_only=True)
    for norm in (False, True):
        final, features = model.forward_intermediates(images, output_fmt="NLC", norm=norm)
        assert torch.equal(final, model.forward_features(images))
        assert [tuple(f.shape) for f in features] == [(2, 36, 32)] * 2 + [(2, 9, 32)] * 2
    assert torch.equal(features[0], wanted[0])
    maps = model.forward_intermediates(images, [0, 1], norm=True)[1]
    assert torch.equal(maps[0], plain.forward_intermediates(images, [0], norm=True)[1][0])
    output = model.forward_intermediates(images, [0, 3], output_fmt="NLC", output_dict=True)
    assert torch.equal(output["image_features"], final)
    assert [f.shape[1] for f in output["image_intermediates"]] == [36, 9]
    early = model.forward_intermediates(images, [0], stop_early=True)[0]
    assert torch.equal(early, plain.forward_intermediates(images, [0], stop_early=True)[0])
    assert early.shape == (2, 6, 6, 32)
    assert model.forward_intermediates(images, [2], stop_early=True, output_fmt="NLC")[0].shape == (2, 1, 9, 32)
    with pytest.raises(ValueError, match=r"output_fmt \('NCHW'\) asks for feature maps of block indices \[2, 3\]"):
        model.forward_intermediates(images)


@pytest.mark.parametrize("name", GRID_ENCODERS)
@torch.no_grad()
def test_after_the_merging_blocks_were_cut_off(name):
    images, plain = family_images(), make_family(name)
    model = merge(copy.deepcopy(plain), 9, 3)
    for pruned in (plain, model):
        pruned.prune_intermediate_layers([1], prune_head=False)
    assert mergers(model) == []
    assert torch.equal(model(images), plain(images))
    assert torch.equal(model.forward_features(images), plain.forward_features(images))
    assert torch.equal(remove(model)(images), plain(images))


@pytest.mark.parametrize("name", GRID_ENCODERS)
def test_projectors_need_the_grid(name):
    projector = PROJECTORS[name]
    arguments = {"out_features": 16, "downsample_ratio": 2} if name == "DeepSeek" else {"out_features": 16}
    message = "its projector joins neighbouring patches of the grid; make it with "
    with pytest.raises(UnsupportedModelError, match=message + "encoder_pool=''") as error:
        insert(make_family(name, encoder_pool=projector, **arguments), 5)
    assert error.value.kind == "grid"
    with pytest.raises(UnsupportedModelError, match=message + "global_pool='avg'") as error:
        insert(make_encoder(name, **arguments), 5)
    assert error.value.kind == "grid"


def test_soft_pooling_needs_the_grid():
    message = "its 'soft' pooling averages neighbouring patches of the grid; make it with "
    with pytest.raises(UnsupportedModelError, match=message + "encoder_pool=''") as error:
        insert(make_family("Gemma 4", encoder_pool="soft"), 5)
    assert error.value.kind == "grid"
    with pytest.raises(UnsupportedModelError, match=message + "global_pool='avg'"):
        insert(make_encoder("Gemma 4"), 5)


# Gemma 4: batches of mixed sizes

GRIDS = ((5, 6), (1, 3), (7, 4), (6, 6))


def batch_of(*grids: tuple[int, int], sentinel: bool = False) -> dict[str, Tensor]:
    """Patches of images of these sizes, padded; ``sentinel`` tells the padding by coordinates of −1 alone."""
    longest, number = max(h * w for h, w in grids), len(grids)
    patches = torch.zeros(number, longest, 192)
    coordinates = torch.full((number, longest, 2), -1)
    for i, (height, width) in enumerate(grids):
        places = torch.cartesian_prod(torch.arange(height), torch.arange(width))
        coordinates[i, : height * width] = places
        patches[i] = torch.rand(longest, 192, generator=torch.Generator().manual_seed(height * 100 + width))
    batch = {"patches": patches, "patch_coord": coordinates}
    return batch if sentinel else {**batch, "patch_valid": (coordinates >= 0).all(dim=-1)}


def alone(grid: tuple[int, int]) -> dict[str, Tensor]:
    return {name: value[:, : grid[0] * grid[1]] for name, value in batch_of(grid).items()}


def make_gemma(kind: str) -> nn.Module:
    return make_family("Gemma 4") if kind == "classifier" else make_encoder("Gemma 4", global_pool="avg")


@pytest.mark.parametrize("positions", ["centroid", "drop"])
@pytest.mark.parametrize("kind", ["classifier", "encoder"])
@torch.no_grad()
def test_each_image_gets_what_it_gets_alone(kind, positions):
    model = merge(make_gemma(kind), (9, 5), (1, 2), positions=positions)
    given = model(batch_of(*GRIDS))
    assert torch.equal(model(batch_of(*GRIDS, sentinel=True)), given)
    batch = batch_of(*GRIDS)
    assert torch.equal(model(batch["patches"], batch["patch_coord"], batch["patch_valid"]), given)
    for output, grid in zip(given, GRIDS, strict=True):
        torch.testing.assert_close(output, model(alone(grid))[0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_an_image_alone_gets_the_composition_by_hand():
    plain = make_family("Gemma 4")
    model = merge(copy.deepcopy(plain), (9, 5), (1, 2))
    for grid in GRIDS[2:]:
        patches = {name: value for name, value in alone(grid).items() if name != "patch_valid"}
        hand = Hand(plain, 0, places(model), grid)
        torch.testing.assert_close(model(patches), hand(patches), rtol=0, atol=1e-5)
    images = torch.rand(2, 3, 40, 56)
    torch.testing.assert_close(model(images), Hand(plain, 0, places(model), (5, 7))(images), rtol=0, atol=1e-5)


@torch.no_grad()
def test_as_many_merged_tokens_as_patches():
    """The padding's mask would fit the merged tokens, and hide some."""
    for kind in ("classifier", "encoder"):
        model = merge(make_gemma(kind), 36)
        for output, grid in zip(model(batch_of(*GRIDS)), GRIDS, strict=True):
            torch.testing.assert_close(output, model(alone(grid))[0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_raw_tokens_and_their_patch_valid():
    plain, batch = make_encoder("Gemma 4", global_pool=""), batch_of(*GRIDS)
    model = merge(copy.deepcopy(plain), 5, 3)
    assert model(batch).shape == (4, 5, 32)
    assert torch.equal(model(batch), model.forward_features(batch))

    def take(indices):
        return model.forward_intermediates(batch, indices=indices, output_fmt="NLC", output_dict=True)

    assert torch.equal(take([0, 1])["patch_valid"], batch["patch_valid"])
    assert take([2, 3])["patch_valid"].tolist() == [[True] * 5] * 4
    with pytest.raises(ValueError, match=r"indices \(\[1, 2\]\) .* no one patch_valid fits their features"):
        take([1, 2])
    for pruned in (plain, model):
        pruned.prune_intermediate_layers([1])
    assert torch.equal(model(batch), plain(batch))


def test_patches_in_another_order_are_refused():
    batch = batch_of(*GRIDS)
    order = torch.randperm(36, generator=torch.Generator().manual_seed(0))
    shuffled = {name: value[:, order] for name, value in batch.items()}
    message = "patch_coord gives patches in another order than row by row"
    for model in (merge(make_family("Gemma 4")), merge(make_encoder("Gemma 4", global_pool="avg"))):
        for call in (model, model.forward_features, lambda b, m=model: m.forward_intermediates(b, output_fmt="NLC")):
            with pytest.raises(ValueError, match=message):
                call(shuffled)
    free = merge(make_family("Gemma 4"), positions="drop")
    torch.testing.assert_close(free(shuffled), free(batch), rtol=0, atol=1e-5)


def test_the_reference_for_gemma_is_timms_formula():
    """Where each merged token is one patch, the table made for centroids is the model's own."""
    rope = make_family("Gemma 4").encoder.rotary_emb
    coordinates = torch.cartesian_prod(torch.arange(6), torch.arange(6)).flip(-1)[None]
    for given, wanted in zip(
        gemma_table(rope, (6, 6), torch.eye(36)[None]), rope(torch.ones(1), coordinates), strict=True
    ):
        torch.testing.assert_close(given, wanted)
