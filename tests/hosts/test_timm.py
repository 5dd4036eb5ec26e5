"""timm's families beside the plain VisionTransformer, each held against the composition by hand."""

import copy
import functools

import pytest
import torch
from torch import Tensor, nn

from conftest import make_images
from hosts.families import (
    DEPTH,
    FAMILIES,
    GRID,
    NUM_PATCHES,
    Hand,
    centroid_table,
    encoder_of,
    family_images,
    gemma_table,
    make_family,
)
from patchmerger.hosts import UnsupportedModelError
from patchmerger.inserted import mergers
from patchmerger.insertion import insert, remove

pytestmark = pytest.mark.usefixtures("one_thread")

ROPE = [name for name, family in FAMILIES.items() if family.rope]
BIAS = [name for name, family in FAMILIES.items() if family.positions == "drop_bias"]


@pytest.fixture(params=list(FAMILIES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@functools.cache
def plain_model(name: str) -> nn.Module:
    """Made once: tests copy it."""
    return make_family(name)


def make_plain(name: str) -> nn.Module:
    return copy.deepcopy(plain_model(name))


def make_merged(name: str, num_tokens=(9, 5), after=(1, 2), **kwargs) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return insert(make_plain(name), num_tokens, after, positions=FAMILIES[name].positions, **kwargs)


def places(model: nn.Module) -> dict[int, nn.Module]:
    return {found.after: found.module for found in mergers(model)}


def arriving(model: nn.Module, images: Tensor) -> list[Tensor]:
    """The tokens that arrive at each block."""
    seen: list[Tensor] = []
    hooks = [b.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for b in encoder_of(model).blocks]
    model(images)
    for hook in hooks:
        hook.remove()
    return seen


@torch.no_grad()
def test_merged_output_equals_the_composition_by_hand(name):
    images, plain = family_images(), make_plain(name)
    for settings in ((5, 2), ((9, 5), (1, 2))):
        model = make_merged(name, *settings)
        given = model(images)
        torch.testing.assert_close(given, Hand(plain, FAMILIES[name].prefix, places(model))(images), rtol=0, atol=1e-5)
        assert (given - plain(images)).abs().max() > 0.03


@torch.no_grad()
def test_later_blocks_see_merged_tokens_and_the_prefix_is_the_prefix(name):
    prefix, images = FAMILIES[name].prefix, family_images()
    first = arriving(make_plain(name), images)[0]
    assert (first[0] == first[1]).all(dim=-1).tolist() == [True] * prefix + [False] * NUM_PATCHES
    model = make_merged(name)
    counts = [x.shape[1] - prefix for x in arriving(model, images)]
    assert counts == [NUM_PATCHES, 9, 5, 5]
    assert [found.num_passing_tokens for found in mergers(model)] == [prefix, prefix]
    assert [found.tokens_after for found in mergers(model)] == [prefix + 9, prefix + 5]


class Permute(nn.Module):
    """One-hot weights: the tokens in another order."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.order = torch.randperm(number, generator=torch.Generator().manual_seed(3))

    def forward(self, x: Tensor, mask: Tensor | None = None, *, return_weights: bool = False):
        weights = torch.eye(x.shape[1])[self.order].expand(len(x), -1, -1)
        return (weights @ x, weights) if return_weights else weights @ x


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in BIAS])
@torch.no_grad()
def test_one_hot_weights_change_nothing(name):
    images = family_images()
    model = make_merged(name, NUM_PATCHES, 2, reducer=Permute(NUM_PATCHES))
    torch.testing.assert_close(model(images), plain_model(name)(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", BIAS)
@torch.no_grad()
def test_one_hot_weights_lose_the_bias_only(name):
    images = family_images()
    model = make_merged(name, NUM_PATCHES, 2, reducer=Permute(NUM_PATCHES))
    unbiased = Hand(make_plain(name), FAMILIES[name].prefix, {2: Permute(NUM_PATCHES)})
    torch.testing.assert_close(model(images), unbiased(images), rtol=0, atol=1e-5)
    assert (model(images) - plain_model(name)(images)).abs().max() > 1e-4


@torch.no_grad()
def test_remove_puts_back_the_very_model(name):
    images, plain, model = family_images(), make_plain(name), make_merged(name)
    new = model.state_dict().keys() - plain.state_dict().keys()
    assert len(new) == 6
    assert all(".merger." in key for key in new)
    model(images)
    remove(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert [sorted(vars(m)) for m in model.modules()] == [sorted(vars(m)) for m in plain.modules()]
    assert list(model.state_dict()) == list(plain.state_dict())
    assert torch.equal(model(images), plain(images))


def reached(model: nn.Module) -> set[str]:
    model.zero_grad()
    model(family_images()).square().sum().backward()
    return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.count_nonzero()}


def test_gradients_reach_what_they_reached_before(name):
    before, model = reached(make_plain(name)), make_merged(name)
    mergers_own = {key for key, _ in model.named_parameters() if ".merger." in key}
    dropped = {
        key
        for key in before
        if name in BIAS and ("rel_pos." in key or "relative_position_bias_table" in key)
        if key.startswith(tuple(f"blocks.{i}." for i in range(1, DEPTH)))
    }
    assert reached(model) == (before | mergers_own) - dropped
    assert bool(dropped) == (name in BIAS and "shared" not in name)


@pytest.mark.parametrize("name", ROPE)
@torch.no_grad()
def test_no_positions(name):
    images, plain = family_images(), make_plain(name)
    model = insert(make_plain(name), 5, 2, positions="none")
    hand = Hand(plain, FAMILIES[name].prefix, places(model))
    hand.no_positions = True
    torch.testing.assert_close(model(images), hand(images), rtol=0, atol=1e-5)
    moved = Hand(plain, FAMILIES[name].prefix, places(model))(images)
    assert not torch.allclose(model(images), moved, atol=1e-4)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.prefix])
def test_a_prefix_that_is_counted_is_not_merged(name):
    with pytest.raises(ValueError, match=rf"prefix \('merge'\) .* first {FAMILIES[name].prefix} tokens from patches"):
        insert(make_plain(name), 5, prefix="merge", positions=FAMILIES[name].positions)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.prefix])
@torch.no_grad()
def test_without_a_prefix_all_may_be_merged(name):
    images = family_images()
    assert torch.equal(make_merged(name, prefix="merge")(images), make_merged(name)(images))


@torch.no_grad()
def test_features_come_as_sequences(name):
    images, prefix = family_images(), FAMILIES[name].prefix
    plain, model = make_plain(name), make_merged(name, 5, 2)
    wanted = plain.forward_intermediates(images, output_fmt="NLC", intermediates_only=True)
    final, features = model.forward_intermediates(images, output_fmt="NLC")
    assert [f.shape[1] for f in features] == [NUM_PATCHES, 5, 5, 5]
    assert torch.equal(features[0], wanted[0])
    (last,) = model.forward_intermediates(images, indices=1, output_fmt="NLC", norm=True, intermediates_only=True)
    assert last.shape == (2, 5, 32)
    if name != "CaiT":  # its class token joins after the blocks
        assert torch.equal(final, model.forward_features(images))
        assert torch.equal(final.flatten(1, -2)[:, prefix:], last)
    (feature_map,) = model.forward_intermediates(images, indices=[0], intermediates_only=True)
    assert torch.equal(feature_map.flatten(2).transpose(1, 2), wanted[0])
    with pytest.raises(ValueError, match=r"output_fmt \('NCHW'\) asks for feature maps of block indices \[1, 3\]"):
        model.forward_intermediates(images, indices=[0, 1, 3])


def test_queries_have_no_weight_decay(name):
    plain, model = make_plain(name), make_merged(name)
    root = "" if encoder_of(model) is model else "encoder."
    queries = {f"{root}blocks.{i}.merger.weight" for i in (0, 1)}
    assert set(model.no_weight_decay()) == set(plain.no_weight_decay()) | queries


# Relative position bias


@pytest.mark.parametrize("name", BIAS)
def test_a_bias_is_dropped_on_request_only(name):
    model = make_plain(name)
    before = [type(m) for m in model.modules()]
    with pytest.raises(
        UnsupportedModelError, match=r"a relative position bias, which has no value .* positions='drop_bias' leaves"
    ) as error:
        insert(model, 5)
    assert error.value.kind == "relative bias"
    assert [type(m) for m in model.modules()] == before
    for positions in ("centroid", "none"):
        with pytest.raises(ValueError, match=rf"positions \('{positions}'\) means nothing here: .* 'drop_bias'"):
            insert(model, 5, positions=positions)


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
    assert insert(make_plain("DINOv3"), 5, positions="none")(torch.randn(1, 3, 32, 64)).shape == (1, 5)
    narrow = make_family("EVA-02", img_size=40)
    with pytest.raises(
        ValueError, match=r"positions \('centroid'\) cannot be had: with 5 × 5 patches .* choose 'none'"
    ):
        insert(narrow, 5)
    assert insert(narrow, 5, positions="none")(torch.randn(1, 3, 40, 40)).shape == (1, 5)
    jittered = make_merged("Sapiens 2").train()  # by a factor of 2, in training
    with pytest.raises(ValueError, match="with 6 × 6 patches its rotary positions turn by more than half a turn"):
        jittered(family_images())
    assert jittered(make_images(2, 72)).shape == (2, 5)


def test_patches_that_are_left_out_are_in_no_grid():
    for name in ("RoPE axial", "RoPE mixed", "NaFlex axial", "NaFlex mixed"):
        model = make_family(name, patch_drop_rate=0.5)
        with pytest.raises(ValueError, match=r"positions \('centroid'\) cannot be had: its patch_drop_rate leaves"):
            insert(model, 5)
        insert(model, 5, positions="none").train()
        assert model(family_images()).shape == (2, 5)
    unrotated = insert(make_family("EVA", patch_drop_rate=0.5), 5).train()
    assert unrotated(family_images()).shape == (2, 5)


@torch.no_grad()
def test_rows_and_columns_of_images_wider_than_high():
    plain = make_family("RoPE mixed", img_size=(24, 96))
    model = insert(copy.deepcopy(plain), (9, 5), (1, 2))
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


def test_attention_masks_are_refused():
    for name in ("EVA", "RoPE axial"):
        with pytest.raises(ValueError, match="attn_mask was given to a merged model"):
            make_merged(name)(family_images(), attn_mask=torch.ones(37, 37, dtype=torch.bool))
        with pytest.raises(ValueError, match="is_causal was given to a merged model"):
            make_merged(name)(family_images(), is_causal=True)
