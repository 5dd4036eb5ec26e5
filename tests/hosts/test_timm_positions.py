"""Positions of merged tokens in timm's families: a bias is dropped on request, rotary ones are those of centroids."""

import copy

import pytest
import torch

from conftest import make_images
from hosts.families import FAMILIES, GRID, Hand, centroid_table, encoder_of, family_images, gemma_table, make_family
from hosts.merged_families import BIAS, make_merged, make_plain, places
from patchmerger.hosts import UnsupportedModelError
from patchmerger.insertion import insert, remove
from patchmerger.insertion.inserted import mergers

pytestmark = pytest.mark.usefixtures("one_thread")


ROPE = [name for name, family in FAMILIES.items() if family.rope]


# Relative position bias


@pytest.mark.parametrize("name", BIAS)
def test_a_bias_is_dropped_on_request_only(name):
    model = make_plain(name)
    before = [type(m) for m in model.modules()]
    with pytest.raises(
        UnsupportedModelError, match=r"a relative position bias, which has no value .* positions='drop' leaves"
    ) as error:
        insert(model, 5)
    assert error.value.kind == "relative bias"
    assert [type(m) for m in model.modules()] == before
    with pytest.raises(ValueError, match=r"positions \('centroid'\) .* 'drop'"):
        insert(model, 5, positions="centroid")


@pytest.mark.filterwarnings("ignore:Using a non-tuple:UserWarning", "ignore:torch.searchsorted:UserWarning")  # timm's
@pytest.mark.parametrize("name", BIAS)
@torch.no_grad()
def test_the_size_of_images_can_be_changed_while_the_bias_is_dropped(name):
    images, plain, model = make_images(2, 64), make_plain(name), make_merged(name, 5, 2)
    for changed in (plain, model):
        changed.set_input_size((64, 64))
    assert [found.tokens_before for found in mergers(model)] == [64 + FAMILIES[name].prefix]
    expected = Hand(plain, FAMILIES[name].prefix, places(model), (8, 8))(images)
    torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-5)
    assert torch.equal(remove(model)(images), plain(images))


@pytest.mark.parametrize("name", BIAS)
def test_dropped_tables_stay_in_the_state_dict(name):
    plain, model = make_plain(name), make_merged(name)
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert unexpected == []
    assert all(".merger." in key for key in missing)


# Rotary positions


@pytest.mark.parametrize("name", ROPE)
@torch.no_grad()
def test_no_positions(name):
    images, plain = family_images(), make_plain(name)
    model = insert(make_plain(name), 5, 2, positions="drop", prior=None)
    hand = Hand(plain, FAMILIES[name].prefix, places(model))
    hand.no_positions = True
    torch.testing.assert_close(model(images), hand(images), rtol=0, atol=1e-5)
    moved = Hand(plain, FAMILIES[name].prefix, places(model))(images)
    assert not torch.allclose(model(images), moved, atol=1e-4)


@pytest.mark.parametrize("name", ["DINOv3", "NaFlex mixed", "Qwen3", "Gemma 4"])
@torch.no_grad()
def test_images_of_any_size(name):
    model = make_merged(name)
    for height, width in ((40, 64), (72, 48)):
        images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(4))
        hand = Hand(make_plain(name), FAMILIES[name].prefix, places(model), (height // 8, width // 8))
        torch.testing.assert_close(model(images), hand(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["RoPE axial", "RoPE mixed", "EVA-02"])
@torch.no_grad()
def test_the_size_of_images_can_be_changed(name):
    images, plain, model = torch.randn(2, 3, 40, 64), make_plain(name), make_merged(name)
    for changed in (plain, model):
        changed.set_input_size((40, 64))
    if name == "EVA-02":  # its table for 16 × 16 patches is stretched over 5 rows
        with pytest.raises(ValueError, match="merged tokens cannot have positions: with 5 × 8 patches"):
            model(images)
        return
    hand = Hand(plain, FAMILIES[name].prefix, places(model), (5, 8))
    torch.testing.assert_close(model(images), hand(images), rtol=0, atol=1e-5)
    assert torch.equal(remove(model)(images), plain(images))


def test_patches_too_few_for_a_stretched_table():
    model = make_merged("DINOv3")
    for call in (model, model.forward_features, model.forward_intermediates):
        with pytest.raises(ValueError, match="with 4 × 8 patches its rotary positions turn by more than half a turn"):
            call(torch.randn(1, 3, 32, 64))
    assert insert(make_plain("DINOv3"), 5, positions="drop")(torch.randn(1, 3, 32, 64)).shape == (1, 5)
    narrow = make_family("EVA-02", img_size=40)
    with pytest.raises(
        ValueError, match=r"positions \('centroid'\) cannot be had: with 5 × 5 patches .* choose 'drop'"
    ):
        insert(narrow, 5)
    assert insert(narrow, 5, positions="drop")(torch.randn(1, 3, 40, 40)).shape == (1, 5)
    jittered = make_merged("Sapiens 2").train()  # by a factor of 2, in training
    with pytest.raises(ValueError, match="with 6 × 6 patches its rotary positions turn by more than half a turn"):
        jittered(family_images())
    assert jittered(make_images(2, 72)).shape == (2, 5)


def test_patches_that_are_left_out_are_in_no_grid():
    for name in ("RoPE axial", "RoPE mixed", "NaFlex axial", "NaFlex mixed"):
        model = make_family(name, patch_drop_rate=0.5)
        with pytest.raises(ValueError, match=r"positions \('centroid'\) cannot be had: its patch_drop_rate leaves"):
            insert(model, 5)
        insert(model, 5, positions="drop").train()
        assert model(family_images()).shape == (2, 5)
    unrotated = insert(make_family("EVA", patch_drop_rate=0.5), 5).train()
    assert unrotated(family_images()).shape == (2, 5)


@torch.no_grad()
def test_rows_and_columns_of_images_wider_than_high():
    plain = make_family("RoPE mixed", img_size=(24, 96))
    model = insert(copy.deepcopy(plain), (9, 5), (1, 2), prior=None)
    images = torch.randn(2, 3, 24, 96)
    hand = Hand(plain, 1, places(model), (3, 12))
    torch.testing.assert_close(model(images), hand(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["RoPE axial", "RoPE mixed", "DINOv3", "NaFlex axial", "Gemma 4"])
@torch.no_grad()
def test_positions_in_bfloat16(name):
    """The phases of rounded tables are off by their rounding, once: it does not add up over the grid."""
    model = make_merged(name, 9, 2).bfloat16()
    encoder, weights, tables = encoder_of(model), [], []
    encoder.blocks[1].merger.register_forward_hook(lambda _, args, output: weights.append(output[1]))
    encoder.blocks[3].attn.register_forward_pre_hook(
        lambda _, args, kwargs: tables.append(args[1:3] or (kwargs["rope"],)), with_kwargs=True
    )
    model(family_images().bfloat16())
    if name == "Gemma 4":
        expected = torch.cat(gemma_table(encoder.rotary_emb, GRID, weights[0]), dim=-1)
    else:
        expected = centroid_table(encoder.rope, GRID, weights[0], 3)
    given = torch.cat(tables[0], dim=-1)
    error = (given.float() - expected).abs().max()
    assert error < (0.01 if given.dtype == torch.bfloat16 else 1e-5)  # timm hands float32 where sizes are open
