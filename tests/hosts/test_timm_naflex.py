"""NaFlexVit: each image of a padded batch of mixed sizes gets what it gets alone, and no mask outlives the merge."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import make_timm
from hosts.families import Hand
from patchmerger.hosts import UnsupportedModelError
from patchmerger.insertion import insert, remove
from patchmerger.insertion.inserted import mergers
from patchmerger.merger import PatchMerger
from patchmerger.reducers import AveragePool

pytestmark = pytest.mark.usefixtures("one_thread")

GRIDS = ((5, 6), (1, 3), (7, 4), (6, 6))  # (1, 3): fewer patches than merged tokens
NUM_TOKENS = 5
POOLS = {
    "class token": {"class_token": True, "reg_tokens": 2, "global_pool": "token", "fc_norm": False},
    "average": {"reg_tokens": 1},
    "average with prefix": {"reg_tokens": 1, "pool_include_prefix": True},
    "average and maximum": {"global_pool": "avgmax"},
    "maximum": {"global_pool": "max"},
    "MAP": {"reg_tokens": 1, "global_pool": "map", "fc_norm": False},
    "key-only mask": {"reg_tokens": 1, "use_key_only_attn_mask": True},
}
ROPES: dict[str, dict[str, Any]] = {
    "": {},
    "axial": {"rope_type": "axial"},
    "mixed": {"rope_type": "mixed"},
    "mrope": {"rope_type": "mrope", "rope_mrope_section": (2, 3, 3)},
    "stretched": {"rope_type": "axial", "rope_ref_feat_shape": (3, 3)},
}


def make_plain(pool: str = "average", rope: str = "", **kwargs) -> nn.Module:
    sizes = {"patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 5}
    arguments = {"class_token": False, "reg_tokens": 0, **POOLS[pool], **ROPES[rope]}
    return make_timm("naflexvit_base_patch16_gap", **{**sizes, **arguments, **kwargs})


def make_merged(pool: str = "average", rope: str = "", after=(1, 2), num_tokens=(9, NUM_TOKENS), **kwargs) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return insert(make_plain(pool, rope), num_tokens, after, **{"prior": None} | kwargs)


def batch_of(*grids: tuple[int, int]) -> dict[str, Tensor]:
    """Patches of images of these sizes, padded with noise, as timm's collator names them."""
    longest, number = max(h * w for h, w in grids), len(grids)
    patches = torch.randn(number, longest, 48, generator=torch.Generator().manual_seed(7))
    coordinates = torch.zeros(number, longest, 2, dtype=torch.long)
    valid = torch.zeros(number, longest, dtype=torch.bool)
    for i, (height, width) in enumerate(grids):
        places = torch.cartesian_prod(torch.arange(height), torch.arange(width))
        coordinates[i, : height * width], valid[i, : height * width] = places, True
        patches[i] = torch.randn(longest, 48, generator=torch.Generator().manual_seed(height * 100 + width))
    return {"patches": patches, "patch_coord": coordinates, "patch_valid": valid}


def alone(grid: tuple[int, int]) -> dict[str, Tensor]:
    """One of them, without padding."""
    return {name: value[:, : grid[0] * grid[1]] for name, value in batch_of(grid).items()}


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("pool", POOLS)
@torch.no_grad()
def test_each_image_gets_what_it_gets_alone(pool, rope):
    for settings in ({"after": 2, "num_tokens": NUM_TOKENS}, {}):
        model = make_merged(pool, rope, **settings)
        given = model(batch_of(*GRIDS))
        for scores, grid in zip(given, GRIDS, strict=True):
            torch.testing.assert_close(scores, model(alone(grid))[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("rope", ROPES)
@torch.no_grad()
def test_an_image_alone_gets_the_composition_by_hand(rope):
    """Without padding, against formulas of timm; together with the test above, for padded batches too."""
    plain, model = make_plain("class token", rope), make_merged("class token", rope)
    places = {found.after: found.module for found in mergers(model)}
    for grid in GRIDS[2:]:
        hand = Hand(plain, 3, places, grid)
        torch.testing.assert_close(model(alone(grid)), hand(alone(grid)), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("pool", "rope"), [("class token", "mixed"), ("average", "axial"), ("MAP", "mixed")])
def test_gradients_of_a_padded_batch_are_those_of_its_images(pool, rope):
    def gradients(*batches: dict[str, Tensor]) -> dict[str, Tensor]:
        model = make_merged(pool, rope).double()
        batches = tuple({**batch, "patches": batch["patches"].double()} for batch in batches)
        torch.cat([model(batch) for batch in batches]).square().sum().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    together, apart = gradients(batch_of(*GRIDS)), gradients(*map(alone, GRIDS))
    assert together.keys() == apart.keys()
    assert any(".merger." in name for name in together)
    for name, gradient in apart.items():
        torch.testing.assert_close(together[name], gradient, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("rope", ["", "mixed"])
@torch.no_grad()
def test_average_pooling_leaves_padding_out_too(rope):
    model = make_merged("average", rope, reducer=[AveragePool(9), AveragePool(NUM_TOKENS)])
    for scores, grid in zip(model(batch_of(*GRIDS)), GRIDS, strict=True):
        torch.testing.assert_close(scores, model(alone(grid))[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["sinkhorn", "kmedoids", "dpcknn", "atc", "fixed-l2", "random"])
@torch.no_grad()
def test_other_methods_leave_padding_out_too(name):
    model, grids = make_merged("average", "mixed", reducer=name), ((5, 6), (7, 4), (2, 5))
    for scores, grid in zip(model(batch_of(*grids)), grids, strict=True):
        torch.testing.assert_close(scores, model(alone(grid))[0], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"num_tokens \(9\) is more than the real tokens of image\(s\) \[1\]"):
        model(batch_of(*GRIDS))


@torch.no_grad()
def test_what_stands_in_the_padding_does_not_matter():
    model, batch = make_merged("MAP", "mixed"), batch_of(*GRIDS)
    other = copy.deepcopy(batch)
    other["patches"][~batch["patch_valid"]] = 1e4
    torch.testing.assert_close(model(other), model(batch), rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_batch_as_dictionary_as_arguments_and_as_images_is_the_same():
    model, batch = make_merged("average", "axial"), batch_of((5, 6), (5, 6))
    expected = model(batch)
    assert torch.equal(model(batch["patches"], batch["patch_coord"], batch["patch_valid"]), expected)
    assert torch.equal(model(**{"x" if n == "patches" else n: value for n, value in batch.items()}), expected)
    images = batch["patches"].view(2, 5, 6, 4, 4, 3).permute(0, 5, 1, 3, 2, 4).reshape(2, 3, 20, 24)
    torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-5)


def seen_masks(model: nn.Module, run) -> list[tuple[Tensor | None, int]]:
    """The mask that each block's attention is given, and its number of tokens."""
    seen: list[tuple[Tensor | None, int]] = []
    for block in model.blocks:
        block.attn.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append((kwargs.get("attn_mask"), args[0].shape[1])), with_kwargs=True
        )
    run(model)
    return seen


@pytest.mark.parametrize("rope", ["", "axial"])
@torch.no_grad()
def test_no_mask_after_the_merge(rope):
    seen = seen_masks(make_merged("class token", rope), lambda model: model(batch_of(*GRIDS)))
    assert [tokens for _, tokens in seen] == [3 + 36, 3 + 9, 3 + 5, 3 + 5]
    assert [mask is None for mask, _ in seen] == [False, True, True, True]


@torch.no_grad()
def test_features_tell_that_all_merged_tokens_are_real():
    model, batch = make_merged("average"), batch_of(*GRIDS)
    features = model.forward_features(**batch)
    assert features["patches"].shape == (4, 1 + NUM_TOKENS, 32)
    assert features["patch_valid"].shape == (4, NUM_TOKENS)
    assert features["patch_valid"].all()
    expected = model(batch)
    assert torch.equal(model.forward_head(**features), expected)
    stale = {**features, "patch_valid": batch["patch_valid"]}
    assert torch.equal(model.forward_head(**stale), expected)
    assert torch.equal(model.forward_head(features["patches"]), expected)
    assert model.forward_head(features["patches"], pre_logits=True).shape == (4, 32)
    images = torch.randn(2, 3, 24, 24)
    assert model.forward_features(images).shape == (2, 1 + NUM_TOKENS, 32)


@torch.no_grad()
def test_as_many_merged_tokens_as_patches():
    """The padding's mask would fit the merged tokens, and hide some."""
    model = make_merged("average", after=2, num_tokens=36)
    for scores, grid in zip(model(batch_of(*GRIDS)), GRIDS, strict=True):
        torch.testing.assert_close(scores, model(alone(grid))[0], rtol=0, atol=1e-5)
    assert model.forward_features(**batch_of(*GRIDS))["patch_valid"].all()
    output = model.forward_intermediates(batch_of(*GRIDS), [3], output_fmt="NLC", output_dict=True)
    assert output["patch_valid"].all()


@torch.no_grad()
def test_intermediates_with_their_patch_valid():
    plain, model, batch = make_plain("average"), make_merged("average", after=(2, 3)), batch_of(*GRIDS)

    def take(indices, **kwargs):
        return model.forward_intermediates(batch, indices, output_fmt="NLC", output_dict=True, **kwargs)

    before = take([0])
    assert torch.equal(before["patch_valid"], batch["patch_valid"])
    wanted = plain.forward_intermediates(batch, [0], output_fmt="NLC", output_dict=True, intermediates_only=True)
    assert torch.equal(before["image_intermediates"][0], wanted["image_intermediates"][0])
    after = take([2, 3], return_prefix_tokens=True)
    assert after["patch_valid"].shape == (4, NUM_TOKENS)
    assert after["patch_valid"].all()
    assert [f.shape for f in after["image_intermediates"]] == [(4, NUM_TOKENS, 32)] * 2
    assert [f.shape for f in after["image_intermediates_prefix"]] == [(4, 1, 32)] * 2
    assert torch.equal(after["image_features"], model.forward_features(**batch)["patches"])
    assert "image_features" not in take([3], intermediates_only=True)
    assert take([1])["patch_valid"].shape == (4, 9)
    for mixed in ([0, 3], [1, 2]):
        with pytest.raises(ValueError, match=r"indices \(\[\d, \d\]\) .* no one patch_valid fits their features"):
            take(mixed)
    final, features = model.forward_intermediates(batch, [0, 3], output_fmt="NLC")
    assert torch.equal(final, after["image_features"])
    assert [f.shape[1] for f in features] == [36, NUM_TOKENS]
    dense = model.forward_intermediates(torch.randn(2, 3, 24, 24), [0, 3], output_fmt="NLC", output_dict=True)
    assert "patch_valid" not in dense
    with pytest.raises(ValueError, match=r"output_fmt \('NCHW'\) asks for feature maps of block indices \[3\]"):
        model.forward_intermediates(batch, [3])


def test_a_mask_of_ones_own_is_refused():
    batch = batch_of(*GRIDS)
    mask = torch.zeros(4, 1, 37, 37)
    message = "attn_mask was given to a merged NaFlexVit, .* give patch_valid alone"
    for model in (make_merged("average"), make_merged("average", "axial"), make_merged("average", "mixed")):
        for call in (
            lambda m: m({**batch, "attn_mask": mask}),
            lambda m: m(batch["patches"], batch["patch_coord"], batch["patch_valid"], mask),
            lambda m: m.forward_features(**batch, attn_mask=mask),
            lambda m: m.forward_intermediates({**batch, "attn_mask": mask}, output_fmt="NLC"),
            lambda m: m.forward_intermediates(torch.randn(1, 3, 24, 24), output_fmt="NLC", attn_mask=mask),
        ):
            with pytest.raises(ValueError, match=message):
                call(model)
        assert remove(model)({**batch, "attn_mask": mask}).shape == (4, 5)


def test_an_image_without_patches_is_refused():
    batch = batch_of(*GRIDS)
    batch["patch_valid"][2] = False
    with pytest.raises(ValueError, match=r"mask has no real token for image\(s\) \[2\]"):
        make_merged("average")(batch)


def test_a_reducer_that_knows_no_mask_is_refused():
    class Strided(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, ::4]

    with pytest.raises(ValueError, match=r"reducer \(Strided\) has no mask in its forward, but this model's batches"):
        insert(make_plain("average"), 5, reducer=Strided())
    with pytest.raises(ValueError, match=r"reducer \(Strided\) has no return_weights in its forward"):
        insert(make_plain("average", "axial"), 5, reducer=Strided())
    assert insert(make_plain("average", "axial"), 5, reducer=PatchMerger(32, 5))(batch_of(*GRIDS)).shape == (4, 5)


def test_patches_left_out_in_training():
    model = insert(make_plain("MAP", patch_drop_rate=0.5), NUM_TOKENS).train()
    assert model(batch_of(*GRIDS[2:])).shape == (2, 5)
    features = model.forward_features(**batch_of(*GRIDS[2:]))
    assert features["patch_valid"].all()
    assert features["patch_valid"].shape == (2, NUM_TOKENS)
    rotary = insert(make_plain("MAP", "mixed", patch_drop_rate=0.5), NUM_TOKENS, positions="drop").train()
    assert rotary(batch_of(*GRIDS[2:])).shape == (2, 5)


@torch.no_grad()
def test_patches_too_few_for_a_stretched_table():
    model = make_merged("average", "axial", positions="centroid")
    model.rope.ref_feat_shape = (16, 16)  # radians from one end to the other
    assert model(batch_of((6, 6), (6, 8))).shape == (2, 5)
    assert model(batch_of((6, 6), (1, 8))).shape == (2, 5)  # one row: no step to another
    for batch in (batch_of((6, 6), (5, 8)), torch.randn(1, 3, 20, 32)):
        with pytest.raises(ValueError, match="with 5 × 8 patches its rotary positions turn by more than half a turn"):
            model(batch)
        with pytest.raises(ValueError, match="with 5 × 8 patches its rotary positions turn by more than half a turn"):
            model.forward_intermediates(batch, output_fmt="NLC")


@torch.no_grad()
def test_patches_of_several_sizes_in_pixels():
    model = insert(make_plain("average", enable_patch_interpolator=True), NUM_TOKENS)
    batch = batch_of(*GRIDS)
    batch["patches"] = torch.randn(4, 36, 6, 6, 3, generator=torch.Generator().manual_seed(8))
    given = model(batch)
    first = {name: value[:1, :30] for name, value in batch.items()}
    torch.testing.assert_close(given[:1], model(first), rtol=0, atol=1e-5)


@torch.no_grad()
def test_after_the_merging_blocks_were_cut_off():
    plain, model, batch = make_plain("average"), make_merged("average", after=3, num_tokens=4), batch_of(*GRIDS)
    for pruned in (plain, model):
        pruned.prune_intermediate_layers([1])
    assert mergers(model) == []
    features = model.forward_features(**batch)
    assert torch.equal(features["patch_valid"], batch["patch_valid"])
    assert torch.equal(model(batch), plain(batch))
    assert torch.equal(remove(model)(batch), plain(batch))


def test_a_block_of_another_class_is_refused():
    model = make_plain("average")
    model.blocks[1] = nn.Identity()
    with pytest.raises(UnsupportedModelError, match="block 2 is a Identity, not known to run on any number of tokens"):
        insert(model, 4)
